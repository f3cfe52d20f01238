"""Losses of independent yes-or-no questions: binary cross-entropy, of probabilities and of logits."""

from typing import Any

from numpy.lib.array_utils import normalize_axis_index
from numpy.typing import ArrayLike

from ._backends import Array
from ._elementwise import as_pair, as_partner, as_probabilities, elementwise_loss
from ._options import as_axis
from ._problem import Gradient
from ._reduction import check_reduction


def binary_cross_entropy(
    probs: ArrayLike, target: ArrayLike, *, weight: ArrayLike | None = None, reduction: str = "mean"
) -> Any:
    r"""Binary cross-entropy between probabilities and a target, as ``torch.nn.functional.binary_cross_entropy``.

    .. math:: \ell = -w \big(y \log p + (1 - y) \log(1 - p)\big)

    for each entry, with logarithms below -100 taken as -100. ``binary_cross_entropy(sigmoid(x), y)`` is
    ``binary_cross_entropy_with_logits(x, y)``, in two steps and with less precision.

    Parameters
    ----------
    probs : array_like
        Probabilities in [0, 1] of any shape; float16, bfloat16, float32, float64 or integers.
    target : array_like
        Of the same shape; floats, integers or booleans, usually 0, 1 or between.
    weight : array_like, optional
        Weight of each entry; broadcasts to the shape of `probs`.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the number of entries.

    Returns
    -------
    scalar or ndarray
        float64 for float64 and integer probabilities, else float32; for ``"none"``, of their shape. nan for the mean of
        nothing.

    Raises
    ------
    ValueError, TypeError
        For probabilities outside [0, 1] (the message names the first), and for shapes, options and dtypes that do not
        fit.

    See Also
    --------
    binary_cross_entropy_with_grad : The loss and its gradient from one pass.
    binary_cross_entropy_with_logits : The same on logits.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(float(fx.binary_cross_entropy([0.9, 0.2], [1, 0])), 6)
    0.164252
    """
    return _of_probabilities(probs, target, weight, reduction, None)[0]


def binary_cross_entropy_with_grad(
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    r"""Binary cross-entropy and its gradient with respect to the probabilities, from one pass over them.

    .. math:: \frac{\partial \ell}{\partial p} = w \frac{p - y}{\max(p (1 - p), 10^{-12})}

    Parameters
    ----------
    probs, target, weight, reduction
        As for `binary_cross_entropy`.
    grad_output : array_like, optional
        Gradient flowing in: a scalar for ``"mean"`` and ``"sum"``, an array of the loss's shape for ``"none"``.
        Ones by default.
    out : ndarray, optional
        Receives the gradient. It may be `probs` itself, which the gradient then replaces.

    Returns
    -------
    loss : scalar or ndarray
        As from `binary_cross_entropy`.
    grad : ndarray
        Of the shape and dtype of `probs` (float64 for integers); `out` if given.

    Raises
    ------
    ValueError, TypeError
        As for `binary_cross_entropy`, before anything is written to `out`.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.binary_cross_entropy_with_grad([0.5, 0.5], [1, 0], reduction="sum")[1]
    array([-2.,  2.])
    """
    return _of_probabilities(probs, target, weight, reduction, (grad_output, out))


def _of_probabilities(
    probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None, reduction: str, gradient: Gradient | None
) -> tuple[Any, Any]:
    check_reduction(reduction)
    x, y = as_pair("probs", as_probabilities("probs", probs), "target", target)
    return elementwise_loss("bce", x, y, weight, None, reduction, gradient)


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
) -> Any:
    r"""Binary cross-entropy of logits, as ``torch.nn.functional.binary_cross_entropy_with_logits``.

    .. math:: \ell = w \big((1 - y) \log(1 + e^x) + v y \log(1 + e^{-x})\big)

    for each entry, where :math:`v` is `pos_weight`.

    Parameters
    ----------
    logits : array_like
        Logarithms of the odds, of any shape; float16, bfloat16, float32, float64 or integers.
    target : array_like
        Of the same shape; floats, integers or booleans, usually 0, 1 or between.
    weight : array_like, optional
        Weight of each entry; broadcasts to the logits' shape.
    pos_weight : array_like, optional
        Weight of the part with :math:`y`, usually one for each class, to trade recall for precision; broadcasts to the
        logits' shape.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the number of entries.

    Returns
    -------
    scalar or ndarray
        float64 for float64 and integer logits, else float32; for ``"none"``, of their shape. nan for the mean of
        nothing.

    Raises
    ------
    ValueError, TypeError
        For shapes, options and dtypes that do not fit.

    See Also
    --------
    binary_cross_entropy_with_logits_with_grad : The loss and its gradient from one pass.
    multilabel_soft_margin_loss : Its mean over the classes of each sample.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(float(fx.binary_cross_entropy_with_logits([0.0, 1000.0], [1, 1])), 6)
    0.346574
    """
    return _of_logits(logits, target, weight, pos_weight, reduction, None)[0]


def binary_cross_entropy_with_logits_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    r"""Binary cross-entropy of logits and its gradient with respect to them, from one pass.

    .. math:: \frac{\partial \ell}{\partial x} = w \big((1 - y) \sigma(x) - v y \sigma(-x)\big)

    with the sigmoid :math:`\sigma(x) = 1 / (1 + e^{-x})`: ``sigmoid(logits) - target`` without weights.

    Parameters
    ----------
    logits, target, weight, pos_weight, reduction
        As for `binary_cross_entropy_with_logits`.
    grad_output, out
        As for `binary_cross_entropy_with_grad`; `out` may be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As from `binary_cross_entropy_with_logits`.
    grad : ndarray
        Of the logits' shape and dtype (float64 for integers); `out` if given.

    Raises
    ------
    ValueError, TypeError
        As for `binary_cross_entropy_with_logits`, before anything is written to `out`.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.binary_cross_entropy_with_logits_with_grad([0.0, 0.0], [1, 0], reduction="sum")[1]
    array([-0.5,  0.5])
    """
    return _of_logits(logits, target, weight, pos_weight, reduction, (grad_output, out))


def _of_logits(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    reduction: str,
    gradient: Gradient | None,
) -> tuple[Any, Any]:
    check_reduction(reduction)
    x, y = as_pair("logits", logits, "target", target)
    return elementwise_loss("bce_with_logits", x, y, weight, pos_weight, reduction, gradient)


def multilabel_soft_margin_loss(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    axis: int | None = None,
) -> Any:
    r"""Each sample's mean of its classes' binary losses, as ``torch.nn.functional.multilabel_soft_margin_loss``.

    .. math:: \ell = \frac{1}{C} \sum_j w_j \big((1 - y_j) \log(1 + e^{x_j}) + y_j \log(1 + e^{-x_j})\big)

    Parameters
    ----------
    logits : array_like
        Logarithms of the odds of each class, of any shape with a class axis; float16, bfloat16, float32, float64 or
        integers.
    target : array_like
        Of the same shape; floats, integers or booleans, usually 0 or 1.
    weight : array_like, optional
        Weight of each class, (C,); or anything that broadcasts to the logits' shape.
    reduction : {"mean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the number of samples.
    axis : int, optional
        The class axis; the last by default.

    Returns
    -------
    scalar or ndarray
        float64 for float64 and integer logits, else float32; for ``"none"``, of the logits' shape without the class
        axis. nan for the mean of nothing.

    Raises
    ------
    ValueError, TypeError
        For shapes, options and dtypes that do not fit.

    See Also
    --------
    multilabel_soft_margin_loss_with_grad : The loss and its gradient from one pass.
    binary_cross_entropy_with_logits : The loss of each entry, with a weight for positive targets.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.multilabel_soft_margin_loss([[0.0, 0.0], [30.0, -30.0]], [[1, 0], [1, 0]], reduction="none")
    array([6.93147181e-01, 9.35762297e-14])
    """
    return _of_classes(logits, target, weight, reduction, axis, None)[0]


def multilabel_soft_margin_loss_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    axis: int | None = None,
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    r"""Multi-label soft margin loss and its gradient with respect to the logits, from one pass over them.

    .. math:: \frac{\partial \ell}{\partial x_j} = \frac{w_j}{C} (\sigma(x_j) - y_j)

    with the sigmoid :math:`\sigma(x) = 1 / (1 + e^{-x})`.

    Parameters
    ----------
    logits, target, weight, reduction, axis
        As for `multilabel_soft_margin_loss`.
    grad_output, out
        As for `binary_cross_entropy_with_grad`; `out` may be `logits` itself.

    Returns
    -------
    loss : scalar or ndarray
        As from `multilabel_soft_margin_loss`.
    grad : ndarray
        Of the logits' shape and dtype (float64 for integers); `out` if given.

    Raises
    ------
    ValueError, TypeError
        As for `multilabel_soft_margin_loss`, before anything is written to `out`.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.multilabel_soft_margin_loss_with_grad([[0.0, 0.0]], [[1, 0]])[1]
    array([[-0.25,  0.25]])
    """
    return _of_classes(logits, target, weight, reduction, axis, (grad_output, out))


def _of_classes(
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    reduction: str,
    axis: int | None,
    gradient: Gradient | None,
) -> tuple[Any, Any]:
    check_reduction(reduction)
    x, y = as_pair("logits", logits, "target", target)
    axis = normalize_axis_index(-1 if axis is None else as_axis(axis), x.ndim, "axis")
    if weight is not None:
        weight = as_partner("weight", weight, x)
        if weight.ndim == 1:
            weight = weight.reshape((weight.shape[0], *[1] * (x.ndim - 1 - axis)))
    return elementwise_loss("bce_with_logits", x, y, weight, None, reduction, gradient, axis)
