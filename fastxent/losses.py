"""Classification losses: each a few checks, the formula, and one pass over the logits."""

import math
from typing import Any

from numpy.typing import ArrayLike

from ._backends import Array
from ._options import finite_number
from ._problem import classification_loss


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    axis: int | None = None,
) -> Any:
    r"""Cross-entropy between logits and a target, as ``torch.nn.functional.cross_entropy``.

    .. math:: \ell = \sum_j w_j t'_j (\mathrm{lse}(x) - x_j) + z \, \mathrm{lse}(x)^2, \qquad
              t' = (1 - \varepsilon) t + \varepsilon / C

    per sample, where :math:`t` is the one-hot vector of the target's class or the target's probabilities,
    :math:`\varepsilon` is `label_smoothing` and :math:`z` is `z_loss`.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities of shape (N, C), (C,) or (N, C, d1, ..., dk); float16, bfloat16, float32, float64
        or integers. One class axis of any length, anywhere if `axis` names it.
    target : array_like
        Class indices, of the logits' shape without the class axis and any integer type; or class probabilities, of
        the logits' shape and a floating type. Probabilities need not sum to 1.
    weight : (C,) array_like, optional
        Weight of each class.
    sample_weight : array_like, optional
        Weight of each sample; broadcasts to the logits' shape without the class axis. It multiplies the sample's loss
        and its share in the mean's denominator.
    ignore_index : int, default -100
        Class index whose samples have loss 0, gradient 0 and no share in the mean. It may be a valid class.
    label_smoothing : float, default 0.0
        In [0, 1]: mixes the target with the uniform distribution.
    z_loss : float, default 0.0
        Factor of the squared log-sum-exp; `weight` does not touch it.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the summed weight of the target classes that count (class indices) or by the number of
        samples (probabilities), each times its sample weight.
    axis : int, optional
        The class axis; axis 1 (or 0 of (C,) logits) by default.

    Returns
    -------
    scalar or ndarray
        float64 for float64 and integer logits, else float32; for ``"none"``, of the logits' shape without the class
        axis. nan for ``"mean"`` when nothing counts. A nan or ``+inf`` makes its own sample nan; ``-inf`` is
        probability 0.

    Raises
    ------
    IndexError
        For a class index outside [0, C) that is not `ignore_index`; the message names the first.
    ValueError, TypeError
        For shapes, options and dtypes that do not fit.

    See Also
    --------
    cross_entropy_with_grad : The loss and its gradient from one pass.
    nll_loss : The same on log-probabilities.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016 (smoothing).
    .. [2] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022 (z-loss).

    Examples
    --------
    >>> import fastxent as fx
    >>> round(float(fx.cross_entropy([[0.15, -0.34, 0.12, 0.67, 0.55]], [2])), 4)
    1.7804
    >>> fx.cross_entropy([[20.0, 0.0], [0.0, 0.0]], [0, 1], reduction="none")
    array([2.06115362e-09, 6.93147181e-01])
    """
    coefficients = _coefficients(label_smoothing, z_loss)
    return classification_loss(
        "cross_entropy", "logits", logits, target, weight, sample_weight, coefficients, ignore_index, reduction, axis,
        None,
    )[0]  # fmt: skip


def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    axis: int | None = None,
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    r"""Cross-entropy and its gradient with respect to the logits, from one pass over them.

    .. math:: \frac{\partial \ell}{\partial x_j} =
              \Big(\sum_k w_k t'_k + 2 z \, \mathrm{lse}(x)\Big) \mathrm{softmax}(x)_j - w_j t'_j

    per sample: ``softmax(logits) - onehot(target)`` without options. See `cross_entropy` for the symbols.

    Parameters
    ----------
    logits, target, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, axis
        As for `cross_entropy`.
    grad_output : array_like, optional
        Gradient flowing in: a scalar for ``"mean"`` and ``"sum"``, an array of the loss's shape for ``"none"``.
        Ones by default.
    out : ndarray, optional
        Receives the gradient. It may be `logits` itself, which the gradient then replaces.

    Returns
    -------
    loss : scalar or ndarray
        As from `cross_entropy`.
    grad : ndarray
        Of the logits' shape and dtype (float64 for integers); `out` if given. Entries for ignored samples are 0.

    Raises
    ------
    IndexError, ValueError, TypeError
        As for `cross_entropy`, before anything is written to `out`.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.109.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.cross_entropy_with_grad([[0.0, 0.0], [0.0, 0.0]], [0, 1])
    >>> round(float(loss), 6)
    0.693147
    >>> grad
    array([[-0.25,  0.25],
           [ 0.25, -0.25]])
    """
    coefficients = _coefficients(label_smoothing, z_loss)
    return classification_loss(
        "cross_entropy", "logits", logits, target, weight, sample_weight, coefficients, ignore_index, reduction, axis,
        (grad_output, out),
    )  # fmt: skip


def _coefficients(label_smoothing: float, z_loss: float) -> tuple[float, float]:
    if type(label_smoothing) is type(z_loss) is float and label_smoothing == z_loss == 0:
        return 0.0, 0.0
    return finite_number("label_smoothing", label_smoothing, 0, 1), finite_number("z_loss", z_loss, 0, math.inf)


def nll_loss(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    axis: int | None = None,
) -> Any:
    r"""Negative log-likelihood of a target under log-probabilities, as ``torch.nn.functional.nll_loss``.

    .. math:: \ell = -\sum_j w_j t_j \log p_j

    per sample, with :math:`t` the one-hot vector of the target's class or the target's probabilities.
    ``nll_loss(log_softmax(x), y)`` is ``cross_entropy(x, y)``, in two steps and with less precision.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities, shaped and typed as the logits of `cross_entropy`.
    target, weight, sample_weight, ignore_index, reduction, axis
        As for `cross_entropy`.

    Returns
    -------
    scalar or ndarray
        As from `cross_entropy`.

    Raises
    ------
    IndexError, ValueError, TypeError
        As for `cross_entropy`.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> round(float(fx.nll_loss(np.log([[0.25, 0.75], [0.5, 0.5]]), [1, 0])), 6)
    0.490415
    """
    return classification_loss(
        "nll", "log_probs", log_probs, target, weight, sample_weight, (), ignore_index, reduction, axis, None
    )[0]


def nll_loss_with_grad(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    axis: int | None = None,
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    r"""Negative log-likelihood and its gradient with respect to the log-probabilities, :math:`-w_j t_j`.

    Parameters
    ----------
    log_probs, target, weight, sample_weight, ignore_index, reduction, axis
        As for `nll_loss`.
    grad_output, out
        As for `cross_entropy_with_grad`.

    Returns
    -------
    loss : scalar or ndarray
        As from `nll_loss`.
    grad : ndarray
        Of the log-probabilities' shape and dtype (float64 for integers); `out` if given.

    Raises
    ------
    IndexError, ValueError, TypeError
        As for `cross_entropy`, before anything is written to `out`.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> fx.nll_loss_with_grad(np.log([[0.25, 0.75]]), [1])[1]
    array([[ 0., -1.]])
    """
    return classification_loss(
        "nll", "log_probs", log_probs, target, weight, sample_weight, (), ignore_index, reduction, axis,
        (grad_output, out),
    )  # fmt: skip
