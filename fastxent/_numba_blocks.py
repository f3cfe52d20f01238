"""Rows of any array for the Numba row kernels: packs of classes, their targets, exponentials kept, sums over a block.

A row is gone through in blocks that stay in L1. A block is summed in lanes of the computing type, blocks in double.
"""

from operator import add as plus

from ._formulas import WIDEN, narrow, widen
from ._numba_trace import (
    FLOAT32,
    FLOAT64,
    LANES,
    Pointer,
    Value,
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

BLOCK = 4096  # 16 KiB of float32: half of a 32 KiB L1
GROUP = 8 * LANES  # classes whose sums are added to the block's: keeps the error of float32 small
KEPT = 16 * BLOCK  # longest row whose exponentials are kept for the gradient: they fit in L2, and 0.9 ns becomes 0.73


class Row:
    """Numbers side by side: a pointer and an offset."""

    def __init__(self, pointer, offset):
        self.pointer, self.offset = pointer, offset

    def read(self, index, left, filler=0.0):
        """A pack in the computing type; only `left` numbers of it if that is not None, then the filler."""
        if left is None:
            return widen(self.pointer.load(self.offset + index))
        computed = FLOAT32 if self.pointer.kind in WIDEN else self.pointer.kind
        rest = narrow(Value(left.builder, None, computed, LANES).like(filler), self.pointer)
        return widen(self.pointer.load_first(self.offset + index, left, rest))

    def write(self, index, left, pack):
        """The way back."""
        pack = narrow(pack, self.pointer)
        if left is None:
            self.pointer.store(self.offset + index, pack)
        else:
            self.pointer.store_first(self.offset + index, left, pack)

    def fetch(self, index):
        """Bring what a pack there takes into cache."""
        self.pointer.fetch(self.offset + index)

    def __getitem__(self, index):
        return widen(self.pointer[self.offset + index]).to(FLOAT64)

    def __setitem__(self, index, value):
        computed = FLOAT32 if self.pointer.kind in WIDEN else self.pointer.kind
        self.pointer[self.offset + index] = narrow(value.to(computed), self.pointer)


class Rows:
    """The rows of an (outer, classes, inner) array."""

    def __init__(self, array):
        self.array, self.classes = array, array.shape[1]

    def __getitem__(self, s):
        outer, _, inner = self.array.strides
        run = self.array.shape[2]
        return Row(self.array.data, (s // run) * outer + (s % run) * inner)


class Constants:
    """Packs of an array where length 1 stands for a constant."""

    def __init__(self, array):
        constant, self.several = array.data.scratch(LANES), array.size > 1
        constant.store(0, array.data[0].splat())
        self.row = Row(either(self.several, array.data, constant), array.size.like(0))

    def read(self, index, left):
        """A pack, or as many lanes of it as are left."""
        return self.row.read(where(self.several, index, 0), left)


class Target:
    """What samples are compared with: labels, or probabilities, and how they are weighed."""

    def __init__(self, probs, weight, keep, spread):
        self.weight, self.keep, self.spread = weight, keep, spread
        self.probs, self.weights = None if probs is None else Rows(probs), Constants(weight)

    @property
    def dense(self):
        """Whether classes have a target besides the label's."""
        return self.spread != 0.0 if self.probs is None else self.spread == self.spread

    def read(self, s, index, left):
        """Targets of sample s, times the weights of their classes."""
        weight = self.weights.read(index, left)
        if self.probs is None:
            return weight * self.spread
        return weight * (self.probs[s].read(index, left) * self.keep + self.spread)


class Kept:
    """Where exponentials of a row are left: all of them, or else one block of them.

    All go where the row's result will be if that is stored as it is computed, else to spare memory if it is enough.
    """

    def __init__(self, spare, classes, result=None, wanted=True):
        self.zero, self.all, self.wanted = spare.data.number(0.0), spare.size >= classes, (classes >= 0) & wanted
        self.row = Row(spare.data, classes.like(0))
        if result is not None and result.pointer.kind == spare.data.kind:
            self.all = (classes <= KEPT) & wanted
            self.row = Row(either(self.all, result.pointer, spare.data), where(self.all, result.offset, 0))
        tops = Pointer(spare.data.builder, None, FLOAT64)
        self.tops = tops.scratch(KEPT // BLOCK)  # what each block's are relative to

    def pack(self, number):
        """A number in every lane."""
        return self.zero.like(number)

    def read(self, start, index, left):
        """A pack of the block from `start` on."""
        return self.row.read(index - where(self.all, 0, start), left)

    def write(self, start, index, left, pack):
        """Keep it."""
        with when(self.wanted):
            self.row.write(index - where(self.all, 0, start), left, pack)

    def number(self, start):
        """Which of the tops is this block's."""
        return where(self.all, start // BLOCK, 0)


# --- loops --------------------------------------------------------------------------------------------------------


def samples(x, counter, size):
    """One sample after the other."""
    for begin, end in tasks(counter, size, x.shape[0] * x.shape[2]):
        yield from each(begin, end)


def blocks(classes):
    """First and last class of each block."""
    for start in each(0, classes, BLOCK):
        yield start, smaller(start + BLOCK, classes)


def total(pack):
    """The sum of all lanes in double."""
    return folded(pack.to(FLOAT64), plus)


def sums(start, stop, like, count, add):
    """Sums over a block of so many packs: `add` adds those of a pack of classes to them; in groups, then in double."""
    zero = like.like(0.0)
    found = [Variables(total=zero, part=zero) for _ in range(count)]
    for group in each(start, stop, GROUP):
        for one in found:
            one.part = zero
        for j, left in packs(group, smaller(group + GROUP, stop)):
            for one, part in zip(found, add(j, left, *(one.part for one in found)), strict=True):
                one.part = part
        for one in found:
            one.total = one.total + one.part
    return [total(one.total) for one in found]
