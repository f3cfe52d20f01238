"""Numba kernels: the functions of `_backends.Kernels`, each a launch of a compiled loop over samples."""

from collections.abc import Callable
from functools import lru_cache
from math import fsum
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.np.numpy_support import from_dtype

from . import _numba_elementwise as elements
from . import _numba_lanes as lanes
from . import _numba_rows as rows
from . import _numba_short_rows as short_rows
from . import _numba_sums as sums
from ._backends import Array
from ._numba_blocks import BLOCK, KEPT
from ._numba_split import FINDINGS, number_of_parts
from ._numba_threads import ALONE, COUNTER, HELP, SLICE, deal
from ._numba_trace import LANES

GRAIN = 1 << 15  # elements in one task
MOST_TASKS = 1024  # of elements, with a sum each: more elements make them longer
SHORT = ("logsumexp", "softmax", "cross_entropy")  # kernels that there are for short rows too
MAPS = ("softmax", "log_softmax", "softmax_vjp", "log_softmax_vjp")  # kernels that fill an array like x, and no other
KEEPING = ("softmax", "cross_entropy", "nll")  # kernels that keep the exponentials of rows for a result
FEW_CLASSES = 64  # contiguous classes up to here go to lane kernels

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
NOTHING = {dtype: np.empty(0, dtype) for dtype in (SINGLE, DOUBLE)}
NO_TOTALS = NOTHING[DOUBLE]

# --- compilation -------------------------------------------------------------------------------------------------

_versions: dict[tuple[Any, ...], tuple[Callable[..., Any], Any]] = {}  # with what keeps them loaded


def _type_of(argument: Any) -> Any:
    """One type for arrays of any strides, so that there is one version for each type of number."""
    if isinstance(argument, np.ndarray):
        return types.Array(from_dtype(argument.dtype), argument.ndim, "A", readonly=True)
    return types.none if argument is None else types.int64 if isinstance(argument, int) else types.float64


def _compile(key: tuple[Any, ...], arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], Any]:
    """The kernel key[0] compiled for such arguments, whose types follow from the rest of the key; or from disk."""
    types_of_all = tuple(map(_type_of, arguments))
    try:
        dispatcher = njit(types_of_all, nogil=True, cache=True)(key[0])
    except RuntimeError:  # "no locator available": no directory is writable
        dispatcher = njit(types_of_all, nogil=True)(key[0])
    _versions[key] = dispatcher.get_overload(types_of_all), dispatcher
    return _versions[key]


# --- samples -----------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How a kernel goes over arrays of certain types, shapes and strides."""

    key: tuple[Any, ...]  # the kernel, and what the types of its arguments follow from
    size: int  # samples, or parts of samples, in one task
    pieces: int  # samples, or parts of samples
    parts: int | None  # of each sample in row kernels, 0 where samples are whole; others know of none
    spare: tuple[int, np.dtype[Any]]  # numbers for which each thread needs memory, and their type


@lru_cache(maxsize=256)
def _plan(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...], y_dtype: np.dtype[Any],
    out_strides: tuple[int, ...] | None, plain: bool,
) -> Plan | None:  # fmt: skip
    """None if there is nothing to do. `plain` is as in `_run`."""
    classes, inner = shape[1], shape[2] if len(shape) == 3 else 1
    samples, size = shape[0] * inner, max(1, GRAIN // max(1, classes))
    whole = -(-size // LANES) * LANES
    computing = DOUBLE if dtype == DOUBLE else SINGLE
    if samples == 0 or (classes == 0 and name in MAPS):  # an array of no bytes may well have 2^60 samples
        return None
    together, kinds = strides[1] == dtype.itemsize, (dtype, y_dtype, len(shape), out_strides is None)
    if together and plain and _are_short_rows(name, dtype, classes, out_strides):
        spare = LANES * (classes + 2)
        return Plan((getattr(short_rows, name), *kinds), whole, samples, None, (spare, computing))
    side_by_side = strides[-1 if inner > 1 else 0] == dtype.itemsize and (inner == 1 or inner >= LANES // 4)
    if classes <= FEW_CLASSES if together or classes == 1 else side_by_side:
        return Plan((getattr(lanes, name), *kinds), whole, samples, None, (0, computing))
    parts = number_of_parts(samples, classes)
    kept = KEPT // computing.itemsize if name in KEEPING and out_strides is not None else BLOCK
    room = min(classes, BLOCK) if parts or classes > kept else classes
    spare = -(-room // LANES) * LANES + LANES  # from a cache line on
    return Plan((getattr(rows, name), *kinds, parts == 0), size, samples * max(1, parts), parts, (spare, computing))


def _are_short_rows(name: str, dtype: np.dtype[Any], classes: int, out_strides: tuple[int, ...] | None) -> bool:
    """Whether there are kernels for those, classes being side by side."""
    if name not in SHORT or not short_rows.LEAST <= classes <= short_rows.MOST:
        return False
    return out_strides is None or len(out_strides) == 1 or out_strides[1] == dtype.itemsize


def _row_major(array: Any) -> Any:
    """For row kernels, classes side by side.

    What is copied here has neither classes nor samples side by side (or only a few samples): reading such numbers one
    by one takes longer than the copy.
    """
    if not isinstance(array, np.ndarray) or array.ndim == 1 or array.strides[1] == array.itemsize:
        return array
    return np.ascontiguousarray(array.swapaxes(1, -1)).swapaxes(1, -1)


def _run(
    name: str, x: Array, y: Array, between: tuple[Any, ...], out: Array | None, num_threads: int, plain: bool = True
) -> Any:
    """Call the kernel of this name for all samples: (x, *between, out, ...), the rest is said where kernels are.

    The types of arguments follow from those of x and y, and from whether there is an out and samples are in parts.
    `plain` says that nothing but a label makes a sample's target. What comes back is as in `_launch`.
    """
    plan = _plan(name, x.dtype, x.shape, x.strides, y.dtype, None if out is None else out.strides, plain)
    if plan is None:
        return None
    key, size, pieces, parts, (length, computing) = plan
    spare = np.empty(length, computing) if length else NOTHING[computing]
    if parts is None:
        return _launch(key, (x, *between, out), size, pieces, x.size, num_threads, spare)
    arguments = tuple(map(_row_major, (x, *between, out)))
    found = np.empty((pieces // parts, parts, FINDINGS)) if parts else None
    for joining in range(2 if parts else 1):
        answer = _launch(key, (*arguments, found, joining), size, pieces, x.size, num_threads, spare)
    if out is not None and arguments[-1] is not out:
        out[...] = arguments[-1]
    return answer


def _launch(
    key: tuple[Any, ...], arguments: tuple[Any, ...], size: int, pieces: int, elements: int, num_threads: int,
    *spare: Array,
) -> Any:  # fmt: skip
    """Have all pieces done, so many at a time; what the kernel gives back, if one call of it does all."""
    version, _ = _versions.get(key) or _compile(key, (*arguments, ALONE, size, *spare))
    if _needs_no_help(elements, num_threads):
        return version(*arguments, ALONE, size, *spare)
    return deal(version, arguments, size, -(-pieces // size), elements, num_threads, *spare)


def _needs_no_help(elements: int, num_threads: int) -> bool:
    """Whether one thread does all of them in one go."""
    return elements <= HELP or (num_threads == 1 and elements <= SLICE)


def logsumexp(x: Array, num_threads: int, out: Array) -> None:
    _run("logsumexp", x, x, (), out, num_threads)


def softmax(x: Array, scale: Array, num_threads: int, out: Array) -> None:
    _run("softmax", x, x, (scale,), out, num_threads)


def log_softmax(x: Array, num_threads: int, out: Array) -> None:
    _run("log_softmax", x, x, (), out, num_threads)


def softmax_vjp(grad_output: Array, probs: Array, num_threads: int, out: Array) -> None:
    _run("softmax_vjp", probs, grad_output, (grad_output,), out, num_threads)


def log_softmax_vjp(grad_output: Array, log_probs: Array, num_threads: int, out: Array) -> None:
    _run("log_softmax_vjp", log_probs, grad_output, (grad_output,), out, num_threads)


def _loss(
    name: str, x: Array, target: Array, weight: Array, scale: Array, coefficients: tuple[Any, ...], num_threads: int,
    loss: Array | None, grad: Array | None, plain: bool = True,
) -> float:  # fmt: skip
    """Call a kernel that takes labels and probabilities, one of which is None; the sum of losses without `loss`."""
    shape, wanted = x.shape, loss is None
    classes, samples = shape[1], shape[0] * shape[2] if len(shape) == 3 else shape[0]
    labels, probs = (target, None) if target.ndim == 1 else (None, target)
    summed = wanted and samples <= sums.CHUNK and _needs_no_help(samples * classes, num_threads)
    losses = np.empty(samples, weight.dtype) if loss is None else loss
    between = labels, probs, weight, scale, *coefficients, losses, 1 if summed else 0
    answer = _run(name, x, target, between, grad, num_threads, plain and probs is None)
    if samples == 0 or not wanted:
        return 0.0
    return answer[0] if summed else weighted_sum(losses, scale, num_threads)


def cross_entropy(
    x: Array, target: Array, weight: Array, scale: Array, label_smoothing: float, z_loss: float, ignore_index: int,
    factor: float, num_threads: int, loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    coefficients, plain = (label_smoothing, z_loss, ignore_index, factor), label_smoothing == 0
    return _loss("cross_entropy", x, target, weight, scale, coefficients, num_threads, loss, grad, plain)


def nll(
    x: Array, target: Array, weight: Array, scale: Array, ignore_index: int, factor: float, num_threads: int,
    loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    return _loss("nll", x, target, weight, scale, (ignore_index, factor), num_threads, loss, grad)


# --- single elements ---------------------------------------------------------------------------------------------


def elementwise(
    name: str, x: Array, y: Array, weight: Array, pos_weight: Array, scale: Array, factor: float, num_threads: int,
    loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    if x.size == 0:
        return 0.0
    outer, middle, inner = x.shape
    mode = _mode(loss, middle, inner)
    depth = middle if mode == elements.COLUMNS else 1
    span = inner if mode == elements.ROWS else min(inner, elements.SPAN if depth > 1 else GRAIN)
    pieces = outer * (middle // depth) * -(-inner // span)
    size = max(1, GRAIN // (span * depth), -(-pieces // MOST_TASKS))
    tasks = -(-pieces // size)
    single = tasks == 1 and _needs_no_help(x.size, num_threads)
    totals = NO_TOTALS if single else np.empty(tasks)
    losses = weight if loss is None else loss  # has the right type, and is not written
    arguments = x, y, weight, pos_weight, scale, factor, losses, grad, mode, span, totals
    key = elements.KERNELS[name], x.dtype, y.dtype, grad is None
    answer = _launch(key, arguments, size, pieces, x.size, num_threads)
    if loss is not None:
        return 0.0
    return answer[0] if single else _sum(totals)


def _mode(loss: Array | None, middle: int, inner: int) -> int:
    if loss is None:
        return elements.EVERYTHING
    if inner > 1 and loss.strides[2] == 0:
        return elements.ROWS
    return elements.COLUMNS if middle > 1 and loss.strides[1] == 0 else elements.EACH


# --- sums over samples -------------------------------------------------------------------------------------------


def check_target(
    target: Array, weight: Array, sample_weight: Array, num_classes: int, ignore_index: int, num_threads: int
) -> tuple[int, float]:
    samples = target.size
    totals, bads = _for_chunks(samples)
    arguments = target, weight, sample_weight, num_classes, ignore_index, totals, bads
    key = sums.check_target, weight.dtype
    first: tuple[int, float] = _launch(key, arguments, sums.CHUNK, samples, samples, num_threads)
    if totals is NO_TOTALS:
        return first
    bads = bads[bads >= 0]
    return (int(bads[0]) if bads.size else -1), _sum(totals)


def weighted_sum(values: Array, weight: Array, num_threads: int) -> float:
    samples = values.size
    totals, _ = _for_chunks(samples)
    key, arguments = (sums.weighted_sum, values.dtype, weight.dtype), (values, weight, totals)
    answer = _launch(key, arguments, sums.CHUNK, samples, samples, num_threads)
    return _sum(totals) if totals is not NO_TOTALS else answer[0]


def _for_chunks(samples: int) -> tuple[Array, Array]:
    """Memory for what chunks find, whose bounds depend on the number of samples alone; none if there is one chunk."""
    if samples <= sums.CHUNK:
        return NO_TOTALS, ALONE
    count = -(-samples // sums.CHUNK)
    return np.empty(count), np.empty(count, COUNTER)


def _sum(totals: Array) -> float:
    return fsum(totals) if np.isfinite(totals).all() else float(totals.sum())
