"""Row kernels for Numba: one sample at a time, packs of its classes, which lie side by side.

A row is gone through in blocks that stay in L1. A block is summed in lanes of the computing type, blocks in double.
"""

import math
from contextlib import contextmanager
from operator import add as plus

from ._formulas import (
    WIDEN,
    exp_any,
    exp_negative,
    finite,
    likely_gradient,
    log1p_positive,
    log_sum_exp,
    narrow,
    raise_top,
    sample_loss,
    settled,
    widen,
)  # fmt: skip
from ._numba_tiles import store_some
from ._numba_trace import (
    FLOAT32,
    FLOAT64,
    LANES,
    Pointer,
    Value,
    Variables,
    anywhere,
    each,
    either,
    folded,
    kernel,
    larger,
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

    def __init__(self, pointer, offset, stage=None):
        self.pointer, self.offset, self.stage = pointer, offset, stage or pointer.scratch(LANES)

    def read(self, index, left, filler=0.0):
        """A pack in the computing type; only `left` numbers of it if that is not None, then the filler."""
        if left is None:
            return widen(self.pointer.load(self.offset + index))
        computed = FLOAT32 if self.pointer.kind in WIDEN else self.pointer.kind
        self.stage.store(0, narrow(Value(left.builder, None, computed, LANES).like(filler), self.pointer))
        for i in each(0, left):
            self.stage[i] = self.pointer[self.offset + index + i]
        return widen(self.stage.load(0))

    def write(self, index, left, pack):
        """The way back."""
        whole = self.offset.like(LANES)
        store_some(self.pointer, self.offset + index, left or whole, narrow(pack, self.pointer), self.stage)

    def __getitem__(self, index):
        return widen(self.pointer[self.offset + index]).to(FLOAT64)

    def __setitem__(self, index, value):
        computed = FLOAT32 if self.pointer.kind in WIDEN else self.pointer.kind
        self.pointer[self.offset + index] = narrow(value.to(computed), self.pointer)


class Rows:
    """The rows of an (outer, classes, inner) array."""

    def __init__(self, array):
        self.array, self.stage = array, array.data.scratch(LANES)
        self.classes = array.shape[1]

    def __getitem__(self, s):
        outer, _, inner = self.array.strides
        run = self.array.shape[2]
        return Row(self.array.data, (s // run) * outer + (s % run) * inner, self.stage)


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
    """Where exponentials of a row are left: memory for all of them, or else for one block."""

    def __init__(self, spare, classes):
        self.spare, self.all, self.zero = spare.data, spare.size >= classes, spare.data.number(0.0)
        self.tops = Pointer(spare.data.builder, None, FLOAT64).scratch(KEPT // BLOCK)  # what each block's are relative to

    def pack(self, number):
        """A number in every lane."""
        return self.zero.like(number)

    def place(self, start, index):
        """Where a pack of the block from `start` on is."""
        return index - where(self.all, 0, start)

    def number(self, start):
        """Which of the tops is this block's."""
        return where(self.all, start // BLOCK, 0)


# --- one sample --------------------------------------------------------------------------------------------------


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


def sums(start, stop, zero, count, terms):
    """Sums over a block of so many packs, which `terms` gives for each pack of classes: in groups, then in double."""
    found = [Variables(total=zero, part=zero) for _ in range(count)]
    for group in each(start, stop, GROUP):
        for one in found:
            one.part = zero
        for place in packs(group, smaller(group + GROUP, stop)):
            for one, term in zip(found, terms(*place), strict=True):
                one.part = one.part + term
        for one in found:
            one.total = one.total + one.part
    return [total(one.total) for one in found]


def scan(row, classes, kept, target=None, s=None):
    """One pass over a sample's classes: its largest logit, and the sums that `scan` of lane kernels describes."""
    nothing = total(kept.zero)
    found = Variables(top=nothing.like(-math.inf), rest=nothing, lost=nothing, mass=nothing, cross=nothing)
    for start, stop in blocks(classes):
        part = Variables(top=kept.pack(-math.inf))
        for j, left in packs(start, stop):
            part.top = larger(row.read(j, left, -math.inf), part.top)
        top = larger(folded(part.top, larger).to(FLOAT64), found.top)
        raised = top > found.top
        raise_top(found, top)
        found.top = top
        kept.tops[kept.number(start)] = top
        if target is not None:
            with when(target.dense):
                mass, cross = target_sums(row, start, stop, top, kept, target, s)
                found.mass, found.cross = found.mass + mass, found.cross + cross
        rest, ties = exponential_sums(row, start, stop, top, kept)
        found.rest = found.rest + rest + where(raised, ties - 1.0, ties)
    return found.top, found.rest, found.mass, found.cross


def exponential_sums(row, start, stop, top, kept):
    """Keep exp(x - top); the sum of these, in which an x that is top counts 0, and how many are."""
    base = finite(kept.pack(top))

    def terms(j, left):
        x = row.read(j, left, -math.inf)
        e = exp_negative(x - base)
        kept.spare.store(kept.place(start, j), e)
        return where(x == base, 0.0, e), where(x == base, kept.pack(1.0), 0.0)

    return sums(start, stop, kept.zero, 2, terms)


def target_sums(row, start, stop, top, kept, target, s):
    """Sums of q and q * (x - top), where a q of 0 counts 0 even against inf."""
    base = finite(kept.pack(top))

    def terms(j, left):
        q = target.read(s, j, left)
        return q, where(q != 0.0, q * (row.read(j, left) - base), 0.0)

    return sums(start, stop, kept.zero, 2, terms)


def exponentials(row, classes, top, kept):
    """First and last class of each block, what to multiply its exponentials by, and what they are for the largest."""
    for start, stop in blocks(classes):
        with when(kept.all == 0):
            for j, left in packs(start, stop):
                kept.spare.store(j - start, exp_negative(row.read(j, left, -math.inf) - kept.pack(top)))
        base = where(kept.all, kept.tops[kept.number(start)], top)
        yield start, stop, exp_negative(base - top), where(base == top, top.like(1.0), 2.0)


# --- kernels -----------------------------------------------------------------------------------------------------
# Their arguments are those of lane kernels, but classes lie side by side; spare: memory of the computing type for as
# many exponentials as are to be kept.


@kernel
def logsumexp(x, out, counter, size, spare):
    """One pass; out is (samples,)."""
    logits, kept = Rows(x), Kept(spare, x.shape[1])
    for s in samples(x, counter, size):
        top, rest, *_ = scan(logits[s], logits.classes, kept)
        out.data[s] = log_sum_exp(top, rest)


@kernel
def softmax(x, scale, out, counter, size, spare):
    """One pass over rows of at most KEPT classes; two and twice the exponentials over longer ones."""
    logits, results, kept = Rows(x), Rows(out), Kept(spare, x.shape[1])
    for s in samples(x, counter, size):
        row, result = logits[s], results[s]
        top, rest, *_ = scan(row, logits.classes, kept)
        factor = scale.at(s).to(FLOAT64) / (settled(top, rest) + 1.0)
        for start, stop, share, _ in exponentials(row, logits.classes, top, kept):
            slope = kept.pack(factor * share)
            for j, left in packs(start, stop):
                result.write(j, left, kept.spare.load(kept.place(start, j)) * slope)


@kernel
def log_softmax(x, out, counter, size, spare):
    """Two passes; x - top - log_total in this order: the first difference is exact where it matters."""
    logits, results, kept = Rows(x), Rows(out), Kept(spare, x.shape[1])
    for s in samples(x, counter, size):
        row, result = logits[s], results[s]
        top, rest, *_ = scan(row, logits.classes, kept)
        log_total, top = kept.pack(log1p_positive(settled(top, rest))), kept.pack(top)
        for j, left in packs(0, logits.classes):
            result.write(j, left, (row.read(j, left) - top) - log_total)


def vjp(value, grad_output, out, counter, size, spare, term, gradient):
    """`term` of each class summed, then `gradient` from the sum; two passes over both arrays."""
    zero, classes = spare.data.number(0.0), value.shape[1]
    values, incoming, results = Rows(value), Rows(grad_output), Rows(out)
    for s in samples(value, counter, size):
        p, g, result = values[s], incoming[s], results[s]
        found = Variables(total=total(zero))
        for start, stop in blocks(classes):
            (part,) = sums(start, stop, zero, 1, lambda j, left: [term(p.read(j, left), g.read(j, left))])
            found.total = found.total + part
        pack = zero.like(found.total)
        for j, left in packs(0, classes):
            result.write(j, left, gradient(p.read(j, left), g.read(j, left), pack))


@kernel
def softmax_vjp(probs, grad_output, out, counter, size, spare):
    """p * (g - sum(g * p)), where a probability of 0 counts 0 even against inf."""
    vjp(probs, grad_output, out, counter, size, spare,
        lambda p, g: where(p != 0.0, p * g, 0.0), lambda p, g, total: p * (g - total))  # fmt: skip


@kernel
def log_softmax_vjp(log_probs, grad_output, out, counter, size, spare):
    """g - exp(log_probs) * sum(g)."""
    vjp(log_probs, grad_output, out, counter, size, spare,
        lambda p, g: g, lambda p, g, total: g - exp_any(p) * total)  # fmt: skip


@contextmanager
def settling(labels, s, classes, ignore_index, loss, grad, results):
    """Code for samples that count; loss and gradient of the others are 0 if they are ignored, else nan."""
    if labels is None:
        yield
        return
    label = labels.data[s]
    counts = (label != ignore_index) & (label >= 0) & (label < classes)
    with when(counts):
        yield
    with when(counts == 0):
        without = where(label == ignore_index, loss.data.number(0.0), math.nan)
        loss.data[s] = without.lane(0)
        with when(grad.size > 0):
            for j, left in packs(0, classes):
                results[s].write(j, left, without)


@kernel
def cross_entropy(
    x, labels, probs, weight, scale, keep, spread, z_loss, ignore_index, factor, loss, grad, counter, size, spare
):  # fmt: skip
    """One pass; for the gradient of rows of more than KEPT classes two, and twice the exponentials."""
    logits, results, kept, target = Rows(x), Rows(grad), Kept(spare, x.shape[1]), Target(probs, weight, keep, spread)
    for s in samples(x, counter, size):
        with settling(labels, s, logits.classes, ignore_index, loss, grad, results):
            row, k, hot, q_k, below = logits[s], None, keep * 0.0, keep * 0.0, keep * 0.0
            if labels is not None:
                k = labels.data[s]
                own = weight.at(k).to(FLOAT64)
                hot, q_k, below = own * keep, own * spread, row[k]
            top, rest, mass, cross = scan(row, logits.classes, kept, target, s)
            rest = settled(top, rest)
            log_total = log1p_positive(rest)
            below = below - top if labels is not None else below
            loss.data[s] = sample_loss(top, log_total, mass, cross, hot, below, z_loss)
            with when(grad.size > 0):
                minus, z = scale.at(s).to(FLOAT64) * factor, (top + log_total) * (z_loss * 2.0)
                share = minus / (rest + 1.0)
                for start, stop, part, one in exponentials(row, logits.classes, top, kept):
                    slope, one = kept.pack(share * (mass + hot + z) * part), kept.pack(one)
                    for j, left in packs(start, stop):
                        e = kept.spare.load(kept.place(start, j))
                        g = Variables(value=slope * e)
                        with when(target.dense):
                            q = target.read(s, j, left)
                            g.value = g.value - q * kept.pack(minus)
                            if probs is not None:
                                with when(anywhere(e == one)):
                                    likely = likely_gradient(rest, mass, hot, q.to(FLOAT64), 1.0, z) * share
                                    g.value = where(e == one, likely.to(e.kind), g.value)
                        results[s].write(j, left, g.value)
                if labels is not None:
                    results[s][k] = share * likely_gradient(rest, mass, hot, q_k, exp_negative(below), z)


@kernel
def nll(x, labels, probs, weight, scale, ignore_index, factor, loss, grad, counter, size, spare):
    """-sum_j t_j x_j and its gradient -t: only the label's class is read, or all classes once for probabilities."""
    logits, results, zero = Rows(x), Rows(grad), spare.data.number(0.0)
    target = Target(probs, weight, factor.like(1.0), factor.like(0.0))
    for s in samples(x, counter, size):
        with settling(labels, s, logits.classes, ignore_index, loss, grad, results):
            row, result, minus = logits[s], results[s], scale.at(s).to(FLOAT64) * factor * -1.0
            if labels is not None:
                k = labels.data[s]
                own = weight.at(k).to(FLOAT64)
                loss.data[s] = own * row[k] * -1.0
                with when(grad.size > 0):
                    for j, left in packs(0, logits.classes):
                        result.write(j, left, zero)
                    result[k] = minus * own
            else:
                found = Variables(total=total(zero))
                for start, stop in blocks(logits.classes):
                    def terms(j, left):
                        q = target.read(s, j, left)
                        return [where(q != 0.0, q * row.read(j, left), 0.0)]
                    found.total = found.total - sums(start, stop, zero, 1, terms)[0]
                loss.data[s] = found.total
                with when(grad.size > 0):
                    for j, left in packs(0, logits.classes):
                        q = target.read(s, j, left)
                        result.write(j, left, where(q != 0.0, q * zero.like(minus), 0.0))
