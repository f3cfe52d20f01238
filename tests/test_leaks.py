"""Nothing is kept from one call to the next: not by calls that succeed, and not by those that fail."""

import ctypes
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import fastxent as fx

STATUS = Path("/proc/self/status")
FEW = 200  # objects: a leak of one in a hundred calls is more
LITTLE = 4 << 20  # bytes: a leak of the smallest array here, or of a kernel's memory, is several times as much
X, LONG = np.zeros((500, 2)), np.zeros((2, 20_000), np.float16)
LABELS, BAD = np.zeros(500, np.int64), np.full(500, 2)

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="needs the proc file system")


def kept():
    """Python's objects, and bytes of the process that are in memory."""
    gc.collect()
    status = STATUS.read_text()
    return np.array([sys.getallocatedblocks(), 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])])


def growth(call, times):
    for _ in range(times // 10):  # caches and arenas reach their size
        call()
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed would feed a leak unseen
    before = kept()
    for _ in range(times):
        call()
    return kept() - before


def succeed():
    fx.cross_entropy_with_grad(X, LABELS)
    fx.softmax(X, 0)
    fx.binary_cross_entropy(X, X, reduction="none")


def fail():
    for target, out in ((BAD, None), (LABELS, X[:1]), ([[0]], None), (np.ma.array(LABELS), None)):
        with pytest.raises((IndexError, TypeError, ValueError)):
            fx.cross_entropy_with_grad(X, target, out=out)


@pytest.mark.parametrize(
    ("call", "times"),
    [(succeed, 10_000), (fail, 1_000), (lambda: fx.cross_entropy_with_grad(LONG, [0, 1]), 1_000)],
    ids=["small", "failing", "of long rows"],
)
def test_calls_keep_nothing(backend, call, times):
    # A leak shows each time; a cache of the interpreter's that has not reached its size may show once.
    grown = []
    while not grown or (len(grown) < 3 and (grown[-1] >= (FEW, LITTLE)).any()):
        grown.append(growth(call, times))
    assert (grown[-1] < (FEW, LITTLE)).all(), grown


def test_a_leak_would_be_noticed():
    hoard = []
    assert growth(lambda: hoard.append(np.zeros(1)), 1_000)[0] >= FEW
    assert growth(lambda: hoard.append(np.ones(20_000, np.float32)), 1_000)[1] >= LITTLE
