"""Losses of one number and its target: a function for each term, and one kernel made of each.

Arrays are (outer, classes, inner) views as in `_cuda_rows.py`, with stride 0 where they are broadcast. What is summed,
if anything is, are the classes of each sample; which axis that is, the caller decides.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from ._cuda_device import cuda, device, divide, exp_any, get, log, log1p, misaligned
from ._cuda_pairs import sample_total
from ._cuda_tiles import number_type, placer, reader, writer

EACH, SAMPLES, EVERYTHING = "each", "samples", "everything"  # what is summed: nothing, classes, all


class Term(NamedTuple):
    """What a kernel computes."""

    name: str
    storage: str
    target_storage: str
    mode: str
    gradient: bool


@cache
def terms(kind):
    """The terms of this type by name, each with its derivative with respect to x, if it has one.

    All take x, y and pos_weight. Zeros give a finite term: they fill a thread's last numbers, with a weight of 0.
    """
    ZERO, ONE, HALF, TINY, LEAST = kind(0), kind(1), kind(0.5), kind(1e-12), kind(-100)

    @device
    def nothing_times(p, x):
        return p * x if p != ZERO else ZERO

    @device
    def at_least(x, least):
        return least if x < least else x

    @device
    def bce_with_logits(x, y, pos_weight):
        off, on, size = ONE - y, pos_weight * y, abs(x)
        e = exp_any(-size)
        above, below = (size, ZERO) if x > ZERO else (ZERO, size)
        most = divide(ONE, ONE + e)
        chance, rest = (most, e * most) if x > ZERO else (e * most, most)
        return off * above + on * below + (off + on) * log1p(e), off * chance - on * rest

    @device
    def bce(x, y, pos_weight):
        log_x, log_rest = at_least(log(x), LEAST), at_least(log1p(-x), LEAST)
        return (y - ONE) * log_rest - y * log_x, divide(x - y, at_least(x * (ONE - x), TINY))

    @device
    def kl_div(x, y, pos_weight):
        return nothing_times(y, log(y) - x), -y

    @device
    def kl_div_log(x, y, pos_weight):
        p = exp_any(y)
        return nothing_times(p, y - x), -p

    @device
    def entropy(x, y, pos_weight):
        return nothing_times(x, -log(x)), ZERO

    @device
    def probs_cross_entropy(x, y, pos_weight):
        return nothing_times(x, -log(y)), ZERO

    @device
    def kl_divergence(x, y, pos_weight):
        # Numbers close to each other by way of their difference, which is exact.
        close = HALF * y < x and x < y + HALF * y
        return nothing_times(x, log1p(divide(x - y, y)) if close else log(x) - log(y)), ZERO

    @device
    def outside(x, y, pos_weight):
        return ZERO if ZERO <= x <= ONE else ONE, ZERO

    return locals()


@cache
def element_kernel(term, geometry):
    """loss = weight * f(x, y), summed as the mode says and then times share; grad = factor * scale * weight * df/dx.

    x, y, weight, pos_weight, scale, loss, grad: strides in elements for (outer, class, inner); classes are contiguous
    or repeated but for access "strided". totals: the sum of each sample, in double. shape: samples, classes, inner, and
    how many numbers there are, of which the last sample may have fewer. One pass over everything.
    """
    NAME, STORAGE, TARGET_STORAGE, MODE, GRADIENT = term
    KIND, WIDTH, CAPACITY = number_type(STORAGE), geometry.width, geometry.capacity
    COMPUTING = "float64" if STORAGE == "float64" else "float32"
    place, PEELED = placer(geometry), geometry.access == "peeled"
    ZERO, NOTHING, DOUBLE = KIND(0), np.float64(0), np.float64
    READS_Y, READS_POS = NAME not in ("entropy", "outside"), NAME == "bce_with_logits"
    f, total_of_sample = terms(KIND)[NAME], sample_total(np.float64, geometry)
    read_x, read_y, read_constant = (fetcher(geometry, s) for s in (STORAGE, TARGET_STORAGE, COMPUTING))
    write_grad, write_loss = putter(geometry, STORAGE), putter(geometry, COMPUTING)

    def kernel(
        x, y, weight, pos_weight, scale, loss, grad, totals, shape, x_strides, y_strides, weight_strides,
        pos_strides, scale_strides, loss_strides, grad_strides, factor, share,
    ):  # fmt: skip
        xs, ys, ws = cuda.local.array(WIDTH, KIND), cuda.local.array(WIDTH, KIND), cuda.local.array(WIDTH, KIND)
        ps, gs = cuda.local.array(WIDTH, KIND), cuda.local.array(WIDTH, KIND)
        samples, classes, inner, size = shape
        s, lane = place()
        active, s = s < samples, min(s, samples - 1)
        length = min(classes, size - s * classes) if active else 0
        at = divmod(s, inner)
        skew = misaligned(x, offset(at, x_strides), WIDTH) if PEELED else 0
        total, times = NOTHING, KIND(factor)
        for tile in range((length + skew + CAPACITY - 1) // CAPACITY):
            first = tile * CAPACITY + lane * WIDTH - skew
            read_x(x, at, x_strides, first, length, skew, xs)
            read_constant(weight, at, weight_strides, first, length, skew, ws)
            if READS_Y:
                read_y(y, at, y_strides, first, length, skew, ys)
            if READS_POS:
                read_constant(pos_weight, at, pos_strides, first, length, skew, ps)
            if GRADIENT:
                read_constant(scale, at, scale_strides, first, length, skew, gs)
            for k in range(WIDTH):
                value, derivative = f(xs[k], ys[k] if READS_Y else ZERO, ps[k] if READS_POS else ZERO)
                xs[k] = ws[k] * value if 0 <= first + k < length else ZERO
                total += DOUBLE(xs[k])
                if GRADIENT:
                    gs[k] = times * gs[k] * ws[k] * derivative
            if MODE == EACH:
                write_loss(loss, at, loss_strides, first, length, skew, xs)
            if GRADIENT:
                write_grad(grad, at, grad_strides, first, length, skew, gs)
        if MODE != EACH:
            total = total_of_sample(total)
        if lane == 0 and active and MODE == SAMPLES:
            loss[offset(at, loss_strides)] = KIND(total * share)
        if lane == 0 and active and MODE == EVERYTHING:
            totals[s] = total

    return kernel


@device
def offset(at, strides):
    """Where a sample begins, from its outer and inner index."""
    return at[0] * strides[0] + at[1] * strides[2]


@cache
def fetcher(geometry, storage):
    """fetch(pointer, at, strides, first, length, skew, values): as `reader`, or one number for all classes."""
    WIDTH, PEELED, ZERO = geometry.width, geometry.access == "peeled", number_type(storage)(0)
    read = reader(geometry, storage)

    @device
    def fetch(pointer, at, strides, first, length, skew, values):
        start = offset(at, strides)
        if strides[1] == 0:
            number = get(pointer, start)
            for k in range(WIDTH):
                values[k] = number
        else:
            fits = not PEELED or misaligned(pointer, start, WIDTH) == skew
            read(pointer, start, strides[1], first, length, fits, ZERO, values)

    return fetch


@cache
def putter(geometry, storage):
    """put(pointer, at, strides, first, length, skew, values): as `writer`."""
    WIDTH, PEELED = geometry.width, geometry.access == "peeled"
    write = writer(geometry, storage)

    @device
    def put(pointer, at, strides, first, length, skew, values):
        start = offset(at, strides)
        fits = not PEELED or misaligned(pointer, start, WIDTH) == skew
        write(pointer, start, strides[1], first, length, fits, values)

    return put
