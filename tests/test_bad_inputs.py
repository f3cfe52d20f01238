"""Inputs that nobody should pass, one line for each: the error names the argument, and nothing is written."""

import math
from contextlib import contextmanager
from inspect import signature

import numpy as np
import pytest
from cases import ALL, ALL_WITH_GRAD, ELEMENTWISE, MAPS, good_call, matrix
from numpy.lib.stride_tricks import as_strided

pytestmark = pytest.mark.usefixtures("backend")

INT64, UINT64 = np.iinfo(np.int64), np.iinfo(np.uint64)
INF, NAN = math.inf, math.nan
X = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -1.0]])
P = np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])
MASKED = np.ma.array([0.0, 1.0, 2.0], mask=[False, True, False])
TEXT = np.array([["a", "b", "c"]] * 2, np.dtypes.StringDType())
WRAPPED = np.array([UINT64.max, UINT64.max], "u8")  # -1 in every position, to who takes it for int64
DEEP = np.where(np.arange(40) == 27, 5, 0).reshape(2, 4, 5)
FIXED = np.zeros((2, 3))
FIXED.flags.writeable = False
CUBE = np.ones((5, 2, 3))

LABELLED = ("cross_entropy", "nll_loss")
VJPS = [name for name in MAPS if name.endswith("_vjp")]

DTYPE = "expected float16, bfloat16, float32, float64 or integers"
KINDS = r"expected integers \(class indices\) or floats \(probabilities\)"
RANGE = r"expected a class index in \[0, 3\) or ignore_index=-100"

# Wherever an array of numbers is expected: what is wrong, value, error, message with the argument's name as {x}
ARRAYS = [
    ("ragged", [[1, 2, 3], [1]], ValueError, "{x} cannot be made an array: "),
    ("strings", [["a"] * 3] * 2, TypeError, f"{{x}} has dtype <U1, {DTYPE}"),
    ("numbers as strings", [["1"] * 3] * 2, TypeError, f"{{x}} has dtype <U1, {DTYPE}"),
    ("bytes", [[b"a"] * 3] * 2, TypeError, rf"{{x}} has dtype \|S1, {DTYPE}"),
    ("text of any length", TEXT, TypeError, rf"{{x}} has dtype StringDType\(\), {DTYPE}"),
    ("objects", X.astype(object), TypeError, f"{{x}} has dtype object, {DTYPE}"),
    ("integers beyond 64 bits", [[2**70, 0, 0]] * 2, TypeError, f"{{x}} has dtype object, {DTYPE}"),
    ("None", None, TypeError, f"{{x}} has dtype object, {DTYPE}"),
    ("a dict", {0: 1.0}, TypeError, f"{{x}} has dtype object, {DTYPE}"),
    ("an iterator", iter([1.0]), TypeError, f"{{x}} has dtype object, {DTYPE}"),
    ("complex", X + 0j, TypeError, f"{{x}} has dtype complex128, {DTYPE}"),
    ("complex of single precision", (X + 0j).astype("c8"), TypeError, f"{{x}} has dtype complex64, {DTYPE}"),
    ("dates", X.astype("M8[s]"), TypeError, rf"{{x}} has dtype datetime64\[s\], {DTYPE}"),
    ("durations", X.astype("m8[s]"), TypeError, rf"{{x}} has dtype timedelta64\[s\], {DTYPE}"),
    ("long double", X.astype(np.longdouble), TypeError, f"{{x}} has dtype float128, {DTYPE}"),
    ("records", np.zeros((2, 3), [("a", "f4")]), TypeError, f"{{x}} has dtype .*, {DTYPE}"),
    ("raw memory", np.zeros((2, 3), "V8"), TypeError, rf"{{x}} has dtype \|V8, {DTYPE}"),
    ("float8", X.astype("float8_e4m3fn"), TypeError, f"{{x}} has dtype float8_e4m3fn, {DTYPE}"),
    ("IEEE-like float8", X.astype("float8_e5m2"), TypeError, f"{{x}} has dtype float8_e5m2, {DTYPE}"),
    ("masked", np.ma.array(X, mask=X > 0), TypeError, "{x} is a masked array, whose mask would be ignored"),
    ("masked, with nothing hidden", np.ma.array(X), TypeError, "{x} is a masked array, whose mask would be ignored"),
    ("the masked constant", np.ma.masked, TypeError, "{x} is a masked array, whose mask would be ignored"),
    ("list of masked rows", [MASKED, MASKED], TypeError, "{x} is a masked array"),
    ("masked rows in tuples", ((MASKED,), (MASKED,)), TypeError, "{x} is a masked array"),
]  # fmt: skip

# A good call of some functions with other arguments: what is wrong, arguments, error, message
LABELS = [
    ("label at C", {"target": [0, 3]}, IndexError, rf"^target\[1\] is 3, {RANGE}$"),
    ("label below 0", {"target": [-1, 0]}, IndexError, rf"^target\[0\] is -1, {RANGE}$"),
    ("first of many bad labels", {"target": [9, 10]}, IndexError, r"^target\[0\] is 9, "),
    ("smallest int8", {"target": np.array([0, -128], "i1")}, IndexError, r"^target\[1\] is -128, "),
    ("largest uint8", {"target": np.array([0, 255], "u1")}, IndexError, r"^target\[1\] is 255, "),
    ("smallest int64", {"target": np.array([0, INT64.min])}, IndexError, rf"^target\[1\] is {INT64.min}, "),
    ("largest int64", {"target": np.array([INT64.max, 0])}, IndexError, rf"^target\[0\] is {INT64.max}, "),
    ("2^63", {"target": np.array([0, 2**63], "u8")}, IndexError, rf"^target\[1\] is {2**63}, "),
    ("largest uint64", {"target": np.array([0, UINT64.max], "u8")}, IndexError, rf"^target\[1\] is {UINT64.max}, "),
    ("that is not -1", {"target": WRAPPED, "ignore_index": -1}, IndexError, rf"^target\[0\] is {UINT64.max}, "),
    ("nor -2", {"target": WRAPPED, "ignore_index": -2}, IndexError, rf"^target\[0\] is {UINT64.max}, "),
    ("nor 2^63 - 1", {"target": WRAPPED, "ignore_index": INT64.max}, IndexError, rf"ignore_index={INT64.max}$"),
    ("-100 when something else is ignored", {"target": [0, -100], "ignore_index": 1}, IndexError, "ignore_index=1$"),
    ("byte-swapped label", {"target": np.array([0, 3], ">i4")}, IndexError, r"^target\[1\] is 3, "),
    ("strided label", {"target": np.array([0, 9, 3, 9])[::2]}, IndexError, r"^target\[1\] is 3, "),
    ("label deep inside", {"x": np.zeros((2, 3, 4, 5)), "target": DEEP}, IndexError, r"^target\[1, 1, 2\] is 5, "),
    ("label of the last axis", {"x": X.T, "target": [0, 5], "axis": 0}, IndexError, r"^target\[1\] is 5, "),
    ("unbatched label", {"x": X[0], "target": 3}, IndexError, rf"^target is 3, {RANGE}$"),
    ("label whose weight is 0", {"target": [0, 3], "weight": [0.0] * 3}, IndexError, r"^target\[1\] is 3, "),
    ("label whose sample counts 0", {"target": [0, 3], "sample_weight": 0}, IndexError, r"^target\[1\] is 3, "),
    ("label of a nan row", {"x": X * NAN, "target": [0, 3]}, IndexError, r"^target\[1\] is 3, "),
    ("too few labels", {"target": [0]}, ValueError, r"target has shape \(1,\), expected class indices of shape \(2,\)"),
    ("too many labels", {"target": [0, 1, 2]}, ValueError, r"target has shape \(3,\), expected class indices of"),
    ("a single label", {"target": 0}, ValueError, r"target has shape \(\), expected class indices of shape \(2,\)"),
    ("labels of two axes", {"target": [[0, 1]]}, ValueError, r"target has shape \(1, 2\), expected class indices of"),
    ("labels as a column", {"target": [[0], [1]]}, ValueError, r"target has shape \(2, 1\), expected class indices of"),
    ("labels for the other axis", {"axis": 0}, ValueError, r"expected class indices of shape \(3,\) .* class axis 0"),
    ("labels as floats", {"target": [0.0, 1.0]}, TypeError, r"target has dtype float64, expected integers for class"),
    ("no label as a float", {"x": X[:0], "target": np.zeros(0)}, TypeError, r"target has dtype float64, expected int"),
    ("one-hot integers", {"target": np.eye(3, dtype=int)[:2]}, ValueError, r"class probabilities need a floating type"),
    ("too few probabilities", {"target": P[:1]}, ValueError, r"target has shape \(1, 3\), expected \(2, 3\) for class"),
    ("transposed probabilities", {"target": P.T}, ValueError, r"target has shape \(3, 2\), expected \(2, 3\) for"),
    ("ignored class of probabilities", {"target": P, "ignore_index": 0}, ValueError, "ignore_index is 0, expected a"),
    ("ragged target", {"target": [[0, 1], [1]]}, ValueError, "target cannot be made an array: "),
    ("no target", {"target": None}, TypeError, f"target has dtype object, {KINDS}"),
    ("strings as target", {"target": ["a", "b"]}, TypeError, f"target has dtype <U1, {KINDS}"),
    ("objects as target", {"target": np.array([0, 1], object)}, TypeError, f"target has dtype object, {KINDS}"),
    ("target beyond 64 bits", {"target": [0, 2**70]}, TypeError, f"target has dtype object, {KINDS}"),
    ("booleans as target", {"target": [True, False]}, TypeError, f"target has dtype bool, {KINDS}"),
    ("one-hot booleans", {"target": P > 0.4}, TypeError, f"target has dtype bool, {KINDS}"),
    ("complex target", {"target": P * 1j}, TypeError, f"target has dtype complex128, {KINDS}"),
    ("dates as target", {"target": np.array([0, 1], "M8[s]")}, TypeError, rf"target has dtype datetime64.*, {KINDS}"),
    ("durations as target", {"target": np.array([0, 1], "m8[s]")}, TypeError, rf"target has .*timedelta.*, {KINDS}"),
    ("long double target", {"target": P.astype(np.longdouble)}, TypeError, f"target has dtype float128, {DTYPE}"),
    ("masked labels", {"target": np.ma.array([0, 1], mask=[0, 1])}, TypeError, "target is a masked array, whose mask"),
    ("masked probabilities", {"target": np.ma.array(P)}, TypeError, "target is a masked array, whose mask"),
]  # fmt: skip
CLASSES = [
    ("no axis", {"x": 1.0, "target": 0}, ValueError, r"{x} has shape \(\), expected at least a class axis"),
    ("no class", {"x": X[:, :0]}, ValueError, r"{x} has shape \(2, 0\), expected at least one class on axis 1"),
    ("no class of no sample", {"x": X[:0, :0]}, ValueError, r"{x} has shape \(0, 0\), expected at least one class"),
    ("no class of (C,)", {"x": [], "target": 0}, ValueError, r"{x} has shape \(0,\), expected at least one class"),
    ("too few weights", {"weight": [1.0, 2.0]}, ValueError, r"weight has shape \(2,\), expected .*\(3,\)"),
    ("no weights", {"weight": []}, ValueError, r"weight has shape \(0,\), expected .*\(3,\)"),
    ("scalar weight", {"weight": 1.0}, ValueError, r"weight has shape \(\), expected one weight .* \(3,\)"),
    ("a scalar for one class", {"x": X[:, :1], "target": [0, 0], "weight": 1.0}, ValueError, r"weight has shape \(\)"),
    ("weights of two axes", {"weight": [[1, 2, 3]]}, ValueError, r"weight has shape \(1, 3\), expected one weight .*3"),
    ("sample_weight", {"sample_weight": [1, 2, 3]}, ValueError, r"sample_weight has shape \(3,\), expected .*\(2,\)"),
    ("no sample_weight", {"sample_weight": []}, ValueError, r"sample_weight has shape \(0,\), expected .*\(2,\)"),
    ("sample_weight of more axes", {"sample_weight": P}, ValueError, r"sample_weight has shape \(2, 3\), expected"),
    ("fractional ignore_index", {"ignore_index": 1.5}, TypeError, r"ignore_index is 1\.5, expected an integer"),
    ("ignore_index as a string", {"ignore_index": "1"}, TypeError, r"ignore_index is '1', expected an integer"),
    ("boolean ignore_index", {"ignore_index": True}, TypeError, r"ignore_index is True, expected an integer"),
    ("two of ignore_index", {"ignore_index": np.arange(2)}, TypeError, r"ignore_index is array\(.*expected an integer"),
    ("no ignore_index", {"ignore_index": None}, TypeError, r"ignore_index is None, expected an integer"),
    ("ignore_index beyond int64", {"ignore_index": 2**63}, ValueError, r"ignore_index is 9223372036854775808, exp"),
    ("and below", {"ignore_index": -(2**63) - 1}, ValueError, r"ignore_index is -9223372036854775809, expected"),
]  # fmt: skip
NUMBERS = [
    (f"{name} {shown}", {name: value}, error, rf"{name} is .*{shown}.*, expected a (finite )?number{expected}")
    for name, value, error, shown, expected in [
        ("label_smoothing", -0.1, ValueError, r"-0\.1", r" in \[0, 1\]"),
        ("label_smoothing", -5e-324, ValueError, "-5e-324", r" in \[0, 1\]"),
        ("label_smoothing", math.nextafter(1, 2), ValueError, r"1\.0+2", r" in \[0, 1\]"),
        ("label_smoothing", 1.5, ValueError, r"1\.5", r" in \[0, 1\]"),
        ("label_smoothing", 2, ValueError, "2", r" in \[0, 1\]"),
        ("label_smoothing", NAN, ValueError, "nan", r" in \[0, 1\]"),
        ("label_smoothing", "0.1", TypeError, "'0.1'", ""),
        ("label_smoothing", True, TypeError, "True", ""),
        ("label_smoothing", None, TypeError, "None", ""),
        ("label_smoothing", 0.1j, TypeError, "0.1j", ""),
        ("label_smoothing", np.array([0.1]), TypeError, r"array\(\[0\.1\]\)", ""),
        ("z_loss", -1e-4, ValueError, r"-0\.0001", " >= 0"),
        ("z_loss", INF, ValueError, "inf", " >= 0"),
        ("z_loss", -INF, ValueError, "-inf", " >= 0"),
        ("z_loss", NAN, ValueError, "nan", " >= 0"),
        ("z_loss", 10**400, ValueError, "10{400}", " >= 0"),
        ("z_loss", None, TypeError, "None", ""),
        ("z_loss", np.False_, TypeError, "False", ""),
        ("z_loss", [0.1], TypeError, r"\[0\.1\]", ""),
    ]
]  # fmt: skip
REDUCTIONS = [
    (f"reduction {value!r}", {"reduction": value}, ValueError, r"reduction is .*, expected one of 'none', 'mean', 'sum")
    for value in ("median", "MEAN", "", b"mean", None, 1, ["mean"], np.array(["mean"]), np.array(["mean", "sum"]))
]
BATCHMEAN = [("kl_div's reduction", {"reduction": "batchmean"}, ValueError, "reduction is 'batchmean', expected one")]
GRADIENTS = [
    ("incoming vector", {"grad_output": [1.0, 2.0]}, ValueError, r"has shape \(2,\), expected a scalar for .*'mean'"),
    ("incoming vector of one", {"grad_output": [1.0]}, ValueError, r"has shape \(1,\), expected a scalar for .*'mean'"),
    ("incoming cube", {"grad_output": CUBE, "reduction": "none"}, ValueError, r"grad_output has shape \(5, 2, 3\), ex"),
    ("incoming string", {"grad_output": "a"}, TypeError, f"grad_output has dtype <U1, {DTYPE}"),
    ("incoming boolean", {"grad_output": True}, TypeError, f"grad_output has dtype bool, {DTYPE}"),
    ("incoming complex", {"grad_output": 1j}, TypeError, f"grad_output has dtype complex128, {DTYPE}"),
    ("incoming masked", {"grad_output": MASKED[:2], "reduction": "none"}, TypeError, "grad_output is a masked array"),
]  # fmt: skip
WEIGHTS = [
    (f"{name}: {what}", {name: value}, TypeError, f"{name} {message}")
    for name in ("weight", "sample_weight", "pos_weight")
    for what, value, message in [
        ("strings", ["a", "b", "c"], f"has dtype <U1, {DTYPE}"),
        ("objects", [None, 1, 2], f"has dtype object, {DTYPE}"),
        ("booleans", [True, False, True], f"has dtype bool, {DTYPE}"),
        ("complex", [1j, 1, 1], f"has dtype complex128, {DTYPE}"),
        ("masked", MASKED, "is a masked array, whose mask would be ignored"),
    ]
]  # fmt: skip
ENTRIES = [
    (f"{name} of shape {np.shape(value)}", {name: value}, ValueError, rf"{name} has shape \(.*\), expected")
    for name in ("weight", "pos_weight")
    for value in ([1.0, 2.0], [], [[1.0], [2.0], [3.0]], CUBE[:2], CUBE[:, :0])
]
SECOND = [
    (f"second of shape {shape}", {"y": np.full(shape, 0.5)}, ValueError, r"^\w+ has shape .*, expected that of")
    for shape in ((), (3,), (2, 1), (1, 3), (3, 2), (2, 3, 1), (0, 3))
]
AXES = [
    ("axis past the last", {"axis": 2}, ValueError, "axis: axis 2 is out of bounds for array of dimension 2"),
    ("axis before the first", {"axis": -3}, ValueError, "axis: axis -3 is out of bounds for array of dimension 2"),
    ("axis beyond an int of C", {"axis": 2**31}, ValueError, "axis is 2147483648, which is out of bounds"),
    (
        "axis beyond 64 bits",
        {"axis": -(2**70)},
        ValueError,
        "axis is -1180591620717411303424, expected a 64-bit",
    ),
    ("fractional axis", {"axis": 1.0}, TypeError, r"axis is 1\.0, expected an integer"),
    ("axis as a string", {"axis": "0"}, TypeError, "axis is '0', expected an integer"),
    ("boolean axis", {"axis": True}, TypeError, "axis is True, expected an integer"),
    ("boolean axis of NumPy", {"axis": np.True_}, TypeError, "axis is .*True.*, expected an integer"),
    ("array of axes", {"axis": np.arange(2)}, TypeError, r"axis is array\(\[0, 1\]\), expected an integer"),
]
NO_AXES = [("axis of a scalar", {"x": 1.0, "y": 1.0}, ValueError, "axis -1 is out of bounds for array of dimension 0")]
SEVERAL_AXES = [
    ("repeated axis", {"axis": (0, -2)}, ValueError, "repeated axis"),
    ("one axis past the last", {"axis": (0, 2)}, ValueError, "axis 2 is out of bounds for array of dimension 2"),
    ("one axis beyond 64 bits", {"axis": (0, 2**70)}, ValueError, "axis is 1180591620717411303424, expected a 64-bit"),
    ("one fractional axis", {"axis": (0, 1.0)}, TypeError, r"axis is 1\.0, expected an integer"),
    ("one boolean axis", {"axis": (0, True)}, TypeError, "axis is True, expected an integer"),
]
FLAGS = [
    (f"{name} {value!r}", {name: value}, TypeError, f"{name} is .*, expected True or False")
    for name in ("keepdims", "log_target")
    for value in ("False", None, 1.0, np.arange(2))
]
CHANCES = [
    (
        f"probability {value}",
        {"x": [[0.5, 1.0, 0.0], [value, NAN, 2.0]]},
        ValueError,
        rf"^probs\[1, 0\] is {shown}, ",
    )
    for value, shown in [(-5e-324, "-5e-324"), (1.5, r"1\.5"), (INF, "inf"), (-INF, "-inf"), (NAN, "nan")]
]
INCOMING = [
    (f"incoming {shape}", {"grad_output": np.zeros(shape)}, ValueError, r"grad_output has shape .*, expected .*\(2, ?")
    for shape in ((3,), (3, 2), (2, 3, 1), (1, 3), (2, 2), (0,))
]

OUTS = [
    ("out of other shape", {"out": np.zeros((3, 2))}, ValueError, r"out has shape \(3, 2\), expected \(2, 3\)"),
    ("out of a spare axis", {"out": np.zeros((1, 2, 3))}, ValueError, r"out has shape \(1, 2, 3\), expected \(2, 3\)"),
    ("out of no axis", {"out": np.zeros(())}, ValueError, r"out has shape \(\), expected \(2, 3\)"),
    ("out of one row", {"out": np.zeros(3)}, ValueError, r"out has shape \(3,\), expected \(2, 3\)"),
    ("empty out", {"out": np.zeros((2, 0))}, ValueError, r"out has shape \(2, 0\), expected \(2, 3\)"),
    ("matrix of other shape", {"out": matrix(np.zeros((3, 2)))}, ValueError, r"out has shape \(3, 2\), expected"),
    ("narrower out", {"out": np.zeros((2, 3), np.float16)}, TypeError, "out has dtype float16, expected float64"),
    ("wider out", {"out": np.zeros((2, 3), np.longdouble)}, TypeError, "out has dtype float128, expected float64"),
    ("integer out", {"out": np.zeros((2, 3), int)}, TypeError, "out has dtype int64, expected float64"),
    ("boolean out", {"out": np.zeros((2, 3), bool)}, TypeError, "out has dtype bool, expected float64"),
    ("complex out", {"out": np.zeros((2, 3), complex)}, TypeError, "out has dtype complex128, expected float64"),
    ("out of dates", {"out": np.zeros((2, 3), "M8[s]")}, TypeError, r"out has dtype datetime64\[s\], expected float64"),
    ("out of objects", {"out": np.zeros((2, 3), object)}, TypeError, "out has dtype object, expected float64"),
    ("out of text", {"out": TEXT}, TypeError, r"out has dtype StringDType\(\), expected float64"),
    ("read-only out", {"out": FIXED}, ValueError, "out is read-only, expected a writeable"),
    ("broadcast out", {"out": np.broadcast_to(0.0, (2, 3))}, ValueError, "out is read-only, expected a writeable"),
    ("out as a list", {"out": [[0.0] * 3] * 2}, TypeError, "out is of type list, expected a NumPy array"),
    ("out as a scalar", {"out": np.float64(0)}, TypeError, "out is of type float64, expected a NumPy array"),
    ("out as memory", {"out": memoryview(np.zeros((2, 3)))}, TypeError, "out is of type memoryview, expected a NumPy"),
    ("masked out", {"out": np.ma.zeros((2, 3))}, TypeError, "out is a masked array"),
    ("out of equal rows", {"out": as_strided(np.zeros(3), (2, 3), (0, 8))}, ValueError, "out .*share memory"),
    ("out of overlapping rows", {"out": as_strided(np.zeros(4), (2, 3), (8, 8))}, ValueError, "out .*share memory"),
    ("out of half numbers", {"out": as_strided(np.zeros(6), (2, 3), (24, 4))}, ValueError, "out .*share memory"),
]  # fmt: skip


def takes(loss, changes):
    """Whether the function, or its twin with a gradient, has all of these arguments."""
    return good_call(loss, changes).keys() <= signature(loss.with_grad or loss.function).parameters.keys()


ERRORS = [
    (name, (what, {argument: value}, error, message.replace("{x}", argument)))
    for name in ALL
    for argument in good_call(ALL[name], {})
    for what, value, error, message in ARRAYS
    if argument != "target" or name in ELEMENTWISE
] + [
    (name, row)
    for names, rows in [
        (LABELLED, [*LABELS, *CLASSES]),
        (ALL, [*NUMBERS, *REDUCTIONS, *AXES, *WEIGHTS, *FLAGS]),
        (ALL_WITH_GRAD, GRADIENTS),
        ([name for name in ALL_WITH_GRAD if name != "kl_div"], BATCHMEAN),
        ([name for name in ALL if name != "logsumexp"], OUTS),
        (["logsumexp"], [(what, {"x": X[..., None]} | out, *rest) for what, out, *rest in OUTS]),
        (["logsumexp_vjp"], [(what, {"grad_output": 1.0, "axis": None} | out, *rest) for what, out, *rest in OUTS]),
        (["softmax", "log_softmax", "logsumexp", "entropy", "multilabel_soft_margin_loss"], NO_AXES),
        (ELEMENTWISE, [*ENTRIES, *SECOND]),
        (["binary_cross_entropy"], CHANCES),
        (["logsumexp", "logsumexp_vjp"], SEVERAL_AXES),
        (VJPS, INCOMING),
    ]
    for name in names
    for row in rows
    if takes(ALL[name], row[1])
]  # fmt: skip


def contents(*values):
    """Bytes of everything that no failing call may change."""
    return [value.tobytes() for value in values if type(value) is np.ndarray and value.dtype != object]


def refused(function, arguments, error, message):
    """The call fails as expected, and leaves its arguments as they were."""
    before = contents(*arguments.values())
    with pytest.raises(error, match=message):
        function(**arguments)
    assert contents(*arguments.values()) == before


@contextmanager
def noted(what):
    """A failure says what it was about."""
    try:
        yield
    except BaseException as failure:  # that of pytest is no Exception
        failure.add_note(f"of {what}")
        raise


@pytest.mark.parametrize("name", ALL)  # and not every error by itself: there are thousands
def test_error(name):
    for what, changes, error, message in [row for called, row in ERRORS if called == name]:
        given = good_call(ALL[name], changes)
        message = message.replace("{x}", next(iter(given)))
        for function in filter(None, (ALL[name].function, ALL[name].with_grad)):
            known = signature(function).parameters
            out = {"out": np.full((2,) if name == "logsumexp" else (2, 3), 77.0)} if "out" in known else {}
            if given.keys() <= known.keys():
                with noted(what):
                    refused(function, out | given, error, message)
