"""From per-sample losses to what the caller asked for: none, mean or sum."""

import math
from typing import Any

import numpy as np

from ._backends import Array, Kernels

REDUCTIONS = ("none", "mean", "sum")


def check_reduction(reduction: str, allowed: tuple[str, ...] = REDUCTIONS) -> None:
    """Refuse an unknown reduction."""
    if reduction not in allowed:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(map(repr, allowed))}")


def reduce_loss(
    losses: Array, sample_weight: Array, denominator: float, reduction: str, kernels: Kernels, num_threads: int
) -> Any:
    """Weigh the per-sample losses and reduce them.

    Parameters
    ----------
    losses : (samples,) array
        In the computing type; overwritten for ``"none"``.
    sample_weight : (samples,) or (1,) array
    denominator : float
        What ``"mean"`` divides by; 0 gives nan, as in PyTorch.

    Returns
    -------
    (samples,) array or scalar of the computing type
    """
    if reduction == "none":
        if sample_weight is not _ONES[losses.dtype]:
            with np.errstate(all="ignore"):
                np.multiply(losses, sample_weight, out=losses, where=losses != 0)  # ignored, whatever their weight
        return losses
    total = kernels.weighted_sum(losses, sample_weight, num_threads)
    if reduction == "mean":
        total = total / denominator if denominator else math.nan
    if not -FLOAT_MAX <= total <= FLOAT_MAX and abs(total) > _LARGEST[losses.dtype]:
        total = math.copysign(math.inf, total)  # as rounding would make it, but without a warning
    if not losses.size:
        return losses.dtype.type(total)
    losses[0] = total  # a scalar from an array costs a third of one from its type
    return losses[0]


def gradient_scale(
    grad_output: Array | float, sample_weight: Array, denominator: float, reduction: str
) -> tuple[Array, float]:
    """Each sample's factor in the gradient, of length (samples,) or (1,), and a factor for all of them."""
    if isinstance(grad_output, float):
        mean = (1 / denominator if denominator else math.nan) if reduction == "mean" else 1.0
        return sample_weight, grad_output * mean
    with np.errstate(all="ignore"):
        return np.multiply(sample_weight, grad_output, dtype=np.float64).astype(sample_weight.dtype), 1.0


_ONES = {np.dtype(t): np.ones(1, t) for t in (np.float32, np.float64)}
_LARGEST = {np.dtype(t): float(np.finfo(t).max) for t in (np.float32, np.float64)}
FLOAT_MAX = _LARGEST[np.dtype(np.float32)]


def ones(dtype: np.dtype[Any]) -> Array:
    """The constant 1 as a per-sample or per-class array."""
    return _ONES[dtype]
