"""Row kernels for Numba: one sample at a time, packs of its classes, which lie side by side."""

import math
from contextlib import contextmanager

from ._formulas import (
    exp_any,
    exp_negative,
    finite,
    likely_gradient,
    log1p_above,
    log_sum_exp,
    raise_top,
    sample_loss,
    settled,
)  # fmt: skip
from ._numba_blocks import Kept, Rows, Target, blocks, samples, sums, total
from ._numba_trace import (
    FLOAT64,
    LANES,
    Variables,
    anywhere,
    each,
    folded,
    kernel,
    larger,
    packs,
    when,
    where,
)  # fmt: skip

# --- one sample --------------------------------------------------------------------------------------------------


def scan(row, classes, kept, target=None, s=None):
    """One pass over a sample's classes: its largest logit, and the sums that `scan` of lane kernels describes."""
    nothing = total(kept.zero)
    found = Variables(top=nothing.like(-math.inf), rest=nothing, lost=nothing, mass=nothing, cross=nothing)
    for start, stop in blocks(classes):
        top = larger(largest(row, start, stop, kept).to(FLOAT64), found.top)
        raised = top > found.top
        raise_top(found, top)
        found.top = top
        kept.tops[kept.number(start)] = top
        if target is not None:
            with when(target.dense):
                mass, cross = target_sums(row, start, stop, finite(kept.pack(top)), target, s)
                found.mass, found.cross = found.mass + mass, found.cross + cross
        rest, ties = exponential_sums(row, start, stop, top, kept)
        found.rest = found.rest + rest + where(raised, ties - 1.0, ties)
    return found.top, found.rest, found.mass, found.cross


def largest(row, start, stop, kept):
    """The largest logit of a block; a nan is passed over."""
    tops = [Variables(pack=kept.pack(-math.inf)) for _ in range(4)]  # to hide the latency of a maximum
    rest = stop - (stop - start) % (LANES * len(tops))
    for j in each(start, rest, LANES * len(tops)):
        for i, top in enumerate(tops):
            top.pack = larger(row.read(j + LANES * i, None), top.pack)
    for j, left in packs(rest, stop):
        tops[0].pack = larger(row.read(j, left, -math.inf), tops[0].pack)
    a, b, c, d = (top.pack for top in tops)
    return folded(larger(larger(a, b), larger(c, d)), larger)


def exponential_sums(row, start, stop, top, kept):
    """Keep exp(x - top); the sum of these, in which an x that is top counts 0, and how many are."""
    base = finite(kept.pack(top))

    def add(j, left, total, ties):
        x = row.read(j, left, -math.inf)
        e = exp_negative(x - base)
        kept.write(start, j, left, e)
        row.fetch(j + (stop - start))
        return where(x == base, total, total + e), where(x == base, ties + 1.0, ties)

    return sums(start, stop, kept.zero, 2, add)


def target_sums(row, start, stop, base, target, s):
    """Sums of q and q * (x - base), where a q of 0 counts 0 even against inf."""

    def add(j, left, mass, cross):
        q = target.read(s, j, left)
        return mass + q, cross + where(q != 0.0, q * (row.read(j, left) - base), 0.0)

    return sums(start, stop, base, 2, add)


def exponentials(row, classes, top, kept):
    """First and last class of each block, what to multiply its exponentials by, and what they are for the largest."""
    for start, stop in blocks(classes):
        with when(kept.all == 0):
            for j, left in packs(start, stop):
                kept.write(start, j, left, exp_negative(row.read(j, left, -math.inf) - kept.pack(top)))
        base = where(kept.all, kept.tops[kept.number(start)], top)
        yield start, stop, exp_negative(base - top), where(base == top, top.like(1.0), 2.0)


# --- kernels -----------------------------------------------------------------------------------------------------
# Their arguments are those of lane kernels, but classes lie side by side; spare: memory of the computing type for as
# many exponentials as are to be kept.


@kernel
def logsumexp(x, out, counter, size, spare):
    """One pass; out is (samples,)."""
    logits, kept = Rows(x), Kept(spare, x.shape[1], wanted=False)
    for s in samples(x, counter, size):
        top, rest, *_ = scan(logits[s], logits.classes, kept)
        out.data[s] = log_sum_exp(top, rest)


@kernel
def softmax(x, scale, out, counter, size, spare):
    """One pass over rows of at most KEPT classes; two and twice the exponentials over longer ones."""
    logits, results = Rows(x), Rows(out)
    for s in samples(x, counter, size):
        row, result = logits[s], results[s]
        kept = Kept(spare, logits.classes, result)
        top, rest, *_ = scan(row, logits.classes, kept)
        factor = scale.at(s).to(FLOAT64) / (settled(top, rest) + 1.0)
        for start, stop, share, _ in exponentials(row, logits.classes, top, kept):
            slope = kept.pack(factor * share)
            for j, left in packs(start, stop):
                result.write(j, left, kept.read(start, j, left) * slope)


@kernel
def log_softmax(x, out, counter, size, spare):
    """Two passes; x - top - log_total in this order: the first difference is exact where it matters."""
    logits, results, kept = Rows(x), Rows(out), Kept(spare, x.shape[1], wanted=False)
    for s in samples(x, counter, size):
        row, result = logits[s], results[s]
        top, rest, *_ = scan(row, logits.classes, kept)
        log_total, top = kept.pack(log1p_above(settled(top, rest))), kept.pack(top)
        for j, left in packs(0, logits.classes):
            result.write(j, left, (row.read(j, left) - top) - log_total)


def vjp(value, grad_output, out, counter, size, spare, term, gradient):
    """`term` of each class summed, then `gradient` from the sum; two passes over both arrays."""
    zero, values, incoming, results = spare.data.number(0.0), Rows(value), Rows(grad_output), Rows(out)
    for s in samples(value, counter, size):
        found = Variables(total=total(zero))
        for start, stop in blocks(values.classes):
            found.total = found.total + term_sum(start, stop, zero, values[s], incoming[s], term)
        for j, left in packs(0, values.classes):
            g = gradient(values[s].read(j, left), incoming[s].read(j, left), zero.like(found.total))
            results[s].write(j, left, g)


def term_sum(start, stop, zero, p, g, term):
    """The sum of term(p, g) over a block."""
    (found,) = sums(start, stop, zero, 1, lambda j, left, part: [part + term(p.read(j, left), g.read(j, left))])
    return found


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
def settling(labels, s, classes, ignore_index, loss, results):
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
        if results is not None:
            for j, left in packs(0, classes):
                results[s].write(j, left, without)


@kernel
def cross_entropy(
    x, labels, probs, weight, scale, keep, spread, z_loss, ignore_index, factor, loss, grad, counter, size, spare
):  # fmt: skip
    """One pass; for the gradient of rows of more than KEPT classes two, and twice the exponentials."""
    logits, results, target = Rows(x), grad and Rows(grad), Target(probs, weight, keep, spread)
    for s in samples(x, counter, size):
        with settling(labels, s, logits.classes, ignore_index, loss, results):
            row, result, k = logits[s], results and results[s], None
            hot = q_k = below = keep * 0.0
            kept = Kept(spare, logits.classes, result, grad is not None)
            if labels is not None:
                k = labels.data[s]
                own = weight.at(k).to(FLOAT64)
                hot, q_k, below = own * keep, own * spread, row[k]
            top, rest, mass, cross = scan(row, logits.classes, kept, target, s)
            rest = settled(top, rest)
            log_total = log1p_above(rest)
            below = below - top if labels is not None else below
            loss.data[s] = sample_loss(top, log_total, mass, cross, hot, below, z_loss)
            if grad is None:
                continue
            minus, z = scale.at(s).to(FLOAT64) * factor, (top + log_total) * (z_loss * 2.0)
            inverse = rest.like(1.0) / (rest + 1.0)
            share = (mass + hot + z) * inverse
            for start, stop, part, one in exponentials(row, logits.classes, top, kept):
                slope, share_here, one = kept.pack(minus * share * part), kept.pack(share * part), kept.pack(one)
                for j, left in packs(start, stop):
                    e = kept.read(start, j, left)
                    g = Variables(value=slope * e)
                    with when(target.dense):
                        q = target.read(s, j, left)
                        g.value = share_here * e - q
                        if probs is not None:
                            with when(anywhere(e == one)):
                                likely = likely_gradient(rest, mass, hot, q.to(FLOAT64), 1.0, z) * inverse
                                g.value = where(e == one, likely, g.value)
                        g.value = g.value * kept.pack(minus)
                    result.write(j, left, g.value)
            if labels is not None:
                patch = likely_gradient(rest, mass, hot, q_k, exp_negative(below), z)
                result[k] = minus * patch * inverse


@kernel
def nll(x, labels, probs, weight, scale, ignore_index, factor, loss, grad, counter, size, spare):
    """-sum_j t_j x_j and its gradient -t: only the label's class is read, or all classes once for probabilities."""
    logits, results, zero = Rows(x), grad and Rows(grad), spare.data.number(0.0)
    target = Target(probs, weight, factor.like(1.0), factor.like(0.0))
    for s in samples(x, counter, size):
        with settling(labels, s, logits.classes, ignore_index, loss, results):
            row, result, k, own = logits[s], results and results[s], None, None
            minus = scale.at(s).to(FLOAT64) * factor * -1.0
            if labels is not None:
                k = labels.data[s]
                own = weight.at(k).to(FLOAT64)
                loss.data[s] = own * row[k] * -1.0
            else:
                found = Variables(total=total(zero))
                for start, stop in blocks(logits.classes):
                    _, cross = target_sums(row, start, stop, zero, target, s)
                    found.total = found.total - cross
                loss.data[s] = found.total
            if grad is None:
                continue
            for j, left in packs(0, logits.classes):
                q = zero if labels is not None else target.read(s, j, left)
                result.write(j, left, where(q != 0.0, q * zero.like(minus), 0.0))
            if labels is not None:
                result[k] = minus * own
