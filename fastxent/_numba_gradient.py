"""The gradient of one sample for the Numba row kernels, from the exponentials that its scan has kept: at once, or late.

Results that are stored past the cache are stored late: during the scan of the next sample, a pack beside each of its
packs. So memory is written to while the processor computes.
"""

import math
from contextlib import contextmanager

from ._formulas import exp_negative, likely_gradient, narrow
from ._numba_blocks import BLOCK, Row
from ._numba_trace import FLOAT64, LANES, Variables, each, how_many, packs, smaller, when, where


def exponentials(row, part, top, kept):
    """First and last class of each block, what to multiply its exponentials by, and what they are for the largest."""
    for start, stop in part.blocks():
        with when(kept.all == 0):
            for j, left in packs(start, stop):
                kept.write(start, j, left, exp_negative(row.read(j, left, -math.inf) - kept.pack(top)))
        base = where(kept.all, kept.tops[kept.number(start)], top)
        yield start, stop, exp_negative(base - top), where(base == top, top.like(1.0), 2.0)


class Gradient:
    """minus * ((mass + hot + z) p - t) of a sample's classes, from what was found in it."""

    def __init__(self, minus, rest, mass, hot, z):
        self.minus, self.rest, self.mass, self.hot, self.z = minus, rest, mass, hot, z
        self.inverse = rest.like(1.0) / (rest + 1.0)
        self.share = (mass + hot + z) * self.inverse

    def likely(self, q_k, e_k):
        """The difference for the label, or a likeliest class."""
        return likely_gradient(self.rest, self.mass, self.hot, q_k, e_k, self.z) * self.inverse

    def write_block(self, start, stop, result, kept, raised, one, target, s):
        """From the exponentials that are kept, which are `one` for the likeliest classes."""
        share, one, minus = kept.pack(self.share * raised), kept.pack(one), kept.pack(self.minus)
        slope = kept.pack(self.minus * self.share * raised)
        for j, left in result.packs(start, stop):
            e = kept.read(start, j, left)
            g = Variables(value=slope * e)
            with when(target.dense):
                q = target.read(s, j, left)
                g.value = share * e - q
                if target.probs is not None:
                    with when(how_many(e == one) != 0):
                        g.value = where(e == one, self.likely(q.to(FLOAT64), 1.0), g.value)
                g.value = g.value * minus
            result.write(j, left, g.value)


class Late:
    """Gradients of samples whose exponentials all fit in spare memory, where each scan replaces those before it.

    Each is stored LANES numbers at a time from the first whole cache line on, and the ends of a block the ordinary way.
    """

    def __init__(self, results, kept, wanted=True):
        self.results, self.exponentials, self.slopes = results, kept.spare, kept.tops
        self.is_on = wanted & kept.all & results.streamed
        nothing = results.classes.like(-1)
        self.stage = Row(results.array.data.scratch(LANES), nothing.like(0))
        self.before = Variables(s=nothing, label=nothing, patch=kept.zero.lane(0).to(FLOAT64))
        self.block = Variables(offset=nothing, head=nothing.like(0), last=nothing, apart=nothing, slope=kept.zero)

    def take(self, s, slope, top, label, patch):
        """From now on the sample before is this one: `slope` times exp(x - top), and the label's number apart."""
        for start in each(0, self.results.classes, BLOCK):
            block_top = self.slopes[start // BLOCK]
            self.slopes[start // BLOCK] = slope * exp_negative(block_top - top)
        self.before.s = s
        if label is not None:
            self.before.label, self.before.patch = label, patch

    def begin_block(self, start, stop):
        """Before a block of the next sample is kept: what is stored apart of the sample before."""
        block, label = self.block, self.before.label
        block.last = block.apart = stop.like(-1)
        with when(self.before.s >= 0):
            result = self.results[self.before.s]
            block.offset, block.slope = result.offset, block.slope.like(self.slopes[start // BLOCK])
            head = smaller(result.pointer.to_line(result.offset + start), stop - start)
            tail = stop - (stop - start - head) % LANES
            block.head, block.last = head, tail - LANES
            for begin, end in ((start, start + head), (tail, stop)):
                result.write(begin, end - begin, self._pack(begin, end - begin))
                with when((label >= begin) & (label < end)):
                    result[label] = self.before.patch
            with when((label >= start + head) & (label < tail)):
                self._store_apart(label, label - (label - start - head) % LANES)

    def _pack(self, place, left=None):
        return self.block.slope * self.exponentials.read(place, left)

    def _store_apart(self, label, place):
        """The pack with the label's number."""
        self.stage.write(0, None, self._pack(place))
        self.stage[label - place] = self.before.patch
        self._stream(place, self.stage.pointer.load(0))
        self.block.apart = place

    def _stream(self, place, pack):
        self.results.array.data.stream(self.block.offset + place, pack)

    def store(self, index):
        """A pack of the sample before, beside the one there whose exponentials are to be kept next."""
        place = index + self.block.head
        with when((place <= self.block.last) & (place != self.block.apart)):
            self._stream(place, narrow(self._pack(place), self.stage.pointer))

    def finish(self):
        """Store the gradient that is late, if there is one."""
        with when(self.before.s >= 0):
            for start in each(0, self.results.classes, BLOCK):
                stop = smaller(start + BLOCK, self.results.classes)
                self.begin_block(start, stop)
                for index in each(start, stop, LANES):
                    self.store(index)


@contextmanager
def at_once(late, s, slope, top, label=None, patch=None):
    """Code for a gradient that is not to be late, as one may be unless `late` is None."""
    if late is None:
        yield
        return
    with when(late.is_on):
        late.take(s, slope, top, label, patch)
    with when(late.is_on == 0):
        yield
