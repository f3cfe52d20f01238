"""From a user's arrays to checked (outer, classes, inner) views, and back.

Everything that a user can get wrong about an array is found here, before any kernel runs or anything is written.
"""

import math
import operator
import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index
from numpy.typing import ArrayLike

from . import _backends, _config
from ._backends import Array
from ._reduction import check_reduction, gradient_scale, ones, reduce_loss

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# What may hold numbers -> (what kernels take it as, what it is computed in). bfloat16 joins when first seen.
_STORAGE: dict[np.dtype[Any], tuple[np.dtype[Any], np.dtype[Any]]] = {
    FLOAT32: (FLOAT32, FLOAT32),
    FLOAT64: (FLOAT64, FLOAT64),
    np.dtype(np.float16): (np.dtype(np.int16), FLOAT32),
}


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16"  # from ml_dtypes, which need not be installed


# --- numbers -----------------------------------------------------------------------------------------------------


def finite_number(name: str, value: Any, low: float, high: float) -> float:
    """A finite float in [low, high]."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {value!r}, expected a number")
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f">= {low:g}"
        raise ValueError(f"{name} is {value!r}, expected a finite number {bounds}")
    return float(value)


def integer(name: str, value: Any) -> int:
    """An int that fits in 64 bits."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected an integer") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} is {number}, expected a 64-bit integer")
    return number


# --- arrays ------------------------------------------------------------------------------------------------------


def as_array(name: str, value: ArrayLike) -> Array:
    """`value` as a plain ndarray; masked arrays are refused, since their mask would be lost."""
    if type(value) is np.ndarray:
        return value
    masked = sys.modules.get("numpy.ma")
    if masked is not None and isinstance(value, masked.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored: fill it, or pass sample_weight")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made an array: {error}") from error


def as_floats(name: str, value: ArrayLike) -> Array:
    """An aligned, native array of float16, bfloat16, float32 or float64; integers become float64."""
    array = as_array(name, value)
    dtype = array.dtype
    if dtype not in _STORAGE:
        if _is_bfloat16(dtype):
            _STORAGE[dtype] = np.dtype(np.uint16), FLOAT32
        elif dtype.kind in "iu":
            dtype = FLOAT64
        elif dtype.kind == "f" and dtype.itemsize <= 8:
            dtype = dtype.newbyteorder("=")
        else:
            raise TypeError(f"{name} has dtype {dtype}, expected float16, bfloat16, float32, float64 or integers")
    if array.dtype != dtype or not array.flags.aligned:
        array = array.astype(dtype)
    return array


def compute_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float64 for float64, float32 for everything narrower."""
    return _STORAGE[dtype][1]


def as_constants(name: str, value: ArrayLike | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A per-class or per-sample array that broadcasts to `shape`, flat and contiguous; length 1 for a constant."""
    if value is None:
        return ones(dtype)
    array = as_floats(name, value)
    if array.ndim > 0:
        try:
            array = np.broadcast_to(array, shape)
        except ValueError:
            raise ValueError(f"{name} has shape {array.shape}, expected one that broadcasts to {shape}") from None
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(array, dtype=dtype).reshape(-1)


def as_class_weight(weight: ArrayLike | None, classes: int, dtype: np.dtype[Any]) -> Array:
    """`weight` as a (classes,) array, or the constant 1."""
    if weight is not None:
        weight = as_array("weight", weight)
        if weight.shape != (classes,):
            raise ValueError(f"weight has shape {weight.shape}, expected one weight for each class, ({classes},)")
    return as_constants("weight", weight, (classes,), dtype)


# --- layout ------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """An array's shape as batch and class axes."""

    shape: tuple[int, ...]
    axis: int

    @classmethod
    def of(cls, array: Array, axis: int | None) -> "Layout":
        """`axis=None` is PyTorch's rule: axis 1 of (N, C, ...), axis 0 of (C,)."""
        if axis is None:
            axis = 1 if array.ndim > 1 else 0
        elif isinstance(axis, bool):
            raise TypeError(f"axis is {axis!r}, expected an integer")
        return cls(array.shape, normalize_axis_index(axis, array.ndim, "axis"))

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def batch(self) -> tuple[int, ...]:
        """The shape without the class axis: what a per-sample result has."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    def split(self, array: Array) -> Array:
        """The kernels' view of `array`: (outer, classes, inner), and 16-bit floats as their bits."""
        outer = math.prod(self.shape[: self.axis])
        inner = math.prod(self.shape[self.axis + 1 :])
        return array.view(_STORAGE[array.dtype][0]).reshape(outer, self.classes, inner)


class Output(NamedTuple):
    """Where kernels write, and what the caller gets."""

    view: Array
    array: Array
    result: Array

    def finish(self) -> Array:
        """The caller's array, filled."""
        if self.array is not self.result:
            self.result[...] = self.array
        return self.result


def as_output(
    out: Any, dtype: np.dtype[Any], layout: Layout, replaces: tuple[Any, ...] = (), inputs: tuple[Any, ...] = ()
) -> Output:
    """A place for a result of this type and layout.

    Kernels write straight into `out` if they can view it as (outer, classes, inner), native and aligned, and if it is
    one of the arrays that it may replace or shares no memory with any input. Else they write into a fresh array.
    """
    if out is None:
        fresh = np.empty(layout.shape, dtype)
        return Output(layout.split(fresh), fresh, fresh)
    check_out(out, dtype, layout.shape)
    if out.dtype == dtype and out.flags.aligned:
        plain = out.view(np.ndarray)
        view = layout.split(plain)
        is_view = out.flags.c_contiguous or np.may_share_memory(view, plain)
        hazards = (*inputs, *(a for a in replaces if not _same_place(a, plain)))
        if is_view and not any(isinstance(a, np.ndarray) and np.may_share_memory(a, plain) for a in hazards):
            return Output(view, out, out)
    fresh = np.empty(layout.shape, dtype)
    return Output(layout.split(fresh), fresh, out)


def check_out(out: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Refuse an `out` that cannot take a result of this type and shape."""
    as_array("out", out)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is of type {type(out).__name__}, expected a NumPy array")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, expected {shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}, expected {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only, expected a writeable array")
    if 0 in [stride for stride, size in zip(out.strides, out.shape, strict=True) if size > 1]:
        raise ValueError(f"out has strides {out.strides}, so that its elements share memory")


def _same_place(a: Array, b: Array) -> bool:
    return a is b or (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.strides == b.strides
        and a.dtype == b.dtype
        and a.shape == b.shape
    )


# --- targets -----------------------------------------------------------------------------------------------------


def as_target(target: ArrayLike, logits_name: str, layout: Layout, dtype: np.dtype[Any]) -> Array:
    """Class indices as a flat int64 array, or class probabilities as a (outer, classes, inner) view."""
    array = as_array("target", target)
    if array.size == 0 and not isinstance(target, np.ndarray) and array.shape == layout.batch:
        array = array.astype(np.int64)  # NumPy makes an empty list floats
    if array.dtype.kind in "iu":
        if array.shape != layout.batch:
            raise ValueError(
                f"target has shape {array.shape}, expected class indices of shape {layout.batch} for {logits_name} of "
                f"shape {layout.shape} with class axis {layout.axis} (class probabilities need a floating type)"
            )
        if array.dtype.itemsize == 8 and array.dtype.kind == "u":
            array = np.minimum(array, np.uint64(2**63 - 1))  # out of range all the same, and never negative
        return np.ascontiguousarray(array, dtype=np.int64).reshape(-1)
    if array.dtype.kind != "f" and not _is_bfloat16(array.dtype):
        raise TypeError(f"target has dtype {array.dtype}, expected integers (class indices) or floats (probabilities)")
    if array.shape == layout.batch != layout.shape:
        raise TypeError(f"target has dtype {array.dtype}, expected integers for class indices of shape {array.shape}")
    if array.shape != layout.shape:
        raise ValueError(f"target has shape {array.shape}, expected {layout.shape} for class probabilities")
    probs = as_floats("target", array)
    return layout.split(probs if compute_type(probs.dtype) == dtype else probs.astype(dtype))


def _refuse_label(target: ArrayLike, bad: int, layout: Layout, ignore_index: int) -> None:
    where = tuple(map(int, np.unravel_index(bad, layout.batch))) if layout.batch else ()
    label = int(np.asarray(target)[where])
    raise IndexError(
        f"target{list(where) if where else ''} is {label}, expected a class index in [0, {layout.classes}) "
        f"or ignore_index={ignore_index}"
    )


# --- classification losses ---------------------------------------------------------------------------------------


class Gradient(NamedTuple):
    """What the caller said about the gradient."""

    grad_output: ArrayLike | None
    out: Any


class Classification:
    """One call of a classification loss: checked inputs for the kernel, and its result.

    `x`, `target`, `weight`, `scale`, `ignore_index`, `num_threads`, `loss` and `grad` are what `Kernels` takes.
    """

    __slots__ = (
        "_denominator", "_layout", "_output", "_reduction", "_sample_weight", "classes", "grad", "ignore_index",
        "kernels", "loss", "num_threads", "scale", "target", "weight", "x",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        logits: ArrayLike,
        target: ArrayLike,
        weight: ArrayLike | None,
        sample_weight: ArrayLike | None,
        ignore_index: int,
        reduction: str,
        axis: int | None,
        gradient: Gradient | None,
    ) -> None:
        check_reduction(reduction)
        x = as_floats(name, logits)
        if x.ndim == 0:
            raise ValueError(f"{name} has shape (), expected at least a class axis")
        layout = Layout.of(x, axis)
        if layout.classes == 0:
            raise ValueError(f"{name} has shape {layout.shape}, expected at least one class on axis {layout.axis}")
        compute = compute_type(x.dtype)
        self.kernels = _backends.kernels()
        self.num_threads = _config.num_threads()
        self._layout, self._reduction, self.classes = layout, reduction, layout.classes
        self.x = layout.split(x)
        self.target = as_target(target, name, layout, compute)
        self.weight = as_class_weight(weight, layout.classes, compute)
        self._sample_weight = as_constants("sample_weight", sample_weight, layout.batch, compute)
        self.ignore_index = integer("ignore_index", ignore_index)
        self._denominator = self._count(target)
        self.loss = np.empty(math.prod(layout.batch), compute)
        self.grad: Array | None = None
        self._output: Output | None = None
        self.scale = ones(compute)
        if gradient is not None:
            grad_output = self._grad_output(gradient.grad_output)
            self.scale = gradient_scale(grad_output, self._sample_weight, self._denominator, reduction)
            self._output = as_output(gradient.out, x.dtype, layout, (x,), (target, weight, sample_weight))
            self.grad = self._output.view

    def _count(self, target: ArrayLike) -> float:
        """Check the labels, and return the denominator of the mean."""
        kernels, threads = self.kernels, self.num_threads
        if self.target.ndim == 1:
            bad, total = kernels.check_target(
                self.target, self.weight, self._sample_weight, self.classes, self.ignore_index, threads
            )
            if bad >= 0:
                _refuse_label(target, bad, self._layout, self.ignore_index)
            return total
        if self.ignore_index >= 0:
            raise ValueError(
                f"ignore_index is {self.ignore_index}, expected a negative number (nothing is ignored) for class "
                f"probabilities"
            )
        weights = self._sample_weight
        samples = math.prod(self._layout.batch)
        return kernels.weighted_sum(weights, ones(weights.dtype), threads) * (samples if weights.size == 1 else 1)

    def _grad_output(self, value: ArrayLike | None) -> Array | float:
        if value is None:
            return 1.0
        array = as_floats("grad_output", value)
        if self._reduction == "none":
            return as_constants("grad_output", array, self._layout.batch, FLOAT64)
        if array.ndim:
            raise ValueError(
                f"grad_output has shape {array.shape}, expected a scalar for reduction={self._reduction!r}"
            )
        return float(array)

    def reduced_loss(self) -> Any:
        """The loss as the caller asked for it; after the kernel."""
        loss = reduce_loss(
            self.loss, self._sample_weight, self._denominator, self._reduction, self.kernels, self.num_threads
        )
        return loss.reshape(self._layout.batch)[()] if self._reduction == "none" else loss

    def gradient(self) -> Array:
        """The gradient, in the caller's array if there is one; after the kernel."""
        assert self._output is not None
        return self._output.finish()
