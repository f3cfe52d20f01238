"""Row kernels for Numba: one sample at a time, SIMD lanes along its classes.

Each kernel takes tasks of samples until none is left and goes through a sample in blocks that stay in L1. A block is
summed in many lanes of the computing type, blocks in double. Arrays are contiguous, classes last, which Numba must know
to vectorise.
"""

import math

import numpy as np

from ._formulas import (
    constant,
    counts,
    exp_negative,
    kernel,
    likely_gradient,
    log1p_positive,
    loop,
    narrow,
    rank,
    sample_loss,
    summing_loop,
    take,
    unrank,
    widen,
    without_label,
)  # fmt: skip

BLOCK = 4096  # 16 KiB of float32: half of a 32 KiB L1, and short enough that lane sums stay accurate
KEPT = 16 * BLOCK  # longest row whose exponentials are kept for the gradient: they fit in L2, and 0.9 ns becomes 0.73


def scratch_shape(classes: int) -> tuple[int]:
    """What a thread needs: a block of the target, and a row of exponentials as far as they are kept."""
    return (BLOCK + min(max(classes, BLOCK), KEPT),)


@loop
def deal(tasks):
    """Yield the samples of one task after another, until all are taken."""
    counter, size, samples = tasks
    while True:
        begin = take(counter) * size
        if begin >= samples:
            break
        for s in range(begin, min(begin + size, samples)):  # noqa: UP028, which Numba does not know
            yield s


# --- one block of one sample -------------------------------------------------------------------------------------


@loop
def sample_of(x, s):
    """The (classes,) row of sample s in an (outer, inner, classes) array."""
    return x[s // x.shape[1], s % x.shape[1]]


@loop
def read(row, start, buffer):
    """One block of a row, widened into the buffer."""
    part = row[start : start + BLOCK]
    block = buffer[: part.size]
    for j in range(part.size):
        block[j] = widen(part[j])
    return block


@loop
def read_top(row, start, buffer):
    """The same, and the largest number; a nan is either passed over or the largest."""
    part = row[start : start + BLOCK]
    block = buffer[: part.size]
    best = rank(block.dtype.type(-np.inf))
    for j in range(part.size):
        block[j] = widen(part[j])
        best = max(best, rank(block[j]))
    return block, unrank(best)


@loop
def find(block, value):
    """The first position of `value`; as a minimum, which vectorises."""
    size = np.int32(block.size)
    at = size
    for j in range(size):
        at = min(at, np.int32(j) if block[j] == value else size)
    return np.int64(at)


@summing_loop
def exp_sum(block, top):
    """block = exp(block - top), and its sum."""
    total = block.dtype.type(0)
    for j in range(block.size):
        block[j] = exp_negative(block[j] - top)
        total += block[j]
    return np.float64(total)


@loop
def exp_any(block):
    """block = exp(block) without a limit."""
    for j in range(block.size):
        block[j] = math.exp(block[j])


@loop
def has_nan(row):
    """Whether a nan is in the row."""
    found = False
    for j in range(row.size):
        found |= math.isnan(widen(row[j]))
    return found


@summing_loop
def block_sum(block):
    """The sum of a block, in double: LLVM's lanes are fewer than it takes to keep the error of float32 small."""
    total = 0.0
    for j in range(block.size):
        total += np.float64(block[j])
    return total


@summing_loop
def block_dot(weights, block, top):
    """Sum of weights * (block - top), where a weight of 0 counts 0 even against inf."""
    total = block.dtype.type(0)
    for j in range(block.size):
        term = weights[j] * (block[j] - top)
        total += term if weights[j] != 0 else block.dtype.type(0)
    return np.float64(total)


@loop
def write_product(block, factor, out):
    """out = factor * block."""
    factor = block.dtype.type(factor)
    for j in range(block.size):
        out[j] = narrow(factor * block[j], out)


@loop
def write_difference(block, factor, q, scale, out):
    """out = factor * block - scale * q."""
    factor, scale = block.dtype.type(factor), block.dtype.type(scale)
    for j in range(block.size):
        out[j] = narrow(factor * block[j] - scale * q[j], out)


@loop
def write_logs(block, top, log_total, out):
    """out = block - top - log_total, in this order: the first difference is exact where it matters."""
    top, log_total = block.dtype.type(top), block.dtype.type(log_total)
    for j in range(block.size):
        out[j] = narrow((block[j] - top) - log_total, out)


@loop
def write_softmax_vjp(p, g, dot, out):
    """out = p * (g - dot)."""
    dot = p.dtype.type(dot)
    for j in range(p.size):
        out[j] = narrow(p[j] * (g[j] - dot), out)


@loop
def write_target(q, scale, out):
    """out = scale * q, and 0 for q = 0 whatever the scale."""
    scale = q.dtype.type(scale)
    for j in range(out.size):
        out[j] = narrow(scale * q[j] if q[j] != 0 else q.dtype.type(0), out)


@loop
def fill(out, value):
    """The whole row one value."""
    for j in range(out.size):
        out[j] = narrow(value, out)


# --- one sample --------------------------------------------------------------------------------------------------


@loop
def read_target(target, s, weight, keep, spread, start, buffer):
    """One block of q = weight * (keep * target + spread), the target being 0 where only a label is known."""
    keep, spread = buffer.dtype.type(keep), buffer.dtype.type(spread)
    part = weight[start : start + buffer.size]
    if target.ndim == 1:
        for j in range(part.size):
            buffer[j] = part[j] * spread
    else:
        probs = sample_of(target, s)[start : start + buffer.size]
        for j in range(part.size):
            buffer[j] = part[j] * (keep * widen(probs[j]) + spread)


@loop
def scan(row, kept, tops, target=None, s=0, weight=None, keep=0.0, spread=0.0, q=None):
    """One pass: largest logit and its class, sum of the other exponentials; sums of q and of q * (x - top).

    The sum leaves the largest term out, so that log1p(rest) and rest / (1 + rest) keep full precision where one class
    has nearly all the probability (Blanchard, Higham, Higham 2021, algorithm 4.1). It is rescaled once per block that
    raises the maximum (Milakov, Gimelshein 2018). A row that fits in `kept` leaves its exponentials there, each block's
    relative to its entry of `tops`.
    """
    top, at, rest, mass, cross = -np.inf, -1, 0.0, 0.0, 0.0
    for start in range(0, row.size, BLOCK):
        part, block_top = read_top(row, start, kept[start:] if row.size <= kept.size else kept)
        found = -1
        if block_top > top:
            found = find(part, block_top)
            if at >= 0:
                rest = (rest + 1.0) * math.exp(top - block_top)
                if mass != 0.0:  # the difference may overflow to inf
                    cross -= mass * (block_top - top)
            top = np.float64(block_top)
            at = start + found
        base = part.dtype.type(top if at >= 0 else 0.0)
        if q is not None:
            weights = q[: part.size]
            read_target(target, s, weight, keep, spread, start, weights)
            mass += block_sum(weights)
            cross += block_dot(weights, part, base)
        if found >= 0:
            part[found] = -np.inf
        rest += exp_sum(part, base)
        if found >= 0:
            part[found] = 1.0
        if row.size <= kept.size:
            tops[start // BLOCK] = top
    return top, at, np.nan if math.isinf(top) else rest, mass, cross


@loop
def exponentials(row, start, top, kept, tops):
    """One block of exp(x - top), apart from a common factor."""
    if row.size <= kept.size:
        return kept[start : min(start + BLOCK, row.size)], math.exp(tops[start // BLOCK] - top)
    part = read(row, start, kept)
    exp_sum(part, part.dtype.type(top))
    return part, 1.0


# --- kernels -----------------------------------------------------------------------------------------------------
# x, target, grad_output and out: (outer, inner, classes); loss and scale: (samples,); weight: (classes,); scale may
# have length 1, weight too where only labels count; scratch: `scratch_shape` in the computing type.


@kernel
def logsumexp(x, out, scratch, tasks):
    """One pass; out is (samples,)."""
    block, tops = scratch[:BLOCK], np.empty(1)
    for s in deal(tasks):
        row = sample_of(x, s)
        top, _, rest, _, _ = scan(row, block, tops)
        out[s] = top + log1p_positive(rest)
        if math.isinf(top):  # all -inf, or some +inf: the limit, unless there is a nan
            out[s] = np.nan if has_nan(row) else top


@kernel
def softmax(x, out, scale, scratch, tasks):
    """One pass over rows of at most KEPT classes; two and twice the exponentials over longer ones."""
    kept, tops = scratch[BLOCK:], np.empty(KEPT // BLOCK)
    for s in deal(tasks):
        row, result = sample_of(x, s), sample_of(out, s)
        top, _, rest, _, _ = scan(row, kept, tops)
        factor = scale[s % scale.size] / (1.0 + rest)
        for start in range(0, row.size, BLOCK):
            part, shift = exponentials(row, start, top, kept, tops)
            write_product(part, factor * shift, result[start : start + BLOCK])


@kernel
def log_softmax(x, out, scratch, tasks):
    """Two passes, the second from cache where a row fits."""
    block, tops = scratch[:BLOCK], np.empty(1)
    for s in deal(tasks):
        row, result = sample_of(x, s), sample_of(out, s)
        top, _, rest, _, _ = scan(row, block, tops)
        for start in range(0, row.size, BLOCK):
            part = read(row, start, block)
            write_logs(part, top, log1p_positive(rest), result[start : start + BLOCK])


@kernel
def softmax_vjp(probs, grad_output, out, scratch, tasks):
    """p * (g - sum(g * p)); two passes over both arrays."""
    for s in deal(tasks):
        probs_row, grad_row, result = sample_of(probs, s), sample_of(grad_output, s), sample_of(out, s)
        dot = 0.0
        for start in range(0, result.size, BLOCK):
            p, g = read(probs_row, start, scratch[:BLOCK]), read(grad_row, start, scratch[BLOCK:])
            dot += block_dot(p, g, p.dtype.type(0))
        for start in range(0, result.size, BLOCK):
            p, g = read(probs_row, start, scratch[:BLOCK]), read(grad_row, start, scratch[BLOCK:])
            write_softmax_vjp(p, g, dot, result[start : start + BLOCK])


@kernel
def log_softmax_vjp(log_probs, grad_output, out, scratch, tasks):
    """g - exp(log_probs) * sum(g); two passes over g, one over log_probs."""
    for s in deal(tasks):
        log_row, grad_row, result = sample_of(log_probs, s), sample_of(grad_output, s), sample_of(out, s)
        total = 0.0
        for start in range(0, result.size, BLOCK):
            total += block_sum(read(grad_row, start, scratch[BLOCK:]))
        for start in range(0, result.size, BLOCK):
            p, highest = read_top(log_row, start, scratch[:BLOCK])
            g = read(grad_row, start, scratch[BLOCK:])
            if highest <= 80.0:
                exp_sum(p, p.dtype.type(0))
            else:  # no probability, but not our business: only out of range of exp_negative
                exp_any(p)
            write_difference(p, -total, g, -1.0, result[start : start + BLOCK])


@kernel
def cross_entropy(
    x, target, grad, weight, scale, keep, spread, z_loss, ignore_index, loss, scratch, tasks
):  # fmt: skip
    """One pass; for the gradient of rows of more than KEPT classes two, and twice the exponentials."""
    kept, tops = scratch[BLOCK:], np.empty(KEPT // BLOCK)
    q = None if spread is None else scratch[:BLOCK]
    if grad is None:
        kept = kept[:BLOCK]
    for s in deal(tasks):
        row = sample_of(x, s)
        if target.ndim == 1:  # noqa: SIM102 - pruned by type, which Numba does not do with `and`
            if not counts(target[s], row.size, ignore_index):
                loss[s] = without_label(target[s], ignore_index)
                if grad is not None:
                    fill(sample_of(grad, s), loss[s])
                continue
        top, k, rest, mass, cross = scan(row, kept, tops, target, s, weight, keep, spread, q)
        log_total, hot, below, factor = log1p_positive(rest), 0.0, 0.0, constant(scale, s)
        if target.ndim == 1:
            k = target[s]
            hot = keep * constant(weight, k)
            below = widen(row[k]) - top
        loss[s] = sample_loss(top, log_total, mass, cross, hot, below, z_loss)
        if grad is not None:
            out, q_k = sample_of(grad, s), 0.0
            z = 2.0 * z_loss * (top + log_total)
            for start in range(0, row.size, BLOCK):
                part, shift = exponentials(row, start, top, kept, tops)
                shift *= factor * (mass + hot + z) / (1.0 + rest)
                if spread is None:
                    write_product(part, shift, out[start : start + BLOCK])
                else:
                    read_target(target, s, weight, keep, spread, start, q[: part.size])
                    write_difference(part, shift, q, factor, out[start : start + BLOCK])
                    q_k = q[k - start] if 0 <= k - start < BLOCK else q_k
            out[k] = narrow(factor * likely_gradient(rest, mass, hot, q_k, below, z), out)


@kernel
def nll(x, target, grad, weight, scale, ignore_index, loss, scratch, tasks):
    """-sum_j t_j x_j and its gradient -t: only the label's class is read, or all classes once for probabilities."""
    for s in deal(tasks):
        row, factor, total = sample_of(x, s), constant(scale, s), 0.0
        if target.ndim == 1:
            label, hot = target[s], 0.0
            valid = counts(label, row.size, ignore_index)
            if valid:
                hot = constant(weight, label)
            total = -hot * widen(row[label]) if valid else without_label(label, ignore_index)
            if grad is not None:
                out = sample_of(grad, s)
                fill(out, 0.0 if valid else total)
                if valid:
                    out[label] = narrow(-factor * hot, out)
        else:
            for start in range(0, row.size, BLOCK):
                part, q = read(row, start, scratch[:BLOCK]), scratch[BLOCK : 2 * BLOCK]
                read_target(target, s, weight, 1.0, 0.0, start, q[: part.size])
                total -= block_dot(q, part, part.dtype.type(0))
                if grad is not None:
                    write_target(q, -factor, sample_of(grad, s)[start : start + BLOCK])
        loss[s] = total
