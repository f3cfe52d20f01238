"""What fastxent computes, in plain float64 NumPy: the specification that every kernel is tested against.

Short rather than fast, and without a check: never called by the library itself. Class axis and options mean what they
mean in `fastxent.losses`; every loss returns ``(loss, gradient)``, with all gradients written out as formulas.
"""

import numpy as np


def _log_sum(x):
    """Largest x and log of the sum of exp(x - largest), which leaves that term out so that log1p stays precise."""
    largest = np.argmax(x, -1, keepdims=True)
    top = np.take_along_axis(x, largest, -1)
    others = np.where(np.arange(x.shape[-1]) == largest, -np.inf, x - top)
    return top, np.log1p(np.exp(others).sum(-1, keepdims=True))


def logsumexp(x, axis=-1, keepdims=False):
    """log sum_j exp(x_j)."""
    top, log_sum = _log_sum(np.moveaxis(np.asarray(x, np.float64), axis, -1))
    result = np.moveaxis(top + log_sum, -1, axis)
    return result if keepdims else np.squeeze(result, axis)


def logsumexp_vjp(grad_output, x, axis=-1):
    """g softmax(x)."""
    return np.expand_dims(grad_output, axis) * softmax(x, axis)


def softmax(x, axis=-1):
    """exp(x_j) / sum_k exp(x_k)."""
    return np.exp(log_softmax(x, axis))


def log_softmax(x, axis=-1):
    """x_j - log sum_k exp(x_k)."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    top, log_sum = _log_sum(x)
    return np.moveaxis((x - top) - log_sum, -1, axis)


def softmax_vjp(grad_output, probs, axis=-1):
    """p_j (g_j - sum_k g_k p_k)."""
    g, p = np.asarray(grad_output, np.float64), np.asarray(probs, np.float64)
    return p * (g - (g * p).sum(axis, keepdims=True))


def log_softmax_vjp(grad_output, log_probs, axis=-1):
    """g_j - exp(log p_j) sum_k g_k."""
    g = np.asarray(grad_output, np.float64)
    return g - np.exp(np.asarray(log_probs, np.float64)) * g.sum(axis, keepdims=True)


def cross_entropy(
    logits, target, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
    reduction="mean", axis=None, grad_output=None,
):  # fmt: skip
    """-sum_j w_j t_j log softmax(x)_j + z_loss lse^2, with t the target after smoothing; the class axis is put last."""
    x, t, kept, factors, denominator = _classification(logits, target, weight, sample_weight, ignore_index, axis)
    w = _class_weight(weight, x)
    t = w * ((1 - label_smoothing) * t + label_smoothing / x.shape[-1])
    lse = logsumexp(x, keepdims=True)
    losses = z_loss * lse[..., 0] ** 2 - np.where(t != 0, t * log_softmax(x), 0).sum(-1)
    grads = (t.sum(-1, keepdims=True) + 2 * z_loss * lse) * softmax(x) - t
    return _reduce(losses, grads, kept, factors, denominator, reduction, grad_output, axis)


def nll_loss(
    log_probs, target, weight=None, sample_weight=None, ignore_index=-100, reduction="mean", axis=None,
    grad_output=None,
):  # fmt: skip
    """-sum_j t_j w_j log p_j."""
    x, t, kept, factors, denominator = _classification(log_probs, target, weight, sample_weight, ignore_index, axis)
    t = _class_weight(weight, x) * t
    losses = -np.where(t != 0, t * x, 0).sum(-1)
    return _reduce(losses, -t, kept, factors, denominator, reduction, grad_output, axis)


def _class_weight(weight, x):
    return np.ones(x.shape[-1]) if weight is None else np.asarray(weight, np.float64)


def _classification(x, target, weight, sample_weight, ignore_index, axis):
    """Logits and target probabilities, class axis last; which samples count, their weights, the mean's denominator."""
    x = np.asarray(x, np.float64)
    x = np.moveaxis(x, min(1, x.ndim - 1) if axis is None else axis, -1)
    target = np.asarray(target)
    if target.dtype.kind in "iu":
        kept = target != ignore_index
        labels = np.where(kept, target, 0)
        t = (np.arange(x.shape[-1]) == labels[..., None]).astype(np.float64)
        shares = kept * _class_weight(weight, x)[labels]
    else:
        t = np.moveaxis(target.astype(np.float64), min(1, x.ndim - 1) if axis is None else axis, -1)
        kept = np.ones(x.shape[:-1], bool)
        shares = kept
    factors = np.broadcast_to(1.0 if sample_weight is None else np.asarray(sample_weight, np.float64), kept.shape)
    return x, t, kept, factors, (shares * factors).sum()


def _reduce(losses, grads, kept, factors, denominator, reduction, grad_output, axis):
    """Ignored samples count 0, even when they are nan; the gradient's class axis goes back to its place."""
    denominator = denominator if reduction == "mean" else 1
    losses = np.where(kept, losses * factors, 0)
    factors = factors * (1 if grad_output is None else grad_output) / denominator
    grads = np.where(kept[..., None], grads * factors[..., None], 0)
    grads = np.moveaxis(grads, -1, min(1, grads.ndim - 1) if axis is None else axis)
    return (losses if reduction == "none" else losses.sum() / denominator), grads
