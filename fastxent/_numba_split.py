"""Samples for the Numba row kernels, whole or in parts.

Few samples of very many classes are split, so that all threads have something to do, and the longest, so that Ctrl-C is
heard between their parts. Whether and where depends on the shape alone, and what parts have found is joined in order:
results do not depend on the number of threads.
"""

import math
from contextlib import contextmanager

from ._formulas import exp_negative, raise_top
from ._numba_blocks import BLOCK
from ._numba_trace import Variables, each, larger, smaller, tasks, when, where

PART = 16 * BLOCK  # classes
MOST_PARTS = 32  # of a sample: more classes make them longer
FEW_SAMPLES = 8  # up to here samples of more than two parts are split
LONG = 1 << 24  # classes from which any number of samples is
FINDINGS = 5  # numbers that a part may leave for the others


def number_of_parts(samples: int, classes: int) -> int:
    """How many parts each sample is split into; 0 if none is split."""
    is_split = classes > 2 * PART and (samples <= FEW_SAMPLES or classes >= LONG)
    return min(MOST_PARTS, -(-classes // PART)) if is_split else 0


def parts(x, found, joining, counter, size):
    """One part of a sample after the other; `found` is (samples, parts, FINDINGS), or None for whole samples."""
    classes = x.shape[1]
    count, length = classes.like(1), classes
    if found is not None:
        count = found.shape[1]
        length = (classes + BLOCK * count - 1) // (BLOCK * count) * BLOCK
    for begin, end in tasks(counter, size, x.shape[0] * x.shape[2] * count):
        for i in each(begin, end):
            start = i % count * length
            yield Part(i // count, start, smaller(start + length, classes), found, joining, i)


class Part:
    """Classes from `start` to `stop` of sample `s`."""

    def __init__(self, s, start, stop, found, joining, number):
        self.s, self.start, self.stop = s, start, stop
        self.found, self.joining, self.number = found, joining, number

    def blocks(self):
        """First and last class of each block."""
        for start in each(self.start, self.stop, BLOCK):
            yield start, smaller(start + BLOCK, self.stop)

    def has(self, index):
        """Whether a class is one of them."""
        return (index >= self.start) & (index < self.stop)

    @contextmanager
    def once(self):
        """Code for one part of each sample."""
        with when(self.start == 0):
            yield

    @contextmanager
    def of_all(self, find, join):
        """What `find` finds in the whole sample, for code that goes on with it.

        The kernel of samples in parts runs twice: at first each part stores what it finds, and no more; then it joins
        what all of them have stored.
        """
        if self.found is None:
            yield find()
            return
        with when(self.joining == 0):
            for i, value in enumerate(find()):
                self.found.data[self.number * FINDINGS + i] = value
        with when(self.joining != 0):
            yield join(self.found.data.number(0.0).lane(0), self._stored())

    def _stored(self):
        count = self.found.shape[1] * FINDINGS
        for i in each(self.s * count, (self.s + 1) * count, FINDINGS):
            yield [self.found.data[i + k] for k in range(FINDINGS)]


def join_sums(zero, stored):
    """One sum of all parts."""
    found = Variables(total=zero)
    for total, *_ in stored:
        found.total = found.total + total
    return [found.total]


def join_rows(zero, stored):
    """The label's logit, which all parts have read, and what `scan` finds: it goes over blocks as this over parts."""
    found = Variables(logit=zero, top=zero.like(-math.inf), rest=zero, lost=zero, mass=zero, cross=zero)
    for logit, top, rest, mass, cross in stored:
        raised = top > found.top
        raise_top(found, larger(top, found.top))
        found.logit, found.top = logit, larger(top, found.top)
        fall = where(top == found.top, 0.0, found.top - top)
        alone = raised | (top == -math.inf)  # no term left out that counts here
        found.rest = found.rest + where(alone, rest, (rest + 1.0) * exp_negative(0.0 - fall))
        found.mass = found.mass + mass
        found.cross = found.cross + where(mass != 0.0, cross - mass * fall, cross)
    return found.logit, found.top, found.rest, found.mass, found.cross
