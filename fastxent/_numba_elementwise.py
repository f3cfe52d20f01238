"""Losses of one number and its target for Numba: blocks along the inner axis, and sums over one axis or all.

Arrays are (outer, middle, inner) views with stride 0 where they are broadcast.
"""

import inspect
from operator import add as plus

from ._formulas import (
    add,
    exp_any,
    exp_negative,
    log1p_above,
    log1p_unit,
    log_of,
    reciprocal,
    settle_lanes,
)  # fmt: skip
from ._numba_around import kernel
from ._numba_blocks import Row
from ._numba_trace import (
    FLOAT64,
    LANES,
    Pointer,
    Variables,
    each,
    either,
    folded,
    packs,
    smaller,
    tasks,
    when,
    where,
)  # fmt: skip

SPAN = 1024  # elements in a block: six of them are 24 KiB of float32, which stay in L1
EACH, COLUMNS, ROWS, EVERYTHING = range(4)  # what is summed: nothing, the middle axis, the inner axis, all elements

# --- one pack of elements ----------------------------------------------------------------------------------------
# Each returns the term and its derivative with respect to x, if it has one; what it reads is what its parameters name.
# Zeros have to give a finite term: they fill a row's last pack, with a weight of 0.


def bce_with_logits(x, y, pos_weight):
    """(1 - y) softplus(x) + p y softplus(-x), a sum of terms of one sign; both from exp(-|x|)."""
    positive, off, on = x > 0.0, 1.0 - y, pos_weight * y
    above, below = where(positive, x, 0.0), where(positive, 0.0, 0.0 - x)
    e = exp_negative(0.0 - (above + below))
    likely = reciprocal(e + 1.0)
    unlikely = e * likely
    derivative = off * where(positive, likely, unlikely) - on * where(positive, unlikely, likely)
    return off * above + on * below + (off + on) * log1p_unit(e), derivative


def bce(x, y):
    """-y log x - (1 - y) log(1 - x), each logarithm at least -100; the derivative's denominator at least 1e-12."""
    log_x = at_least(-100.0, log_of(x))
    log_rest = where(x == 1.0, -100.0, at_least(-100.0, log1p_above(0.0 - x)))
    return (y - 1.0) * log_rest - y * log_x, (x - y) / at_least(1e-12, x * (1.0 - x))


def kl_div(x, y):
    """y (log y - x), and 0 for y = 0."""
    return nothing_times(y, log_of(y) - x), 0.0 - y


def kl_div_log(x, y):
    """exp(y) (y - x), and 0 for exp(y) = 0."""
    p = exp_any(y)
    return nothing_times(p, y - x), 0.0 - p


def entropy(x):
    """-x log x, and 0 for x = 0."""
    return nothing_times(x, 0.0 - log_of(x)), None


def probs_cross_entropy(x, y):
    """-x log y, and 0 for x = 0."""
    return nothing_times(x, 0.0 - log_of(y)), None


def kl_divergence(x, y):
    """x log(x / y), and 0 for x = 0; numbers close to each other by way of their difference, which is exact."""
    close = (y * 0.5 < x) & (x < y * 1.5)
    return nothing_times(x, where(close, log1p_above((x - y) / y), log_of(x) - log_of(y))), None


def outside(x):
    """0 in [0, 1], else 1, nan included."""
    return where((x >= 0.0) & (x <= 1.0), x.like(0.0), 1.0), None


def at_least(least, x):
    """The larger of both; a nan stays."""
    return where(x < least, least, x)


def nothing_times(p, x):
    """The product, 0 where p is."""
    return where(p != 0.0, p * x, 0.0)


# --- one block ---------------------------------------------------------------------------------------------------


class Blocks:
    """An array's blocks as packs: of what lies side by side, else of a copy."""

    def __init__(self, array, kind, copied=0):
        self.data, self.strides, self.kind = array.data, array.strides, kind
        self.step, self.stage = array.strides[2], array.data.scratch(SPAN)
        self.dense, self.repeated = (self.step == 1) & (self.step.like(copied) == 0), self.step == 0

    def open(self, o, m, i):
        """Turn to the block that begins at this index."""
        outer, middle, inner = self.strides
        self.offset = o * outer + m * middle + i * inner
        self.row = Row(either(self.dense, self.data, self.stage), where(self.dense, self.offset, 0))

    def fetch(self, count):
        """Make the copy, of which a number that is repeated takes one pack."""
        with when(self.repeated):
            self.stage.store(0, self.data[self.offset].splat())
        with when((self.dense | self.repeated) == 0):
            for j in each(0, count):
                self.stage[j] = self.data[self.offset + j * self.step]

    def put(self, count):
        """Put the copy where it belongs."""
        with when(self.dense == 0):
            for j in each(0, count):
                self.data[self.offset + j * self.step] = self.stage[j]

    def read(self, j, left):
        """A pack in the computing type."""
        return self.row.read(where(self.repeated, 0, j), left).to(self.kind)

    def write(self, j, left, pack):
        """The way back."""
        self.row.write(j, left, pack)


class Losses:
    """Where terms go: each to its own place, or rows added up one over the other, or all of some rows into a sum."""

    def __init__(self, array, zero, mode):
        self.deep, self.summed = mode == COLUMNS, (mode == ROWS) | (mode == EVERYTHING)
        self.blocks = Blocks(array, zero.kind, copied=self.deep | self.summed)
        self.zero, self.precise = zero.to(FLOAT64), zero.kind == FLOAT64
        self.column = Pointer(zero.builder, None, FLOAT64).scratch(SPAN)
        self.lanes = Variables(total=self.zero, lost=self.zero)

    def open(self, o, m, i, count):
        """Turn to the block that begins at this index."""
        self.blocks.open(o, m, i)
        with when(self.deep):
            for j in each(0, count, LANES):
                self.column.store(j, self.zero)

    def write(self, j, left, pack):
        """Take a pack; sums are in double, and compensated for doubles."""
        self.blocks.write(j, left, pack)
        if self.precise:
            self.lanes.total, self.lanes.lost = add(self.lanes.total, self.lanes.lost, pack)
        else:
            self.lanes.total = self.lanes.total + pack.to(FLOAT64)

    def next_row(self, count):
        """Add the block of a row to those of the rows before."""
        with when(self.deep):
            for j in each(0, count, LANES):
                self.column.store(j, self.column.load(j) + self.blocks.stage.load(j).to(FLOAT64))

    def close(self, count):
        """Put the block where it belongs."""
        with when(self.deep):
            for j in each(0, count, LANES):
                self.blocks.stage.store(j, self.column.load(j).to(self.blocks.kind))
        with when(self.summed == 0):
            self.blocks.put(count)

    def settle(self):
        """The sum of what has been taken, which starts again from 0."""
        lanes = self.lanes
        total = settle_lanes(lanes.total, lanes.lost) if self.precise else folded(lanes.total, plus)
        lanes.total = lanes.lost = self.zero
        return total


class Elements:
    """A term, the arrays that it reads, and its gradient."""

    def __init__(self, term, arrays, factor, grad, zero):
        self.term, self.names = term, list(inspect.signature(term).parameters)
        read = {*self.names, "weight", "scale"} if grad is not None else {*self.names, "weight"}
        self.inputs = {name: Blocks(array, zero.kind) for name, array in arrays.items() if name in read}
        self.factor, self.grad = zero.like(factor), grad and Blocks(grad, zero.kind)

    def compute(self, o, m, i, count, losses):
        """The terms of one block and their gradient."""
        for blocks in self.inputs.values():
            blocks.open(o, m, i)
            blocks.fetch(count)
        if self.grad is not None:
            self.grad.open(o, m, i)
        for j, left in packs(0, count):
            self.compute_pack(j, left, losses)
        if self.grad is not None:
            self.grad.put(count)

    def compute_pack(self, j, left, losses):
        """The same for a pack of it."""
        pack = {name: blocks.read(j, left) for name, blocks in self.inputs.items()}
        value, derivative = self.term(*(pack[name] for name in self.names))
        losses.write(j, left, pack["weight"] * value)
        if self.grad is not None:
            self.grad.write(j, left, self.factor * pack["scale"] * pack["weight"] * derivative)


# --- all elements ------------------------------------------------------------------------------------------------


def _kernel(term):
    def elementwise(x, y, weight, pos_weight, scale, factor, loss, grad, mode, span, totals, counter, size):
        """One pass over tasks of `size` pieces, which are `span` elements of a row or of all; the sum of the last one.

        totals: a number for each task, or none where there is one task.
        """
        arrays = {"x": x, "y": y, "weight": weight, "pos_weight": pos_weight, "scale": scale}
        zero = weight.data.number(0.0)
        elements, losses = Elements(term, arrays, factor, grad, zero), Losses(loss, zero, mode)
        outer, middle, inner = x.shape
        depth, spans = where(mode == COLUMNS, middle, 1), (inner + span - 1) // span
        rows, s = middle // depth, Variables(total=totals.data.number(0.0).lane(0))
        for begin, end in tasks(counter, size, outer * rows * spans):
            for piece in each(begin, end):
                row, start = piece // spans, piece % spans * span
                o, m = row // rows, row % rows * depth
                for i in each(start, smaller(start + span, inner), SPAN):
                    count = smaller(inner - i, SPAN)
                    losses.open(o, m, i, count)
                    for k in each(m, m + depth):
                        elements.compute(o, k, i, count, losses)
                        losses.next_row(count)
                    losses.close(count)
                with when(mode == ROWS):
                    loss.data[o * loss.strides[0] + m * loss.strides[1]] = losses.settle()
            s.total = losses.settle()
            with when(totals.size > 0):
                totals.data[begin // size] = s.total
        return [s.total]

    elementwise.__name__ = term.__name__
    return kernel(FLOAT64)(elementwise)


TERMS = (bce_with_logits, bce, kl_div, kl_div_log, entropy, probs_cross_entropy, kl_divergence, outside)
KERNELS = {term.__name__: _kernel(term) for term in TERMS}
