"""Calls of any public function for hypothesis to draw: shapes, types, places in memory, numbers, options, mistakes.

They follow from the tables of `cases.py`, so that a new loss is fuzzed once it has its line there.
"""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from cases import (
    BFLOAT16,
    CLASS_COUNTS,
    DTYPES,
    INTEGERS,
    LOSS_DTYPE,
    OPTIONS,
    REDUCTIONS,
    Loss,
    batch_shape,
    chances,
    labels,
)
from hypothesis import strategies as st


class Call(NamedTuple):
    """A public function and its arguments, which lie in `memory` together with bytes that nobody may touch."""

    loss: Loss
    function: Callable[..., Any]
    arguments: dict[str, Any]
    memory: list[np.ndarray]
    mistake: str  # the argument that is wrong, if one is

    def __repr__(self):
        with np.printoptions(threshold=30, edgeitems=2):
            arguments = ", ".join(f"{name}={show(value)}" for name, value in self.arguments.items())
        return f"{self.function.__name__}({arguments})" + f" with wrong {self.mistake}" * bool(self.mistake)


def show(value):
    """An argument for the report of a failure, where its place in memory matters as much as its numbers."""
    if not isinstance(value, np.ndarray):
        return repr(value)
    return f"<{value!r} of shape {value.shape}, strides {value.strides}, {value.ctypes.data % 64} bytes past a line>"


SMALL = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)
EMPTY = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
LONG = st.tuples(st.integers(1, 3), st.sampled_from(CLASS_COUNTS)).flatmap(st.permutations).map(tuple)
MANY = st.tuples(st.integers(60, 200), st.integers(1, 5), st.integers(1, 70)).flatmap(st.permutations).map(tuple)
SHAPES = st.one_of(SMALL, SMALL, SMALL, EMPTY, LONG, MANY)

SEEDS = st.integers(0, 2**32 - 1)
NOW_AND_THEN = st.integers(0, 3).map(lambda n: n == 3)
SELDOM = st.integers(0, 9).map(lambda n: n == 9)
SCALES = st.sampled_from([1.0, 0.0, -1.0, 2.0**-60, 1e-30, 0.125, 16.0, 1e3, 1e30])
SPECIAL = st.sampled_from(
    [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 100.0, -1e4, "max", "min", "tiny", "smallest_subnormal"]
)
SHARES = st.sampled_from([0.02, 0.3, 1.0])
STEPS = (1, 1, 2, -1, -3)  # between numbers along an axis; with 0 all are the first
SCALARS = {  # other values than the one of OPTIONS
    "ignore_index": st.sampled_from([-100, 0, 1, -1, 2**63 - 1, -(2**63)]),
    "label_smoothing": st.sampled_from([0.0, 0.1, 1.0, 1e-30, np.float32(0.3)]) | st.floats(0, 1),
    "z_loss": st.sampled_from([0.0, 1e-4, 1.0, 1e-30]),
    "log_target": st.booleans(),
}
WRONG = {  # values that no call may have
    "ignore_index": [1.5, None, True, 2**63, "1"],
    "label_smoothing": [-0.1, 1.5, math.nan, "0.1", None, True],
    "z_loss": [-1e-9, math.inf, math.nan, None, 10**400],
    "log_target": ["False", None, 1.0],
    "keepdims": ["False", None, 0.5],
    "reduction": ["median", "", None, 1, b"mean"],
    "axis": [64, -65, 2**40, 1.5, "0", True],
}
OF_LABELS_OR_PROBS = ("cross_entropy", "nll_loss")  # which take integers for labels, and nothing else


@st.composite
def calls(draw, loss, shapes=SHAPES):
    """Any call of a function or of its twin with a gradient."""
    return _Drawing(draw, loss, draw(shapes)).call()


class _Drawing:
    """A call while it is drawn."""

    def __init__(self, draw, loss, shape):
        self.draw, self.loss, self.shape, self.memory = draw, loss, shape, []
        self.axis = draw(st.integers(-len(shape), len(shape) - 1))
        self.dtype = draw(st.sampled_from([*DTYPES.values(), *DTYPES.values(), np.dtype("i4"), np.dtype("u1")]))
        self.rng = np.random.default_rng(draw(SEEDS))
        self.computed = self.dtype if self.dtype in LOSS_DTYPE else np.dtype(np.float64)

    def call(self):
        given = self.options()
        arrays = self.arrays(given)
        given = arrays | given
        function = self.loss.with_grad or self.loss.function
        if function is not self.loss.function and self.draw(NOW_AND_THEN):
            function = self.loss.function
        takes = signature(function).parameters
        if "grad_output" in takes and "grad_output" not in given and self.draw(st.booleans()):
            given["grad_output"] = self.incoming(given["reduction"])
        if "keepdims" in takes:
            given["keepdims"] = self.draw(st.booleans())
        if "out" in takes:
            given["out"] = self.out(list(arrays.values())[self.loss.main], given)
        mistake = self.spoil(given, takes) if self.draw(SELDOM) else self.unmeant_mistake(given)
        return Call(self.loss, function, given, self.memory, mistake)

    # --- numbers -------------------------------------------------------------------------------------------------

    def numbers(self, values, dtype):
        """What a table's maker gives, or something else: other sizes, ties, special numbers at some places."""
        if self.draw(st.booleans()):
            return values
        values = values * self.draw(SCALES)
        if self.draw(NOW_AND_THEN):
            values = np.round(values)
        if self.draw(st.booleans()):
            places = np.random.default_rng(self.draw(SEEDS)).random(values.shape) < self.draw(SHARES)
            values = np.where(places, self.special(dtype), values)
        return values

    def special(self, dtype):
        value = self.draw(SPECIAL)
        info = ml_dtypes.finfo(dtype if dtype in LOSS_DTYPE else np.float64)
        return float(getattr(info, value) if isinstance(value, str) else value)

    def floats(self, values, dtype, steps=(*STEPS, 0)):
        """An array of any type, rounded to it; integers are small, and none is nan."""
        values = np.asarray(self.numbers(values, dtype))
        if dtype.kind in "iu":
            values = np.nan_to_num(values).clip(0 if dtype.kind == "u" else -99, 99)
        with np.errstate(all="ignore"):
            return self.place(values.astype(dtype), steps)

    def place(self, values, steps):
        """The same numbers anywhere in memory: axes in any order, gaps, off the alignment, swapped bytes.

        Between and around them lie bytes of nan.
        """
        dtype, offset, order, chosen = values.dtype, 0, range(values.ndim), (1,) * values.ndim
        if self.draw(st.booleans()):
            order = self.draw(st.permutations(order))
            chosen = tuple(self.draw(st.sampled_from(steps)) for _ in order)
            offset = self.draw(st.sampled_from([0, 0, 1, dtype.itemsize, 64 - dtype.itemsize]))
            if dtype != BFLOAT16 and self.draw(NOW_AND_THEN):
                dtype = dtype.newbyteorder()
        lengths = [values.shape[i] * abs(chosen[i]) if chosen[i] else min(1, values.shape[i]) for i in order]
        self.memory.append(np.full(offset + math.prod(lengths) * dtype.itemsize + 8, 0xFF, np.uint8))
        array = np.ndarray(lengths, dtype, self.memory[-1], offset).transpose(np.argsort(order))
        array = array[(..., *(slice(None, None, step or 1) for step in chosen))]
        array[...] = values[(..., *(slice(None) if step else slice(1) for step in chosen))]
        return np.broadcast_to(array, values.shape) if 0 in chosen else array

    # --- arguments -----------------------------------------------------------------------------------------------

    def arrays(self, given):
        names = list(signature(self.loss.function).parameters)[: len(self.loss.arrays)]
        return {name: self.array(place, given) for place, name in enumerate(names)}

    def array(self, place, given):
        maker = self.loss.arrays[place]
        if maker is labels:
            return self.labels(given.get("ignore_index", -100))
        dtype = self.dtype
        if place != self.loss.main and self.draw(st.booleans()):
            dtype = self.draw(st.sampled_from([*DTYPES.values(), np.dtype("i8"), np.dtype("u1")]))
        if self.loss.name in OF_LABELS_OR_PROBS and place == 1 and dtype not in LOSS_DTYPE:
            dtype = self.computed
        values = maker(self.rng, self.shape, self.axis) if 0 not in self.shape else self.nothing(maker)
        return self.floats(values, dtype)

    def nothing(self, maker):
        """What a maker that divides by the sum of no classes cannot give."""
        one = maker(self.rng, (1,) * len(self.shape), self.axis)
        return np.zeros(self.shape if one.ndim == len(self.shape) else batch_shape(self.shape, self.axis))

    def labels(self, ignored):
        """Class indices of any integer type that can hold them, some of them ignored."""
        batch, classes = batch_shape(self.shape, self.axis), self.shape[self.axis]
        values = self.rng.integers(max(1, classes), size=batch)
        if self.draw(NOW_AND_THEN):
            values = np.where(self.rng.random(batch) < 0.4, ignored, values)
        least, most = min(0, int(values.min(initial=0))), int(values.max(initial=0))
        fitting = [t for t in INTEGERS if np.iinfo(t).min <= least and most <= np.iinfo(t).max]
        return self.place(np.asarray(values, self.draw(st.sampled_from(fitting))), (*STEPS, 0))

    def options(self):
        given = {"axis": self.axis} if self.loss.has_axis else {}
        for name in self.loss.options:
            if not self.draw(st.booleans()):
                continue
            value = OPTIONS[name](self.rng, self.shape, self.axis if self.loss.has_axis else -1)
            if isinstance(value, np.ndarray):
                given[name] = self.floats(value, self.draw(st.sampled_from([self.computed, *DTYPES.values()])))
            else:
                given[name] = self.draw(SCALARS.get(name, st.just(value)))
        if self.loss.has_gradient:
            allowed = (*REDUCTIONS, "batchmean") if self.loss.name == "kl_div" else REDUCTIONS
            given["reduction"] = self.draw(st.sampled_from(allowed))
        return given

    def incoming(self, reduction):
        shape = self.loss.loss_shape(self.shape, self.axis) if reduction == "none" else ()
        return self.floats(self.rng.standard_normal(shape), self.draw(st.sampled_from([*DTYPES.values()])))

    def out(self, first, given):
        """Nothing, memory of its own, an argument, or memory that overlaps one."""
        shape, dtype = first.shape, self.computed
        if self.loss.name == "logsumexp":
            kept = [1] if given["keepdims"] else []
            at = self.axis % len(shape)
            shape, dtype = (*shape[:at], *kept, *shape[at + 1 :]), LOSS_DTYPE[dtype]
        kind = self.draw(st.sampled_from(["none", "own", "own", "first", "overlapping"]))
        if kind == "first" and (first.shape, first.dtype.newbyteorder("=")) == (shape, dtype) and first.flags.writeable:
            return first
        if kind == "overlapping":
            memory = self.draw(st.sampled_from(self.memory))
            spare = memory.size - math.prod(shape) * dtype.itemsize
            if spare >= 0:
                return np.ndarray(shape, dtype, memory, self.draw(st.integers(0, spare)))
        return None if kind == "none" else self.place(np.full(shape, 77, dtype), STEPS)

    # --- mistakes ------------------------------------------------------------------------------------------------

    def unmeant_mistake(self, given):
        """The argument that is wrong by the numbers or the shape that were drawn."""
        first = next(iter(given))
        if self.loss.name in OF_LABELS_OR_PROBS:
            if self.shape[self.axis] == 0:
                return first
            return ""
        with np.errstate(invalid="ignore"):
            return (
                "probs" if chances in self.loss.arrays and not np.all((given[first] >= 0) & (given[first] <= 1)) else ""
            )

    def spoil(self, given, takes):
        """Make an argument wrong, and say which."""
        name = self.draw(st.sampled_from(sorted({*WRONG} & {*takes}) + [n for n, v in given.items() if is_array(v)]))
        if name in WRONG:
            given[name] = self.draw(st.sampled_from(WRONG[name]))
        elif name == "target" and self.loss.takes_labels and given[name].size and self.draw(st.booleans()):
            given[name] = np.where(given[name] == given[name].flat[-1], self.shape[self.axis], given[name])
            if given.get("ignore_index") == self.shape[self.axis]:
                del given["ignore_index"]
        else:
            shape, dtype = given[name].shape, given[name].dtype
            fits_any = self.loss.name == "logsumexp_vjp" and name == "x" and given["grad_output"].size == 1
            if len(self.loss.arrays) > 1 and not fits_any and self.draw(st.booleans()):
                shape = (2, *(n + 2 for n in shape))
            else:
                dtype = self.draw(st.sampled_from(["c8", "U4", "M8[s]", "O", "g"]))
            given[name] = np.zeros(shape, dtype)
        return name


def is_array(value):
    return isinstance(value, np.ndarray)
