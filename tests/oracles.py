"""What torch computes, under the names and with the arguments of fastxent; what torch lacks is composed from it."""

import torch
from torch.nn import functional as F

torch.set_num_threads(1)  # its waiting threads take the processors from other test processes


def logsumexp(x, *, axis):
    return torch.logsumexp(x, axis)


def logsumexp_vjp(grad_output, x, *, axis):
    x = x.requires_grad_()
    return torch.autograd.grad(torch.logsumexp(x, axis), x, grad_output)[0]


def softmax(x, *, axis):
    return torch.softmax(x, axis)


def softmax_vjp(grad_output, probs, *, axis):
    return torch.ops.aten._softmax_backward_data(grad_output, probs, axis, probs.dtype)


def log_softmax(x, *, axis):
    return torch.log_softmax(x, axis)


def log_softmax_vjp(grad_output, log_probs, *, axis):
    return torch.ops.aten._log_softmax_backward_data(grad_output, log_probs, axis, log_probs.dtype)


def cross_entropy(
    logits, target, *, axis, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
    reduction="mean",
):  # fmt: skip
    logits, target = _second(logits, target, axis)
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    if sample_weight is None and not z_loss:
        return F.cross_entropy(logits, target, reduction=reduction, **options)
    losses = F.cross_entropy(logits, target, reduction="none", **options)
    penalty = z_loss * torch.logsumexp(logits, _class_axis(logits)) ** 2
    losses = losses + torch.where(_counts(logits, target, ignore_index), penalty, 0)
    return _reduce(losses, logits, target, weight, sample_weight, ignore_index, reduction)


def nll_loss(
    log_probs, target, *, axis, weight=None, sample_weight=None, ignore_index=-100, reduction="mean",
):  # fmt: skip
    log_probs, target = _second(log_probs, target, axis)
    if not target.is_floating_point():
        if sample_weight is None:
            return F.nll_loss(log_probs, target, weight, ignore_index=ignore_index, reduction=reduction)
        losses = F.nll_loss(log_probs, target, weight, ignore_index=ignore_index, reduction="none")
    else:
        classes_last = (log_probs * target).movedim(_class_axis(log_probs), -1)
        losses = -(classes_last * (1 if weight is None else weight)).sum(-1)
    return _reduce(losses, log_probs, target, weight, sample_weight, ignore_index, reduction)


def binary_cross_entropy(probs, target, *, weight=None, reduction="mean"):
    return F.binary_cross_entropy(probs, target, weight, reduction=reduction)


def binary_cross_entropy_with_logits(logits, target, *, weight=None, pos_weight=None, reduction="mean"):
    return F.binary_cross_entropy_with_logits(logits, target, weight, pos_weight=pos_weight, reduction=reduction)


def multilabel_soft_margin_loss(logits, target, *, axis, weight=None, reduction="mean"):
    logits, target = logits.movedim(axis, -1), target.movedim(axis, -1)
    return F.multilabel_soft_margin_loss(logits, target, weight, reduction=reduction)


def kl_div(log_probs, target, *, log_target=False, reduction="mean"):
    if reduction == "mean":  # of which torch warns that it will change
        return F.kl_div(log_probs, target, log_target=log_target, reduction="none").mean()
    return F.kl_div(log_probs, target, log_target=log_target, reduction=reduction)


def entropy(p, *, axis):
    return torch.special.entr(p).sum(axis)


def categorical_cross_entropy(p, q, *, axis):
    return -torch.special.xlogy(p, q).sum(axis)


def kl_divergence(p, q, *, axis):
    return F.kl_div(q.log(), p, reduction="none").sum(axis)


def _class_axis(logits):
    return min(1, logits.ndim - 1)


def _second(logits, target, axis):
    """The class axis where torch wants it; contiguous, because the gradient of nll_loss needs that."""
    moved = logits.movedim(axis, _class_axis(logits)).contiguous()
    return moved, target.movedim(axis, _class_axis(logits)) if target.is_floating_point() else target


def _counts(logits, target, ignore_index):
    if target.is_floating_point():
        return torch.ones_like(logits.select(_class_axis(logits), 0), dtype=torch.bool)
    return target != ignore_index


def _reduce(losses, logits, target, weight, sample_weight, ignore_index, reduction):
    counts = _counts(logits, target, ignore_index)
    shares = counts.to(losses.dtype)
    if weight is not None and not target.is_floating_point():
        shares = shares * weight[torch.where(counts, target, 0)]
    if sample_weight is not None:
        shares, losses = shares * sample_weight, losses * sample_weight
    if reduction == "mean":
        return losses.sum() / shares.sum()
    return losses.sum() if reduction == "sum" else losses
