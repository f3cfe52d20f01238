"""CUDA kernels for arrays of the host, as `_backends.Kernels` says: copied there and back."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from . import _cuda_run as run
from ._backends import Array
from ._cuda_launch import download, memory_here, upload
from ._cuda_launch import what_is_missing as what_is_missing

# What kernels of any backend take numbers for -> what they are.
STORAGE = {"float32": "float32", "float64": "float64", "int16": "float16", "uint16": "bfloat16", "int64": "int64"}


def _there_and_back(*written: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function work on copies of its arrays, and copy back those that it writes."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        names = function.__code__.co_varnames

        @wraps(function)
        def wrapper(*arguments: Any) -> Any:
            memory = memory_here()
            copies = [upload(a, STORAGE[a.dtype.name], memory) if isinstance(a, np.ndarray) else a for a in arguments]
            result = function(*copies)
            for name, array, copy in zip(names, arguments, copies, strict=False):
                if name in written and array is not None:
                    download(copy, array)
            return result

        return wrapper

    return decorate


@_there_and_back("out")
def logsumexp(x: Array, num_threads: int, out: Array) -> None:
    run.rows("logsumexp", x, losses=out)


@_there_and_back("out")
def softmax(x: Array, scale: Array, num_threads: int, out: Array) -> None:
    run.rows("softmax", x, out, scale=scale)


@_there_and_back("out")
def log_softmax(x: Array, num_threads: int, out: Array) -> None:
    run.rows("log_softmax", x, out)


@_there_and_back("out")
def softmax_vjp(grad_output: Array, probs: Array, num_threads: int, out: Array) -> None:
    run.pairs("softmax_vjp", grad_output, probs, out)


@_there_and_back("out")
def log_softmax_vjp(grad_output: Array, log_probs: Array, num_threads: int, out: Array) -> None:
    run.pairs("log_softmax_vjp", grad_output, log_probs, out)


@_there_and_back("loss", "grad")
def cross_entropy(
    x: Array, target: Array, weight: Array, scale: Array, label_smoothing: float, z_loss: float, ignore_index: int,
    factor: float, num_threads: int, loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    return _loss("cross_entropy", x, target, weight, scale, loss, grad, ignore_index, label_smoothing, z_loss, factor)


@_there_and_back("loss", "grad")
def nll(
    x: Array, target: Array, weight: Array, scale: Array, ignore_index: int, factor: float, num_threads: int,
    loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    return _loss("nll", x, target, weight, scale, loss, grad, ignore_index, 0.0, 0.0, factor)


def _loss(
    name: str, x: Any, target: Any, weight: Any, scale: Any, loss: Any, grad: Any, ignore_index: int, *numbers: float
) -> float:
    samples = x.shape[0] * (x.shape[2] if len(x.shape) == 3 else 1)
    losses = loss or x.memory.empty((samples,), run.computing(x))
    run.rows(name, x, grad, target, weight, scale, None, losses, ignore_index, *numbers)
    return 0.0 if loss else run.sums("values", samples, losses, None, None, scale).read()[0]


@_there_and_back("loss", "grad")
def elementwise(
    name: str, x: Array, y: Array, weight: Array, pos_weight: Array, scale: Array, factor: float, num_threads: int,
    loss: Array | None, grad: Array | None,
) -> float:  # fmt: skip
    arrays = x, y, weight, pos_weight, scale, loss, grad
    left = run.elements(name, arrays, x.shape, tuple(array and array.strides for array in arrays), factor)
    return 0.0 if left is None else left.read()[0]


@_there_and_back()
def check_target(
    target: Array, weight: Array, sample_weight: Array, num_classes: int, ignore_index: int, num_threads: int
) -> tuple[int, float]:
    count: int = target.shape[0]
    left = run.sums("labels", count, None, weight, target, sample_weight, None, None, num_classes, ignore_index)
    total, first = left.read()
    return first, total


@_there_and_back()
def weighted_sum(values: Array, weight: Array, num_threads: int) -> float:
    return run.sums("values", values.shape[0], values, None, None, weight).read()[0]  # type: ignore[no-any-return]
