"""From a user's arrays to checked (outer, classes, inner) views, and back.

Everything that a user can get wrong about an array is found here, before any kernel runs or anything is written.
"""

import importlib
import math
import sys
from functools import cache, lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from numpy import ndarray  # read in every call, and np.ndarray is one more look-up
from numpy.lib.array_utils import normalize_axis_index
from numpy.typing import ArrayLike

from . import _backends
from ._backends import Array
from ._device import on_device
from ._errors import (
    bad_class_weight,
    bad_label,
    check_target_shape,
    ignored_probs,
    no_classes,
    no_scalar,
    not_broadcast,
)
from ._options import as_axis, integer
from ._reduction import check_reduction, gradient_scale, ones, reduced_loss, weighted_losses

FLOAT32, FLOAT64, INT64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)

# What may hold numbers -> (what kernels take it as, what it is computed in). bfloat16 joins when first seen.
_STORAGE: dict[np.dtype[Any], tuple[np.dtype[Any], np.dtype[Any]]] = {
    FLOAT32: (FLOAT32, FLOAT32),
    FLOAT64: (FLOAT64, FLOAT64),
    np.dtype(np.float16): (np.dtype(np.int16), FLOAT32),
}


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16"  # from ml_dtypes, which need not be installed


# --- arrays ------------------------------------------------------------------------------------------------------


def as_array(name: str, value: ArrayLike) -> Array:
    """`value` as a plain ndarray; masked arrays are refused, since their mask would be lost."""
    if type(value) is ndarray:
        return value
    if _is_masked(value):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored: fill it, or pass sample_weight")
    if on_device(value):
        raise TypeError(f"{name} is an array on a GPU, expected one of the host, as the first one is")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made an array: {error}") from error


@cache
def for_device(module: str = "_device_problem") -> Any:
    """What does the same for arrays on a device; imported when there is one."""
    return importlib.import_module(f"{__package__}.{module}")


def _is_masked(value: Any) -> bool:
    masked = sys.modules.get("numpy.ma")
    if masked is None:
        return False
    return isinstance(value, masked.MaskedArray) or (
        isinstance(value, (list, tuple)) and any(_is_masked(item) for item in value)
    )


def as_floats(name: str, value: ArrayLike) -> Array:
    """An aligned, native array of float16, bfloat16, float32 or float64; integers become float64."""
    if type(value) is ndarray and value.dtype in _STORAGE and value.flags.aligned:
        return value
    array = as_array(name, value)
    dtype = array.dtype
    if dtype not in _STORAGE:
        if _is_bfloat16(dtype):
            _STORAGE[dtype] = np.dtype(np.uint16), FLOAT32
        elif dtype.kind in "iu":
            dtype = FLOAT64
        elif dtype.kind == "f" and dtype.newbyteorder("=") in _STORAGE:
            dtype = dtype.newbyteorder("=")
        else:
            raise TypeError(f"{name} has dtype {dtype}, expected float16, bfloat16, float32, float64 or integers")
    if array.dtype != dtype or not array.flags.aligned:
        array = array.astype(dtype)
    return array


def compute_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float64 for float64, float32 for everything narrower."""
    return _STORAGE[dtype][1]


def as_stored(array: Array) -> Array:
    """`array` as kernels take it: 16-bit floats as their bits."""
    storage = _STORAGE[array.dtype][0]
    return array if array.dtype is storage else array.view(storage)


def as_constants(name: str, value: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A per-class or per-sample array that broadcasts to `shape`, flat and contiguous; length 1 for a constant."""
    array = as_floats(name, value)
    if array.ndim > 0:
        try:
            array = np.broadcast_to(array, shape)
        except ValueError:
            raise not_broadcast(name, array.shape, shape) from None
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(array, dtype=dtype).reshape(-1)


def as_class_weight(weight: ArrayLike, classes: int, dtype: np.dtype[Any]) -> Array:
    """`weight` as a (classes,) array."""
    weight = as_array("weight", weight)
    if weight.shape != (classes,):
        raise bad_class_weight(weight.shape, classes)
    return as_constants("weight", weight, (classes,), dtype)


# --- layout ------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """An array's shape as batch and class axes."""

    shape: tuple[int, ...]
    axis: int
    classes: int
    batch: tuple[int, ...]  # the shape without the class axis: what a per-sample result has
    samples: int
    view: tuple[int, ...]  # (outer, classes, inner), without inner where that is 1

    def split(self, array: Array) -> Array:
        """The kernels' view of `array`: (outer, classes, inner), and 16-bit floats as their bits."""
        array = as_stored(array)
        return array if array.shape == self.view else array.reshape(self.view)


@lru_cache(maxsize=256)  # programs use few shapes, and a training loop one for all its batches
def make_layout(shape: tuple[int, ...], axis: int | None) -> Layout:
    """`axis=None` is PyTorch's rule: axis 1 of (N, C, ...), axis 0 of (C,)."""
    if axis is None:
        axis = 1 if len(shape) > 1 else 0
    axis = normalize_axis_index(axis, len(shape), "axis")
    before, after = shape[:axis], shape[axis + 1 :]
    outer, inner = math.prod(before), math.prod(after)
    view = (outer, shape[axis], inner) if inner != 1 else (outer, shape[axis])
    return Layout(shape, axis, shape[axis], before + after, outer * inner, view)


def as_output(
    out: Any, dtype: np.dtype[Any], layout: Layout, replaces: tuple[Any, ...] = (), inputs: tuple[Any, ...] = ()
) -> Array:
    """An array of this type and layout for kernels to write: `out` itself where that is safe, else a fresh one.

    It is safe if kernels can view `out` as (outer, classes, inner), native and aligned, and if it is one of the arrays
    that it may replace or shares no memory with any input. Give what this returns to `finish` afterwards.
    """
    if out is None:
        return np.empty(layout.shape, dtype)
    flags, plain = check_out(out, dtype, layout.shape), as_plain(out)
    if not may_write(plain, flags, dtype, replaces, inputs):
        return np.empty(layout.shape, dtype)
    if not flags.c_contiguous and not np.may_share_memory(layout.split(plain), plain):
        return np.empty(layout.shape, dtype)
    return plain


def as_plain(out: Array) -> Array:
    """`out` without what a subclass makes of it: a matrix stays 2-D, whatever shape it is asked for."""
    return out if type(out) is ndarray else np.asarray(out)


def may_write(out: Any, flags: Any, dtype: np.dtype[Any], replaces: tuple[Any, ...], inputs: tuple[Any, ...]) -> bool:
    """Whether `out`, of these flags, is native, aligned, and overlaps no input but one that it is and may replace."""
    if out.dtype is not dtype or not flags.aligned:
        return False
    owns = flags.owndata  # two arrays that own their memory do not share it, which is quick to see
    for array in inputs:
        if not (owns and array.flags.owndata and array is not out) and np.may_share_memory(array, out):
            return False
    for array in replaces:
        if array is out or (owns and array.flags.owndata):
            continue
        if np.may_share_memory(array, out) and not _same_place(array, out):
            return False
    return True


def finish(output: Array, out: Any) -> Array:
    """What the caller gets: `out` if there is one, filled from `output`."""
    if out is None or output is out:
        return output
    if not _same_place(output, out):
        out[...] = output
    return cast(Array, out)


def _same_place(a: Array, b: Array) -> bool:
    return (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.strides == b.strides
        and a.dtype == b.dtype
        and a.shape == b.shape
    )


def check_out(out: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """Refuse an `out` that cannot take a result of this type and shape; its flags."""
    if type(out) is ndarray and out.dtype is dtype and out.shape == shape:
        flags = out.flags
        if flags.carray:
            return flags
    if type(out) is not ndarray:
        as_array("out", out)
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out is of type {type(out).__name__}, expected a NumPy array")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, expected {shape}")
    if out.dtype is not dtype and (out.dtype.kind != dtype.kind or out.dtype.newbyteorder("=") != dtype):
        raise TypeError(f"out has dtype {out.dtype}, expected {dtype}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out is read-only, expected a writeable array")
    if not flags.forc and _overlaps_itself(out):
        raise ValueError(f"out has strides {out.strides}, so that its elements may share memory")
    return flags


def _overlaps_itself(array: Array) -> bool:
    """Whether elements may share memory: never in what slicing, transposing and reshaping make of an array."""
    extent = array.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return array.size > 0
            extent += stride * (size - 1)
    return False


# --- targets -----------------------------------------------------------------------------------------------------


def as_target(target: ArrayLike, logits_name: str, layout: Layout, dtype: np.dtype[Any], ignore_index: int) -> Array:
    """Class indices as a flat int64 array, or class probabilities as a (outer, classes, inner) view."""
    array = target if type(target) is ndarray else as_array("target", target)
    if array.dtype is INT64 and array.shape == layout.batch and array.flags.carray:
        return array if array.ndim == 1 else array.reshape(-1)
    if array.size == 0 and not isinstance(target, np.ndarray) and array.shape == layout.batch:
        array = array.astype(np.int64)  # NumPy makes an empty list floats
    kind = "f" if _is_bfloat16(array.dtype) else array.dtype.kind
    if check_target_shape(array.dtype, kind, array.shape, layout.batch, layout.shape, layout.axis, logits_name):
        if array.dtype.itemsize == 8 and kind == "u":
            # Beyond int64 a label is out of range anyhow; as a negative one it might be the one to ignore.
            array = np.where(array < 2**63, array.astype(np.int64), -2 if ignore_index == -1 else -1)
        return np.ascontiguousarray(array if array.flags.aligned else array.copy(), dtype=np.int64).reshape(-1)
    probs = as_floats("target", array)
    if compute_type(probs.dtype) != dtype:
        with np.errstate(all="ignore"):
            probs = probs.astype(dtype)
    return layout.split(probs)


def _refuse_label(target: ArrayLike, bad: int, layout: Layout, ignore_index: int) -> None:
    where = tuple(map(int, np.unravel_index(bad, layout.batch))) if layout.batch else ()
    raise bad_label(where, int(np.asarray(target)[where]), layout.classes, ignore_index)


# --- classification losses ---------------------------------------------------------------------------------------


Gradient = tuple[ArrayLike | None, Any]  # what the caller said about the gradient: grad_output, out


def classification_loss(
    kernel: str,
    name: str,
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    coefficients: tuple[float, ...],
    ignore_index: int,
    reduction: str,
    axis: int | None,
    gradient: Gradient | None,
) -> tuple[Any, Any]:
    """Check the arguments of a classification loss, run its kernel, and return the reduced loss and the gradient.

    `name` is what the caller calls `logits`; `coefficients` are the kernel's own arguments.
    """
    if type(logits) is not ndarray and on_device(logits):
        return for_device().classification_loss(  # type: ignore[no-any-return]
            kernel, name, logits, target, weight, sample_weight, coefficients, ignore_index, reduction, axis, gradient
        )
    check_reduction(reduction)
    x = as_floats(name, logits)
    if axis is not None:
        axis = as_axis(axis)
    if x.ndim == 0:
        raise no_classes(name, (), None)
    layout = make_layout(x.shape, axis)
    if layout.classes == 0:
        raise no_classes(name, x.shape, layout.axis)
    dtype = compute_type(x.dtype)
    kernels, num_threads = _backends.in_force()
    ignore_index = integer("ignore_index", ignore_index)
    labels_or_probs = as_target(target, name, layout, dtype, ignore_index)
    weights = scale = sample_weights = ones(dtype)
    inputs: tuple[Array, ...] = (labels_or_probs,)
    if weight is not None:
        weights = as_class_weight(weight, layout.classes, dtype)
        inputs += (weights,)
    if sample_weight is not None:
        scale = sample_weights = as_constants("sample_weight", sample_weight, layout.batch, dtype)
        inputs += (sample_weights,)
    if labels_or_probs.ndim == 1:
        bad, denominator = kernels.check_target(
            labels_or_probs, weights, sample_weights, layout.classes, ignore_index, num_threads
        )
        if bad >= 0:
            _refuse_label(target, bad, layout, ignore_index)
    else:
        denominator = _count_samples(ignore_index, sample_weights, layout, kernels, num_threads)
    factor, output, grad = 1.0, None, None
    if gradient is not None:
        grad_output = 1.0 if gradient[0] is None else _as_grad_output(gradient[0], layout, reduction)
        scale, factor = gradient_scale(grad_output, sample_weights, denominator, reduction)
        output = as_output(gradient[1], x.dtype, layout, (x,), inputs)
        grad = layout.split(output)
    losses = np.empty(layout.samples, dtype) if reduction == "none" else None
    total = getattr(kernels, kernel)(
        layout.split(x), labels_or_probs, weights, scale, *coefficients, ignore_index, factor, num_threads, losses,
        grad,
    )  # fmt: skip
    if losses is None:
        loss = reduced_loss(total, denominator, reduction, dtype)
    else:
        loss = weighted_losses(losses, sample_weights).reshape(layout.batch)[()]
    return loss, None if gradient is None or output is None else finish(output, gradient[1])


def _count_samples(
    ignore_index: int, sample_weight: Array, layout: Layout, kernels: _backends.Kernels, num_threads: int
) -> float:
    """The denominator of the mean over class probabilities, of which none can be ignored."""
    if ignore_index >= 0:
        raise ignored_probs(ignore_index)
    if sample_weight.size == 1:
        return float(sample_weight[0]) * layout.samples
    return kernels.weighted_sum(sample_weight, ones(sample_weight.dtype), num_threads)


def _as_grad_output(value: ArrayLike, layout: Layout, reduction: str) -> Array | float:
    if reduction == "none":
        return as_constants("grad_output", value, layout.batch, FLOAT64)
    return as_scalar_grad_output(value, reduction)


def as_scalar_grad_output(value: ArrayLike, reduction: str) -> float:
    """The gradient flowing into a reduced loss."""
    array = as_floats("grad_output", value)
    if array.ndim:
        raise no_scalar(array.shape, reduction)
    return float(array)
