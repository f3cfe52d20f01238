"""Errors of losses computed entry by entry, by type and message; and outputs that overlap inputs."""

import inspect
import math
import re

import numpy as np
import pytest
from cases import DTYPES, ELEMENTWISE, ELEMENTWISE_WITH_GRAD, LAYOUTS
from test_errors import GRADIENTS, LOGITS, expect

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")
every_loss = pytest.mark.parametrize("loss", ELEMENTWISE.values(), ids=ELEMENTWISE)
every_loss_with_grad = pytest.mark.parametrize("loss", ELEMENTWISE_WITH_GRAD.values(), ids=ELEMENTWISE_WITH_GRAD)
every_type = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
INF, NAN = math.inf, math.nan
WEIGHTED = [fx.binary_cross_entropy_with_grad, fx.binary_cross_entropy_with_logits_with_grad]


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1e-6, 1 + 1e-6, 2.0, -INF, INF, NAN])
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


@every_type
def test_bad_probabilities_in_place_leave_them(dtype):
    x = np.zeros((300, 500), dtype)
    x[-1, -1] = 2
    expect(
        fx.binary_cross_entropy_with_grad, (x, np.zeros_like(x)), {"out": x}, ValueError, r"probs\[299, 499\] is 2", x
    )


def names(loss):
    """What the function calls its arrays."""
    return list(inspect.signature(loss.function).parameters)[: len(loss.arrays)]


@pytest.mark.parametrize("row", LOGITS[2:], ids=lambda row: row[0])
@every_loss
def test_input(loss, row):
    _, changes, error, message = row
    good = loss.make((2, 3), 1)
    for place, name in enumerate(names(loss)):
        if row[0] == "booleans" and place:
            continue
        arrays = [*good[:place], changes["x"], *good[place + 1 :]]
        expect(loss.function, arrays, {}, error, message.replace("{x}", name), np.zeros(1))
        if loss.with_grad is not None:
            out = np.full((2, 3), 77.0)
            expect(loss.with_grad, arrays, {"out": out}, error, message.replace("{x}", name), out)


@every_loss
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3, 1), (3, 2), ()])
def test_second_shapes(loss, shape):
    if len(loss.arrays) > 1:
        x, (first, second) = loss.make((2, 3), 1)[0], names(loss)
        message = rf"^{second} has shape {re.escape(str(shape))}, expected that of {first}, \(2, 3\)$"
        expect(loss.function, (x, np.full(shape, 0.5)), {}, ValueError, message, np.zeros(1))


@pytest.mark.parametrize("row", GRADIENTS, ids=lambda row: row[0])
@every_loss_with_grad
def test_incoming_gradients(loss, row):
    _, options, error, message = row
    if row[0] == "incoming matrix":
        options = options | {"grad_output": np.ones((5, 2, 3))}
        message = r"grad_output has shape \(5, 2, 3\), exp"
    x, y = loss.make((2, 3), 1)
    out = np.full((2, 3), 77.0)
    expect(loss.with_grad, (x, y), options | {"out": out}, error, message, out)


@every_loss_with_grad
def test_options(loss):
    x, y = loss.make((2, 3), 1)
    wrong = [
        ({"reduction": "median"}, ValueError, "reduction is 'median', expected one of 'none', 'mean', 'sum'"),
        ({"reduction": None}, ValueError, "reduction is None, expected one of"),
    ]
    if loss.function is not fx.kl_div:
        wrong.append(({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean', expected one of"))
    for option in {"weight", "pos_weight"} & set(loss.options):
        wrong += [
            ({option: [1.0, 2.0]}, ValueError, rf"{option} has shape \(2,.*\), expected"),
            ({option: np.ones((2, 2, 3))}, ValueError, rf"{option} has shape \(2, 2, 3\), expected"),
            ({option: ["a", "b", "c"]}, TypeError, f"{option} has dtype <U1, expected float16"),
            ({option: np.ma.ones(3)}, TypeError, f"{option} is a masked array"),
        ]
    if loss.has_axis:
        wrong += [
            ({"axis": 2}, ValueError, "axis 2 is out of bounds"),
            ({"axis": 1.0}, TypeError, "axis is 1.0, expected an integer"),
            ({"axis": True}, TypeError, "axis is True, expected an integer"),
        ]
    for options, error, message in wrong:
        out = np.full((2, 3), 77.0)
        expect(loss.function, (x, y), options, error, message, out)
        expect(loss.with_grad, (x, y), options | {"out": out}, error, message, out)


@pytest.mark.parametrize(("axis", "error"), [(2, ValueError), (-3, ValueError), (2**70, ValueError), (0.5, TypeError)])
@every_loss
def test_axis(loss, axis, error):
    if loss.has_axis:
        with pytest.raises(error, match="axis"):
            loss.function(*loss.make((2, 3), -1), axis=axis)


# --- overlapping memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", WEIGHTED)
@pytest.mark.parametrize("option", ["target", "weight", "pos_weight", "grad_output"])
@pytest.mark.parametrize("step", [1, 2])
def test_out_that_overlaps_another_argument(function, option, step):
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
