"""Every error by its type and message; nothing is written, and overlapping memory gives right results."""

import numpy as np
import pytest
from cases import ALL_WITH_GRAD, BFLOAT16, ELEMENTWISE_WITH_GRAD, LAYOUTS, LOSSES, MAPS
from numpy.lib.stride_tricks import as_strided

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")

INT64, UINT64 = np.iinfo(np.int64), np.iinfo(np.uint64)
TWINS = {"cross_entropy": fx.cross_entropy_with_grad, "nll_loss": fx.nll_loss_with_grad}
X = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -1.0]])
P = np.full((2, 3), 1 / 3)
MASKED = np.ma.array([0.0, 1.0, 2.0], mask=[False, True, False])
DTYPE = "expected float16, bfloat16, float32, float64 or integers"
RANGE = r"expected a class index in \[0, 3\) or ignore_index=-100"

# (what is wrong, arguments that differ from a good call, error, message); {x} is the name of the first argument
TARGETS = [
    ("label too large", {"target": [0, 3]}, IndexError, rf"^target\[1\] is 3, {RANGE}$"),
    ("label below 0", {"target": [-1, 0]}, IndexError, rf"^target\[0\] is -1, {RANGE}$"),
    ("first of many bad labels", {"target": [9, 10]}, IndexError, r"^target\[0\] is 9, "),
    ("smallest int64", {"target": np.array([0, INT64.min])}, IndexError, rf"^target\[1\] is {INT64.min}, "),
    ("largest int64", {"target": np.array([INT64.max, 0])}, IndexError, rf"^target\[0\] is {INT64.max}, "),
    ("largest uint64", {"target": np.array([0, UINT64.max], "u8")}, IndexError, rf"^target\[1\] is {UINT64.max}, "),
    (
        "largest uint64 beside an ignore_index of 2^63 - 1",
        {"target": np.array([0, UINT64.max], np.uint64), "ignore_index": INT64.max},
        IndexError,
        rf"^target\[1\] is {UINT64.max}, expected a class index in \[0, 3\) or ignore_index={INT64.max}$",
    ),
    ("-100 when something else is ignored", {"target": [0, -100], "ignore_index": 1}, IndexError, "ignore_index=1$"),
    ("byte-swapped label", {"target": np.array([0, 3], ">i4")}, IndexError, r"^target\[1\] is 3, "),
    (
        "position in the target's own shape",
        {"x": np.zeros((2, 3, 4, 5)), "target": np.where(np.arange(40) == 27, 5, 0).reshape(2, 4, 5)},
        IndexError,
        r"^target\[1, 1, 2\] is 5, ",
    ),
    ("unbatched", {"x": X[0], "target": 3}, IndexError, rf"^target is 3, {RANGE}$"),
    ("too few labels", {"target": [0]}, ValueError, r"target has shape \(1,\), expected class indices of shape \(2,\)"),
    ("labels of two axes", {"target": [[0, 1]]}, ValueError, r"target has shape \(1, 2\), expected class indices of"),
    ("labels as floats", {"target": [0.0, 1.0]}, TypeError, r"target has dtype float64, expected integers for class"),
    ("too few probabilities", {"target": P[:1]}, ValueError, r"target has shape \(1, 3\), expected \(2, 3\) for class"),
    ("integer probabilities", {"target": P.astype(int)}, ValueError, r"class probabilities need a floating type"),
    ("ragged", {"target": [[0, 1], [1]]}, ValueError, r"target cannot be made an array: "),
    ("strings", {"target": ["a", "b"]}, TypeError, r"target has dtype <U1, expected integers .* or floats"),
    ("objects", {"target": np.array([0, 1], object)}, TypeError, r"target has dtype object, expected integers"),
    ("booleans", {"target": [True, False]}, TypeError, r"target has dtype bool, expected integers"),
    ("complex", {"target": P * 1j}, TypeError, r"target has dtype complex128, expected integers"),
    ("long double", {"target": P.astype(np.longdouble)}, TypeError, rf"target has dtype float128, {DTYPE}"),
    ("masked labels", {"target": np.ma.array([0, 1], mask=[0, 1])}, TypeError, r"target is a masked array, whose mask"),
]  # fmt: skip
LOGITS = [
    ("no axis", {"x": 1.0, "target": 0}, ValueError, r"{x} has shape \(\), expected at least a class axis"),
    ("no class", {"x": X[:, :0]}, ValueError, r"{x} has shape \(2, 0\), expected at least one class on axis 1"),
    ("ragged", {"x": [[1, 2, 3], [1]]}, ValueError, r"{x} cannot be made an array: "),
    ("strings", {"x": [["a"] * 3] * 2}, TypeError, rf"{{x}} has dtype <U1, {DTYPE}"),
    ("objects", {"x": X.astype(object)}, TypeError, rf"{{x}} has dtype object, {DTYPE}"),
    ("None", {"x": None}, TypeError, rf"{{x}} has dtype object, {DTYPE}"),
    ("booleans", {"x": X > 0}, TypeError, rf"{{x}} has dtype bool, {DTYPE}"),
    ("complex", {"x": X + 0j}, TypeError, rf"{{x}} has dtype complex128, {DTYPE}"),
    ("dates", {"x": X.astype("M8[s]")}, TypeError, rf"{{x}} has dtype datetime64\[s\], {DTYPE}"),
    ("durations", {"x": X.astype("m8[s]")}, TypeError, rf"{{x}} has dtype timedelta64\[s\], {DTYPE}"),
    ("long double", {"x": X.astype(np.longdouble)}, TypeError, rf"{{x}} has dtype float128, {DTYPE}"),
    ("records", {"x": np.zeros((2, 3), [("a", "f4")])}, TypeError, rf"{{x}} has dtype .*, {DTYPE}"),
    ("float8", {"x": X.astype("float8_e4m3fn")}, TypeError, rf"{{x}} has dtype float8_e4m3fn, {DTYPE}"),
    ("IEEE-like float8", {"x": X.astype("float8_e5m2")}, TypeError, rf"{{x}} has dtype float8_e5m2, {DTYPE}"),
    ("masked", {"x": np.ma.array(X)}, TypeError, r"{x} is a masked array, whose mask would be ignored"),
    ("list of masked rows", {"x": [MASKED, MASKED]}, TypeError, r"{x} .* masked"),
]  # fmt: skip
OPTIONS = [
    ("axis out of range", {"axis": 2}, ValueError, r"axis: axis 2 is out of bounds for array of dimension 2"),
    ("axis beyond 64 bits", {"axis": 2**70}, ValueError, r"axis"),
    ("fractional axis", {"axis": 1.0}, TypeError, r"integer"),
    ("boolean axis", {"axis": True}, TypeError, r"axis is True, expected an integer"),
    ("axis that does not fit", {"axis": 0}, ValueError, r"expected class indices of shape \(3,\) .* class axis 0"),
    ("reduction", {"reduction": "median"}, ValueError, r"reduction is 'median', expected one of 'none', 'mean', 'sum'"),
    ("no reduction", {"reduction": None}, ValueError, r"reduction is None, expected one of 'none', 'mean', 'sum'"),
    ("kl_div's reduction", {"reduction": "batchmean"}, ValueError, r"reduction is 'batchmean', expected one of"),
    ("too few weights", {"weight": [1.0, 2.0]}, ValueError, r"weight has shape \(2,\), expected .*\(3,\)"),
    ("scalar weight", {"weight": 1.0}, ValueError, r"weight has shape \(\), expected one weight .* \(3,\)"),
    ("weights of two axes", {"weight": [[1, 2, 3]]}, ValueError, r"weight has shape \(1, 3\), expected .*\(3,\)"),
    ("strings as weights", {"weight": ["a", "b", "c"]}, TypeError, rf"weight has dtype <U1, {DTYPE}"),
    ("masked weights", {"weight": MASKED}, TypeError, r"weight is a masked array, whose mask would be ignored"),
    ("sample_weight", {"sample_weight": [1, 2, 3]}, ValueError, r"sample_weight has shape \(3,\), expected .*\(2,\)"),
    ("sample_weight of more axes", {"sample_weight": P}, ValueError, r"sample_weight has shape \(2, 3\), expected"),
    ("objects as sample_weight", {"sample_weight": [None, 1]}, TypeError, rf"sample_weight has dtype object, {DTYPE}"),
    ("masked sample_weight", {"sample_weight": MASKED[:2]}, TypeError, r"sample_weight is a masked array"),
    ("fractional ignore_index", {"ignore_index": 1.5}, TypeError, r"ignore_index is 1\.5, expected an integer"),
    ("boolean ignore_index", {"ignore_index": True}, TypeError, r"ignore_index is True, expected an integer"),
    ("no ignore_index", {"ignore_index": None}, TypeError, r"ignore_index is None, expected an integer"),
    ("ignore_index beyond 64 bits", {"ignore_index": 2**63}, ValueError, r"ignore_index is 9223372036854775808, exp"),
]  # fmt: skip
CROSS_ENTROPY = [
    (f"{name} {shown}", {name: value}, error, rf"{name} is {shown}, expected a (finite )?number{expected}")
    for name, value, error, shown, expected in [
        ("label_smoothing", -0.1, ValueError, r"-0\.1", r" in \[0, 1\]"),
        ("label_smoothing", 1.5, ValueError, r"1\.5", r" in \[0, 1\]"),
        ("label_smoothing", np.nan, ValueError, "nan", r" in \[0, 1\]"),
        ("label_smoothing", "0.1", TypeError, "'0.1'", ""),
        ("label_smoothing", True, TypeError, "True", ""),
        ("z_loss", -1e-4, ValueError, r"-0\.0001", " >= 0"),
        ("z_loss", np.inf, ValueError, "inf", " >= 0"),
        ("z_loss", 10**400, ValueError, "10{400}", " >= 0"),
        ("z_loss", None, TypeError, "None", ""),
        ("z_loss", [0.1], TypeError, r"\[0\.1\]", ""),
    ]
]
GRADIENTS = [
    ("incoming vector", {"grad_output": [1.0, 2.0]}, ValueError, r"has shape \(2,\), expected a scalar for .*'mean'"),
    ("incoming matrix", {"grad_output": P, "reduction": "none"}, ValueError, r"grad_output has shape \(2, 3\), exp"),
    ("incoming string", {"grad_output": "a"}, TypeError, rf"grad_output has dtype <U1, {DTYPE}"),
    ("incoming masked", {"grad_output": MASKED[:2], "reduction": "none"}, TypeError, r"grad_output is a masked array"),
]  # fmt: skip
BOTH = [*TARGETS, *LOGITS, *OPTIONS]
CALLS = [
    (name, row)
    for name in ("cross_entropy", "nll_loss")
    for row in (*BOTH, *(CROSS_ENTROPY if name == "cross_entropy" else ()))
]


def untouched(out, arguments):
    """Bytes of everything that no failing call may change."""
    arrays = [out, *(v for v in arguments if type(v) is np.ndarray)]
    return [a.tobytes() for a in arrays]


def expect(function, arguments, options, error, message, out):
    """The call fails as expected, and neither `out` nor an argument changes."""
    before = untouched(out, (*arguments, *options.values()))
    with pytest.raises(error, match=message):
        function(*arguments, **options)
    assert untouched(out, (*arguments, *options.values())) == before


@pytest.mark.parametrize(("name", "row"), CALLS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_losses(name, row):
    _, changes, error, message = row
    message = message.replace("{x}", "logits" if name == "cross_entropy" else "log_probs")
    options = {"x": X, "target": [0, 2], **changes}
    x, target = options.pop("x"), options.pop("target")
    out = np.full(np.shape(x) if isinstance(x, np.ndarray) else (2, 3), 77.0)
    expect(LOSSES[name].function, (x, target), options, error, message, out)
    expect(TWINS[name], (x, target), options | {"out": out}, error, message, out)


@pytest.mark.parametrize("row", GRADIENTS, ids=lambda row: row[0])
@pytest.mark.parametrize("function", TWINS.values(), ids=TWINS)
def test_incoming_gradients(function, row):
    _, options, error, message = row
    out = np.full((2, 3), 77.0)
    expect(function, (X, [0, 2]), options | {"out": out}, error, message, out)


def test_bad_labels_in_place_leave_the_logits():
    for dtype in (np.float16, BFLOAT16, np.float32, np.float64):
        x = np.zeros((20_000, 5), dtype)
        target = np.zeros(20_000, np.int64)
        target[-1] = 5
        for function in TWINS.values():
            expect(function, (x, target), {"out": x}, IndexError, r"target\[19999\] is 5", x)


def test_ignored_labels_may_be_out_of_range():
    for ignored in (-1, 3, 10**6, INT64.min, INT64.max):
        for function in TWINS.values():
            loss, _ = function(X, np.array([0, ignored]), ignore_index=ignored)
            assert loss == function(X[:1], [0])[0]


# --- the softmax family ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", LOGITS[2:], ids=lambda row: row[0])
@pytest.mark.parametrize("function", [fx.logsumexp, fx.softmax, fx.log_softmax], ids=lambda f: f.__name__)
def test_input_of_softmax(function, row):
    _, changes, error, message = row
    out = np.full((2,) if function is fx.logsumexp else (2, 3), 77.0)
    expect(function, (changes["x"],), {"out": out}, error, message.replace("{x}", "x"), out)


VJPS = {name: loss for name, loss in MAPS.items() if name.endswith("_vjp")}


@pytest.mark.parametrize("row", LOGITS[2:], ids=lambda row: row[0])
@pytest.mark.parametrize("name", VJPS)
def test_input_of_vector_jacobian_products(name, row):
    _, changes, error, message = row
    saved = {"logsumexp_vjp": "x", "softmax_vjp": "probs", "log_softmax_vjp": "log_probs"}[name]
    out, other = np.full((2, 3), 77.0), X[:, 0] if name == "logsumexp_vjp" else X
    expect(VJPS[name].function, (other, changes["x"]), {"out": out}, error, message.replace("{x}", saved), out)
    expect(VJPS[name].function, (changes["x"], X), {"out": out}, error, message.replace("{x}", "grad_output"), out)


@pytest.mark.parametrize("name", VJPS)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 1), (1, 3), (2, 2)])
def test_shape_of_incoming_gradient(name, shape):
    out = np.full((2, 3), 77.0)
    message = rf"grad_output has shape \({shape[0]},.*\), expected .*\(2,"
    expect(VJPS[name].function, (np.zeros(shape), X), {"out": out}, ValueError, message, out)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("axis", "error"), [(2, ValueError), (-3, ValueError), (2**70, ValueError), (0.5, TypeError), ("0", TypeError)]
)
def test_axis_of_softmax(name, axis, error):
    arrays = MAPS[name].make((2, 3), -1)
    with pytest.raises(error):
        MAPS[name].function(*arrays, axis=axis)


def test_repeated_axes_and_axes_of_nothing():
    with pytest.raises(ValueError, match="repeated axis"):
        fx.logsumexp(X, (0, -2))
    for function in (fx.softmax, fx.log_softmax, fx.logsumexp):
        with pytest.raises(ValueError, match="out of bounds for array of dimension 0"):
            function(1.0)


# --- out ---------------------------------------------------------------------------------------------------------


def read_only(a):
    a.flags.writeable = False
    return a


OUTS = [
    ("wrong shape", lambda d: np.zeros((3, 2), d), ValueError, r"out has shape \(3, 2\), expected \(2, 3\)"),
    ("a spare axis", lambda d: np.zeros((1, 2, 3), d), ValueError, r"out has shape \(1, 2, 3\), expected \(2, 3\)"),
    ("no axis", lambda d: np.zeros((), d), ValueError, r"out has shape \(\), expected \(2, 3\)"),
    ("narrower", lambda d: np.zeros((2, 3), np.float16), TypeError, r"out has dtype float16, expected float64"),
    ("integers", lambda d: np.zeros((2, 3), int), TypeError, r"out has dtype int64, expected float64"),
    ("objects", lambda d: np.zeros((2, 3), object), TypeError, r"out has dtype object, expected float64"),
    ("read-only", lambda d: read_only(np.zeros((2, 3), d)), ValueError, r"out is read-only, expected a writeable"),
    ("a list", lambda d: [[0.0] * 3] * 2, TypeError, r"out is of type list, expected a NumPy array"),
    ("masked", lambda d: np.ma.zeros((2, 3), d), TypeError, r"out is a masked array"),
    ("one row", lambda d: as_strided(np.zeros(3, d), (2, 3), (0, 8)), ValueError, "out .*share memory"),
    ("overlapping rows", lambda d: as_strided(np.zeros(4, d), (2, 3), (8, 8)), ValueError, "out .*share memory"),
]  # fmt: skip
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
@pytest.mark.parametrize("row", OUTS, ids=lambda row: row[0])
def test_wrong_out(write, row):
    _, make, error, message = row
    out, x = make(np.float64), X.copy()
    with pytest.raises(error, match=message):
        write(out)
    assert not np.any(out)
    np.testing.assert_array_equal(X, x)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_out_with_gaps_keeps_what_lies_between(write):
    for layout in ("sliced", "negative strides", "Fortran order", "byte-swapped", "misaligned", "record field"):
        out = LAYOUTS[layout](np.zeros((2, 3)))
        base = out if out.base is None else out.base
        assert write(out) is out
        np.testing.assert_array_equal(out, write(None))
        out[...] = 0
        assert not np.any(np.frombuffer(base.tobytes(), np.uint8))


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
