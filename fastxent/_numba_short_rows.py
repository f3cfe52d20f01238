"""Kernels for Numba between those for rows and those for lanes: many samples of few classes that lie side by side.

Packs run along the classes of each sample where it lies, and what is known of LANES samples is a pack again, so that
logarithms and losses are for all of them at a time.
"""

import math
from operator import add as plus

from ._formulas import (
    exp_negative,
    finite,
    log1p_above,
    log_sum_exp,
    sample_loss,
    settled,
    widen,
)  # fmt: skip
from ._numba_around import kernel
from ._numba_blocks import Row, Rows, shares
from ._numba_gradient import Gradient
from ._numba_lanes import Scale, Target, tiles
from ._numba_sums import sum_if
from ._numba_tiles import store_some
from ._numba_trace import (
    FLOAT64,
    INT32,
    LANES,
    Pointer,
    Variables,
    each,
    folded,
    how_many,
    larger,
    packs,
    when,
    where,
)  # fmt: skip

LEAST = 56  # classes: with fewer, transposing all of them is no more work
MOST = 16 * LANES  # in one sum for each lane; the exponentials of more would not fit in L1 by far
AHEAD = 1 << 15  # bytes from what is computed with to what is fetched


class ShortRows:
    """LANES samples at a time of (outer, classes, inner) logits, and their exponentials in spare memory, row by row."""

    def __init__(self, x, spare, result=None):
        self.logits, self.result = Rows(x), result and Rows(result, [x])
        self.classes, self.zero = x.shape[1], spare.data.number(0.0)
        self.kept = Row(spare.data, spare.data.to_line(self.classes.like(0)))
        self.tops, self.rests, self.own, self.slopes = (spare.data.scratch(LANES) for _ in range(4))
        self.labels = Pointer(spare.data.builder, None, INT32).scratch(LANES)

    def packs(self):
        """Where packs of a row begin."""
        return packs(self.classes.like(0), self.classes)

    def exponentials(self, lane):
        """Those of a sample."""
        return Row(self.kept.pointer, self.kept.offset + lane * self.classes)

    def scan(self, first, lanes, label=None):
        """The largest logits, the sums of the other exponentials, and the labels' logits, as `scan` of lane kernels."""
        if label is not None:
            self.labels.store(0, larger(label, 0))
        for lane in each(0, lanes):
            x = self.logits[first + lane]
            top = self._largest(x)
            self.tops[lane], self.rests[lane] = top, self._rest(x, self.exponentials(lane), finite(top))
            if label is not None:
                self.own[lane] = widen(x.pointer[x.offset + self.labels[lane]])
        return self.tops.load(0), self.rests.load(0), self.own.load(0)

    def _largest(self, x):
        """The largest logit of a row; a nan is passed over."""
        top = Variables(pack=self.zero.like(-math.inf))
        for j, left in self.packs():
            top.pack = larger(x.read(j, left, -math.inf), top.pack)
        return folded(top.pack, larger)

    def _rest(self, x, kept, top):
        """Keep exp(x - top) if there is a result; their sum, without one of the largest. It is nan only if an x is."""
        found = Variables(total=self.zero, ties=self.labels.number(0).lane(0))
        for j, left in self.packs():
            logits = x.read(j, left, -math.inf)
            e = exp_negative(logits - top)
            if self.result is not None:
                kept.write(j, None, e)  # beyond its end is the next row's place
            x.fetch(j + AHEAD * 8 // x.pointer.kind.bitwidth)
            is_top = logits == top  # where e may be nan
            found.total = where(is_top, found.total, found.total + e)
            found.ties = found.ties + how_many(is_top)
        return folded(found.total, plus) + (found.ties - 1).to(self.zero.kind)

    def write(self, first, lanes, slope, label=None, patch=None):
        """The exponentials times `slope`; the label's number is `patch`, as are all without a label."""
        self.slopes.store(0, slope)
        if label is not None:
            self.labels.store(0, label)
            self.own.store(0, patch)
        target = self.result[first]
        together = self.result.large & (self.result.distance == self.classes)
        with when(together):
            for lane in each(0, lanes):
                self._write_row(self.exponentials(lane), lane, label is not None)
            target.streamed = together
            for i, left in target.packs(lanes.like(0), lanes * self.classes):
                target.write(i, left, self.kept.read(i, left))
        with when(together == 0):
            for lane in each(0, lanes):
                self._write_row(self.result[first + lane], lane, label is not None)

    def _write_row(self, row, lane, patched):
        slope, kept = self.zero.like(self.slopes[lane]), self.exponentials(lane)
        for j, left in self.packs():
            row.write(j, left, kept.read(j, left) * slope)
        if not patched:
            return
        label, patch = self.labels[lane], self.own[lane]
        with when(label >= 0):
            row[label] = patch
        with when(label < 0):
            for j, left in self.packs():
                row.write(j, left, self.zero.like(patch))


# --- kernels -----------------------------------------------------------------------------------------------------
# Their arguments are those of lane kernels, targets being labels alone. spare: memory of the computing type for LANES
# rows.


@kernel()
def logsumexp(x, out, counter, size, spare):
    """One pass; out is (samples,)."""
    rows, stage = ShortRows(x, spare), out.data.scratch(LANES)
    for first, lanes in tiles(x, counter, size):
        top, rest, _ = rows.scan(first, lanes)
        store_some(out.data, first, lanes, log_sum_exp(top, rest), stage)


@kernel()
def softmax(x, scale, out, counter, size, spare):
    """One pass."""
    rows, scales = ShortRows(x, spare, out), Scale(scale, 1.0)
    for first, lanes in tiles(x, counter, size):
        top, rest, _ = rows.scan(first, lanes)
        rows.write(first, lanes, scales.read(first, lanes) / (settled(top, rest) + 1.0))


@kernel(FLOAT64)
def cross_entropy(
    x, labels, probs, weight, scale, label_smoothing, z_loss, ignore_index, factor, loss, summed, grad, counter, size,
    spare
):  # fmt: skip
    """One pass, without probs and for a label smoothing of 0."""
    keep, spread = shares(label_smoothing, x)
    rows, stage = ShortRows(x, spare, grad), loss.data.scratch(LANES)
    target, scales, zero = Target(labels, probs, weight, keep, spread, loss.data), Scale(scale, factor), rows.zero
    for first, lanes in tiles(x, counter, size):
        label, without, weights = target.read_labels(first, lanes, rows.classes, ignore_index)
        top, rest, own = rows.scan(first, lanes, label)
        rest, hot, below = settled(top, rest), weights * keep, own - top
        log_total = log1p_above(rest)
        losses = sample_loss(top, log_total, zero, zero, hot, below, z_loss)
        store_some(loss.data, first, lanes, where(label < 0, without, losses), stage)
        if grad is None:
            continue
        minus = scales.read(first, lanes)
        gradient = Gradient(minus, rest, zero, hot, (top + log_total) * (z_loss * 2.0))
        patch = gradient.likely(zero, exp_negative(below)) * minus
        rows.write(first, lanes, gradient.share * minus, label, where(label < 0, without, patch))
    return sum_if(summed, loss, scale)
