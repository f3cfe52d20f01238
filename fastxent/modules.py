"""The losses as objects with their options fixed once, made from the functions' own signatures."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from ._backends import Array
from ._options import as_axis, finite_number, flag, integer
from ._problem import as_floats
from ._reduction import BATCH_REDUCTIONS, REDUCTIONS, check_reduction
from .binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_with_grad,
    multilabel_soft_margin_loss,
    multilabel_soft_margin_loss_with_grad,
)
from .distributions import kl_div, kl_div_with_grad
from .losses import cross_entropy, cross_entropy_with_grad, nll_loss, nll_loss_with_grad
from .softmax import log_softmax, softmax

# --- options -----------------------------------------------------------------------------------------------------


def _own_array(name: str, value: ArrayLike) -> Array:
    """A read-only copy, so that nobody changes the option later."""
    array = as_floats(name, value).copy()
    array.flags.writeable = False
    return array


# Option -> what checks it and gives it back; the rest, and what depends on the arrays, is checked by each call.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "weight": _own_array,
    "sample_weight": _own_array,
    "pos_weight": _own_array,
    "ignore_index": integer,
    "label_smoothing": lambda name, value: finite_number(name, value, 0, 1),
    "z_loss": lambda name, value: finite_number(name, value, 0, math.inf),
    "log_target": flag,
    "axis": lambda _, value: as_axis(value),
}


def _key(value: Any) -> Any:
    """What stands for an option in comparisons."""
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def _shown(value: Any) -> str:
    with np.printoptions(threshold=8, edgeitems=2):
        return " ".join(repr(value).split())


# --- mechanism ---------------------------------------------------------------------------------------------------


class _Module:
    """A public function whose options are attributes: frozen, picklable, comparable and hashable."""

    _function: ClassVar[Any]
    _defaults: ClassVar[dict[str, Any]]
    _reductions: ClassVar[tuple[str, ...]] = REDUCTIONS

    def __init_subclass__(cls, function: Callable[..., Any] | None = None) -> None:
        if function is not None:
            parameters = inspect.signature(function).parameters.values()
            options = [p for p in parameters if p.default is not p.empty and p.name != "out"]
            cls._function = staticmethod(function)
            cls._defaults = {p.name: p.default for p in options}
            cls.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]

    def __init__(self, **options: Any) -> None:
        for name in options:
            if name not in self._defaults:
                raise TypeError(f"{type(self).__name__} has no option {name!r}, only {', '.join(self._defaults)}")
        for name, default in self._defaults.items():
            value = options.get(name, default)
            vars(self)[name] = _CHECKS[name](name, value) if name in _CHECKS and value is not default else value
        if "reduction" in self._defaults:
            check_reduction(vars(self)["reduction"], self._reductions)

    def _refuse(self, name: str, value: Any = None) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: make another one with another {name}")

    __setattr__ = __delattr__ = _refuse

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Module) and type(self) is type(other) and self._keys() == other._keys()

    def __hash__(self) -> int:
        return hash((type(self), *self._keys()))

    def _keys(self) -> list[Any]:
        return [_key(value) for value in vars(self).values()]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **vars(self)), ()

    def __repr__(self) -> str:
        chosen = {name: value for name, value in vars(self).items() if _key(value) != self._defaults[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={_shown(value)}' for name, value in chosen.items())})"


class _Loss(_Module):
    _with_grad: ClassVar[Any]

    def __init_subclass__(cls, function: Callable[..., Any], with_grad: Callable[..., Any]) -> None:
        super().__init_subclass__(function)
        cls._with_grad = staticmethod(with_grad)

    def __call__(self, logits: ArrayLike, target: ArrayLike, /) -> Any:
        """The loss."""
        return self._function(logits, target, **vars(self))

    def with_grad(
        self, logits: ArrayLike, target: ArrayLike, /, *, grad_output: ArrayLike | None = None, out: Array | None = None
    ) -> tuple[Any, Array]:
        """The loss and its gradient, from one pass."""
        loss, grad = self._with_grad(logits, target, **vars(self), grad_output=grad_output, out=out)
        return loss, grad


class _Map(_Module):
    def __init__(self, axis: int = -1) -> None:
        super().__init__(axis=axis)

    def __call__(self, x: ArrayLike, /, *, out: Array | None = None) -> Any:
        """The function of `x`."""
        return self._function(x, **vars(self), out=out)


# --- modules -----------------------------------------------------------------------------------------------------


class CrossEntropyLoss(_Loss, function=cross_entropy, with_grad=cross_entropy_with_grad):
    """`cross_entropy` with its options fixed.

    Examples
    --------
    >>> import fastxent as fx
    >>> criterion = fx.CrossEntropyLoss(weight=[1.0, 2.0], label_smoothing=0.1)
    >>> criterion
    CrossEntropyLoss(weight=array([1., 2.]), label_smoothing=0.1)
    >>> loss, grad = criterion.with_grad([[0.0, 0.0]], [1])
    >>> grad
    array([[ 0.4625, -0.4625]])
    """


class NLLLoss(_Loss, function=nll_loss, with_grad=nll_loss_with_grad):
    """`nll_loss` with its options fixed.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.NLLLoss(reduction="sum")([[-0.5, -1.0]], [1])
    np.float64(1.0)
    """


class BCELoss(_Loss, function=binary_cross_entropy, with_grad=binary_cross_entropy_with_grad):
    """`binary_cross_entropy` with its options fixed.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.BCELoss(reduction="sum").with_grad([0.5], [1])[1]
    array([-2.])
    """


class BCEWithLogitsLoss(
    _Loss, function=binary_cross_entropy_with_logits, with_grad=binary_cross_entropy_with_logits_with_grad
):
    """`binary_cross_entropy_with_logits` with its options fixed.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.BCEWithLogitsLoss(pos_weight=[3.0, 1.0]).with_grad([[0.0, 0.0]], [[1, 0]])[1]
    array([[-0.75,  0.25]])
    """


class MultiLabelSoftMarginLoss(
    _Loss, function=multilabel_soft_margin_loss, with_grad=multilabel_soft_margin_loss_with_grad
):
    """`multilabel_soft_margin_loss` with its options fixed.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.MultiLabelSoftMarginLoss().with_grad([[0.0, 0.0]], [[1, 0]])[1]
    array([[-0.25,  0.25]])
    """


class KLDivLoss(_Loss, function=kl_div, with_grad=kl_div_with_grad):
    """`kl_div` with its options fixed.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.KLDivLoss(reduction="batchmean")([[-0.5, -1.0]], [[0.0, 1.0]])
    np.float64(1.0)
    """

    _reductions = BATCH_REDUCTIONS


class Softmax(_Map, function=softmax):
    """`softmax` along a fixed axis.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.Softmax(0)([[0.0], [0.0]])
    array([[0.5],
           [0.5]])
    """


class LogSoftmax(_Map, function=log_softmax):
    """`log_softmax` along a fixed axis.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.LogSoftmax()([0.0, 0.0])
    array([-0.69314718, -0.69314718])
    """
