"""The functions of `_problem.py` and `_reduction.py` for arrays on a device, and those of `softmax.py`.

Layouts, options and errors are the same, and come from there. What is different is that nothing comes back: losses,
sums and denominators stay on the device, and the host waits for nothing but the check of labels.
"""

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from . import _backends, _config
from ._device import FLOATS, DeviceArray, Memory, Shape, on_device, overlap, view
from ._errors import (
    bad_class_weight,
    bad_grad_of_batch,
    bad_label,
    check_target_shape,
    different_shapes,
    ignored_probs,
    no_classes,
    no_scalar,
    not_broadcast,
)
from ._options import as_axis, integer
from ._problem import (
    Gradient,
    Layout,
    as_array,
    as_floats,
    as_scalar_grad_output,
    as_stored,
    make_layout,
)
from ._reduction import check_reduction


def runner(name: str) -> Any:
    """What launches kernels, if the backend in force computes on a device."""
    backend = _config.current().backend
    if backend not in ("auto", "cuda"):
        raise TypeError(f"{name} is on a GPU, where backend {backend!r} cannot compute: choose 'auto' or 'cuda'")
    _backends.load("cuda")
    return _run_module()


@cache
def _run_module() -> Any:
    return importlib.import_module(f"{__package__}._cuda_run")


# --- arrays ------------------------------------------------------------------------------------------------------


def as_device(run: Any, name: str, value: Any, memory: Memory) -> DeviceArray:
    """An array of any numbers, from the host if it is there."""
    if on_device(value):
        return view(name, value, memory)
    array = as_array(name, value)
    if array.dtype.kind in "iub":
        return run.upload(array, array.dtype.name, memory)  # type: ignore[no-any-return]
    array = as_floats(name, array)
    return run.upload(as_stored(array), array.dtype.name, memory)  # type: ignore[no-any-return]


def floating(run: Any, name: str, array: DeviceArray) -> DeviceArray:
    """float16, bfloat16, float32 or float64; integers become float64."""
    if array.dtype in FLOATS:
        return array
    if not array.dtype.startswith(("int", "uint")):
        raise TypeError(f"{name} has dtype {array.dtype}, expected float16, bfloat16, float32, float64 or integers")
    return run.copied(array, "float64")  # type: ignore[no-any-return]


def split(run: Any, layout: Layout, array: DeviceArray) -> DeviceArray:
    """The kernels' (outer, classes, inner) view, of a copy if there is no other."""
    return array.reshape(layout.view) or run.copied(array, array.dtype).reshape(layout.view)


def as_constants(
    run: Any, name: str, value: Any, shape: Shape, kind: str, memory: Memory
) -> DeviceArray:  # fmt: skip
    """A per-class or per-sample array that broadcasts to `shape`, flat and contiguous; length 1 for a constant."""
    given = floating(run, name, as_device(run, name, value, memory))
    array = given.broadcast(shape if given.shape else (1,))
    if array is None:
        raise not_broadcast(name, given.shape, shape)
    if array.dtype != kind or not array.is_contiguous():
        array = run.copied(array, kind)
    return array.reshape((array.size,))  # type: ignore[return-value]


def as_target(
    run: Any, target: Any, name: str, layout: Layout, kind: str, memory: Memory
) -> DeviceArray:  # fmt: skip
    """Class indices as a flat int64 array, or class probabilities as a (outer, classes, inner) view."""
    array = as_device(run, "target", target, memory)
    number = "f" if array.dtype in FLOATS else array.dtype[0]
    if check_target_shape(array.dtype, number, array.shape, layout.batch, layout.shape, layout.axis, name):
        if array.dtype != "int64" or not array.is_contiguous():
            array = run.copied(array, "int64")
        return array.reshape((array.size,))  # type: ignore[return-value]
    if run.computing(array) != kind:
        array = run.copied(array, kind)
    return split(run, layout, array)


class Output:
    """Where a result as large as `x` goes: to `out` if kernels can write there, else to a new array.

    It may replace one of `replaces`; if it overlaps another input, a new array is made first.
    """

    def __init__(
        self, run: Any, out: Any, view_of: Callable[[DeviceArray], Any], replaces: tuple[DeviceArray, ...],
        inputs: tuple[Any, ...] = (),
    ):  # fmt: skip
        x = replaces[0]
        self.run = run
        self.array = x.memory.empty(x.shape, x.dtype) if out is None else checked_output(out, x)
        self.source, self.target = self.array, view_of(self.array)
        if self.target is None or (out is not None and is_read_elsewhere(self.array, replaces, inputs)):
            self.source = x.memory.empty(x.shape, x.dtype)
            self.target = view_of(self.source)

    def finish(self) -> Any:
        """What the caller gets."""
        if self.source is not self.array:
            self.run.copy(self.source, self.array)
        return settled(self.run, self.array)


def is_read_elsewhere(array: DeviceArray, replaces: tuple[DeviceArray, ...], inputs: tuple[DeviceArray, ...]) -> bool:
    """Whether it overlaps an input, other than by being one that it may replace."""
    return any(overlap(array, a) for a in inputs) or any(overlap(array, a) and array[:4] != a[:4] for a in replaces)


def checked_output(out: Any, like: DeviceArray) -> DeviceArray:
    """Refuse an `out` that cannot take a result of this type and shape."""
    if not on_device(out):
        raise TypeError(f"out is of type {type(out).__name__}, expected an array on the GPU, as the others are")
    array = view("out", out, like.memory)
    if array.owner is not out:
        array = array._replace(owner=out)
    if array.shape != like.shape:
        raise ValueError(f"out has shape {array.shape}, expected {like.shape}")
    if array.dtype != like.dtype:
        raise TypeError(f"out has dtype {array.dtype}, expected {like.dtype}")
    if 0 in array.strides and any(n > 1 and step == 0 for n, step in zip(array.shape, array.strides, strict=True)):
        raise ValueError(f"out has strides {array.strides}, so that its elements may share memory")
    return array


def settled(run: Any, array: DeviceArray) -> Any:
    """The caller's own kind of array, once it is safe to hand it over."""
    if array.memory.waits:
        run.wait(array.memory)
    return array.owner


# --- classification losses ---------------------------------------------------------------------------------------


def classification_loss(
    kernel: str,
    name: str,
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    coefficients: tuple[float, ...],
    ignore_index: int,
    reduction: str,
    axis: int | None,
    gradient: Gradient | None,
) -> tuple[Any, Any]:
    """As `_problem.classification_loss`."""
    check_reduction(reduction)
    run = runner(name)
    x = floating(run, name, view(name, logits))
    layout, memory, kind = class_layout(name, x, axis), x.memory, run.computing(x)
    ignore_index = integer("ignore_index", ignore_index)
    y = as_target(run, target, name, layout, kind, memory)
    weights = None if weight is None else as_class_weight(run, weight, layout, kind, memory)
    each = None if sample_weight is None else as_constants(
        run, "sample_weight", sample_weight, layout.batch, kind, memory
    )  # fmt: skip
    scale, factor, output = each, 1.0, None
    if gradient is not None:
        scale, factor = gradient_scale(run, gradient[0], each, layout, kind, reduction, memory)
        inputs = tuple(array for array in (y, weights, each, scale) if array is not None)
        output = Output(run, gradient[1], lambda array: array.reshape(layout.view), (x,), inputs)
    counted = check(run, y, weights, each, layout, ignore_index, reduction, kind)
    losses = memory.empty(layout.batch, kind)
    run.rows(
        kernel, split(run, layout, x), output and output.target, y, weights, scale, counted and counted.inverse,
        losses.reshape((layout.samples,)), ignore_index, *coefficients, factor=factor,
    )  # fmt: skip
    if reduction == "none":
        if each is not None:
            run.multiply(losses, each, losses)
        return settled(run, losses), output and output.finish()
    result = memory.empty((), kind)
    run.sums("values", layout.samples, losses, None, None, each, counted, result)
    return settled(run, result), output and output.finish()


def class_layout(name: str, x: DeviceArray, axis: int | None) -> Layout:
    """The layout of an array with at least one class."""
    if axis is not None:
        axis = as_axis(axis)
    layout = make_layout(x.shape, axis) if x.shape else None
    if layout is None or layout.classes == 0:
        raise no_classes(name, x.shape, layout and layout.axis)
    return layout


def as_class_weight(run: Any, weight: Any, layout: Layout, kind: str, memory: Memory) -> DeviceArray:
    """`weight` as a (classes,) array."""
    array = as_device(run, "weight", weight, memory)
    if array.shape != (layout.classes,):
        raise bad_class_weight(array.shape, layout.classes)
    return as_constants(run, "weight", array, array.shape, kind, memory)


def check(
    run: Any, y: DeviceArray, weights: Any, each: Any, layout: Layout, ignore_index: int, reduction: str, kind: str
) -> Any:
    """Refuse a label out of range, unless nobody wants to wait for that; the sum whose total divides the mean."""
    mean, checks, ones = reduction == "mean", _config.current().check_targets, run.one(kind, y.memory.device)
    if len(y.shape) > 1:
        if ignore_index >= 0:
            raise ignored_probs(ignore_index)
        if not mean:
            return None
        counted = run.copied((each or ones._replace(memory=y.memory)).broadcast((layout.samples,)), kind)
        return run.sums("values", layout.samples, counted, None, None, None)
    if not checks and not mean:
        return None
    sums = run.sums(
        "labels", layout.samples, None, weights or ones, y, each or ones, None, None, layout.classes, ignore_index
    )
    bad = sums.read()[1] if checks else -1
    if bad >= 0:
        where = tuple(map(int, np.unravel_index(bad, layout.batch))) if layout.batch else ()
        raise bad_label(where, int(run.number(y, bad)), layout.classes, ignore_index)
    return sums if mean else None


def gradient_scale(
    run: Any, grad_output: Any, each: Any, layout: Layout, kind: str, reduction: str, memory: Memory
) -> tuple[DeviceArray | None, float]:
    """Each sample's factor in the gradient, and a factor for all of them; the mean's denominator comes later."""
    if grad_output is None:
        return each, 1.0
    shape = layout.batch if reduction == "none" else ()
    if reduction != "none" and not on_device(grad_output):
        return each, as_scalar_grad_output(grad_output, reduction)
    if reduction != "none" and view("grad_output", grad_output).shape != ():
        raise no_scalar(view("grad_output", grad_output).shape, reduction)
    # In double: what is no float32 alone may be one times a weight.
    scale = as_constants(run, "grad_output", grad_output, shape, kind if each is None else "float64", memory)
    if each is None:
        return scale, 1.0
    if scale.size < each.size:
        scale, each = each, scale
    product = memory.empty(scale.shape, kind)
    run.multiply(scale, each, product)
    return product, 1.0


# --- softmax and its like ----------------------------------------------------------------------------------------


def class_map(kernel: str, x: Any, axis: int, out: Any) -> Any:
    """softmax or log_softmax."""
    run = runner("x")
    x = floating(run, "x", view("x", x))
    layout = make_layout(x.shape, as_axis(axis))
    output = Output(run, out, lambda array: array.reshape(layout.view), (x,))
    run.rows(kernel, split(run, layout, x), output.target)
    return output.finish()


def vjp(kernel: str, name: str, grad_output: Any, value: Any, axis: int, out: Any) -> Any:
    """softmax_vjp or log_softmax_vjp."""
    run = runner(name)
    value = floating(run, name, view(name, value))
    grad = floating(run, "grad_output", as_device(run, "grad_output", grad_output, value.memory))
    layout = make_layout(value.shape, as_axis(axis))
    if grad.shape != value.shape:
        raise different_shapes("grad_output", grad.shape, name, value.shape)
    if run.computing(grad) != run.computing(value):
        grad = run.copied(grad, run.computing(value))
    output = Output(run, out, lambda array: array.reshape(layout.view), (value, grad))
    run.pairs(kernel, split(run, layout, grad), split(run, layout, value), output.target)
    return output.finish()


def merged(run: Any, x: DeviceArray, axes: Shape) -> tuple[Layout, DeviceArray]:
    """`x` with its reduced axes as one class axis, the last one if there are several (or none)."""
    if len(axes) == 1:
        return make_layout(x.shape, axes[0]), x
    kept = tuple(i for i in range(len(x.shape)) if i not in axes)
    moved = x.transpose(kept + axes)
    shape = (*moved.shape[: len(kept)], math.prod(moved.shape[len(kept) :]))
    return make_layout(shape, len(kept)), moved.reshape(shape) or run.copied(moved, moved.dtype).reshape(shape)


def logsumexp(x: Any, axes_of: Any, axis: Any, keepdims: bool, out: Any) -> Any:
    """As `softmax.logsumexp`."""
    run = runner("x")
    x = floating(run, "x", view("x", x))
    axes = axes_of(x, axis)
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes)
    layout, x = merged(run, x, axes)
    result = x.memory.empty(shape, run.computing(x))
    output = None if out is None else checked_output(out, result)
    run.rows("logsumexp", split(run, layout, x), losses=result.reshape((layout.samples,)))
    if output is None:
        return settled(run, result)
    run.copy(result, output)
    return settled(run, output)


def logsumexp_vjp(grad_output: Any, x: Any, axes_of: Any, axis: Any, out: Any) -> Any:
    """As `softmax.logsumexp_vjp`."""
    run = runner("x")
    x = floating(run, "x", view("x", x))
    axes = axes_of(x, axis)
    layout, together = merged(run, x, axes)
    grad = as_device(run, "grad_output", grad_output, x.memory)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    if grad.shape not in ((), layout.batch, kept):
        raise bad_grad_of_batch(grad.shape, layout.batch, kept)
    flat = (
        grad if grad.shape == () else grad.reshape(layout.batch) or run.copied(grad, grad.dtype).reshape(layout.batch)
    )
    scale = as_constants(run, "grad_output", flat, layout.batch, run.computing(x), x.memory)
    if len(axes) == 1:
        output = Output(run, out, lambda array: array.reshape(layout.view), (x,), (scale,))
        run.rows("softmax", split(run, layout, together), output.target, scale=scale)
        return output.finish()
    result = x.memory.empty(x.shape, x.dtype) if out is None else checked_output(out, x)
    moved = result.transpose((*(i for i in range(len(x.shape)) if i not in axes), *axes))
    grad = x.memory.empty(layout.shape, x.dtype)
    run.rows("softmax", split(run, layout, together), split(run, layout, grad), scale=scale)
    run.copy(grad.reshape(moved.shape), moved)
    return settled(run, result)
