"""The cross-entropy family on NumPy arrays, at the speed of memory."""

from ._config import config_context, get_config, set_config
from ._info import show_config
from ._version import __version__
from .binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_with_grad,
    multilabel_soft_margin_loss,
    multilabel_soft_margin_loss_with_grad,
)
from .distributions import categorical_cross_entropy, entropy, kl_div, kl_div_with_grad, kl_divergence
from .losses import cross_entropy, cross_entropy_with_grad, nll_loss, nll_loss_with_grad
from .modules import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    KLDivLoss,
    LogSoftmax,
    MultiLabelSoftMarginLoss,
    NLLLoss,
    Softmax,
)
from .softmax import log_softmax, log_softmax_vjp, logsumexp, logsumexp_vjp, softmax, softmax_vjp

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "KLDivLoss",
    "LogSoftmax",
    "MultiLabelSoftMarginLoss",
    "NLLLoss",
    "Softmax",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "categorical_cross_entropy",
    "config_context",
    "cross_entropy",
    "cross_entropy_with_grad",
    "entropy",
    "get_config",
    "kl_div",
    "kl_div_with_grad",
    "kl_divergence",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "multilabel_soft_margin_loss",
    "multilabel_soft_margin_loss_with_grad",
    "nll_loss",
    "nll_loss_with_grad",
    "set_config",
    "show_config",
    "softmax",
    "softmax_vjp",
]
