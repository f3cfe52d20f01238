"""What to launch for arrays on a device: kernels, their geometry, and where each array begins and goes on."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from ._cuda_copy import AXES, copy_kernel, product_kernel
from ._cuda_copy import THREADS as COPIERS
from ._cuda_device import WARP
from ._cuda_elementwise import EACH, EVERYTHING, SAMPLES, Term, element_kernel
from ._cuda_geometry import choose, lines
from ._cuda_launch import constant, has_clusters, launch, wait
from ._cuda_launch import upload as upload
from ._cuda_pairs import pair_kernel
from ._cuda_rows import Task, row_kernel
from ._cuda_sums import FIRST, INVERSE, PARTS, THREADS, TOTAL, sum_kernel
from ._cuda_tiles import ITEMSIZE, MOST, VECTOR
from ._device import NOWHERE, DeviceArray

CHUNK = 32 * THREADS  # numbers in one sum over samples
PIECE = 64 * WARP * 4  # numbers in one sum over single numbers
NO_STEPS = (0, 0, 0)


def computing(array):
    """The type that its numbers are computed in."""
    return "float64" if array.dtype == "float64" else "float32"


@cache
def missing(dtype):
    """Stands for an array that a kernel does not touch."""
    return DeviceArray(0, (0,), NO_STEPS, dtype, NOWHERE)


@cache
def one(dtype, device):
    """The constant 1."""
    return constant(1.0, dtype, device)


class Arrangement(NamedTuple):
    """How some arrays are gone through together."""

    shape: tuple[int, int, int]  # samples, classes, inner
    steps: list[tuple[int, int, int]]  # strides of each array for (outer, class, inner)
    access: str  # as in `Geometry`


def form_of(array):
    """What of an array decides how it is gone through; None for one that is missing."""
    return None if array is None else (array.strides, array.dtype, array.pointer % VECTOR)


def arrange(shape, *forms):
    """The arrangement of (outer, classes, inner) or (outer, classes) views of these forms."""
    outer, classes, inner = (*shape, 1)[:3]
    if classes > MOST:
        raise ValueError(f"samples have {classes} classes, expected at most {MOST} on a GPU")
    steps = [NO_STEPS if form is None else (*form[0], 0)[:3] for form in forms]
    used = [(step, ITEMSIZE[form[1]], form[2]) for step, form in zip(steps, forms, strict=True) if form]
    if outer == 1 or all(step[0] == inner * step[2] for step, _, _ in used):  # one step from each sample to the next
        which = 2 if inner > 1 else 0
        steps, used = [(step[which], step[1], 0) for step in steps], [((u[0][which], *u[0][1:]), *u[1:]) for u in used]
        samples, inner = outer * inner, 1
    else:
        samples = outer * inner
    access = "strided"
    if inner == 1 and classes > 1 and all(step[1] == 1 for step, _, _ in used):
        width = max(VECTOR // size for _, size, _ in used)
        whole = all((past | step[0] * size) % VECTOR == 0 for step, size, past in used)
        access = "aligned" if whole and classes % width == 0 else "peeled"
    return Arrangement((samples, classes, inner), steps, access)


class Plan(NamedTuple):
    """How a kernel is launched on arrays of some forms; kept, as programs use few."""

    kernel: Callable[..., None]
    blocks: int
    bounds: tuple[int, ...]
    shape: tuple[int, ...]
    steps: list[tuple[int, int, int]]


# --- samples -----------------------------------------------------------------------------------------------------


def rows(
    operation, x, out=None, target=None, weight=None, scale=None, inverse=None, losses=None, ignore_index=0,
    label_smoothing=0.0, z_loss=0.0, factor=1.0,
):  # fmt: skip
    """A kernel of `_cuda_rows`; arrays as for `Kernels`, and `inverse` a number that multiplies the gradient."""
    keep, spread = 1.0 - label_smoothing, label_smoothing / max(1, x.shape[1])
    labels, probs = (target, None) if target is not None and target.dtype == "int64" else (None, target)
    aim = "probs" if probs else "" if not labels else "smoothed" if spread else "label"
    plan = plan_rows(operation, aim, has_clusters(x.memory.device), x.shape, form_of(x), form_of(probs), form_of(out))
    if plan.blocks == 0:
        return
    kind, device = computing(x), x.memory.device
    weight, scale = weight or one(kind, device), scale or one(kind, device)
    launch(
        plan.kernel, plan.blocks, plan.bounds, x.memory,
        x, probs or missing(x.dtype), out or missing(x.dtype), labels or missing("int64"), weight, scale,
        inverse or one("float64", device), losses or missing(kind), plan.shape, *plan.steps,
        (int(weight.shape[0] > 1), int(scale.shape[0] > 1)), ignore_index, (keep, spread, z_loss), factor,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def plan_rows(operation, aim, clusters, shape, x, probs, out):
    """Of an operation of `Kernels`, `aim` as in `Task`, whether there are clusters, and arrays of these forms."""
    shape, steps, access = arrange(shape, x, probs, out)
    storages = [form[1] for form in (x, probs) if form]
    task = Task(operation, x[1], aim, probs[1] if probs else "", out is not None)
    classes = shape[1]
    if operation == "nll" and task.labelled and out is None:  # one number of each sample
        access, classes = "strided", 1
    geometry = choose(classes, access, 2 if task.dense else 1, tuple(storages), clusters)
    return Plan(row_kernel(task, geometry), blocks_of(shape, geometry), geometry.bounds, shape, steps)


def blocks_of(shape, geometry):
    """How many blocks take so many samples."""
    return -(-shape[0] // geometry.samples) * geometry.blocks


def pairs(operation, grad, probs, out):
    """A kernel of `_cuda_pairs`."""
    plan = plan_pairs(operation, probs.shape, form_of(grad), form_of(probs), form_of(out))
    if plan.blocks:
        launch(plan.kernel, plan.blocks, plan.bounds, probs.memory, grad, probs, out, plan.shape, *plan.steps)


@lru_cache(maxsize=1024)
def plan_pairs(operation, shape, grad, probs, out):
    """Of an operation of `Kernels` and arrays of these forms."""
    shape, steps, access = arrange(shape, grad, probs, out)
    geometry = choose(shape[1], access, 2, (probs[1], grad[1]), False)
    kernel = pair_kernel(operation, probs[1], grad[1], geometry)
    return Plan(kernel, blocks_of(shape, geometry), geometry.bounds, shape, steps)


# --- sums --------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What `sums` leaves, as `_cuda_sums` says."""

    left: DeviceArray

    @property
    def inverse(self):
        """1 / total, nan for 0."""
        return part_of(self.left, INVERSE, 1)

    def read(self):
        """Total, and the first bad label or -1, as numbers, for which the host waits."""
        left = to_host(self.left)
        return left[TOTAL].item(), int(left[FIRST])


def sums(
    terms, count, values, weight, labels, scale, denominator=None, result=None, classes=0, ignore_index=0, divisor=1.0,
):  # fmt: skip
    """A kernel of `_cuda_sums`; its result, if wanted, is the total over denominator and divisor.

    `denominator` are the `Sums` over as many numbers before, whose memory serves again.
    """
    memory, kind = (values or labels).memory, values.dtype if values else weight.dtype
    values, labels = values or missing(kind), labels or missing("int64")
    device = memory.device
    weight, scale = weight or one(kind, device), scale or one(kind, device)
    blocks = max(1, -(-count // CHUNK))
    left = denominator.left if denominator else memory.empty((PARTS + 2 * blocks if blocks > 1 else PARTS,), "float64")
    denominator, result = left if denominator else one("float64", device), result or left
    numbers = (int(weight.shape[0] > 1), int(scale.shape[0] > 1)), classes, ignore_index, float(divisor)
    if blocks > 1:
        kernel = sum_kernel(terms, kind, "float64")
        arguments = values, weight, labels, scale, one("float64", device), left, left
        launch(kernel, blocks, (THREADS,), memory, *arguments, count, CHUNK, *numbers)
        terms, kind, count = "parts", "float64", blocks
        values, weight, scale = part_of(left, PARTS, 2 * blocks), one(kind, device), one(kind, device)
    kernel = sum_kernel(terms, kind, result.dtype)
    arguments = values, weight, labels, scale, denominator, left, result
    launch(kernel, 1, (THREADS,), memory, *arguments, count, count, *numbers)
    return Sums(left)


def part_of(array, first, count):
    """Some numbers of a contiguous array."""
    pointer = array.pointer + first * array.itemsize
    return DeviceArray(pointer, (count,), (1,), array.dtype, array.memory, array.owner)


# --- single numbers ----------------------------------------------------------------------------------------------


def elements(name, arrays, shape, strides, factor, divisor=1.0, result=None):
    """A kernel of `_cuda_elementwise` on views of this 3-D shape and these strides; losses or gradient may be None.

    `arrays` are x, y, weight, pos_weight, scale, loss, grad. Without a loss, the sum of all, which the result is a mean
    of. Losses that are summed along an axis are divided, too.
    """
    x, y, *_, loss, grad = arrays
    plan = plan_elements(name, x.dtype, y.dtype, shape, strides)
    totals = missing("float64") if loss else x.memory.empty((plan.shape[0],), "float64")
    launch(
        plan.kernel, plan.blocks, plan.bounds, x.memory, *arrays[:5], loss or missing(computing(x)),
        grad or missing(x.dtype), totals, plan.shape, *plan.steps, float(factor), 1.0 / divisor if loss else 1.0,
    )  # fmt: skip
    return None if loss else sums("values", plan.shape[0], totals, None, None, None, None, result, divisor=divisor)


@lru_cache(maxsize=1024)
def plan_elements(name, storage, target_storage, shape, strides):
    """Of a term and arrays as above, whose first two have these types."""
    *_, loss, grad = strides
    across = loss is not None and shape[1] > 1 and loss[1] == 0
    along = loss is not None and shape[2] > 1 and loss[2] == 0
    mode = EVERYTHING if loss is None else SAMPLES if across or along else EACH
    shape, steps = divide(shape, [step or NO_STEPS for step in strides], across, mode != SAMPLES)
    access = "peeled" if all(step[1] in (0, 1) for step in steps) else "strided"
    geometry = lines(shape[1], access, (storage, target_storage, "float64" if storage == "float64" else "float32"))
    kernel = element_kernel(Term(name, storage, target_storage, mode, grad is not None), geometry)
    return Plan(kernel, blocks_of(shape, geometry), geometry.bounds, shape, steps)


def divide(shape, strides, across, cuts):
    """(samples, classes, inner, all numbers) and the strides of each array for them.

    The classes are the middle axis or the inner one, a piece of it if that is all there is.
    """
    outer, middle, inner = shape
    if across:
        return (outer * inner, middle, inner, outer * middle * inner), strides
    if cuts and outer * middle == 1:
        return (-(-inner // PIECE), PIECE, 1, inner), [(PIECE * step[2], step[2], 0) for step in strides]
    # An axis of length 1 may have any stride.
    steps = [(step[0], step[2] if inner > 1 else 1, step[1]) for step in strides]
    return (outer * middle, inner, middle, outer * middle * inner), steps


# --- copies ------------------------------------------------------------------------------------------------------


def copied(array, dtype):
    """A contiguous copy, in another type of number perhaps."""
    result = array.memory.empty(array.shape, dtype)
    copy(array, result)
    return result


def copy(source, target):
    """Put the numbers of an array into another one of the same shape."""
    axes = [axis for axis in zip(source.shape, source.strides, target.strides, strict=True) if axis[0] != 1][::-1]
    if source.size == 0:
        return
    if len(axes) > AXES:
        raise ValueError(f"an array of shape {source.shape} has more than {AXES} axes, which do not lie in order")
    shape, steps, target_steps = zip(*axes, *[(1, 0, 0)] * (AXES - len(axes)), strict=True)
    kernel = copy_kernel(source.dtype, target.dtype)
    blocks = -(-source.size // COPIERS)
    launch(kernel, blocks, (COPIERS,), source.memory, source, target, source.size, shape, steps, target_steps)


def multiply(array, factors, product):
    """product = array * factors, which may be one number; a loss of 0 stays 0, whatever its weight."""
    count = array.size
    if count:
        kernel = product_kernel(array.dtype, factors.dtype, product.dtype)
        step = int(factors.size > 1)
        launch(kernel, -(-count // COPIERS), (COPIERS,), array.memory, array, factors, product, count, step)


def number(array, i=0):
    """One number of an array, for which the host waits."""
    return to_host(copied(part_of(array, i, 1), array.dtype))[0].item()


def to_host(array):
    """A contiguous array that its library has just made, as one of NumPy's."""
    owner = array.owner
    if array.memory.waits or hasattr(owner, "copy_to_host"):
        wait(array.memory)
    if hasattr(owner, "copy_to_host"):
        return owner.copy_to_host()
    return owner.cpu().numpy() if hasattr(owner, "cpu") else owner.get() if hasattr(owner, "get") else np.asarray(owner)
