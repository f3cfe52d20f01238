"""What to launch for arrays on a device: kernels, their geometry, and where each array begins and goes on."""

from typing import NamedTuple

import numpy as np

from ._cuda_copy import AXES, copy_kernel, product_kernel
from ._cuda_copy import THREADS as COPIERS
from ._cuda_device import WARP
from ._cuda_elementwise import EACH, EVERYTHING, SAMPLES, Term, element_kernel
from ._cuda_geometry import choose, lines
from ._cuda_launch import constant, has_clusters, launch, upload, wait
from ._cuda_pairs import pair_kernel
from ._cuda_rows import Task, row_kernel
from ._cuda_sums import THREADS, sum_kernel
from ._cuda_tiles import VECTOR
from ._device import DeviceArray

CHUNK = 32 * THREADS  # numbers in one sum over samples
PIECE = 64 * WARP * 4  # numbers in one sum over single numbers
NO_STEPS = (0, 0, 0)


def computing(array):
    """The type that its numbers are computed in."""
    return "float64" if array.dtype == "float64" else "float32"


def missing(dtype, memory):
    """Stands for an array that a kernel does not touch."""
    return DeviceArray(0, (0,), NO_STEPS, dtype, memory)


def one(dtype):
    """The constant 1."""
    return constant(1.0, dtype)


def steps_of(array):
    """Strides of an (outer, classes, inner) view, or of an (outer, classes) one."""
    return array.strides if len(array.strides) == 3 else (*array.strides, 0)


def arrange(*arrays):
    """(samples, classes, inner), the strides of each array, and how they are accessed."""
    outer, classes, inner = (*arrays[0].shape, 1)[:3]
    present, steps = [array for array in arrays if array.pointer], [steps_of(array) for array in arrays]
    used = [step for step, array in zip(steps, arrays, strict=True) if array.pointer]
    if outer == 1 or all(step[0] == inner * step[2] for step in used):  # one step from each sample to the next
        steps, samples_inner = [(step[2] if inner > 1 else step[0], step[1], 0) for step in steps], 1
    else:
        samples_inner = inner
    access = "strided"
    if samples_inner == 1 and classes > 1 and all(step[1] == 1 for step in used):
        width = max(VECTOR // array.itemsize for array in present)
        both = zip(used, present, strict=True)
        whole = all((array.pointer | step[0] * array.itemsize) % VECTOR == 0 for step, array in both)
        access = "aligned" if whole and classes % width == 0 else "peeled"
    return (outer * inner, classes, samples_inner), steps, access


# --- samples -----------------------------------------------------------------------------------------------------


def rows(
    operation, x, out=None, target=None, weight=None, scale=None, denominator=None, losses=None, ignore_index=0,
    label_smoothing=0.0, z_loss=0.0, factor=1.0,
):  # fmt: skip
    """A kernel of `_cuda_rows`; arrays as for `Kernels`, and `denominator` a number that divides the gradient."""
    kind, memory = computing(x), x.memory
    keep, spread = 1.0 - label_smoothing, label_smoothing / max(1, x.shape[1])
    labelled = target is not None and target.dtype == "int64"
    form = "" if target is None else "probs" if not labelled else "smoothed" if spread else "label"
    labels, probs = (target, None) if labelled else (None, target)
    task = Task(operation, x.dtype, form, probs.dtype if probs else "", out is not None)
    y, written = probs or missing(x.dtype, memory), out or missing(x.dtype, memory)
    shape, steps, access = arrange(x, y, written)
    if shape[0] == 0:
        return
    storages = (x.dtype, probs.dtype) if probs else (x.dtype,)
    gathers = operation == "nll" and labelled and out is None  # one number of each sample
    access, classes = ("strided", 1) if gathers else (access, shape[1])
    geometry = choose(classes, access, 2 if task.dense else 1, storages, has_clusters())
    weight, scale = weight or one(kind), scale or one(kind)
    launch(
        row_kernel(task, geometry), -(-shape[0] // geometry.samples) * geometry.blocks, geometry.block, memory,
        x, y, written, labels or missing("int64", memory), weight, scale, denominator or one("float64"),
        losses or missing(kind, memory), shape, *steps, (int(weight.shape[0] > 1), int(scale.shape[0] > 1)),
        ignore_index, (keep, spread, z_loss), factor,
    )  # fmt: skip


def pairs(operation, grad, probs, out):
    """A kernel of `_cuda_pairs`."""
    shape, (steps, grad_steps, out_steps), access = arrange(probs, grad, out)
    if shape[0] == 0:
        return
    geometry = choose(shape[1], access, 2, (probs.dtype, grad.dtype), False)
    launch(
        pair_kernel(operation, probs.dtype, grad.dtype, geometry), -(-shape[0] // geometry.samples), geometry.block,
        probs.memory, grad, probs, out, shape, grad_steps, steps, out_steps,
    )  # fmt: skip


# --- sums --------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What `sums` leaves."""

    total: DeviceArray  # float64
    first: DeviceArray  # int64: the first bad label, or -1


def sums(
    terms, count, values, weight, labels, scale, denominator=None, result=None, classes=0, ignore_index=0, divisor=1.0,
):  # fmt: skip
    """A kernel of `_cuda_sums`; its result, if wanted, is the total over denominator and divisor."""
    memory, kind = (values or labels).memory, values.dtype if values else weight.dtype
    values, labels = values or missing(kind, memory), labels or missing("int64", memory)
    weight, scale, denominator = weight or one(kind), scale or one(kind), denominator or one("float64")
    steps, blocks = (int(weight.shape[0] > 1), int(scale.shape[0] > 1)), max(1, -(-count // CHUNK))
    totals, firsts = memory.empty((blocks + 1,), "float64"), memory.empty((blocks + 1,), "int64")
    result = result or totals
    arguments = values, weight, labels, scale, denominator
    numbers = steps, classes, ignore_index, float(divisor)
    if blocks > 1:
        parts = part_of(totals, 1, blocks), part_of(firsts, 1, blocks)
        kernel = sum_kernel(terms, kind, result.dtype)
        launch(kernel, blocks, THREADS, memory, *arguments, *parts, result, count, CHUNK, *numbers)
        terms, kind, count = "parts", "float64", blocks
        arguments = parts[0], one("float64"), parts[1], one("float64"), denominator
    kernel = sum_kernel(terms, kind, result.dtype)
    launch(kernel, 1, THREADS, memory, *arguments, totals, firsts, result, count, count, *numbers)
    return Sums(part_of(totals, 0, 1), part_of(firsts, 0, 1))


def part_of(array, first, count):
    """Some numbers of a contiguous array."""
    return array._replace(pointer=array.pointer + first * array.itemsize, shape=(count,), strides=(1,))


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
    arrays = x, y, weight, pos_weight, scale, loss or missing(kind, memory), grad or missing(x.dtype, memory)
    shape, steps = divide(x.shape, [array.strides for array in arrays], across, mode != SAMPLES)
    access = "peeled" if all(step[1] in (0, 1) for step in steps) else "strided"
    geometry = lines(shape[1], access, (x.dtype, y.dtype, kind))
    totals = memory.empty((shape[0] if mode == EVERYTHING else 1,), "float64")
    kernel = element_kernel(Term(name, x.dtype, y.dtype, mode, grad is not None), geometry)
    launch(
        kernel, -(-shape[0] // geometry.samples), geometry.block, memory, *arrays, totals, shape, *steps, float(factor),
        1.0 / divisor if loss else 1.0,
    )  # fmt: skip
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
    return upload(array, dtype)._replace(memory=memory)


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
    launch(kernel, blocks, COPIERS, source.memory, source, target, source.size, shape, steps, target_steps)


def multiply(array, factors, product):
    """product = array * factors, which may be one number; a loss of 0 stays 0, whatever its weight."""
    count = array.size
    if count:
        kernel = product_kernel(product.dtype)
        step = int(factors.size > 1)
        launch(kernel, -(-count // COPIERS), COPIERS, array.memory, array, factors, product, count, step)


def number(array, i=0):
    """One number of an array, for which the host waits."""
    return to_host(copied(part_of(array, i, 1), array.dtype))[0].item()


def to_host(array):
    """A contiguous array that its library has just made, as one of NumPy's."""
    owner = array.owner
    if hasattr(owner, "copy_to_host"):
        wait(array.memory)
        return owner.copy_to_host()
    return owner.cpu().numpy() if hasattr(owner, "cpu") else owner.get() if hasattr(owner, "get") else np.asarray(owner)
