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
    when,
    where,
)  # fmt: skip

BLOCK = 4096  # 16 KiB of float32: half of a 32 KiB L1
GROUP = 8 * LANES  # classes whose sums are added to the block's: keeps the error of float32 small
KEPT = 1 << 20  # bytes of the longest row whose exponentials are kept for the gradient: half of a large L2
PLACED = 16 * BLOCK  # longest row whose exponentials are left where its result goes; beyond, spare memory is faster
STREAMED = 1 << 23  # bytes of a result from which it passes the cache by: with what is read it would not fit in most
STREAMED_CLASSES = 512  # with fewer, too many lines lie in two rows


class Row:
    """Numbers side by side: a pointer and an offset."""

    def __init__(self, pointer, offset, streamed=None):
        self.pointer, self.offset, self.streamed, self.store = pointer, offset, streamed, pointer.store

    def read(self, index, left, filler=0.0):
        """A pack in the computing type; only `left` numbers of it if that is not None, then the filler."""
        if left is None:
            return widen(self.pointer.load(self.offset + index))
        computed = FLOAT32 if self.pointer.kind in WIDEN else self.pointer.kind
        rest = narrow(Value(left.builder, None, computed, LANES).like(filler), self.pointer)
        return widen(self.pointer.load_first(self.offset + index, left, rest))

    def write(self, index, left, pack):
        """The way back; places of whole packs are those of `packs`."""
        pack = narrow(pack, self.pointer)
        if left is None:
            self.store(self.offset + index, pack)
        else:
            self.pointer.store_first(self.offset + index, left, pack)

    def packs(self, start, stop):
        """Where packs to write begin, which are streamed from the first cache line on."""
        if self.streamed is None:
            yield from packs(start, stop)
            return
        state = Variables(start=start)
        with when(self.streamed):
            head = smaller(self.pointer.to_line(self.offset + start), stop - start)
            yield start, head
            state.start = stop - (stop - start - head) % LANES
            self.store = self.pointer.stream
            for index in each(start + head, state.start, LANES):
                yield index, None
            self.store = self.pointer.store
        yield from packs(state.start, stop)

    def fetch(self, index):
        """Bring what a pack there takes into cache."""
        self.pointer.fetch(self.offset + index)

    def __getitem__(self, index):
        return widen(self.pointer[self.offset + index]).to(FLOAT64)

    def __setitem__(self, index, value):
        computed = FLOAT32 if self.pointer.kind in WIDEN else self.pointer.kind
        self.pointer[self.offset + index] = narrow(value.to(computed), self.pointer)


def is_large(array, read):
    """Whether results in an array pass the cache by, which does not hold what has just been `read` then."""
    large = array.size * (array.data.kind.bitwidth // 8) >= STREAMED
    for other in filter(None, read):
        large = large & (array.data != other.data)
    return large


class Rows:
    """The rows of an (outer, classes, inner) array; those of a large result are streamed, past the cache."""

    def __init__(self, array, read=()):
        self.array, self.classes, self.streamed = array, array.shape[1], None
        self.distance = where(array.shape[2] > 1, array.strides[2], array.strides[0])  # of samples side by side
        if read:
            self.large = is_large(array, read)
            self.streamed = self.large & (self.classes >= STREAMED_CLASSES)

    def __getitem__(self, s):
        outer, _, inner = self.array.strides
        run = self.array.shape[2]
        return Row(self.array.data, (s // run) * outer + (s % run) * inner, self.streamed)


class Constants:
    """Packs of an array where length 1 stands for a constant."""

    def __init__(self, array):
        constant, self.several = array.data.scratch(LANES), array.size > 1
        constant.store(0, array.data[0].splat())
        self.row = Row(either(self.several, array.data, constant), array.size.like(0))

    def read(self, index, left):
        """A pack, or as many lanes of it as are left."""
        return self.row.read(where(self.several, index, 0), left)


def shares(label_smoothing, x):
    """What the labels or probabilities of a smoothed target are multiplied by, and what is added in every class."""
    return 1.0 - label_smoothing, label_smoothing / x.shape[1].to(label_smoothing.kind)


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
    """Where exponentials of a row are left: all of them if there is room for as many, or one block of them."""

    def __init__(self, spare, classes, wanted=True):
        self.zero, self.classes, self.all = spare.data.number(0.0), classes, (spare.size >= classes + LANES) & wanted
        self.row = self.spare = Row(spare.data, spare.data.to_line(classes.like(0)))
        tops = Pointer(spare.data.builder, None, FLOAT64)
        self.tops = tops.scratch(KEPT // 4 // BLOCK)  # what each block's are relative to

    def put_into(self, result):
        """Use a row's result instead, if it is stored as it is computed, else spare memory again."""
        if result.pointer.kind == self.spare.pointer.kind:
            here = self.all & (result.streamed == 0) & (self.classes <= PLACED)
            pointer = either(here, result.pointer, self.spare.pointer)
            self.row = Row(pointer, where(here, result.offset, self.spare.offset))

    def pack(self, number):
        """A number in every lane."""
        return self.zero.like(number)

    def read(self, start, index, left):
        """A pack of the block from `start` on."""
        return self.row.read(index - where(self.all, 0, start), left)

    def write(self, start, index, left, pack):
        """Keep it."""
        self.row.write(index - where(self.all, 0, start), left, pack)

    def number(self, start):
        """Which of the tops is this block's."""
        return where(self.all, start // BLOCK, 0)


# --- sums ---------------------------------------------------------------------------------------------------------


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
