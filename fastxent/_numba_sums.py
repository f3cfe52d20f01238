"""Sums over samples for Numba, in chunks that depend on the number of samples alone, each compensated in double."""

from operator import add as plus

from ._formulas import add, settle, settle_lanes
from ._numba_around import kernel
from ._numba_blocks import Constants, Row
from ._numba_trace import (
    FLOAT64,
    INT64,
    Variables,
    each,
    folded,
    packs,
    tasks,
    when,
    where,
)  # fmt: skip

CHUNK = 8192

# target: (samples,) int64; values: (samples,); weight: (classes,) in check_target, else (samples,); sample_weight:
# (samples,); weights may have length 1; totals, bads: one number for each chunk of `size` samples, or none where there
# is one chunk. They give back what is found in the last one.


@kernel(INT64, FLOAT64)
def check_target(target, weight, sample_weight, num_classes, ignore_index, totals, bads, counter, size):
    """Sum of the weights of the labels that count, or the first label out of range."""
    zero, nothing = target.data.number(0), totals.data.number(0.0).lane(0)
    s = Variables(counted=zero, bad=zero, first=target.size.like(-1), total=nothing, lost=nothing)

    def bad(label):
        return (label != ignore_index) & ((label < 0) | (label >= num_classes))

    for begin, end in tasks(counter, size, target.size):
        s.counted, s.bad, s.first, s.lost = zero, zero, -1, 0.0
        for j, left in packs(begin, end):
            labels = Row(target.data, end.like(0)).read(j, left, ignore_index)
            s.counted = s.counted + (labels != ignore_index).to(INT64)
            s.bad = s.bad + bad(labels).to(INT64)
        constant = (weight.size == 1) & (sample_weight.size == 1)
        s.total = folded(s.counted, plus).to(FLOAT64) * weight.at(0).to(FLOAT64) * sample_weight.at(0)
        with when((folded(s.bad, plus) != 0) | (constant == 0)):
            s.total = nothing
            for i in each(begin, end):
                label = target.data[i]
                s.first = where((s.first < 0) & bad(label), i, s.first)
                counts = (label != ignore_index) & (bad(label) == 0)
                share = weight.at(where(counts, label, 0)).to(FLOAT64) * sample_weight.at(i).to(FLOAT64)
                s.total, s.lost = add(s.total, s.lost, where(counts, share, 0.0))
            s.total = settle(s.total, s.lost)
        with when(totals.size > 0):
            totals.data[begin // size], bads.data[begin // size] = s.total, s.first
    return s.first, s.total


@kernel(FLOAT64)
def weighted_sum(values, weight, totals, counter, size):
    """A value of 0 counts 0 whatever its weight, since it may be the loss of an ignored sample."""
    s = Variables(total=totals.data.number(0.0).lane(0))
    for begin, end in tasks(counter, size, values.size):
        s.total = chunk_sum(values, weight, begin, end)
        with when(totals.size > 0):
            totals.data[begin // size] = s.total
    return [s.total]


def chunk_sum(values, weight, begin, end):
    """The weighted sum of one chunk."""
    row, weights, zero = Row(values.data, begin.like(0)), Constants(weight), values.data.number(0).to(FLOAT64)
    s = Variables(total=zero, lost=zero)
    for j, left in packs(begin, end):
        value = row.read(j, left).to(FLOAT64)
        s.total, s.lost = add(s.total, s.lost, where(value != 0.0, value * weights.read(j, left), 0.0))
    return settle_lanes(s.total, s.lost)


def sum_if(summed, losses, weight):
    """What kernels of losses give back: the weighted sum of all of them, a single chunk, if it is asked for, else 0."""
    found = Variables(total=losses.data.number(0).to(FLOAT64).lane(0))
    with when(summed != 0):
        found.total = chunk_sum(losses, weight, losses.size.like(0), losses.size)
    return [found.total]
