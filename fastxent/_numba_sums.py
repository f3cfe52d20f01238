"""Sums over samples for Numba, in chunks that depend on the number of samples alone, each compensated in double."""

import numpy as np

from ._formulas import add, constant, counts, kernel, settle, take

CHUNK = 8192

# target: (samples,) int64; values: (samples,); weight: (classes,) in check_target, else (samples,); sample_weight:
# (samples,); weights may have length 1; totals, bads: one number for each chunk.


@kernel
def check_target(target, weight, sample_weight, num_classes, ignore_index, totals, bads, tasks):
    """One pass: sum of the weights of the labels that count, or the first label out of range."""
    counter, samples = tasks
    while True:
        chunk = take(counter)
        if chunk >= totals.size:
            break
        total, error = 0.0, 0.0
        for s in range(chunk * CHUNK, min((chunk + 1) * CHUNK, samples)):
            label = target[s]
            if counts(label, num_classes, ignore_index):
                share = np.float64(constant(weight, label)) * np.float64(constant(sample_weight, s))
                total, error = add(total, error, share)
            elif label != ignore_index:
                bads[chunk] = s
                break
        totals[chunk] = settle(total, error)


@kernel
def weighted_sum(values, weight, totals, tasks):
    """One pass; a value of 0 counts 0 whatever its weight, since it may be the loss of an ignored sample."""
    counter, samples = tasks
    while True:
        chunk = take(counter)
        if chunk >= totals.size:
            break
        total, error = 0.0, 0.0
        for s in range(chunk * CHUNK, min((chunk + 1) * CHUNK, samples)):
            if values[s] != 0:
                total, error = add(total, error, np.float64(values[s]) * np.float64(constant(weight, s)))
        totals[chunk] = settle(total, error)
