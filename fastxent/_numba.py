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

from . import _numba_rows as rows
from . import _numba_sums as sums
from ._backends import Array

GRAIN = 1 << 15  # elements in one task
HELP = 1 << 17  # elements worth a further thread: waking one takes as long as some of them
MOST_THREADS = 256

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


def _run(
    kernel: Any, x: Array, others: tuple[Array, ...], out: Array | None, num_threads: int, *arguments: Any
) -> None:
    """Call kernel(x, *others, out, *arguments, scratch, tasks), where 3-D arrays are contiguous with classes last.

    One layout keeps the number of compiled versions small; arrays of another one are copied, `out` back again.
    """
    x, out = _with_inner(x), None if out is None else _with_inner(out)
    outer, classes, inner = x.shape
    samples = outer * inner
    views = [_classes_last(_with_inner(a)) for a in (x, *others)]
    result = None if out is None else _classes_last(out)
    tasks = np.zeros(1, np.int64), max(1, GRAIN // max(1, classes)), samples
    dtype = np.float64 if x.dtype == np.float64 else np.float32

    def work() -> None:
        kernel(*views, result, *arguments, np.empty(rows.scratch_shape(classes), dtype), tasks)

    _in_threads(work, min(num_threads, -(-samples * classes // HELP)))
    if out is not None and result is not None and out.ndim == 3 and not np.may_share_memory(out, result):
        out[...] = result.transpose(0, 2, 1)


def _with_inner(array: Array) -> Array:
    return array[:, :, None] if array.ndim == 2 else array


def _classes_last(array: Array) -> Array:
    return np.ascontiguousarray(array.transpose(0, 2, 1)) if array.ndim == 3 else array


def logsumexp(x: Array, num_threads: int, out: Array) -> None:
    _run(rows.logsumexp, x, (), out, num_threads)


def softmax(x: Array, scale: Array, num_threads: int, out: Array) -> None:
    _run(rows.softmax, x, (), out, num_threads, scale)


def log_softmax(x: Array, num_threads: int, out: Array) -> None:
    _run(rows.log_softmax, x, (), out, num_threads)


def softmax_vjp(grad_output: Array, probs: Array, num_threads: int, out: Array) -> None:
    _run(rows.softmax_vjp, probs, (grad_output,), out, num_threads)


def log_softmax_vjp(grad_output: Array, log_probs: Array, num_threads: int, out: Array) -> None:
    _run(rows.log_softmax_vjp, log_probs, (grad_output,), out, num_threads)


def _per_class(weight: Array, classes: int) -> Array:
    """A contiguous weight for each class, which vectorises; from length 1 too."""
    return weight if weight.size == classes else np.full(classes, weight[0])


def _scaled(scale: Array, factor: float) -> Array:
    """Each sample's factor in the gradient, or one for all."""
    with np.errstate(all="ignore"):
        return np.multiply(scale, factor, dtype=np.float64).astype(scale.dtype)


def _losses(x: Array) -> Array:
    return np.empty(x.size // x.shape[1], np.float64 if x.dtype == np.float64 else np.float32)


def cross_entropy(
    x: Array, target: Array, weight: Array, scale: Array, label_smoothing: float, z_loss: float, ignore_index: int,
    factor: float, num_threads: int, loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    keep, spread = 1 - label_smoothing, label_smoothing / x.shape[1]
    dense = target.ndim > 1 or spread != 0
    losses = _losses(x) if loss is None else loss
    _run(
        rows.cross_entropy, x, (target,), grad, num_threads, _per_class(weight, x.shape[1]) if dense else weight,
        _scaled(scale, factor), keep, spread if dense else None, z_loss, ignore_index, losses,
    )  # fmt: skip
    return weighted_sum(losses, scale, num_threads) if loss is None else 0.0


def nll(
    x: Array, target: Array, weight: Array, scale: Array, ignore_index: int, factor: float, num_threads: int,
    loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    weight = _per_class(weight, x.shape[1]) if target.ndim > 1 else weight
    losses = _losses(x) if loss is None else loss
    _run(rows.nll, x, (target,), grad, num_threads, weight, _scaled(scale, factor), ignore_index, losses)
    return weighted_sum(losses, scale, num_threads) if loss is None else 0.0


def _chunks(samples: int) -> tuple[Array, Array, tuple[Array, int]]:
    """Sums and first bad labels of chunks whose bounds depend on the number of samples alone, and their tasks."""
    count = max(1, -(-samples // sums.CHUNK))
    return np.zeros(count), np.full(count, -1), (np.zeros(1, np.int64), samples)


def check_target(
    target: Array, weight: Array, sample_weight: Array, num_classes: int, ignore_index: int, num_threads: int
) -> tuple[int, float]:
    totals, bads, tasks = _chunks(target.size)

    def work() -> None:
        sums.check_target(target, weight, sample_weight, num_classes, ignore_index, totals, bads, tasks)

    _in_threads(work, min(num_threads, -(-target.size // HELP)))
    bads = bads[bads >= 0]
    return (int(bads[0]) if bads.size else -1), _sum(totals)


def weighted_sum(values: Array, weight: Array, num_threads: int) -> float:
    totals, _, tasks = _chunks(values.size)

    def work() -> None:
        sums.weighted_sum(values, weight, totals, tasks)

    _in_threads(work, min(num_threads, -(-values.size // HELP)))
    return _sum(totals)


def _sum(totals: Array) -> float:
    return fsum(totals) if np.isfinite(totals).all() else float(totals.sum())
