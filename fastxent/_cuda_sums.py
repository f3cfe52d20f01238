"""Sums over samples, in double, compensated and in a fixed order; the first bad label.

A block sums a chunk, of which each thread takes every so manyeth number. Chunks follow from the number of samples
alone, and what they leave is summed by the same kernel again.
"""

import math
from functools import cache

import numpy as np

from ._cuda_device import WARP, cuda, device, larger, largest, total_of
from ._cuda_tiles import number_type

WARPS = 8  # of a block
THREADS = WARPS * WARP
DOUBLE = np.float64
ZERO, ONE, NONE = DOUBLE(0), DOUBLE(1), DOUBLE(-math.inf)
TOTAL, FIRST, INVERSE, PARTS = 0, 1, 2, 3  # where a kernel leaves what; labels' indices are exact as doubles


@device
def add(total, lost, term):
    """Knuth's two-sum: total + lost stays the exact sum, nearly."""
    after = total + term
    shift = after - total
    return after, lost + ((total - (after - shift)) + (term - shift))


@device
def settle(total, lost):
    """What `add` has added up; beside inf what was lost is nan."""
    return total if math.isinf(total) else total + lost


@device
def gather(total, top):
    """The sum and the maximum of the numbers of all threads of a block."""
    parts, lane = cuda.shared.array((2, WARPS), DOUBLE), cuda.threadIdx.x % WARP
    total, top = total_of(total, WARP), largest(top, WARP)
    if lane == 0:
        parts[0, cuda.threadIdx.x // WARP] = total
        parts[1, cuda.threadIdx.x // WARP] = top
    cuda.syncthreads()
    total, top = ZERO, NONE
    for warp in range(WARPS):
        total += parts[0, warp]
        top = larger(top, parts[1, warp])
    return total, top


@device
def label_term(values, weight, labels, scale, steps, classes, ignore_index, i):
    """The weight of a label that counts, and minus the index of one out of range."""
    label = labels[i]
    if label == ignore_index:
        return ZERO, NONE
    if label < 0 or label >= classes:
        return ZERO, DOUBLE(-i)
    return DOUBLE(weight[label * steps[0]]) * DOUBLE(scale[i * steps[1]]), NONE


@device
def value_term(values, weight, labels, scale, steps, classes, ignore_index, i):
    """A value times its weight; 0 whatever the weight for 0, which may be the loss of an ignored sample."""
    value = DOUBLE(values[i])
    return value * DOUBLE(scale[i * steps[1]]) if value != ZERO else ZERO, NONE


@device
def part_term(values, weight, labels, scale, steps, classes, ignore_index, i):
    """What a chunk has left: its sum, and its first bad label."""
    first = values[2 * i + 1]
    return values[2 * i], NONE if first < ZERO else -first


TERMS = {"labels": label_term, "values": value_term, "parts": part_term}


@cache
def sum_kernel(terms, storage, result_storage):
    """left[PARTS + 2 * block:] = the sum of a chunk's terms, and the first bad label or -1.

    A block that is alone leaves both at TOTAL and FIRST, at INVERSE the inverse of the total, and in `result` its
    quotient by denominator, which may be `left` itself, and divisor; both are nan where that divides by 0.
    values, labels: (count,); weight: (classes,); scale: (count,); the last two have step 0 for a constant.
    """
    term_of, KIND = TERMS[terms], number_type(result_storage)

    def kernel(
        values, weight, labels, scale, denominator, left, result, count, chunk, steps, classes, ignore_index, divisor
    ):
        total, lost, top = ZERO, ZERO, NONE
        begin = cuda.blockIdx.x * chunk
        end = min(begin + chunk, count)
        for i in range(begin + cuda.threadIdx.x, end, THREADS):
            term, bad = term_of(values, weight, labels, scale, steps, classes, ignore_index, i)
            total, lost = add(total, lost, term)
            top = larger(top, bad)
        total, top = gather(settle(total, lost), top)
        if cuda.threadIdx.x == 0:
            alone, share = chunk >= count, denominator[0] * divisor
            place = TOTAL if alone else PARTS + 2 * cuda.blockIdx.x
            left[place] = total
            left[place + 1] = -ONE if top == NONE else -top
            if alone:
                left[INVERSE] = ONE / total if total != ZERO else math.nan
                result[0] = KIND(total / share if share != ZERO else math.nan)

    return kernel
