"""Log-sum-exp, softmax and log-softmax, with their vector-Jacobian products."""

import math
from typing import Any

import numpy as np
from numpy import ndarray  # read in every call, and np.ndarray is one more look-up
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike

from . import _backends
from ._backends import Array
from ._device import on_device
from ._errors import bad_grad_of_batch, different_shapes
from ._options import as_axis, flag
from ._problem import (
    Layout,
    as_constants,
    as_floats,
    as_output,
    check_out,
    compute_type,
    finish,
    for_device,
    make_layout,
)
from ._reduction import ones

Axes = int | tuple[int, ...] | None


def logsumexp(x: ArrayLike, axis: Axes = -1, *, keepdims: bool = False, out: Array | None = None) -> Any:
    r"""Logarithm of the sum of exponentials, :math:`\log \sum_j e^{x_j}`.

    Never overflows, and keeps full precision where one term dominates: ``logsumexp([0, -40])`` is 4.2e-18, not 0.

    Parameters
    ----------
    x : array_like
        Floating (float16, bfloat16, float32, float64) or integer, of any shape.
    axis : int, tuple of int or None, default -1
        Axes to reduce; ``None`` reduces all of them.
    keepdims : bool, default False
        Whether the reduced axes stay, with length 1.
    out : ndarray, optional
        Receives the result; of its shape and dtype.

    Returns
    -------
    ndarray or scalar
        float64 for float64 and integers, else float32. ``-inf`` for no terms or only ``-inf``, ``inf`` if a term is
        ``inf``, nan if one is nan.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, and an `axis` or `out` that does not fit.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA J. Numer. Anal. 41 (2021).

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.logsumexp([[0.0, 0.0], [1000.0, 1000.0]])
    array([6.93147181e-01, 1.00069315e+03])
    """
    keepdims = flag("keepdims", keepdims)
    if type(x) is not ndarray and on_device(x):
        return for_device().logsumexp(x, _axes, axis, keepdims, out)
    x = as_floats("x", x)
    axes = _axes(x, axis)
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes)
    dtype = compute_type(x.dtype)
    if out is not None:
        check_out(out, dtype, shape)
    layout, x = _merged(x, axes)
    result = np.empty(math.prod(layout.batch), dtype)
    kernels, num_threads = _backends.in_force()
    kernels.logsumexp(layout.split(x), num_threads, result)
    if out is None:
        return result.reshape(shape)[()]
    out[...] = result.reshape(shape)
    return out


def logsumexp_vjp(grad_output: ArrayLike, x: ArrayLike, axis: Axes = -1, *, out: Array | None = None) -> Array:
    r"""Gradient of `logsumexp`, :math:`g \, \mathrm{softmax}(x)`.

    Parameters
    ----------
    grad_output : array_like
        Gradient flowing in, of the shape of ``logsumexp(x, axis)``, with or without ``keepdims``.
    x : array_like
        What `logsumexp` was given.
    axis : int, tuple of int or None, default -1
        As for `logsumexp`.
    out : ndarray, optional
        Receives the result; may be `x` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x` (float64 for integers).

    Raises
    ------
    TypeError, ValueError
        For shapes or dtypes that do not fit.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.logsumexp_vjp(2.0, [0.0, 0.0])
    array([1., 1.])
    """
    if type(x) is not ndarray and on_device(x):
        return for_device().logsumexp_vjp(grad_output, x, _axes, axis, out)  # type: ignore[no-any-return]
    x = as_floats("x", x)
    axes = _axes(x, axis)
    layout, merged = _merged(x, axes)
    grad_output = as_floats("grad_output", grad_output)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    if grad_output.shape not in ((), layout.batch, kept):
        raise bad_grad_of_batch(grad_output.shape, layout.batch, kept)
    if grad_output.shape != ():
        grad_output = grad_output.reshape(layout.batch)
    scale = as_constants("grad_output", grad_output, layout.batch, compute_type(x.dtype))
    kernels, num_threads = _backends.in_force()
    if len(axes) == 1:
        output = as_output(out, x.dtype, layout, (x,), (grad_output,))
        kernels.softmax(layout.split(x), scale, num_threads, layout.split(output))
        return finish(output, out)
    if out is not None:
        check_out(out, x.dtype, x.shape)
    grad = np.empty(layout.shape, x.dtype)
    kernels.softmax(layout.split(merged), scale, num_threads, layout.split(grad))
    back = np.moveaxis(grad.reshape(layout.batch + tuple(x.shape[i] for i in axes)), range(-len(axes), 0), axes)
    if out is None:
        return back
    out[...] = back
    return out


def softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    r"""Softmax, :math:`e^{x_j} / \sum_k e^{x_k}`.

    Parameters
    ----------
    x : array_like
        Floating (float16, bfloat16, float32, float64) or integer, with at least one axis.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Receives the result; may be `x` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x` (float64 for integers). Entries below the smallest normal number are 0. A row
        with a nan or ``inf``, or with only ``-inf``, is nan.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, and an `axis` or `out` that does not fit.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> fx.softmax(np.log([1.0, 2.0, 1.0]))
    array([0.25, 0.5 , 0.25])
    """
    if type(x) is not ndarray and on_device(x):
        return for_device().class_map("softmax", x, axis, out)  # type: ignore[no-any-return]
    x = as_floats("x", x)
    layout = _layout(x, axis)
    output = as_output(out, x.dtype, layout, (x,))
    kernels, num_threads = _backends.in_force()
    kernels.softmax(layout.split(x), ones(compute_type(x.dtype)), num_threads, layout.split(output))
    return finish(output, out)


def softmax_vjp(grad_output: ArrayLike, probs: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    r"""Gradient of `softmax` from its result, :math:`p_j (g_j - \sum_k g_k p_k)`.

    Parameters
    ----------
    grad_output : array_like
        Gradient flowing in, of the shape of `probs`.
    probs : array_like
        What `softmax` returned.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Receives the result; may be `probs` or `grad_output` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `probs`.

    Raises
    ------
    TypeError, ValueError
        For shapes or dtypes that do not fit.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.softmax_vjp([1.0, 0.0], [0.5, 0.5])
    array([ 0.25, -0.25])
    """
    return _vjp("softmax_vjp", "probs", grad_output, probs, axis, out)


def log_softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    r"""Logarithm of softmax, :math:`x_j - \log \sum_k e^{x_k}`.

    Parameters
    ----------
    x : array_like
        Floating (float16, bfloat16, float32, float64) or integer, with at least one axis.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Receives the result; may be `x` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `x` (float64 for integers). A row with a nan or ``inf``, or with only ``-inf``, is
        nan.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, and an `axis` or `out` that does not fit.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.log_softmax([1.0, 2.0, 3.0])
    array([-2.40760596, -1.40760596, -0.40760596])
    """
    if type(x) is not ndarray and on_device(x):
        return for_device().class_map("log_softmax", x, axis, out)  # type: ignore[no-any-return]
    x = as_floats("x", x)
    layout = _layout(x, axis)
    output = as_output(out, x.dtype, layout, (x,))
    kernels, num_threads = _backends.in_force()
    kernels.log_softmax(layout.split(x), num_threads, layout.split(output))
    return finish(output, out)


def log_softmax_vjp(grad_output: ArrayLike, log_probs: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    r"""Gradient of `log_softmax` from its result, :math:`g_j - e^{\log p_j} \sum_k g_k`.

    Parameters
    ----------
    grad_output : array_like
        Gradient flowing in, of the shape of `log_probs`.
    log_probs : array_like
        What `log_softmax` returned.
    axis : int, default -1
        The class axis.
    out : ndarray, optional
        Receives the result; may be `log_probs` or `grad_output` itself.

    Returns
    -------
    ndarray
        Of the shape and dtype of `log_probs`.

    Raises
    ------
    TypeError, ValueError
        For shapes or dtypes that do not fit.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> fx.log_softmax_vjp([1.0, 0.0], np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """
    return _vjp("log_softmax_vjp", "log_probs", grad_output, log_probs, axis, out)


def _vjp(kernel: str, name: str, grad_output: ArrayLike, value: ArrayLike, axis: int, out: Array | None) -> Array:
    if type(value) is not ndarray and on_device(value):
        return for_device().vjp(kernel, name, grad_output, value, axis, out)  # type: ignore[no-any-return]
    value, grad_output = as_floats(name, value), as_floats("grad_output", grad_output)
    layout = _layout(value, axis)
    if grad_output.shape != value.shape:
        raise different_shapes("grad_output", grad_output.shape, name, value.shape)
    output = as_output(out, value.dtype, layout, (value, grad_output))
    with np.errstate(all="ignore"):
        grad_output = grad_output.astype(compute_type(value.dtype), copy=False)
    kernels, num_threads = _backends.in_force()
    getattr(kernels, kernel)(layout.split(grad_output), layout.split(value), num_threads, layout.split(output))
    return finish(output, out)


def _layout(x: Array, axis: int) -> Layout:
    return make_layout(x.shape, as_axis(axis))


def _axes(x: Array, axis: Axes) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    several = [as_axis(i) for i in axis] if isinstance(axis, (tuple, list)) else as_axis(axis)
    axes: tuple[int, ...] = normalize_axis_tuple(several, x.ndim, "axis")
    return axes


def _merged(x: Array, axes: tuple[int, ...]) -> tuple[Layout, Array]:
    """`x` with its reduced axes as one class axis; moved to the end only when there are several (or none)."""
    if len(axes) == 1:
        return make_layout(x.shape, axes[0]), x
    batch = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    moved = np.moveaxis(x, axes, range(-len(axes), 0)).reshape(*batch, math.prod(x.shape[i] for i in axes))
    return make_layout(moved.shape, len(batch)), moved
