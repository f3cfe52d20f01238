"""Numba kernels: the functions of `_backends.Kernels`, each a launch of a compiled loop over samples.

Threads come from a pool of our own and take tasks from a shared counter. Numba's threading layers would not do: the
default one ends the process when two threads enter it, another one a forked child, and all make the caller wait for
threads that a busy machine has not even started.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import fsum
from typing import Any

import numpy as np
from numba import njit, types
from numba.np.numpy_support import from_dtype

from . import _numba_lanes as lanes
from . import _numba_rows as rows
from . import _numba_sums as sums
from ._backends import Array
from ._numba_trace import LANES

GRAIN = 1 << 15  # elements in one task
HELP = 1 << 17  # elements worth a further thread: waking one takes as long as some of them
MOST_THREADS = 256
FEW_CLASSES = 64  # contiguous classes up to here go to lane kernels

_pool = ThreadPoolExecutor(MOST_THREADS, "fastxent")  # starts a thread when there is none to spare


def _in_threads(work: Callable[[], None], team: int) -> None:
    """Call `work` in this thread and up to `team` - 1 others, which need not start at all."""
    helpers: list[Future[None]] = []
    try:
        for _ in range(min(team, MOST_THREADS) - 1):
            helpers.append(_pool.submit(work))
    except RuntimeError:  # the interpreter is shutting down: no more threads
        pass
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


# --- compilation -------------------------------------------------------------------------------------------------

_compiled: dict[tuple[Any, ...], Any] = {}


def _type_of(argument: Any) -> Any:
    """One type for arrays of any strides, so that there is one version for each type of number."""
    if isinstance(argument, np.ndarray):
        return types.Array(from_dtype(argument.dtype), argument.ndim, "A", readonly=True)
    return types.none if argument is None else types.float64 if isinstance(argument, float) else types.int64


def _compile(kernel: Any, arguments: tuple[Any, ...]) -> Any:
    """The kernel for arguments of these types, from disk if it is there."""
    signature = types.none(*map(_type_of, arguments))
    try:
        return njit(signature, nogil=True, cache=True)(kernel)
    except RuntimeError:  # "no locator available": no directory is writable
        return njit(signature, nogil=True)(kernel)


def _version(kernel: Any, arguments: tuple[Any, ...]) -> Any:
    """The kernel, compiled for such arguments."""
    key = kernel, *[getattr(argument, "dtype", None) for argument in arguments]
    version = _compiled.get(key)
    if version is None:
        version = _compiled[key] = _compile(kernel, arguments)
    return version


# --- samples -----------------------------------------------------------------------------------------------------


def _use_lanes(x: Array) -> bool:
    """Whether SIMD lanes run along samples rather than along classes."""
    _, classes, inner = x.shape
    if x.strides[1] == x.itemsize or classes == 1:
        return classes <= FEW_CLASSES
    return x.strides[2 if inner > 1 else 0] == x.itemsize and (inner == 1 or inner >= LANES // 4)


def _row_major(array: Any) -> Any:
    """For row kernels, classes side by side.

    Only few classes that are apart in an array without any axis along which samples lie side by side are copied here:
    a loop over such numbers is no SIMD code, and takes longer than the copy.
    """
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.strides[1] == array.itemsize:
        return array
    return np.ascontiguousarray(array.transpose(0, 2, 1)).transpose(0, 2, 1)


def _run(name: str, x: Array, others: tuple[Any, ...], out: Array, num_threads: int, kept: int = rows.BLOCK) -> None:
    """Call a kernel of this name, (x, *others, out, counter, size, spare), for all samples."""
    outer, classes, inner = x.shape
    samples, dtype = outer * inner, np.float64 if x.dtype == np.float64 else np.float32
    if samples == 0:
        return
    arguments, size, spare = (x, *others, out), max(1, GRAIN // max(1, classes)), 0
    if _use_lanes(x):
        kernel, size = getattr(lanes, name), -(-size // LANES) * LANES
    else:
        kernel, spare = getattr(rows, name), -(-min(classes, kept) // LANES) * LANES
        arguments = tuple(map(_row_major, arguments))
    team = min(num_threads, -(-samples * classes // HELP))
    counter = np.zeros(1, np.int64)
    arguments = *arguments, counter, size if team > 1 else samples
    version = _version(kernel, (*arguments, np.empty(0, dtype)))

    def work() -> None:
        version(*arguments, np.empty(spare, dtype))

    _in_threads(work, team)
    if arguments[-3] is not out:
        out[...] = arguments[-3]


def logsumexp(x: Array, num_threads: int, out: Array) -> None:
    _run("logsumexp", x, (), out, num_threads)


def softmax(x: Array, scale: Array, num_threads: int, out: Array) -> None:
    _run("softmax", x, (scale,), out, num_threads, rows.KEPT)


def log_softmax(x: Array, num_threads: int, out: Array) -> None:
    _run("log_softmax", x, (), out, num_threads)


def softmax_vjp(grad_output: Array, probs: Array, num_threads: int, out: Array) -> None:
    _run("softmax_vjp", probs, (grad_output,), out, num_threads)


def log_softmax_vjp(grad_output: Array, log_probs: Array, num_threads: int, out: Array) -> None:
    _run("log_softmax_vjp", log_probs, (grad_output,), out, num_threads)


def _loss(
    name: str, x: Array, target: Array, weight: Array, coefficients: tuple[Any, ...], loss: Array, grad: Array | None,
    num_threads: int,
) -> None:  # fmt: skip
    """Call a kernel that takes either labels or probabilities, and an empty array for a gradient that is not wanted."""
    either = (target, None) if target.ndim == 1 else (None, target)
    weight = weight if weight.size else np.ones(1, weight.dtype)
    out, kept = (np.empty((0, x.shape[1], 1), x.dtype), rows.BLOCK) if grad is None else (grad, rows.KEPT)
    _run(name, x, (*either, weight, *coefficients, loss), out, num_threads, kept)


def cross_entropy(
    x: Array, target: Array, weight: Array, scale: Array, label_smoothing: float, z_loss: float, ignore_index: int,
    factor: float, num_threads: int, loss: Array, grad: Array | None,
) -> None:  # fmt: skip
    spread = label_smoothing / max(1, x.shape[1])
    coefficients = scale, 1 - label_smoothing, spread, z_loss, ignore_index, factor
    _loss("cross_entropy", x, target, weight, coefficients, loss, grad, num_threads)


def nll(
    x: Array, target: Array, weight: Array, scale: Array, ignore_index: int, factor: float, num_threads: int,
    loss: Array, grad: Array | None,
) -> None:  # fmt: skip
    _loss("nll", x, target, weight, (scale, ignore_index, factor), loss, grad, num_threads)


# --- sums over samples -------------------------------------------------------------------------------------------


def _chunks(kernel: Any, values: Array, others: tuple[Any, ...], num_threads: int) -> tuple[Array, Array]:
    """Sums, and first bad labels, of chunks whose bounds depend on the number of samples alone."""
    count = max(1, -(-values.size // sums.CHUNK))
    totals, bads = np.zeros(count), np.full(count, -1)
    arguments = values, *others, totals, bads, np.zeros(1, np.int64), sums.CHUNK
    version = _version(kernel, arguments)
    _in_threads(lambda: version(*arguments), min(num_threads, -(-values.size // HELP)))
    return totals, bads


def check_target(
    target: Array, weight: Array, sample_weight: Array, num_classes: int, ignore_index: int, num_threads: int
) -> tuple[int, float]:
    weight, sample_weight = (a if a.size else np.ones(1, a.dtype) for a in (weight, sample_weight))
    totals, bads = _chunks(sums.check_target, target, (weight, sample_weight, num_classes, ignore_index), num_threads)
    bad = bads[0] if bads.size == 1 else next(iter(bads[bads >= 0]), -1)
    return int(bad), _sum(totals)


def weighted_sum(values: Array, weight: Array, num_threads: int) -> float:
    weight = weight if weight.size else np.ones(1, weight.dtype)
    return _sum(_chunks(sums.weighted_sum, values, (weight,), num_threads)[0])


def _sum(totals: Array) -> float:
    if totals.size == 1:
        return float(totals[0])
    return fsum(totals) if np.isfinite(totals).all() else float(totals.sum())
