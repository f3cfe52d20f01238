"""From per-sample losses to what the caller asked for: none, mean or sum."""

import math
from typing import Any

import numpy as np

from ._backends import Array

REDUCTIONS = ("none", "mean", "sum")
BATCH_REDUCTIONS = (*REDUCTIONS, "batchmean")


def check_reduction(reduction: str, allowed: tuple[str, ...] = REDUCTIONS) -> None:
    """Refuse an unknown reduction."""
    if not isinstance(reduction, str) or reduction not in allowed:  # an array would compare entry by entry
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(map(repr, allowed))}")


def weighted_losses(losses: Array, sample_weight: Array) -> Array:
    """Each sample's loss times its weight, in place; that of an ignored sample stays 0 whatever its weight."""
    if sample_weight is not _ONES[losses.dtype]:
        with np.errstate(all="ignore"):
            np.multiply(losses, sample_weight, out=losses, where=losses != 0)
    return losses


def reduced_loss(total: float, denominator: float, reduction: str, dtype: np.dtype[Any]) -> Any:
    """The sum of the weighted losses or their mean, a scalar of `dtype`; nan for a denominator of 0, as in PyTorch."""
    if reduction == "mean":
        total = total / denominator if denominator else math.nan
    if not -FLOAT_MAX <= total <= FLOAT_MAX and abs(total) > _LARGEST[dtype]:
        total = math.copysign(math.inf, total)  # as rounding would make it, but without a warning
    return dtype.type(total)


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
