"""The CUDA backend in Numba's simulator: arrays on a device, and every kind of kernel at sizes that reach it."""

import numpy as np
import pytest
from cases import ALL, ALL_WITH_GRAD, DTYPES, LAYOUTS, LOSSES, WITH_GRAD, assert_close, exact, make_options
from gpu_arrays import GpuArray, to_gpu
from test_config import python

import fastxent as fx
from fastxent import _backends

pytest.importorskip("numba.cuda")

run = pytest.importorskip("fastxent._cuda_run")
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
F32 = np.float32


def on_gpu(value):
    return to_gpu(value) if isinstance(value, np.ndarray) else value


def host(value):
    """From the GPU, which is where results have to be."""
    assert type(value) is GpuArray
    return value.get()


def check_against_host(function, arrays, options, factor=2):
    """The same numbers as from the host, of the same types and shapes."""
    with np.errstate(all="ignore"):
        expected = function(*arrays, **options)
    got = function(*map(on_gpu, arrays), **{name: on_gpu(value) for name, value in options.items()})
    for here, there in zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]:
        there = np.asarray(there)
        assert host(here).dtype == there.dtype
        assert host(here).shape == there.shape
        assert_close(host(here), exact(there), factor)


# --- every function ----------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_every_function_of_every_type(loss, dtype):
    arrays, options = loss.make((3, 5, 2), 1, dtype), make_options(loss, (3, 5, 2), 1, "all", dtype)
    check_against_host(loss.function, arrays, {**options, **loss.at(1)})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", ALL_WITH_GRAD.values(), ids=ALL_WITH_GRAD)
def test_every_gradient(loss, reduction):
    arrays = loss.make((3, 5), 1, F32)
    shape = loss.loss_shape((3, 5), 1) if reduction == "none" else ()
    incoming = np.asarray(np.random.default_rng(2).standard_normal(shape), F32)
    for options in ({}, make_options(loss, (3, 5), 1, "all", F32) | {"grad_output": incoming}):
        check_against_host(loss.with_grad, arrays, options | loss.at(1) | {"reduction": reduction})


@pytest.mark.parametrize("unit", [2.0**-147, 2.0**126], ids=["tiny", "huge"])
@pytest.mark.parametrize("loss", WITH_GRAD.values(), ids=WITH_GRAD)
def test_only_the_ratios_of_weights_matter_to_the_mean(loss, unit):
    """On arrays of either side; over such weights neither the mean's denominator nor its inverse is a float32."""
    arrays, shares = loss.make((5, 3), 1, F32), np.arange(5, dtype=F32) % 4
    check_against_host(loss.with_grad, arrays, {"sample_weight": shares * F32(unit)})
    with fx.config_context(backend="cuda"):
        got = loss.with_grad(*arrays, sample_weight=shares * unit)
    for there, expected in zip(got, loss.with_grad(*arrays, sample_weight=shares), strict=True):
        assert_close(there, expected, 2)


@pytest.mark.parametrize(("shape", "axis"), [((5,), 0), ((4, 1), 1), ((0, 3), 1), ((2, 3, 2, 2), 1), ((3, 4, 2), -3)])
@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_every_place_of_the_class_axis(loss, shape, axis):
    check_against_host(loss.function, loss.make(shape, axis, F32), loss.at(axis))


@pytest.mark.parametrize("layout", ["sliced", "Fortran order", "negative strides"])
@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_every_layout(loss, layout):
    for shape in ((3, 4, 2), (2, 3, 2, 2)):  # of which the latter, sliced, has no view of three axes
        check_against_host(loss.function, loss.make(shape, 1, F32, LAYOUTS[layout]), loss.at(1))


@pytest.mark.parametrize("axis", [0, (0, 2), None, ()])
def test_logsumexp_over_several_axes(axis):
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(F32)
    check_against_host(fx.logsumexp, [x], {"axis": axis, "keepdims": True})
    incoming = np.asarray(fx.logsumexp(x, axis))
    check_against_host(fx.logsumexp_vjp, [incoming, x], {"axis": axis})


# --- every kind of kernel ----------------------------------------------------------------------------------------

# A thread, a group of lanes, a warp, a block of several, and more than those hold, in numbers of 4 bytes; every second
# of these does not begin at a multiple of 16 bytes.
SIZES = (1, 3, 8, 13, 32, 47, 64, 99, 260, 301)


@pytest.mark.parametrize("classes", SIZES)
@every_dtype
def test_every_size(dtype, classes):
    loss = LOSSES["cross_entropy"]
    arrays, options = loss.make((3, classes), 1, dtype), make_options(loss, (3, classes), 1, "weight", dtype)
    check_against_host(loss.with_grad, arrays, options)


@pytest.mark.parametrize("classes", [3, 13, 32, 99, 301])
@pytest.mark.parametrize("name", [*LOSSES])
def test_every_size_of_the_others(name, classes):
    loss = LOSSES[name]
    options = make_options(loss, (2, classes), 1, "label_smoothing", F32)
    check_against_host(loss.with_grad or loss.function, loss.make((2, classes), 1, F32), options | loss.at(1))


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_probabilities_of_another_type(storage):
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((3, 40)).astype(storage), rng.random((3, 40)).astype(DTYPES["float16"])
    check_against_host(fx.cross_entropy_with_grad, [x, t], {})
    check_against_host(fx.softmax_vjp, [t.astype(F32), x], {})


@pytest.mark.parametrize("classes", [6, 40])
def test_classes_apart_and_samples_side_by_side(classes):
    loss = LOSSES["cross_entropy"]
    check_against_host(loss.with_grad, loss.make((2, classes, 3), 1, F32), {"label_smoothing": 0.1})


def test_many_samples_are_summed_in_chunks():
    x, y = np.zeros((run.CHUNK + 3, 2), F32), np.ones(run.CHUNK + 3, np.int64)
    y[5] = -100
    loss = host(fx.cross_entropy(to_gpu(x), to_gpu(y), weight=to_gpu(np.array([1, 2], F32))))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    y[run.CHUNK + 1] = 7
    with pytest.raises(IndexError, match=rf"target\[{run.CHUNK + 1}\] is 7"):
        fx.cross_entropy(to_gpu(x), to_gpu(y))


def test_a_small_loss_keeps_its_precision():
    x = np.array([[20.0, 0.0], [0.0, -80.0]], F32)
    loss, grad = fx.cross_entropy_with_grad(to_gpu(x), to_gpu(np.array([0, 0])), reduction="none")
    np.testing.assert_allclose(host(loss), [np.log1p(np.exp(-20.0)), np.exp(-80.0)], rtol=1e-6)
    np.testing.assert_allclose(host(grad)[:, 0], -host(grad)[:, 1], rtol=1e-6)
    np.testing.assert_allclose(host(fx.logsumexp(to_gpu(x)))[1], np.exp(-80.0), rtol=1e-6)
    probs = to_gpu(np.array([[1, 0], [1, 0]], F32))
    np.testing.assert_allclose(
        host(fx.cross_entropy_with_grad(to_gpu(x), probs, reduction="none")[1]), host(grad), rtol=1e-6
    )


def test_nan_and_infinity_stay_in_their_row():
    x = np.array([[1, np.nan], [1, np.inf], [-np.inf, 2], [-np.inf, -np.inf], [1, 2]], F32)
    y = np.zeros(5, np.int64)
    for function in (fx.softmax, fx.log_softmax, fx.logsumexp):
        np.testing.assert_allclose(host(function(to_gpu(x))), function(x), rtol=1e-6)
    np.testing.assert_allclose(
        host(fx.cross_entropy(to_gpu(x), to_gpu(y), reduction="none")),
        fx.cross_entropy(x, y, reduction="none"),
        rtol=1e-6,
    )


# --- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.uint64])
def test_labels_of_any_integer_type(dtype):
    x, y = np.eye(3, dtype=F32), np.array([0, 2, 1], dtype)
    check_against_host(fx.cross_entropy, [x, y], {})


@pytest.mark.parametrize("function", [fx.cross_entropy_with_grad, fx.nll_loss_with_grad])
def test_a_label_out_of_range_is_the_error_of_the_host(function):
    x, y = np.zeros((2, 3, 2), F32), np.array([[0, 1], [-100, 3]])
    with pytest.raises(IndexError) as expected:
        function(x, y)
    out = to_gpu(np.full_like(x, 5))
    with pytest.raises(IndexError) as raised:
        function(to_gpu(x), to_gpu(y), out=out)
    assert str(raised.value) == str(expected.value)
    assert (out.get() == 5).all()  # nothing has been written


@pytest.mark.parametrize("label", [3, -1, 2**62, -(2**63)])
def test_without_the_check_such_samples_are_nan(label):
    # The simulator would refuse to touch memory outside of the arrays.
    x, y = np.zeros((3, 3), F32), np.array([0, label, -100])
    with fx.config_context(check_targets=False):
        loss, grad = fx.cross_entropy_with_grad(to_gpu(x), to_gpu(y), reduction="none", weight=to_gpu(np.ones(3, F32)))
        assert np.isnan(host(loss)).tolist() == [False, True, False]
        assert np.isnan(host(grad)).all(1).tolist() == [False, True, False]
        assert not host(grad)[2].any()
        assert np.isnan(host(fx.nll_loss(to_gpu(x), to_gpu(y))))


def test_bad_probabilities():
    p = np.array([[0.5, 1.5], [0.0, 1.0]], F32)
    with pytest.raises(ValueError, match=r"probs\[0, 1\] is 1.5, expected a probability in \[0, 1\]"):
        fx.binary_cross_entropy(to_gpu(p), to_gpu(p))
    with fx.config_context(check_targets=False):
        fx.binary_cross_entropy(to_gpu(p), to_gpu(p))


# --- results -----------------------------------------------------------------------------------------------------


def test_an_incoming_gradient_is_multiplied_by_weights_in_double():
    x, y = LOSSES["cross_entropy"].make((2, 4), 1, F32)
    options = {"grad_output": np.array([1e50, 1.0]), "sample_weight": np.array([1e-30, 2.0], F32), "reduction": "none"}
    check_against_host(fx.cross_entropy_with_grad, [x, y], options)


@pytest.mark.parametrize("classes", [5, 64, 300])
def test_the_gradient_may_replace_the_logits(classes):
    x, y = LOSSES["cross_entropy"].make((3, classes), 1, F32)
    expected = fx.cross_entropy_with_grad(x, y)[1]
    there = to_gpu(x)
    assert fx.cross_entropy_with_grad(there, to_gpu(y), out=there)[1] is there
    assert_close(there.get(), expected)


def test_out_of_any_strides_and_overlapping_an_input():
    p = fx.softmax(np.arange(12, dtype=F32).reshape(3, 4))
    out = to_gpu(np.zeros((4, 3), F32).T)
    assert fx.softmax(to_gpu(p), out=out) is out
    assert_close(out.get(), fx.softmax(p))
    both = np.zeros((4, 4), F32)
    both[:3] = p
    memory = GpuArray(both)
    first, last = GpuArray(memory.get()[:3]), GpuArray(memory.get()[1:])
    fx.softmax(first, out=last)
    assert_close(last.get(), fx.softmax(p))


WRONG = [
    (lambda x, y: fx.softmax(x, out=np.zeros(6)), TypeError, "out is of type ndarray, expected an array on the GPU"),
    (lambda x, y: fx.softmax(x, out=to_gpu(np.zeros(6))), ValueError, r"out has shape \(6,\), expected \(2, 3\)"),
    (lambda x, y: fx.softmax(x, out=to_gpu(np.zeros((2, 3)))), TypeError, "out has dtype float64, expected float32"),
    (lambda x, y: fx.softmax(np.zeros((2, 3)), out=x), TypeError, "out is an array on a GPU, expected one of the host"),
    (lambda x, y: fx.cross_entropy(np.zeros((2, 3)), y), TypeError, "target is an array on a GPU"),
    (lambda x, y: fx.cross_entropy(x, x.get()[:, 0]), TypeError, "target has dtype float32, expected integers"),
    (lambda x, y: fx.cross_entropy(x, y, weight=[1.0]), ValueError, r"weight has shape \(1,\), expected one weight"),
    (lambda x, y: fx.cross_entropy(x, y, axis=2), ValueError, "axis 2 is out of bounds"),
    (lambda x, y: fx.cross_entropy(to_gpu(np.zeros(())), y), ValueError, "expected at least a class axis"),
    (lambda x, y: fx.softmax(to_gpu(np.zeros(3, "c8"))), TypeError, "x has dtype complex64, expected float16"),
    (lambda x, y: fx.kl_div(x, y), ValueError, r"target has shape \(2,\), expected that of log_probs, \(2, 3\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(to_gpu(np.zeros((2, 3), F32)), to_gpu(np.zeros(2, np.int64)))


@pytest.mark.parametrize("backend", ["cython", "numba"])
def test_other_backends_refuse_arrays_on_a_device(backend):
    with (
        fx.config_context(backend=backend),
        pytest.raises(TypeError, match=f"x is on a GPU, where backend '{backend}'"),
    ):
        fx.softmax(to_gpu(np.zeros(3)))


def test_arguments_of_the_host_go_to_the_device():
    x = np.eye(3, dtype=F32)
    loss = fx.cross_entropy(to_gpu(x), [0, 1, 2], weight=[1, 2, 3], sample_weight=0.5)
    assert_close(host(loss), fx.cross_entropy(x, [0, 1, 2], weight=[1, 2, 3], sample_weight=0.5))


# --- what is missing ---------------------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_one_clear_error():
    if python("from numba import cuda; assert not cuda.is_available()", NUMBA_ENABLE_CUDASIM="0").returncode:
        pytest.skip("there is a GPU")
    code = "import fastxent as fx\nfx.set_config(backend='cuda')\nfx.softmax([1.0])"
    message = python(code, NUMBA_ENABLE_CUDASIM="0").stderr.splitlines()[-1]
    assert message.startswith("RuntimeError: backend 'cuda' needs ")
    assert "nvidia-smi" in message
    code = "import fastxent as fx; print(fx.show_config('dicts')['backends']['cuda'])"
    assert python(code, NUMBA_ENABLE_CUDASIM="0").stdout.startswith("unavailable: backend 'cuda' needs ")


def test_numba_cuda_that_is_not_installed_is_one_clear_error():
    code = "import sys; sys.modules['numba.cuda'] = None\nimport fastxent as fx\nfx.set_config(backend='cuda')\n"
    message = python(code + "fx.softmax([1.0])").stderr.splitlines()[-1]
    assert message.startswith("RuntimeError: backend 'cuda' needs numba-cuda: pip install 'fastxent[cuda]'")


def test_one_module_imports_cuda():
    import ast
    from pathlib import Path

    importers = set()
    for path in Path(_backends.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "numba"
                and any(a.name == "cuda" for a in node.names)
            ):
                importers.add(path.name)
    assert importers == {"_cuda_package.py"}
