"""The tables that the tests (and the benchmarks) follow from: functions, types, layouts, shapes and options."""

import importlib
import inspect
import tempfile
import warnings
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

import fastxent as fx
from fastxent import reference

# --- functions ---------------------------------------------------------------------------------------------------


def batch_shape(shape, axis):
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def logits(rng, shape, axis):
    return 3 * rng.standard_normal(shape)


def log_probs(rng, shape, axis):
    return reference.log_softmax(logits(rng, shape, axis), axis)


def probs(rng, shape, axis):
    return reference.softmax(logits(rng, shape, axis), axis)


def labels(rng, shape, axis):
    return rng.integers(shape[axis], size=batch_shape(shape, axis))


def chances(rng, shape, axis):
    """Probabilities of single events, far enough from 0 and 1 for gradients that are not huge."""
    return rng.uniform(0.01, 0.99, shape)


def answers(rng, shape, axis):
    """0, 1 and numbers between."""
    return np.clip(rng.uniform(-1, 2, shape), 0, 1)


def per_entry(rng, shape, axis):
    return rng.standard_normal(shape)


def per_sample(rng, shape, axis):
    return np.asarray(rng.standard_normal(batch_shape(shape, axis)))


class Loss(NamedTuple):
    """A public function and its plain twin; all take the arrays, the options and `at` an axis, by the same names.

    Functions are looked up when they are used: a benchmark of an older version has some that are not there yet.
    """

    name: str
    arrays: tuple[Callable[..., np.ndarray], ...]  # makers of the array arguments
    options: tuple[str, ...] = ()
    has_gradient: bool = False

    @property
    def function(self):
        return getattr(fx, self.name)

    @property
    def with_grad(self):
        """Returns (value, gradient), as does the reference of a function that has such a twin."""
        return getattr(fx, f"{self.name}_with_grad") if self.has_gradient else None

    @property
    def reference(self):
        return getattr(reference, self.name)

    @property
    def oracle(self):
        """The same in torch operations; imported here, so that the tables need no torch."""
        return getattr(importlib.import_module("oracles"), self.name)

    @property
    def takes_labels(self):
        return labels in self.arrays

    @property
    def has_axis(self):
        return "axis" in inspect.signature(self.function).parameters

    @property
    def main(self):
        """The place of the array that sets the type of what is computed, and the shape of what has one like it."""
        return len(self.arrays) - 1 if self.name.endswith("_vjp") else 0

    def at(self, axis):
        """The keyword argument that names the class axis, for functions that have one."""
        return {"axis": axis} if self.has_axis else {}

    @property
    def reduces(self):
        """Whether the class axis is gone from the result of the function itself."""
        return self.has_gradient or self.name in SUMS

    def loss_shape(self, shape, axis):
        """What `reduction="none"` gives."""
        return batch_shape(shape, axis) if self.has_axis else shape

    def make(self, shape, axis, dtype=np.float64, layout=np.array, seed=0):
        """The array arguments, floating ones rounded to `dtype`."""
        rng = np.random.default_rng(seed)
        arrays = [maker(rng, shape, axis) for maker in self.arrays]
        return [layout(a.astype(dtype) if a.dtype.kind == "f" else a) for a in arrays]

    def default_axis(self, ndim):
        """The axis that a call without `axis` means."""
        if not self.has_axis:
            return 0
        axis = inspect.signature(self.function).parameters["axis"].default
        if self.name == "multilabel_soft_margin_loss":
            return -1
        return min(1, ndim - 1) if axis is None else axis


NLL = ("weight", "sample_weight", "ignore_index")
CROSS_ENTROPY = (*NLL, "label_smoothing", "z_loss")
OF_PROBS = ("weight", "sample_weight")
SUMS = ("logsumexp", "entropy", "categorical_cross_entropy", "kl_divergence")

# A public function that has no line in either table fails test_cases.py. The softmax family:
LOSSES = {
    "logsumexp": Loss("logsumexp", (logits,)),
    "logsumexp_vjp": Loss("logsumexp_vjp", (per_sample, logits)),
    "softmax": Loss("softmax", (logits,)),
    "softmax_vjp": Loss("softmax_vjp", (per_entry, probs)),
    "log_softmax": Loss("log_softmax", (logits,)),
    "log_softmax_vjp": Loss("log_softmax_vjp", (per_entry, log_probs)),
    "cross_entropy": Loss("cross_entropy", (logits, labels), CROSS_ENTROPY, has_gradient=True),
    "cross_entropy of probabilities": Loss(
        "cross_entropy", (logits, probs), (*OF_PROBS, "label_smoothing", "z_loss"), has_gradient=True
    ),
    "nll_loss": Loss("nll_loss", (log_probs, labels), NLL, has_gradient=True),
    "nll_loss of probabilities": Loss("nll_loss", (log_probs, probs), OF_PROBS, has_gradient=True),
}
WITH_GRAD = {name: loss for name, loss in LOSSES.items() if loss.has_gradient}
MAPS = {name: loss for name, loss in LOSSES.items() if not loss.has_gradient}

# What is computed entry by entry:
ELEMENTWISE = {
    "binary_cross_entropy": Loss("binary_cross_entropy", (chances, answers), ("weight",), has_gradient=True),
    "binary_cross_entropy_with_logits": Loss(
        "binary_cross_entropy_with_logits", (logits, answers), ("weight", "pos_weight"), has_gradient=True
    ),
    "multilabel_soft_margin_loss": Loss(
        "multilabel_soft_margin_loss", (logits, answers), ("weight",), has_gradient=True
    ),
    "kl_div": Loss("kl_div", (log_probs, probs), ("log_target",), has_gradient=True),
    "entropy": Loss("entropy", (probs,)),
    "categorical_cross_entropy": Loss("categorical_cross_entropy", (probs, probs)),
    "kl_divergence": Loss("kl_divergence", (probs, probs)),
}
ELEMENTWISE_WITH_GRAD = {name: loss for name, loss in ELEMENTWISE.items() if loss.has_gradient}
ALL, ALL_WITH_GRAD = LOSSES | ELEMENTWISE, WITH_GRAD | ELEMENTWISE_WITH_GRAD


def good_call(loss, changes):
    """Arguments by their names, some of them changed: "x" and "y" may stand for the first and the second."""
    good = dict(zip(inspect.signature(loss.function).parameters, loss.make((2, 3), 1), strict=False))
    short = dict(zip("xy", good, strict=False))
    return good | {key if key in good else short.get(key, key): value for key, value in changes.items()}


# --- options -----------------------------------------------------------------------------------------------------

REDUCTIONS = ("mean", "sum", "none")

# Makers of option values, like those of arrays.
OPTIONS = {
    "weight": lambda rng, shape, axis: rng.uniform(0.5, 2, shape[axis]),
    "sample_weight": lambda rng, shape, axis: np.asarray(rng.uniform(0.5, 2, batch_shape(shape, axis))),
    "ignore_index": lambda rng, shape, axis: 1,
    "label_smoothing": lambda rng, shape, axis: 0.1,
    "z_loss": lambda rng, shape, axis: 0.01,
    "pos_weight": lambda rng, shape, axis: rng.uniform(0.5, 2, shape[axis]),
    "log_target": lambda rng, shape, axis: True,
}


def make_options(loss, shape, axis, which, dtype=np.float64, seed=1):
    """The options named `which` ("all", "no" or one name) that the loss takes, rounded to `dtype`."""
    rng = np.random.default_rng(seed)
    axis = axis if loss.has_axis else -1  # along which a 1-D weight is broadcast
    values = {name: OPTIONS[name](rng, shape, axis) for name in loss.options if which in (name, "all")}
    return {name: v.astype(dtype) if isinstance(v, np.ndarray) else v for name, v in values.items()}


# --- types -------------------------------------------------------------------------------------------------------

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {np.dtype(t).name: np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)}
LOSS_DTYPE = {dtype: np.dtype(np.float64 if dtype == np.float64 else np.float32) for dtype in DTYPES.values()}
INTEGERS = [np.dtype(t) for t in "bBhHiIlLqQ"]

# Relative to the largest entry, for results in the type. Twice a rounding for 16 bits, whose arithmetic is float32;
# for float64 torch's own error counts as well. test_accuracy.py has the sharp bounds, entry by entry.
TOLERANCES = {DTYPES["float16"]: 2**-10, BFLOAT16: 2**-7, DTYPES["float32"]: 2e-6, DTYPES["float64"]: 4e-14}


def exact(array):
    """The same numbers in the widest plain type: int64, or float64."""
    array = np.asarray(array)
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)


def assert_close(got, expected, factor=1, least=0):
    """Within the tolerance of the type of `got`, relative to `least` or the largest finite entry that is expected."""
    got, expected = np.asarray(got), np.asarray(expected)
    dtype = got.dtype.newbyteorder("=")
    finite = np.abs(expected[np.isfinite(expected)])
    rtol = factor * TOLERANCES[dtype]
    spacing = 2.0**-24 if dtype == np.float16 else 0  # of subnormal numbers, which gradients of float16 reach
    atol = rtol * finite.max(initial=least) + spacing
    np.testing.assert_allclose(exact(got), expected, rtol=rtol, atol=atol, err_msg=f"in {dtype}")


# --- layouts -----------------------------------------------------------------------------------------------------


def fortran(a):
    return np.asfortranarray(a)


def negative_strides(a):
    flip = (slice(None, None, -1),) * a.ndim
    return np.array(a[flip])[flip]


def broadcast(a):
    """Every sample the same, at stride 0 along the first axis."""
    return np.broadcast_to(a[:1], a.shape)


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    result = raw[1:].view(a.dtype).reshape(a.shape)
    result[...] = a
    return result


def byte_swapped(a):
    if a.dtype == BFLOAT16:  # has one byte order
        return a.copy()
    return a.astype(a.dtype.newbyteorder())


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def memory_map(a):
    with tempfile.TemporaryFile() as file:
        result = np.memmap(file, a.dtype, "w+", shape=a.shape)
    result[...] = a
    return result


def sliced(a):
    """Every second element of every axis: with two axes on one side of the classes, no 3-D view exists."""
    result = np.zeros([2 * n + 1 for n in a.shape], a.dtype)[(slice(1, None, 2),) * a.ndim]
    result[...] = a
    return result


def matrix(a):
    """A subclass whose arrays stay 2-D whatever shape they are asked for; NumPy advises against it."""
    with warnings.catch_warnings(category=PendingDeprecationWarning, action="ignore"):
        return np.matrix(a)


def field(a):
    """One field of a record array."""
    result = np.zeros(a.shape, [("other", a.dtype), ("value", a.dtype)])["value"]
    result[...] = a
    return result


LAYOUTS = {
    "contiguous": np.array,
    "Fortran order": fortran,
    "negative strides": negative_strides,
    "broadcast": broadcast,
    "misaligned": misaligned,
    "byte-swapped": byte_swapped,
    "read-only": read_only,
    "memory-mapped": memory_map,
    "sliced": sliced,
    "record field": field,
}
WRITEABLE = {name: layout for name, layout in LAYOUTS.items() if name not in ("broadcast", "read-only")}

# (shape, class axis): unbatched, empty, one class, and the class axis at every place
SHAPES = [
    ((5,), 0),
    ((1,), -1),
    ((4, 3), 1),
    ((4, 3), 0),
    ((4, 1), 1),
    ((1, 4), -1),
    ((0, 3), 1),
    ((3, 0), 0),
    ((2, 3, 0), 1),
    ((2, 0, 3), -1),
    ((2, 3, 4), 1),
    ((2, 3, 4), 0),
    ((2, 3, 4), -1),
    ((3, 5, 2, 2), 1),
    ((3, 2, 5, 2), 2),
    ((3, 2, 2, 5), -1),
    ((5, 3, 2, 2), -4),
    ((2, 3, 2, 1, 2), 1),
]

# Around the 64 lanes and the 4096-class blocks of the kernels
CLASS_COUNTS = (1, 2, 3, 10, 63, 64, 65, 127, 129, 4095, 4096, 4097, 8192, 8193)
