"""The functions of `_elementwise.py` for arrays on a device."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from . import _config
from ._device import NOWHERE, DeviceArray, Memory, Shape, on_device, view
from ._device_problem import Output, as_device, floating, runner, settled
from ._elementwise import make_plan
from ._errors import bad_probability, different_shapes, not_broadcast
from ._options import as_axis
from ._problem import Gradient, as_scalar_grad_output


def as_pair(x_name: str, x: Any, y_name: str, y: Any) -> tuple[DeviceArray, DeviceArray]:
    """Two arrays of one shape and one computing type, that of `x`; the second may hold booleans."""
    run = runner(x_name)
    first = x if type(x) is DeviceArray else as_first(x_name, x)
    second = as_device(run, y_name, y, first.memory)
    kind = run.computing(first)
    if second.dtype == "bool":
        second = run.copied(second, kind)
    second = floating(run, y_name, second)
    if second.shape != first.shape:
        raise different_shapes(y_name, second.shape, x_name, first.shape)
    return first, second if run.computing(second) == kind else run.copied(second, kind)


def as_first(name: str, value: Any) -> DeviceArray:
    """An array of floats."""
    return floating(runner(name), name, view(name, value))


def as_partner(name: str, value: Any, x: DeviceArray) -> DeviceArray:
    """Floats on the device of `x`."""
    run = runner(name)
    return floating(run, name, as_device(run, name, value, x.memory))


def as_probabilities(name: str, value: Any) -> DeviceArray:
    """Floats in [0, 1]; the host waits for the check, unless nobody wants it."""
    run = runner(name)
    x = floating(run, name, view(name, value))
    if not _config.current().check_targets or x.size == 0:
        return x
    if evaluate(run, "outside", x, x, {}, 1.0, None).read()[0]:
        numbers = run.to_host(run.copied(x, "float64"))
        where = tuple(map(int, np.unravel_index(np.argmin((numbers >= 0) & (numbers <= 1)), x.shape)))
        raise bad_probability(name, where, numbers[where])
    return x


def sums_along(name: str, x: DeviceArray, y: DeviceArray, axis: Any) -> Any:
    """A kernel's losses, summed along an axis."""
    run, axis = runner("p"), normalize_axis_index(as_axis(axis), len(x.shape), "axis")
    losses = zeros(run, x, x.shape[:axis] + x.shape[axis + 1 :])
    evaluate(run, name, x, y, {}, 1.0, losses, axis=axis)
    return settled(run, losses)


def evaluate(
    run: Any, name: str, x: DeviceArray, y: DeviceArray, others: dict[str, Any], factor: float,
    losses: DeviceArray | None, grad: DeviceArray | None = None, axis: int | None = None, divisor: float = 1.0,
    result: DeviceArray | None = None,
) -> Any:  # fmt: skip
    """Run a kernel on views of three axes: the sum of all losses, or each loss (or their sums along an axis)."""
    if x.size == 0:
        if losses is not None:
            return None
        return run.sums("values", 0, x.memory.empty((0,), "float64"), None, None, None, None, result, divisor=divisor)
    one = run.one(run.computing(x), x.memory.device)
    loss = losses if losses is None or axis is None else with_axis(losses, axis, x.shape)
    arrays = [x, y, *(others.get(key, one) for key in ("weight", "pos_weight", "scale")), loss, grad]
    views = views_of(x.shape, tuple(array and array[1:3] for array in arrays), axis)
    if views is None:
        arrays[:5] = [
            run.copied(array.broadcast(x.shape)._replace(memory=x.memory), array.dtype) for array in arrays[:5]
        ]
        views = views_of(x.shape, tuple(array and array[1:3] for array in arrays), axis)
    assert views is not None  # as contiguous arrays always have some
    return run.elements(name, arrays, *views, factor, divisor, result)


@lru_cache(maxsize=256)
def views_of(
    shape: Shape, forms: tuple[tuple[Shape, Shape] | None, ...], axis: int | None
) -> tuple[Shape, tuple[Shape | None, ...]] | None:
    """Three axes for arrays of these shapes and strides, which broadcast to one: their lengths, and strides for them.

    None if there are none.
    """
    arrays = [None if form is None else DeviceArray(0, *form, "float32", NOWHERE).broadcast(shape) for form in forms]
    plan = make_plan(shape, tuple(array.strides for array in arrays if array is not None), axis)
    if plan is None:
        return None
    views = [None if array is None else array.transpose(plan.order).reshape(plan.view) for array in arrays]
    return plan.view, tuple(None if view is None else view.strides for view in views)


def elementwise_loss(
    name: str, x: DeviceArray, y: DeviceArray, weight: Any, pos_weight: Any, reduction: str, gradient: Gradient | None,
    axis: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """As `_elementwise.elementwise_loss`."""
    run, memory = runner("target"), x.memory
    kind, shape = run.computing(x), x.shape
    named = {"weight": weight, "pos_weight": pos_weight}
    others = {key: as_broadcast(run, key, v, shape, kind, memory) for key, v in named.items() if v is not None}
    batch = shape if axis is None else shape[:axis] + shape[axis + 1 :]
    divisor = 1 if axis is None else shape[axis]
    if reduction in ("mean", "batchmean"):
        divisor = x.size if reduction == "mean" else math.prod(shape[:1])
    factor, output = 1 / divisor if divisor else math.nan, None
    if gradient is not None:
        incoming, out = gradient
        if incoming is not None and reduction != "none" and not on_device(incoming):
            factor *= as_scalar_grad_output(incoming, reduction)
        elif incoming is not None:
            scale = as_broadcast(run, "grad_output", incoming, batch if reduction == "none" else (), kind, memory)
            others["scale"] = scale if axis is None or scale.shape == () else with_axis(scale, axis, shape)
        inputs = (y, *others.values())
        output = Output(run, out, lambda array: array if array.is_contiguous() else None, (x,), inputs)
    losses = zeros(run, x, batch) if reduction == "none" else None
    result = memory.empty((), kind) if losses is None else losses
    grad = None if output is None else output.target
    evaluate(run, name, x, y, others, factor, losses, grad, None if losses is None else axis, divisor, result)
    return settled(run, result), output and output.finish()


def zeros(run: Any, x: DeviceArray, shape: Shape) -> DeviceArray:
    """Room for losses, which kernels fill if there is anything to sum."""
    losses = x.memory.empty(shape, run.computing(x))
    if x.size == 0:
        run.copy(run.constant(0.0, losses.dtype, x.memory.device).broadcast(shape)._replace(memory=x.memory), losses)
    return losses


def as_broadcast(run: Any, name: str, value: Any, shape: Shape, kind: str, memory: Memory) -> DeviceArray:
    """`value` in this type, with stride 0 where it is broadcast."""
    array = floating(run, name, as_device(run, name, value, memory))
    repeated = array.broadcast(shape)
    if repeated is None:
        raise not_broadcast(name, array.shape, shape)
    return repeated if array.dtype == kind else run.copied(array, kind).broadcast(shape)


def with_axis(array: DeviceArray, axis: int, shape: Shape) -> DeviceArray:
    """The same for all entries along this axis."""
    return array._replace(shape=shape, strides=(*array.strides[:axis], 0, *array.strides[axis:]))
