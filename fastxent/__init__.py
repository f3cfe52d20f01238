"""The cross-entropy family on NumPy arrays, at the speed of memory."""

from ._config import config_context, get_config, set_config
from ._info import show_config
from ._version import __version__
from .losses import cross_entropy, cross_entropy_with_grad, nll_loss, nll_loss_with_grad
from .softmax import log_softmax, log_softmax_vjp, logsumexp, logsumexp_vjp, softmax, softmax_vjp

__all__ = [
    "__version__",
    "config_context",
    "cross_entropy",
    "cross_entropy_with_grad",
    "get_config",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_vjp",
    "nll_loss",
    "nll_loss_with_grad",
    "set_config",
    "show_config",
    "softmax",
    "softmax_vjp",
]
