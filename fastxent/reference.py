"""What fastxent computes, in plain float64 NumPy: the specification that every kernel is tested against.

Short rather than fast, and without a check: never called by the library itself. Class axis and options mean what they
mean in the library; every loss returns ``(loss, gradient)``, with all gradients written out as formulas.
"""

import math

import numpy as np


def _log_sum(x):
    """Largest x and log of the sum of exp(x - largest), which leaves that term out so that log1p stays precise.

    The latter is nan where the largest is infinite: nothing has a probability then.
    """
    largest = np.argmax(x, -1, keepdims=True)
    top = np.take_along_axis(x, largest, -1)
    others = np.where(np.arange(x.shape[-1]) == largest, -np.inf, x - top)
    return top, np.where(np.isinf(top), np.nan, np.log1p(np.exp(others).sum(-1, keepdims=True)))


def logsumexp(x, axis=-1, keepdims=False):
    """log sum_j exp(x_j)."""
    top, log_sum = _log_sum(np.moveaxis(np.asarray(x, np.float64), axis, -1))
    result = np.moveaxis(np.where(np.isinf(top), top, top + log_sum), -1, axis)
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
    lse = np.add(*_log_sum(x))
    losses = z_loss * lse[..., 0] ** 2 - np.where(t != 0, t * log_softmax(x), 0).sum(-1)
    p = softmax(x)
    grads = (t.sum(-1, keepdims=True) * p - t) + 2 * z_loss * lse * p
    return _reduce(losses, grads, kept, factors, denominator, reduction, grad_output, axis)


def nll_loss(
    log_probs, target, weight=None, sample_weight=None, ignore_index=-100, reduction="mean", axis=None,
    grad_output=None,
):  # fmt: skip
    """-sum_j t_j w_j log p_j."""
    x, t, kept, factors, denominator = _classification(log_probs, target, weight, sample_weight, ignore_index, axis)
    t = _class_weight(weight, x) * t
    losses = -np.where(t != 0, t * x, 0).sum(-1)
    return _reduce(losses, -t, kept, factors, denominator, reduction, grad_output, axis, t != 0)


def binary_cross_entropy(probs, target, weight=None, reduction="mean", grad_output=None):
    """-w (y log p + (1 - y) log(1 - p)), with logarithms of at least -100."""
    p, y, w = _floats(probs, target, 1 if weight is None else weight)
    with np.errstate(divide="ignore"):
        losses = -y * np.maximum(np.log(p), -100) - (1 - y) * np.maximum(np.log1p(-p), -100)
    return _reduce_entries(w * losses, w * (p - y) / np.maximum(p * (1 - p), 1e-12), reduction, grad_output)


def binary_cross_entropy_with_logits(
    logits, target, weight=None, pos_weight=None, reduction="mean", grad_output=None,
):  # fmt: skip
    """w ((1 - y) log(1 + e^x) + v y log(1 + e^-x))."""
    x, y, w, v = _floats(logits, target, 1 if weight is None else weight, 1 if pos_weight is None else pos_weight)
    positive, negative, both = np.maximum(x, 0), np.maximum(-x, 0), np.log1p(np.exp(-np.abs(x)))
    losses = (1 - y) * positive + v * y * negative + ((1 - y) + v * y) * both
    grads = (1 - y) * np.exp(-np.logaddexp(0, -x)) - v * y * np.exp(-np.logaddexp(0, x))
    return _reduce_entries(w * losses, w * grads, reduction, grad_output)


def multilabel_soft_margin_loss(logits, target, weight=None, reduction="mean", axis=None, grad_output=None):
    """Mean over the classes of w ((1 - y) log(1 + e^x) + y log(1 + e^-x))."""
    axis = -1 if axis is None else axis
    x, y, g = _floats(logits, target, 1 if grad_output is None else grad_output)
    classes = x.shape[axis]
    w = np.ones(classes) if weight is None else np.asarray(weight, np.float64)
    if w.ndim == 1:
        w = np.moveaxis(w.reshape((1,) * (x.ndim - 1) + (-1,)), -1, axis)
    losses, grads = binary_cross_entropy_with_logits(x, y, w / classes, reduction="none")
    losses = losses.sum(axis)
    divisor = losses.size if reduction == "mean" else 1
    grads = grads * (np.expand_dims(g, axis) if g.ndim else g) / divisor
    return (losses if reduction == "none" else losses.sum() / divisor), grads


def kl_div(log_probs, target, log_target=False, reduction="mean", grad_output=None):
    """y (log y - x), which is 0 for y = 0; e^y (y - x) with `log_target`."""
    x, y = _floats(log_probs, target)
    p = np.exp(y) if log_target else y
    log_p = y if log_target else _log(y)
    return _reduce_entries(_product(p, log_p - np.where(p == 0, 0, x)), -p, reduction, grad_output)


def entropy(p, axis=-1):
    """-sum_j p_j log p_j."""
    return categorical_cross_entropy(p, p, axis)


def categorical_cross_entropy(p, q, axis=-1):
    """-sum_j p_j log q_j, where p_j = 0 counts 0."""
    p, q = _floats(p, q)
    return -_product(p, _log(q)).sum(axis)


def kl_divergence(p, q, axis=-1):
    """sum_j p_j log(p_j / q_j), where p_j = 0 counts 0."""
    p, q = _floats(p, q)
    return _product(p, _log(p) - _log(np.where(p == 0, 1, q))).sum(axis)


def _floats(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def _log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


def _product(p, x):
    """p x, which is 0 for p = 0 whatever x."""
    return p * np.where(p == 0, 0, x)


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


def _reduce(losses, grads, kept, factors, denominator, reduction, grad_output, axis, entries=True):
    """Ignored samples count 0, even when they are nan, as do other `entries`; the class axis goes back to its place."""
    denominator = denominator if reduction == "mean" else 1
    losses = np.where(kept, losses * factors, 0)
    factors = factors * (1 if grad_output is None else grad_output) / denominator
    grads = np.where(kept[..., None] & entries, grads * factors[..., None], 0)
    grads = np.moveaxis(grads, -1, min(1, grads.ndim - 1) if axis is None else axis)
    return (losses if reduction == "none" else losses.sum() / denominator), grads


def _reduce_entries(losses, grads, reduction, grad_output):
    """Every entry is a sample; "batchmean" divides by the length of the first axis."""
    divisor = {"mean": losses.size, "batchmean": math.prod(losses.shape[:1])}.get(reduction, 1)
    grads = grads * (1 if grad_output is None else grad_output) / divisor
    return (losses if reduction == "none" else losses.sum() / divisor), grads
