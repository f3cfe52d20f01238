"""Row kernels for Numba: one sample at a time, packs of its classes, which lie side by side."""

import math
from contextlib import contextmanager
from functools import partial

from ._formulas import (
    exp_any,
    exp_negative,
    finite,
    log1p_above,
    log_sum_exp,
    raise_top,
    sample_loss,
    settled,
)  # fmt: skip
from ._numba_around import kernel
from ._numba_blocks import Kept, Rows, Target, shares, sums, total
from ._numba_gradient import Gradient, Late, at_once, exponentials
from ._numba_split import join_rows, join_sums, parts
from ._numba_sums import sum_if
from ._numba_trace import (
    FLOAT64,
    LANES,
    Variables,
    each,
    folded,
    how_many,
    larger,
    packs,
    when,
    where,
)  # fmt: skip

LARGE_SUM = 8.0  # of exponentials, from which 1 can be taken without a loss of accuracy
TO_WHOLE = 1.5 * 2.0**52  # whose last place is 1: adding it rounds to whole numbers

# --- one sample --------------------------------------------------------------------------------------------------


def scan(row, part, kept, target=None, late=None):
    """One pass over classes of a sample: the largest logit, and the sums that `scan` of lane kernels describes.

    But for a largest logit of inf, below which all sums are nan.
    """
    nothing = total(kept.zero)
    found = Variables(top=nothing.like(-math.inf), rest=nothing, lost=nothing, mass=nothing, cross=nothing)
    for start, stop in part.blocks():
        top = larger(largest(row, start, stop, kept).to(FLOAT64), found.top)
        raised = top > found.top
        raise_top(found, top)
        found.top = top
        if late is not None:
            late.begin_block(start, stop)
        kept.tops[kept.number(start)] = top
        if target is not None:
            with when(target.dense):
                mass, cross = target_sums(row, start, stop, finite(kept.pack(top)), target, part.s)
                found.mass, found.cross = found.mass + mass, found.cross + cross
        found.rest = found.rest + rest_of(exponential_sum(row, start, stop, top, kept, late), raised, start, stop, kept)
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


def exponential_sum(row, start, stop, top, kept, late):
    """Keep exp(x - top); their sum."""
    base = finite(kept.pack(top))

    def add(j, left, total):
        e = exp_negative(row.read(j, left, -math.inf) - base)
        if left is None and late is not None:
            late.store(j)
        kept.write(start, j, left, e)
        row.fetch(j + (stop - start))
        return [total + e]

    (found,) = sums(start, stop, kept.zero, 1, add)
    return found


def rest_of(total, raised, start, stop, kept):
    """The sum of a block's exponentials but for one of the largest, which are 1, if they are in this block.

    Where few others count, 1 cannot be taken from the sum of all without a loss of accuracy.
    """
    found = Variables(rest=where(raised, total - 1.0, total))
    with when(raised & (total < LARGE_SUM)):

        def add(j, left, others):
            e = kept.read(start, j, left)
            return [others + where(e == 1.0, 0.0, e)]

        (others,) = sums(start, stop, kept.zero, 1, add)
        ones = ((total - others) + TO_WHOLE) - TO_WHOLE
        found.rest = others + (ones - 1.0)
    return found.rest


def target_sums(row, start, stop, base, target, s):
    """Sums of q and q * (x - base), where a q of 0 counts 0 even against inf."""

    def add(j, left, mass, cross):
        q = target.read(s, j, left)
        return mass + q, cross + where(q != 0.0, q * (row.read(j, left) - base), 0.0)

    return sums(start, stop, base, 2, add)


def known_rows(part, logits, kept, target=None, label=None, late=None):
    """The label's logit, and what `scan` finds in a whole sample."""
    row, nothing = logits[part.s], total(kept.zero)

    def find():  # the logit first: the scan may put its exponential there
        return nothing if label is None else row[label], *scan(row, part, kept, target, late)

    return part.of_all(find, join_rows)


def has_nan(row, classes):
    """Whether a row has one."""
    found = Variables(nans=classes.like(0))
    for j, left in packs(classes.like(0), classes):
        x = row.read(j, left)
        found.nans = found.nans + how_many(x != x)
    return found.nans != 0


def known_sum(part, like, of_block):
    """A sum over the blocks of a whole sample."""

    def find():
        found = Variables(total=total(like))
        for start, stop in part.blocks():
            found.total = found.total + of_block(start, stop)
        return [found.total]

    return part.of_all(find, join_sums)


# --- kernels -----------------------------------------------------------------------------------------------------
# Their arguments are those of lane kernels, but classes lie side by side, and: found: None, or what parts of samples
# find; joining: whether it is there already; spare: memory of the computing type for as many exponentials as are to be
# kept.


@kernel()
def logsumexp(x, out, found, joining, counter, size, spare):
    """One pass; out is (samples,)."""
    logits, kept = Rows(x), Kept(spare, x.shape[1], wanted=False)
    for part in parts(x, found, joining, counter, size):
        with known_rows(part, logits, kept) as (_, top, rest, *_), part.once():
            known = Variables(rest=rest)
            with when(top == math.inf):  # inf - inf was nan
                known.rest = where(has_nan(logits[part.s], logits.classes), math.nan, rest.like(0.0))
            out.data[part.s] = log_sum_exp(top, known.rest)


@kernel()
def softmax(x, scale, out, found, joining, counter, size, spare):
    """One pass over rows of at most KEPT bytes; two and twice the exponentials over longer ones."""
    logits, results, kept = Rows(x), Rows(out, [x]), Kept(spare, x.shape[1])
    late = None if found is not None else Late(results, kept)
    for part in parts(x, found, joining, counter, size):
        row, result = logits[part.s], results[part.s]
        kept.put_into(result)
        with known_rows(part, logits, kept, late=late) as (_, top, rest, *_):
            factor = scale.at(part.s).to(FLOAT64) / (settled(top, rest) + 1.0)
            with at_once(late, part.s, factor, top):
                for start, stop, share, _ in exponentials(row, part, top, kept):
                    slope = kept.pack(factor * share)
                    for j, left in result.packs(start, stop):
                        result.write(j, left, kept.read(start, j, left) * slope)
    if late is not None:
        late.finish()


@kernel()
def log_softmax(x, out, found, joining, counter, size, spare):
    """Two passes; x - top - log_total in this order: the first difference is exact where it matters."""
    logits, results, kept = Rows(x), Rows(out, [x]), Kept(spare, x.shape[1], wanted=False)
    for part in parts(x, found, joining, counter, size):
        row, result = logits[part.s], results[part.s]
        with known_rows(part, logits, kept) as (_, top, rest, *_):
            log_total, top = kept.pack(log1p_above(settled(top, rest))), kept.pack(top)
            for j, left in result.packs(part.start, part.stop):
                result.write(j, left, (row.read(j, left) - top) - log_total)


def vjp(value, grad_output, out, found, joining, counter, size, spare, term, gradient):
    """`term` of each class summed, then `gradient` from the sum; two passes over both arrays."""
    zero, values, incoming, results = (
        spare.data.number(0.0),
        Rows(value),
        Rows(grad_output),
        Rows(out, [value, grad_output]),
    )
    for part in parts(value, found, joining, counter, size):
        p, g, result = values[part.s], incoming[part.s], results[part.s]
        terms = known_sum(part, zero, partial(term_sum, p, g, term, zero))
        with terms as (all_terms,):
            for j, left in result.packs(part.start, part.stop):
                result.write(j, left, gradient(p.read(j, left), g.read(j, left), zero.like(all_terms)))


def term_sum(p, g, term, zero, start, stop):
    """The sum of term(p, g) over a block."""
    (found,) = sums(start, stop, zero, 1, lambda j, left, part: [part + term(p.read(j, left), g.read(j, left))])
    return found


@kernel()
def softmax_vjp(probs, grad_output, out, found, joining, counter, size, spare):
    """p * (g - sum(g * p)), where a probability of 0 counts 0 even against inf."""
    vjp(probs, grad_output, out, found, joining, counter, size, spare,
        lambda p, g: where(p != 0.0, p * g, 0.0), lambda p, g, total: p * (g - total))  # fmt: skip


@kernel()
def log_softmax_vjp(log_probs, grad_output, out, found, joining, counter, size, spare):
    """g - exp(log_probs) * sum(g)."""
    vjp(log_probs, grad_output, out, found, joining, counter, size, spare,
        lambda p, g: g, lambda p, g, total: g - exp_any(p) * total)  # fmt: skip


@contextmanager
def settling(labels, part, classes, ignore_index, loss, results):
    """Code for samples that count; loss and gradient of the others are 0 if they are ignored, else nan."""
    if labels is None:
        yield
        return
    label = labels.data[part.s]
    counts = (label != ignore_index) & (label >= 0) & (label < classes)
    with when(counts):
        yield
    with when(counts == 0):
        without = where(label == ignore_index, loss.data.number(0.0), math.nan)
        with part.once():
            loss.data[part.s] = without.lane(0)
        if results is not None:
            result = results[part.s]
            for j, left in result.packs(part.start, part.stop):
                result.write(j, left, without)


@kernel(FLOAT64)
def cross_entropy(
    x, labels, probs, weight, scale, label_smoothing, z_loss, ignore_index, factor, loss, summed, grad, found, joining,
    counter, size, spare
):  # fmt: skip
    """One pass; for the gradient of rows of more than KEPT bytes two, and twice the exponentials."""
    keep, spread = shares(label_smoothing, x)
    logits, results, target = Rows(x), grad and Rows(grad, [x, probs]), Target(probs, weight, keep, spread)
    kept = Kept(spare, logits.classes, grad is not None)
    late = None if grad is None or probs is not None or found is not None else Late(results, kept, spread == 0.0)
    for part in parts(x, found, joining, counter, size):
        s = part.s
        with settling(labels, part, logits.classes, ignore_index, loss, results):
            row, result, k = logits[s], results and results[s], None
            hot = q_k = keep * 0.0
            if grad is not None:
                kept.put_into(result)
            if labels is not None:
                k = labels.data[s]
                own = weight.at(k).to(FLOAT64)
                hot, q_k = own * keep, own * spread
            with known_rows(part, logits, kept, target, k, late) as (logit, top, rest, mass, cross):
                rest = settled(top, rest)
                log_total = log1p_above(rest)
                below = logit if labels is None else logit - top
                with part.once():
                    loss.data[s] = sample_loss(top, log_total, mass, cross, hot, below, z_loss)
                if grad is None:
                    continue
                z = (top + log_total) * (z_loss * 2.0)
                gradient = Gradient(scale.at(s).to(FLOAT64) * factor, rest, mass, hot, z)
                patch = None if labels is None else gradient.minus * gradient.likely(q_k, exp_negative(below))
                with at_once(late, s, gradient.minus * gradient.share, top, k, patch):
                    for start, stop, raised, one in exponentials(row, part, top, kept):
                        gradient.write_block(start, stop, result, kept, raised, one, target, s)
                    if labels is not None:
                        with when(part.has(k)):
                            result[k] = patch
    if late is not None:
        late.finish()
    return sum_if(summed, loss, scale)


def known_nll(part, row, target, label, hot, zero):
    """-sum_j t_j x_j of a whole sample."""

    def of_label():
        return [where(part.has(label), hot * row[label] * -1.0, 0.0)]

    def of_block(start, stop):
        _, cross = target_sums(row, start, stop, zero, target, part.s)
        return cross * -1.0

    return known_sum(part, zero, of_block) if label is None else part.of_all(of_label, join_sums)


@kernel(FLOAT64)
def nll(
    x, labels, probs, weight, scale, ignore_index, factor, loss, summed, grad, found, joining, counter, size, spare
):  # fmt: skip
    """-sum_j t_j x_j and its gradient -t: only the label's class is read, or all classes once for probabilities."""
    logits, results, zero = Rows(x), grad and Rows(grad, [x, probs]), spare.data.number(0.0)
    target = Target(probs, weight, factor.like(1.0), factor.like(0.0))
    for part in parts(x, found, joining, counter, size):
        s = part.s
        with settling(labels, part, logits.classes, ignore_index, loss, results):
            row, result, k = logits[s], results and results[s], None
            hot, minus = factor * 0.0, scale.at(s).to(FLOAT64) * factor * -1.0
            if labels is not None:
                k = labels.data[s]
                hot = weight.at(k).to(FLOAT64)
            with known_nll(part, row, target, k, hot, zero) as (loss_of_all,):
                with part.once():
                    loss.data[s] = loss_of_all
                if grad is None:
                    continue
                for j, left in result.packs(part.start, part.stop):
                    q = zero if labels is not None else target.read(s, j, left)
                    result.write(j, left, where(q != 0.0, q * zero.like(minus), 0.0))
                if labels is not None:
                    with when(part.has(k)):
                        result[k] = minus * hot
    return sum_if(summed, loss, scale)
