"""Where results go: layouts of `out`, memory that it shares with inputs, and errors that are found late."""

import numpy as np
import pytest
from cases import ALL_WITH_GRAD, DTYPES, ELEMENTWISE_WITH_GRAD, LAYOUTS, MAPS

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")

every_loss_with_grad = pytest.mark.parametrize("loss", ELEMENTWISE_WITH_GRAD.values(), ids=ELEMENTWISE_WITH_GRAD)
WEIGHTED = [fx.binary_cross_entropy_with_grad, fx.binary_cross_entropy_with_logits_with_grad]
X = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -1.0]])
P = np.full((2, 3), 1 / 3)

WRITERS = {
    "softmax": lambda out: fx.softmax(X, out=out),
    "log_softmax": lambda out: fx.log_softmax(X, out=out),
    "softmax_vjp": lambda out: fx.softmax_vjp(X, P, out=out),
    "log_softmax_vjp": lambda out: fx.log_softmax_vjp(X, X, out=out),
    "logsumexp_vjp": lambda out: fx.logsumexp_vjp(X[:, 0], X, out=out),
    "logsumexp_vjp of two axes": lambda out: fx.logsumexp_vjp(1.0, X, (0, 1), out=out),
    "logsumexp": lambda out: fx.logsumexp(X[:, :, None], out=out),
    "cross_entropy": lambda out: fx.cross_entropy_with_grad(X, [0, 1], out=out)[1],
    "cross_entropy of probabilities": lambda out: fx.cross_entropy_with_grad(X, P, out=out)[1],
    "nll_loss": lambda out: fx.nll_loss_with_grad(X, [0, 1], out=out)[1],
    **{
        name: lambda out, function=loss.with_grad: function(P, P, out=out)[1]
        for name, loss in ELEMENTWISE_WITH_GRAD.items()
    },
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_out_with_gaps_keeps_what_lies_between(write):
    for layout in ("sliced", "negative strides", "Fortran order", "byte-swapped", "misaligned", "record field"):
        out = LAYOUTS[layout](np.zeros((2, 3)))
        base = out if out.base is None else out.base
        assert write(out) is out
        np.testing.assert_array_equal(out, write(None))
        out[...] = 0
        assert not np.any(np.frombuffer(base.tobytes(), np.uint8))


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
@pytest.mark.parametrize("name", [name for name in ALL_WITH_GRAD | MAPS if name != "logsumexp"])
def test_out_with_gaps_and_swapped_bytes(name, dtype):
    loss = (ALL_WITH_GRAD | MAPS)[name]
    function = loss.with_grad or (lambda *a, **k: (0, loss.function(*a, **k)))
    arrays = loss.make((4, 3), 1, np.dtype(dtype).newbyteorder("="))
    for out in (np.zeros((4, 6), dtype)[:, ::2], np.zeros((3, 4), dtype).T):
        assert function(*arrays, **loss.at(1), out=out)[1] is out
        np.testing.assert_array_equal(out, function(*arrays, **loss.at(1))[1])


# --- overlapping memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1, 3, 30, 300])
@pytest.mark.parametrize("shape", [(100, 3), (3, 100), (2, 5000)])
@pytest.mark.parametrize("name", [name for name in ALL_WITH_GRAD | MAPS if name not in ("logsumexp",)])
def test_out_that_partly_overlaps_an_input(name, shape, shift):
    loss = (ALL_WITH_GRAD | MAPS)[name]
    function = loss.with_grad or (lambda *a, **k: (0, loss.function(*a, **k)))
    arrays = loss.make(shape, 1)
    expected = function(*arrays, **loss.at(1))
    for place in range(len(arrays)):
        if arrays[place].shape != shape:
            continue
        for forward in (True, False):
            memory = np.zeros(arrays[place].size + shift)
            low, high = memory[: arrays[place].size].reshape(shape), memory[shift:].reshape(shape)
            source, out = (low, high) if forward else (high, low)
            source[...] = arrays[place]
            got = function(*arrays[:place], source, *arrays[place + 1 :], **loss.at(1), out=out)
            assert got[0] == expected[0]
            assert got[1] is out
            np.testing.assert_array_equal(out, expected[1])


@pytest.mark.parametrize("view", [lambda a: a, memoryview], ids=["array", "memoryview"])
@pytest.mark.parametrize("name", ["target", "weight", "sample_weight", "grad_output", "probabilities"])
def test_out_that_overlaps_another_argument(name, view):
    x = np.arange(64.0).reshape(8, 8) / 10
    rest = {"target": np.arange(8), **dict.fromkeys(("weight", "sample_weight", "grad_output"), np.arange(8.0))}
    rest |= {"target": np.full((8, 8), 0.125)} if name == "probabilities" else {}
    expected = fx.cross_entropy_with_grad(x, reduction="none", **rest)
    out = np.zeros((8, 8))
    key = "target" if name == "probabilities" else name
    inside = (out if name == "probabilities" else out[0]).view(np.asarray(rest[key]).dtype)
    inside[...] = rest[key]
    got = fx.cross_entropy_with_grad(x, reduction="none", out=out, **(rest | {key: view(inside)}))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_out_that_transposes_its_input():
    for function in (fx.softmax, fx.log_softmax):
        x = np.arange(36.0).reshape(6, 6) % 7
        expected = function(x)
        assert function(x, out=x.T) is not None
        np.testing.assert_array_equal(x.T, expected)


def test_out_of_logsumexp_inside_its_input():
    x = np.arange(36.0).reshape(6, 6) % 7
    expected = fx.logsumexp(x)
    fx.logsumexp(x, out=x[:, 0])
    np.testing.assert_array_equal(x[:, 0], expected)
    x = np.arange(36.0).reshape(6, 6) % 7
    fx.logsumexp_vjp(x[0], x, out=x)
    np.testing.assert_array_equal(x, fx.logsumexp_vjp(np.arange(6.0), np.arange(36.0).reshape(6, 6) % 7))


@pytest.mark.parametrize("function", WEIGHTED)
@pytest.mark.parametrize("option", ["target", "weight", "pos_weight", "grad_output"])
@pytest.mark.parametrize("step", [1, 2])
def test_out_that_overlaps_another_argument_of_entries(function, option, step):
    x = np.linspace(0, 1, 64).reshape(8, 8)
    options = {"target": x.T.copy(), "weight": np.arange(8.0), "grad_output": np.arange(8.0) + 1}
    if function is fx.binary_cross_entropy_with_logits_with_grad:
        options["pos_weight"] = np.arange(8.0) + 2
    if option not in options:
        pytest.skip("not an option of it")
    expected = function(x, reduction="none", **options)
    out = np.zeros((8, 8 * step))[:, ::step]
    inside = out if option == "target" else out[3]
    inside[...] = options[option]
    got = function(x, reduction="none", out=out, **(options | {option: inside}))
    assert got[1] is out
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(out, expected[1])


@every_loss_with_grad
def test_out_that_is_both_arguments_or_transposes_them(loss):
    x = loss.make((6, 6), 1)[1]
    expected = loss.with_grad(x.copy(), x.copy())
    out = x.copy()
    got = loss.with_grad(out, out, out=out)
    assert got[0] == expected[0]
    np.testing.assert_array_equal(out, expected[1])
    for make in (lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::-1]):
        source = x.copy()
        loss.with_grad(source, x, out=make(source))
        np.testing.assert_array_equal(make(source), expected[1])


# --- what kernels find ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [fx.cross_entropy_with_grad, fx.nll_loss_with_grad])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_bad_labels_in_place_leave_the_logits(function, dtype):
    x, target = np.zeros((20_000, 5), dtype), np.zeros(20_000, np.int64)
    target[-1] = 5
    with pytest.raises(IndexError, match=r"target\[19999\] is 5"):
        function(x, target, out=x)
    assert not np.any(x)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_bad_probabilities_in_place_leave_them(dtype):
    x = np.zeros((300, 500), dtype)
    x[-1, -1] = 2
    before = x.tobytes()
    with pytest.raises(ValueError, match=r"probs\[299, 499\] is 2"):
        fx.binary_cross_entropy_with_grad(x, np.zeros_like(x), out=x)
    assert x.tobytes() == before


@pytest.mark.parametrize("bad", [-1e-6, 1 + 1e-6, 2.0, -np.inf, np.inf, np.nan])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_probabilities_outside_0_and_1(layout, bad):
    for dtype in (np.float32, np.float64):
        x = np.full((40, 3, 100), 0.5, dtype)
        x[7:, 2, 50] = x[9, 0, 0] = bad
        x = layout(x) if layout is not LAYOUTS["broadcast"] else x
        message = rf"^probs\[7, 2, 50\] is {dtype(bad)!s}, expected a probability in \[0, 1\]$"
        for function in (fx.binary_cross_entropy, fx.binary_cross_entropy_with_grad):
            with pytest.raises(ValueError, match=message):
                function(x, np.zeros((40, 3, 100)))
    with pytest.raises(ValueError, match=r"^probs is 2\.0, expected a probability"):
        fx.binary_cross_entropy(2.0, 1)


def test_probabilities_of_nan_in_sixteen_bits():
    for dtype in ("float16", "bfloat16"):  # comparing the latter with nan is a warning, which tests make an error
        with pytest.raises(ValueError, match=r"^probs\[1\] is nan, expected a probability"):
            fx.binary_cross_entropy(np.array([0.5, np.nan], DTYPES[dtype]), [0, 1])
