"""Distances between distributions: of log-probabilities, with a gradient, and of probabilities."""

from typing import Any

from numpy.typing import ArrayLike

from ._backends import Array
from ._elementwise import as_first, as_pair, elementwise_loss, sums_along
from ._options import flag
from ._problem import Gradient
from ._reduction import BATCH_REDUCTIONS, check_reduction


def kl_div(log_probs: ArrayLike, target: ArrayLike, *, log_target: bool = False, reduction: str = "mean") -> Any:
    r"""Pointwise Kullback-Leibler divergence of a target from log-probabilities, as ``torch.nn.functional.kl_div``.

    .. math:: \ell = y (\log y - x)

    for each entry, or :math:`e^y (y - x)` with `log_target`. A target of 0 gives 0, whatever the log-probability.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities of any shape; float16, bfloat16, float32, float64 or integers.
    target : array_like
        Probabilities of the same shape; floats, integers or booleans.
    log_target : bool, default False
        Whether `target` holds log-probabilities.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        ``"mean"`` divides by the number of entries; ``"batchmean"`` by the length of the first axis, which gives the
        mean of the divergences of samples.

    Returns
    -------
    scalar or ndarray
        float64 for float64 and integer log-probabilities, else float32; for ``"none"``, of their shape. nan for the
        mean of nothing.

    Raises
    ------
    ValueError, TypeError
        For shapes, options and dtypes that do not fit.

    See Also
    --------
    kl_div_with_grad : The loss and its gradient from one pass.
    kl_divergence : Of two distributions given as probabilities.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> round(float(fx.kl_div(np.log([[0.5, 0.5]]), [[1.0, 0.0]], reduction="batchmean")), 6)
    0.693147
    """
    return _kl_div(log_probs, target, log_target, reduction, None)[0]


def kl_div_with_grad(
    log_probs: ArrayLike,
    target: ArrayLike,
    *,
    log_target: bool = False,
    reduction: str = "mean",
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Array]:
    r"""Pointwise Kullback-Leibler divergence and its gradient with respect to the log-probabilities, :math:`-y`.

    Parameters
    ----------
    log_probs, target, log_target, reduction
        As for `kl_div`.
    grad_output, out
        As for `binary_cross_entropy_with_grad`; `out` may be `log_probs` itself.

    Returns
    -------
    loss : scalar or ndarray
        As from `kl_div`.
    grad : ndarray
        Of the log-probabilities' shape and dtype (float64 for integers); `out` if given.

    Raises
    ------
    ValueError, TypeError
        As for `kl_div`, before anything is written to `out`.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> fx.kl_div_with_grad(np.log([[0.5, 0.5]]), [[0.75, 0.25]], reduction="batchmean")[1]
    array([[-0.75, -0.25]])
    """
    return _kl_div(log_probs, target, log_target, reduction, (grad_output, out))


def _kl_div(
    log_probs: ArrayLike, target: ArrayLike, log_target: bool, reduction: str, gradient: Gradient | None
) -> tuple[Any, Any]:
    check_reduction(reduction, BATCH_REDUCTIONS)
    log_target = flag("log_target", log_target)
    x, y = as_pair("log_probs", log_probs, "target", target)
    return elementwise_loss("kl_div_log" if log_target else "kl_div", x, y, None, None, reduction, gradient)


def entropy(p: ArrayLike, axis: int = -1) -> Any:
    r"""Entropy of distributions, :math:`H(p) = -\sum_j p_j \log p_j`.

    Parameters
    ----------
    p : array_like
        Probabilities along one axis; float16, bfloat16, float32, float64 or integers. They need not sum to 1.
    axis : int, default -1
        The class axis.

    Returns
    -------
    scalar or ndarray
        In nats; float64 for float64 and integers, else float32. A probability of 0 contributes 0.

    Raises
    ------
    ValueError, TypeError
        For an axis and dtypes that do not fit.

    References
    ----------
    .. [1] C. E. Shannon, "A Mathematical Theory of Communication", Bell System Technical Journal 27 (1948).

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.entropy([[0.5, 0.5], [1.0, 0.0]])
    array([0.69314718, 0.        ])
    """
    x = as_first("p", p)
    return sums_along("entropy", x, x, axis)


def categorical_cross_entropy(p: ArrayLike, q: ArrayLike, axis: int = -1) -> Any:
    r"""Cross-entropy of distributions, :math:`H(p, q) = -\sum_j p_j \log q_j`.

    Parameters
    ----------
    p : array_like
        Probabilities of what happens, along one axis; float16, bfloat16, float32, float64 or integers.
    q : array_like
        Probabilities that were predicted, of the same shape.
    axis : int, default -1
        The class axis.

    Returns
    -------
    scalar or ndarray
        In nats; float64 for float64 and integer `p`, else float32. A class with :math:`p_j = 0` contributes 0, one with
        :math:`p_j > 0` and :math:`q_j = 0` makes it ``inf``.

    Raises
    ------
    ValueError, TypeError
        For shapes, an axis and dtypes that do not fit.

    See Also
    --------
    cross_entropy : Of logits, with a gradient.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.categorical_cross_entropy([1.0, 0.0, 0.0], [0.7, 0.2, 0.1])
    np.float64(0.35667494393873245)
    """
    return sums_along("probs_cross_entropy", *as_pair("p", p, "q", q), axis)


def kl_divergence(p: ArrayLike, q: ArrayLike, axis: int = -1) -> Any:
    r"""Kullback-Leibler divergence of distributions, :math:`D(p \,\|\, q) = \sum_j p_j \log(p_j / q_j)`.

    Parameters
    ----------
    p, q, axis
        As for `categorical_cross_entropy`.

    Returns
    -------
    scalar or ndarray
        In nats, typed as from `categorical_cross_entropy`: :math:`H(p, q) - H(p)`, without its cancellation.

    Raises
    ------
    ValueError, TypeError
        As for `categorical_cross_entropy`.

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On Information and Sufficiency", Annals of Mathematical Statistics 22 (1951).

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.kl_divergence([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [1.0, 0.0]])
    array([ 0., inf])
    """
    return sums_along("kl_divergence", *as_pair("p", p, "q", q), axis)
