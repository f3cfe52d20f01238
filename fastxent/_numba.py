"""Numba kernels: the functions of `_backends.Kernels`, each a launch of a compiled loop over samples."""

from math import fsum
from typing import Any

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
from ._numba_threads import COUNTER, deal
from ._numba_trace import LANES

GRAIN = 1 << 15  # elements in one task
MOST_TASKS = 1024  # of elements, with a sum each: more elements make them longer
MAPS = ("softmax", "log_softmax", "softmax_vjp", "log_softmax_vjp")  # kernels that fill an array like x, and no other
FEW_CLASSES = 64  # contiguous classes up to here go to lane kernels

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)

# --- compilation -------------------------------------------------------------------------------------------------

_versions: dict[tuple[Any, ...], Any] = {}
_COUNTER = np.zeros(1, COUNTER)  # what kernels are compiled for


def _type_of(argument: Any) -> Any:
    """One type for arrays of any strides, so that there is one version for each type of number."""
    if isinstance(argument, np.ndarray):
        return types.Array(from_dtype(argument.dtype), argument.ndim, "A", readonly=True)
    return types.none if argument is None else types.float64 if isinstance(argument, float) else types.int64


def _compile(key: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    """The kernel key[0] compiled for such arguments, whose types follow from the rest of the key; or from disk."""
    signature = types.none(*map(_type_of, arguments))
    try:
        version = njit(signature, nogil=True, cache=True)(key[0])
    except RuntimeError:  # "no locator available": no directory is writable
        version = njit(signature, nogil=True)(key[0])
    _versions[key] = version
    return version


# --- samples -----------------------------------------------------------------------------------------------------


def _inner(x: Array) -> int:
    return x.shape[2] if x.ndim == 3 else 1


def _use_lanes(x: Array, classes: int, inner: int) -> bool:
    """Whether SIMD lanes run along samples rather than along classes."""
    if x.strides[1] == x.itemsize or classes == 1:
        return classes <= FEW_CLASSES
    return bool(x.strides[2 if inner > 1 else 0] == x.itemsize and (inner == 1 or inner >= LANES // 4))


def _are_short_rows(name: str, x: Array, between: tuple[Any, ...], out: Array | None) -> bool:
    """Whether kernels for those do what is asked for: nothing but a label makes a sample's target."""
    if not (short_rows.LEAST <= x.shape[1] <= short_rows.MOST and x.strides[1] == x.itemsize):
        return False
    if name == "cross_entropy":
        _, probs, _, _, _, spread, *_ = between
        if probs is not None or spread != 0:
            return False
    elif name not in ("softmax", "logsumexp"):
        return False
    return out is None or out.ndim == 1 or out.strides[1] == out.itemsize


def _row_major(array: Any) -> Any:
    """For row kernels, classes side by side.

    What is copied here has neither classes nor samples side by side (or only a few samples): reading such numbers one
    by one takes longer than the copy.
    """
    if not isinstance(array, np.ndarray) or array.ndim == 1 or array.strides[1] == array.itemsize:
        return array
    return np.ascontiguousarray(array.swapaxes(1, -1)).swapaxes(1, -1)


def _run(
    name: str, x: Array, y: Array, between: tuple[Any, ...], out: Array | None, num_threads: int, kept: int
) -> None:
    """Call the kernel of this name for all samples: (x, *between, out, ...), the rest is said where kernels are.

    The types of arguments follow from those of x and y, and from whether there is an out and samples are in parts. Row
    kernels may need memory for a number of `kept` exponentials.
    """
    classes, inner = x.shape[1], _inner(x)
    samples = x.shape[0] * inner
    if samples == 0 or (classes == 0 and name in MAPS):  # an array of no bytes may well have 2^60 samples
        return
    size, arguments = max(1, GRAIN // max(1, classes)), (x, *between, out)
    kinds = x.dtype, y.dtype, x.ndim, out is None
    if _are_short_rows(name, x, between, out):
        spare = LANES * (classes + 2)
        _launch((getattr(short_rows, name), *kinds), arguments, samples, -(-size // LANES) * LANES, num_threads, spare)
        return
    if _use_lanes(x, classes, inner):
        _launch((getattr(lanes, name), *kinds), arguments, samples, -(-size // LANES) * LANES, num_threads, 0)
        return
    kernel, arguments, parts = getattr(rows, name), tuple(map(_row_major, arguments)), number_of_parts(samples, classes)
    room = min(classes, BLOCK) if parts or classes > kept else classes
    spare = -(-room // LANES) * LANES + LANES  # from a cache line on
    found = np.empty((samples, parts, FINDINGS)) if parts else None
    for joining in range(2 if parts else 1):
        pieces, rest = samples * max(1, parts), (found, joining)
        _launch((kernel, *kinds, parts == 0), (*arguments, *rest), pieces, size, num_threads, spare)
    if out is not None and arguments[-1] is not out:
        out[...] = arguments[-1]


def _launch(
    key: tuple[Any, ...], arguments: tuple[Any, ...], pieces: int, size: int, num_threads: int, length: int
) -> None:
    """Have all pieces done, so many at a time; each thread has spare memory for a number of exponentials."""
    spare = np.empty(length, _computing(arguments[0]))
    version = _versions.get(key) or _compile(key, (*arguments, _COUNTER, size, spare))
    deal(version, arguments, size, -(-pieces // size), arguments[0].size, num_threads, spare)


def _computing(x: Array) -> Any:
    return DOUBLE if x.dtype == DOUBLE else SINGLE


def _most_kept(x: Array) -> int:
    return KEPT // (8 if x.dtype == DOUBLE else 4)


def logsumexp(x: Array, num_threads: int, out: Array) -> None:
    _run("logsumexp", x, x, (), out, num_threads, BLOCK)


def softmax(x: Array, scale: Array, num_threads: int, out: Array) -> None:
    _run("softmax", x, x, (scale,), out, num_threads, _most_kept(x))


def log_softmax(x: Array, num_threads: int, out: Array) -> None:
    _run("log_softmax", x, x, (), out, num_threads, BLOCK)


def softmax_vjp(grad_output: Array, probs: Array, num_threads: int, out: Array) -> None:
    _run("softmax_vjp", probs, grad_output, (grad_output,), out, num_threads, BLOCK)


def log_softmax_vjp(grad_output: Array, log_probs: Array, num_threads: int, out: Array) -> None:
    _run("log_softmax_vjp", log_probs, grad_output, (grad_output,), out, num_threads, BLOCK)


def _not_empty(weight: Array) -> Array:
    """Weights of which kernels may read the first, even without classes."""
    return weight if weight.size else np.ones(1, weight.dtype)


def _loss(
    name: str, x: Array, target: Array, weight: Array, scale: Array, coefficients: tuple[Any, ...], num_threads: int,
    loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    """Call a kernel that takes labels and probabilities, one of which is None."""
    targets = (target, None) if target.ndim == 1 else (None, target)
    losses = np.empty(x.shape[0] * _inner(x), _computing(x)) if loss is None else loss
    between = *targets, _not_empty(weight), scale, *coefficients, losses
    _run(name, x, target, between, grad, num_threads, BLOCK if grad is None else _most_kept(x))
    return weighted_sum(losses, scale, num_threads) if loss is None else 0.0


def cross_entropy(
    x: Array, target: Array, weight: Array, scale: Array, label_smoothing: float, z_loss: float, ignore_index: int,
    factor: float, num_threads: int, loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    coefficients = 1 - label_smoothing, label_smoothing / max(1, x.shape[1]), z_loss, ignore_index, factor
    return _loss("cross_entropy", x, target, weight, scale, coefficients, num_threads, loss, grad)


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
    totals = np.empty(-(-pieces // size))
    losses = weight if loss is None else loss  # has the right type, and is not written
    arguments = x, y, weight, pos_weight, scale, factor, losses, grad, mode, span, totals
    key = elements.KERNELS[name], x.dtype, y.dtype, grad is None
    version = _versions.get(key) or _compile(key, (*arguments, _COUNTER, size))
    deal(version, arguments, size, totals.size, x.size, num_threads)
    return _sum(totals) if loss is None else 0.0


def _mode(loss: Array | None, middle: int, inner: int) -> int:
    if loss is None:
        return elements.EVERYTHING
    if inner > 1 and loss.strides[2] == 0:
        return elements.ROWS
    return elements.COLUMNS if middle > 1 and loss.strides[1] == 0 else elements.EACH


# --- sums over samples -------------------------------------------------------------------------------------------


def _chunks(
    kernel: Any, values: Array, weight: Array, others: tuple[Any, ...], num_threads: int
) -> tuple[Array, Array]:
    """Sums, and first bad labels, of chunks whose bounds depend on the number of samples alone."""
    count = -(-values.size // sums.CHUNK)
    totals, bads = np.empty(count), np.empty(count, COUNTER)
    arguments = values, _not_empty(weight), *others, totals, bads
    key = kernel, values.dtype, weight.dtype
    version = _versions.get(key) or _compile(key, (*arguments, _COUNTER, sums.CHUNK))
    deal(version, arguments, sums.CHUNK, count, values.size, num_threads)
    return totals, bads


def check_target(
    target: Array, weight: Array, sample_weight: Array, num_classes: int, ignore_index: int, num_threads: int
) -> tuple[int, float]:
    others = _not_empty(sample_weight), num_classes, ignore_index
    totals, bads = _chunks(sums.check_target, target, weight, others, num_threads)
    if bads.size == 1:
        return int(bads[0]), float(totals[0])
    bads = bads[bads >= 0]
    return (int(bads[0]) if bads.size else -1), _sum(totals)


def weighted_sum(values: Array, weight: Array, num_threads: int) -> float:
    totals, _ = _chunks(sums.weighted_sum, values, weight, (), num_threads)
    return _sum(totals)


def _sum(totals: Array) -> float:
    if totals.size == 1:
        return float(totals[0])
    return fsum(totals) if np.isfinite(totals).all() else float(totals.sum())
