"""No array of the logits' size is made: beside the losses there is only some scratch for each thread."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cases import DTYPES

import fastxent as fx
from fastxent import _config

SIZE = 64 << 20  # bytes of logits: a temporary like them cannot be mistaken for anything else
PER_SAMPLE = 16  # bytes: a loss in float64, and as much again
PER_THREAD = 1 << 21  # bytes: one MiB for long rows in float64, and as much again

LAYOUTS = {"rows": (-1, 2048), "long rows": (-1, 131072), "images": (-1, 64, 512, 256)}
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.fixture(params=LAYOUTS)
def layout(request, backend):
    return LAYOUTS[request.param]


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def logits(request, layout):
    return np.full(SIZE // request.param.itemsize, 0.5, request.param).reshape(layout)


@pytest.fixture
def calls(logits):
    """The loss, and the loss with its gradient; called once, so that what they compile, start and page in is there."""
    target, out = np.zeros_like(logits[:, 0], np.int64), logits.copy()
    calls = (lambda: fx.cross_entropy(logits, target), lambda: fx.cross_entropy_with_grad(logits, target, out=out))
    for call in calls:
        call()
    return calls


def traced_peak(call):
    """Bytes that NumPy and Python allocate at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def resident_peak():
    """Measures the bytes by which the process grows at most in a call, whoever allocates them."""

    def measure(call):
        RESET_PEAK.write_text("5")
        before = resident("VmRSS")
        call()
        return resident("VmHWM") - before

    try:
        RESET_PEAK.write_text("5")
    except OSError as error:
        pytest.skip(f"cannot reset the peak of the resident memory: {error}")
    return measure


def resident(quantity):
    return 1024 * int(re.search(rf"^{quantity}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)[1])


def test_what_numpy_allocates(logits, calls):
    samples = logits.size // logits.shape[1]
    for call in calls:
        assert traced_peak(call) <= PER_SAMPLE * samples + PER_THREAD * _config.num_threads(None)


def test_what_anything_allocates(calls, resident_peak):
    for call in calls:
        assert resident_peak(call) <= SIZE // 2


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_losses_of_single_entries(backend, dtype, resident_peak):
    x = np.full((SIZE // dtype.itemsize // 2048, 2048), 0.5, dtype)
    target, out, weight = x.copy(), x.copy(), np.ones(2048, dtype)
    function = fx.binary_cross_entropy_with_logits_with_grad
    function(x[:1], target[:1])
    assert traced_peak(lambda: function(x, target, weight=weight, out=out)) <= PER_THREAD
    assert resident_peak(lambda: function(x, target, weight=weight, out=out)) <= SIZE // 2


def test_a_copy_would_be_noticed(resident_peak):
    logits = np.full(SIZE // 4, 0.5, np.float32)
    assert traced_peak(logits.copy) >= SIZE
    assert resident_peak(logits.copy) > SIZE // 2
