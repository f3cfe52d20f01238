"""Losses of single entries: from a user's arrays to checked 3-D views of one shape, and back.

Every axis is alike, but for the class axis of losses that are summed along it. So axes are taken in the order in which
they lie in memory, and merged where all arrays allow it: most problems have a single long axis in the end.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray  # read in every call, and np.ndarray is one more look-up
from numpy.lib.array_utils import normalize_axis_index
from numpy.typing import ArrayLike

from . import _backends
from ._backends import Array
from ._device import on_device
from ._errors import bad_probability, different_shapes, not_broadcast
from ._options import as_axis
from ._problem import (
    Gradient,
    as_array,
    as_floats,
    as_plain,
    as_scalar_grad_output,
    as_stored,
    check_out,
    compute_type,
    finish,
    for_device,
    may_write,
)
from ._reduction import gradient_scale, ones, reduced_loss

Shape = tuple[int, ...]

# --- arrays ------------------------------------------------------------------------------------------------------


def as_pair(x_name: str, x: ArrayLike, y_name: str, y: ArrayLike) -> tuple[Array, Array]:
    """Two arrays of one shape and one computing type, that of `x`; the second may hold booleans."""
    if type(x) is not ndarray and on_device(x):
        return for_device("_device_elementwise").as_pair(x_name, x, y_name, y)  # type: ignore[no-any-return]
    first = as_floats(x_name, x)
    second = as_array(y_name, y)
    dtype = compute_type(first.dtype)
    second = as_floats(y_name, second.astype(dtype) if second.dtype.kind == "b" else second)
    if second.shape != first.shape:
        raise different_shapes(y_name, second.shape, x_name, first.shape)
    return first, second if compute_type(second.dtype) is dtype else _cast(second, dtype)


def as_first(name: str, value: ArrayLike) -> Array:
    """Floats, wherever they are."""
    if type(value) is not ndarray and on_device(value):
        return for_device("_device_elementwise").as_first(name, value)  # type: ignore[no-any-return]
    return as_floats(name, value)


def as_partner(name: str, value: ArrayLike, x: Array) -> Array:
    """Floats where `x` is."""
    if type(x) is not ndarray:
        return for_device("_device_elementwise").as_partner(name, value, x)  # type: ignore[no-any-return]
    return as_floats(name, value)


def as_broadcast(name: str, value: ArrayLike, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """`value` in `dtype`, with stride 0 where it is broadcast to `shape`."""
    array = as_floats(name, value)
    if array.dtype is not dtype:
        array = _cast(array, dtype)
    if array.shape == shape:
        return array
    added = len(shape) - array.ndim
    if added < 0 or any(n not in (1, wanted) for n, wanted in zip(array.shape, shape[added:], strict=True)):
        raise not_broadcast(name, array.shape, shape)
    array = np.asarray(array, order="C")
    strides = [0 if n == 1 else step for n, step in zip(array.shape, array.strides, strict=True)]
    return np.ndarray(shape, dtype, array, 0, (*[0] * added, *strides))  # a fraction of the time of np.broadcast_to


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        return array.astype(dtype)


# --- layout ------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How arrays of one shape become 3-D views: their axes in this order, merged to this shape."""

    shape: Shape
    order: Shape
    ordered: bool  # whether the order is the array's own
    view: Shape
    class_axis: int | None  # of the view

    def split(self, array: Array) -> Array:
        """The kernel's view of `array`."""
        array = as_stored(array)
        return (array if self.ordered else array.transpose(self.order)).reshape(self.view)

    def join(self, result: Array, without: int | None = None) -> Array:
        """The user's view of a contiguous result, perhaps one without the class axis."""
        order = [i for i in self.order if i != without]
        if self.ordered:
            return result.reshape([n for i, n in enumerate(self.shape) if i != without])
        return result.reshape([self.shape[i] for i in order]).transpose(np.argsort(order))


@lru_cache(maxsize=256)  # as many as there are layouts of shapes
def make_plan(shape: Shape, strides: tuple[Shape, ...], axis: int | None) -> Plan | None:
    """The plan for arrays of these strides, shortest steps last and the class axis, if any, apart.

    None if more than three axes are left, or three of which the class axis is the first.
    """

    def step(i: int) -> int:
        return next((abs(array[i]) for array in strides if array[i]), 0)

    strides = () if 0 in shape else strides  # those of nothing mean nothing
    single = [i for i, n in enumerate(shape) if n == 1 and i != axis]
    order = sorted((i for i in range(len(shape)) if i not in single), key=step, reverse=True)
    groups: list[list[int]] = []
    for i in order:
        last = groups[-1][-1] if groups else None
        if last is None or axis in (last, i) or any(array[last] != array[i] * shape[i] for array in strides):
            groups.append([i])
        else:
            groups[-1].append(i)
    spare = 3 - len(groups)
    class_axis = None if axis is None else spare + groups.index([axis])
    if spare < 0 or class_axis == 0:
        return None
    view = (*[1] * spare, *(math.prod(shape[i] for i in group) for group in groups))
    return Plan(shape, (*single, *order), order == sorted(order), view, class_axis)


@lru_cache(maxsize=256)
def _constant(dtype: np.dtype[Any], view: Shape) -> Array:
    """The constant 1 as an array of this shape."""
    return np.ndarray(view, dtype, ones(dtype), 0, (0, 0, 0))


# --- kernel ------------------------------------------------------------------------------------------------------


class Operands(NamedTuple):
    """What a kernel reads, all of one shape; None for the constant 1."""

    x: Array
    y: Array
    weight: Array | None = None
    pos_weight: Array | None = None
    scale: Array | None = None


def _losses(plan: Plan, axis: int | None, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """An array for each loss, or for their sums along an axis, as the user and as the kernel views it."""
    if plan.class_axis is None:
        losses = plan.join(np.zeros(plan.view, dtype))
        return losses, plan.split(losses)
    before, after = plan.view[: plan.class_axis], plan.view[plan.class_axis + 1 :]
    sums = np.zeros(before + after, dtype)
    strides = (*sums.strides[: plan.class_axis], 0, *sums.strides[plan.class_axis :])
    return plan.join(sums, axis), np.ndarray(plan.view, dtype, sums, 0, strides)


def _run(
    name: str, operands: Operands, factor: float, each: bool, axis: int | None, grad: bool, out: Array | None
) -> tuple[float, Any, Any]:
    """The sum of all losses; if wanted, `each` (or their sums along `axis`) and the gradient, in `out` if given."""
    x = operands.x
    strides = [array.strides for array in (*operands, out) if array is not None]
    plan = make_plan(x.shape, tuple(strides), axis)
    if plan is None:  # say, every second entry along each of four axes, of which only a copy has a 3-D view
        copies = Operands._make([None if array is None else np.ascontiguousarray(array) for array in operands])
        return _run(name, copies, factor, each, axis, grad, None)
    dtype = compute_type(x.dtype)
    losses, loss = _losses(plan, axis, dtype) if each else (None, None)
    if grad and out is None:
        out = plan.join(np.empty(plan.view, x.dtype))
    total = 0.0
    if x.size:  # so that kernels need not think of empty axes
        kernels, num_threads = _backends.in_force()
        one = _constant(dtype, plan.view)
        x, y, weight, pos_weight, scale = [one if array is None else plan.split(array) for array in operands]
        grad_view = None if out is None else plan.split(out)
        total = kernels.elementwise(name, x, y, weight, pos_weight, scale, factor, num_threads, loss, grad_view)
    return total, losses, out


# --- losses ------------------------------------------------------------------------------------------------------


def as_probabilities(name: str, value: ArrayLike) -> Array:
    """Floats in [0, 1]."""
    if type(value) is not ndarray and on_device(value):
        return for_device("_device_elementwise").as_probabilities(name, value)  # type: ignore[no-any-return]
    x = as_floats(name, value)
    if _run("outside", Operands(x, x), 1.0, False, None, False, None)[0]:
        with np.errstate(invalid="ignore"):  # comparing a bfloat16 with nan
            where = tuple(map(int, np.unravel_index(np.argmin((x >= 0) & (x <= 1)), x.shape)))
        raise bad_probability(name, where, x[where])
    return x


def sums_along(name: str, x: Array, y: Array, axis: Any) -> Any:
    """A kernel's losses, summed along an axis."""
    if type(x) is not ndarray:
        return for_device("_device_elementwise").sums_along(name, x, y, axis)
    axis = normalize_axis_index(as_axis(axis), x.ndim, "axis")
    return _run(name, Operands(x, y), 1.0, True, axis, False, None)[1][()]


def elementwise_loss(
    name: str,
    x: Array,
    y: Array,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    reduction: str,
    gradient: Gradient | None,
    axis: int | None = None,
) -> tuple[Any, Any]:
    """Check the options of a loss, run its kernel, and return the reduced loss and the gradient.

    With an `axis`, the loss of a sample is the mean along it.
    """
    if type(x) is not ndarray:
        run = for_device("_device_elementwise").elementwise_loss
        return run(name, x, y, weight, pos_weight, reduction, gradient, axis)  # type: ignore[no-any-return]
    dtype = compute_type(x.dtype)
    weights = None if weight is None else as_broadcast("weight", weight, x.shape, dtype)
    pos_weights = None if pos_weight is None else as_broadcast("pos_weight", pos_weight, x.shape, dtype)
    divisor = 1 if axis is None else x.shape[axis]
    if reduction in ("mean", "batchmean"):
        divisor = x.size if reduction == "mean" else math.prod(x.shape[:1])
    scale, factor, output = None, 1.0, None
    if gradient is not None:
        incoming, out = gradient
        if incoming is not None and reduction == "none":
            scale, incoming = _as_scale(incoming, x.shape, axis, dtype), None
        scalar = 1.0 if incoming is None else as_scalar_grad_output(incoming, reduction)
        factor = gradient_scale(scalar, ones(dtype), divisor, "mean")[1]
        if out is not None:
            flags = check_out(out, x.dtype, x.shape)
            others = tuple(array for array in (y, weights, pos_weights, scale) if array is not None)
            plain = as_plain(out)
            output = plain if may_write(plain, flags, x.dtype, (x,), others) else None
    operands = Operands(x, y, weights, pos_weights, scale)
    total, losses, grad = _run(name, operands, factor, reduction == "none", axis, gradient is not None, output)
    loss = reduced_loss(total, divisor, "mean", dtype) if losses is None else _divided(losses, divisor)[()]
    return loss, None if gradient is None else finish(grad, gradient[1])


def _as_scale(grad_output: ArrayLike, shape: Shape, axis: int | None, dtype: np.dtype[Any]) -> Array:
    """The gradient flowing into each loss, for all the entries on which that depends."""
    if axis is None:
        return as_broadcast("grad_output", grad_output, shape, dtype)
    scale = as_broadcast("grad_output", grad_output, shape[:axis] + shape[axis + 1 :], dtype)
    return as_broadcast("grad_output", scale[(*[slice(None)] * axis, None)], shape, dtype)


def _divided(losses: Array, divisor: int) -> Array:
    if divisor != 1:
        with np.errstate(all="ignore"):
            losses /= divisor
    return losses
