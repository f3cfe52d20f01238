"""What to launch for arrays on a device: kernels, their geometry, and where each array begins and goes on."""

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from ._cuda_copy import AXES, copy_kernel, product_kernel
from ._cuda_copy import THREADS as COPIERS
from ._cuda_device import WARP, wait
from ._cuda_elementwise import EACH, EVERYTHING, SAMPLES, Term, element_kernel
from ._cuda_geometry import choose, lines
from ._cuda_launch import constant, has_clusters, launch, upload
from ._cuda_pairs import pair_kernel
from ._cuda_rows import Task, row_kernel
from ._cuda_sums import THREADS, sum_kernel
from ._cuda_tiles import MOST, VECTOR
from ._device import DeviceArray, Memory

CHUNK = 32 * THREADS  # numbers in one sum over samples
PIECE = 64 * WARP * 4  # numbers in one sum over single numbers
NO_STEPS = (0, 0, 0)
NOWHERE = Memory(lambda shape, dtype: (None, 0), 0)


def computing(array):
    """The type that its numbers are computed in."""
    return "float64" if array.dtype == "float64" else "float32"


@cache
def missing(dtype):
    """Stands for an array that a kernel does not touch."""
    return DeviceArray(0, (0,), NO_STEPS, dtype, NOWHERE)


@cache
def one(dtype):
    """The constant 1."""
    return constant(1.0, dtype)


class Arrangement(NamedTuple):
    """How some arrays are gone through together."""

    shape: tuple[int, int, int]  # samples, classes, inner
    steps: list[tuple[int, int, int]]  # strides of each array for (outer, class, inner)
    access: str  # as in `Geometry`


def arrange(*arrays):
    """The arrangement of (outer, classes, inner) or (outer, classes) views, the first of which is not missing."""
    return _arrange(arrays[0].shape, *[(a.strides, a.itemsize if a.pointer else 0, a.pointer % VECTOR) for a in arrays])


@lru_cache(maxsize=1024)
def _arrange(shape, *arrays):
    """The same from strides, the size of an element or 0 for a missing array, and bytes past an aligned address."""
    outer, classes, inner = (*shape, 1)[:3]
    if classes > MOST:
        raise ValueError(f"samples have {classes} classes, expected at most {MOST} on a GPU")
    steps = [step if len(step) == 3 else (*step, 0) for step, _, _ in arrays]
    used = [(step, size, past) for step, (_, size, past) in zip(steps, arrays, strict=True) if size]
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


# --- samples -----------------------------------------------------------------------------------------------------


def rows(
    operation, x, out=None, target=None, weight=None, scale=None, inverse=None, losses=None, ignore_index=0,
    label_smoothing=0.0, z_loss=0.0, factor=1.0,
):  # fmt: skip
    """A kernel of `_cuda_rows`; arrays as for `Kernels`, and `inverse` a number that multiplies the gradient."""
    kind, memory = computing(x), x.memory
    keep, spread = 1.0 - label_smoothing, label_smoothing / max(1, x.shape[1])
    labelled = target is not None and target.dtype == "int64"
    form = "" if target is None else "probs" if not labelled else "smoothed" if spread else "label"
    labels, probs = (target, None) if labelled else (None, target)
    y, written = probs or missing(x.dtype), out or missing(x.dtype)
    shape, steps, access = arrange(x, y, written)
    if shape[0] == 0:
        return
    target_storage = probs.dtype if probs else ""
    kernel, geometry = _row_kernel(operation, x.dtype, form, target_storage, out is not None, shape[1], access)
    weight, scale = weight or one(kind), scale or one(kind)
    launch(
        kernel, -(-shape[0] // geometry.samples) * geometry.blocks, geometry.bounds, memory,
        x, y, written, labels or missing("int64"), weight, scale, inverse or one("float64"),
        losses or missing(kind), shape, *steps, (int(weight.shape[0] > 1), int(scale.shape[0] > 1)),
        ignore_index, (keep, spread, z_loss), factor,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _row_kernel(operation, storage, form, target_storage, writes, classes, access):
    """The kernel for samples of so many classes, and its geometry."""
    task = Task(operation, storage, form, target_storage, writes)
    if operation == "nll" and task.labelled and not writes:  # one number of each sample
        access, classes = "strided", 1
    storages = (storage, target_storage) if target_storage else (storage,)
    geometry = choose(classes, access, 2 if task.dense else 1, storages, has_clusters())
    return row_kernel(task, geometry), geometry


def pairs(operation, grad, probs, out):
    """A kernel of `_cuda_pairs`."""
    shape, (steps, grad_steps, out_steps), access = arrange(probs, grad, out)
    if shape[0] == 0:
        return
    geometry = choose(shape[1], access, 2, (probs.dtype, grad.dtype), False)
    launch(
        pair_kernel(operation, probs.dtype, grad.dtype, geometry), -(-shape[0] // geometry.samples), geometry.bounds,
        probs.memory, grad, probs, out, shape, grad_steps, steps, out_steps,
    )  # fmt: skip


# --- sums --------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What `sums` leaves: the total, a float64; then the first bad label, an int64, or -1; then 1 / total."""

    room: DeviceArray

    @property
    def inverse(self):
        """1 / total, nan for 0."""
        return part_of(self.room, 2 * self.room.shape[1], 1)

    def read(self):
        """Total and label as numbers, for which the host waits."""
        totals, firsts, _ = to_host(self.room)
        return totals[0].item(), firsts.view(np.int64)[0].item()


def sums(
    terms, count, values, weight, labels, scale, denominator=None, result=None, classes=0, ignore_index=0, divisor=1.0,
):  # fmt: skip
    """A kernel of `_cuda_sums`; its result, if wanted, is the total over denominator and divisor."""
    memory, kind = (values or labels).memory, values.dtype if values else weight.dtype
    values, labels = values or missing(kind), labels or missing("int64")
    weight, scale, denominator = weight or one(kind), scale or one(kind), denominator or one("float64")
    steps, blocks = (int(weight.shape[0] > 1), int(scale.shape[0] > 1)), max(1, -(-count // CHUNK))
    room = memory.empty((3, blocks + 1), "float64")
    firsts = part_of(room, blocks + 1, blocks + 1, "int64")
    inverse, result = Sums(room).inverse, result or room
    arguments = values, weight, labels, scale, denominator
    numbers = steps, classes, ignore_index, float(divisor)
    if blocks > 1:
        parts = part_of(room, 1, blocks), part_of(firsts, 1, blocks)
        kernel = sum_kernel(terms, kind, result.dtype)
        launch(kernel, blocks, (THREADS,), memory, *arguments, *parts, inverse, result, count, CHUNK, *numbers)
        terms, kind, count = "parts", "float64", blocks
        arguments = parts[0], one("float64"), parts[1], one("float64"), denominator
    kernel = sum_kernel(terms, kind, result.dtype)
    launch(kernel, 1, (THREADS,), memory, *arguments, room, firsts, inverse, result, count, count, *numbers)
    return Sums(room)


def part_of(array, first, count, dtype=""):
    """Some numbers of a contiguous array, perhaps seen as of another type of the same size."""
    pointer = array.pointer + first * array.itemsize
    return DeviceArray(pointer, (count,), (1,), dtype or array.dtype, array.memory, array.owner)


# --- single numbers ----------------------------------------------------------------------------------------------


def elements(name, x, y, weight, pos_weight, scale, factor, loss, grad, divisor=1.0, result=None):
    """A kernel of `_cuda_elementwise` on 3-D views; without a loss, the sum of all, which the result is a mean of.

    Losses that are summed along an axis are divided, too.
    """
    kind, memory = computing(x), x.memory
    _, middle, inner = x.shape
    across = loss is not None and middle > 1 and loss.strides[1] == 0
    along = loss is not None and inner > 1 and loss.strides[2] == 0
    mode = EVERYTHING if loss is None else SAMPLES if across or along else EACH
    arrays = x, y, weight, pos_weight, scale, loss or missing(kind), grad or missing(x.dtype)
    shape, steps = divide(x.shape, [array.strides for array in arrays], across, mode != SAMPLES)
    access = "peeled" if all(step[1] in (0, 1) for step in steps) else "strided"
    geometry = lines(shape[1], access, (x.dtype, y.dtype, kind))
    totals = memory.empty((shape[0] if mode == EVERYTHING else 1,), "float64")
    kernel = element_kernel(Term(name, x.dtype, y.dtype, mode, grad is not None), geometry)
    share = 1.0 / divisor if loss else 1.0
    blocks = -(-shape[0] // geometry.samples)
    launch(kernel, blocks, geometry.bounds, memory, *arrays, totals, shape, *steps, float(factor), share)
    if mode != EVERYTHING:
        return None
    return sums("values", shape[0], totals, None, None, None, None, result, divisor=divisor)


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


def to_device(array, dtype, memory):
    """A copy of an array of the host, in what kernels take its type as."""
    copy_of_it = upload(array, dtype)._replace(memory=memory)
    wait(0)  # the stream of the copy, which no other stream waits for
    return copy_of_it


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
        kernel = product_kernel(product.dtype)
        step = int(factors.size > 1)
        launch(kernel, -(-count // COPIERS), (COPIERS,), array.memory, array, factors, product, count, step)


def number(array, i=0):
    """One number of an array, for which the host waits."""
    return to_host(copied(part_of(array, i, 1), array.dtype))[0].item()


def to_host(array):
    """A contiguous array that its library has just made, as one of NumPy's."""
    owner = array.owner
    if array.memory.waits or hasattr(owner, "copy_to_host"):
        wait(array.memory.stream)
    if hasattr(owner, "copy_to_host"):
        return owner.copy_to_host()
    return owner.cpu().numpy() if hasattr(owner, "cpu") else owner.get() if hasattr(owner, "get") else np.asarray(owner)
