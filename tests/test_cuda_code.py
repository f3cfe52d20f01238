"""The CUDA kernels' machine code, which needs no GPU to look at: registers, vector loads and stores, exponentials."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_config import ROOT

pytest.importorskip("cuda.bindings.nvjitlink")

# Compiling everything, 953 and 751 kernels, takes two hours: FASTXENT_KERNELS=all.
COLLECTIONS = {"90": os.environ.get("FASTXENT_KERNELS", "some"), "80": os.environ.get("FASTXENT_KERNELS", "few")}


@pytest.fixture(scope="module", params=COLLECTIONS)
def kernels(request):
    """What the kernels became for this compute capability; another process compiles, as this one simulates."""
    command = [sys.executable, Path(__file__).with_name("cuda_kernels.py"), request.param, COLLECTIONS[request.param]]
    environ = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": ROOT}
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def count(kernel, *prefixes):
    return sum(n for name, n in kernel["instructions"].items() if name.startswith(prefixes))


def rows(kernels, *operations):
    """The kernels of samples that lie in order, of numbers narrower than 64 bits."""
    for kernel in kernels:
        operation, _, dtype, classes, *_ = f"{kernel['label']} - - -".split()
        if operation in operations and dtype != "float64" and kernel["constants"].get("WIDTH", 1) > 1:
            yield kernel, kernel["constants"], int(classes) % 2 == 0


SOFTMAX = ("cross_entropy", "softmax", "log_softmax", "logsumexp")
PAIRS = ("softmax_vjp", "log_softmax_vjp")


def test_nothing_is_spilled(kernels):
    assert not [kernel["label"] for kernel in kernels if kernel["spilled"] or kernel["stack"] or count(kernel, "STL")]


def test_enough_blocks_fit_on_a_multiprocessor(kernels):
    # 65536 registers: two of the largest blocks, so that one reads while the other one writes; three of a few warps.
    # One block of doubles, of threads that hold twice as many numbers, or of a cluster that holds two arrays or shares
    # 16-bit samples that are not aligned.
    for kernel in kernels:
        label, large, constants = kernel["label"], kernel["threads"] > 128, kernel["constants"]
        alone = "float64" in label or (large and constants.get("COUNT", 0) > 32)
        if constants.get("BLOCKS", 1) > 1:
            alone = alone or constants["HELD"] > 1 or (constants["PEELED"] and "float16" in label)
        blocks = 1 if alone else 2 if large else 3
        assert kernel["registers"] * kernel["threads"] * blocks <= 65536, kernel["label"]


def test_aligned_samples_are_read_once_by_vectors(kernels):
    for kernel, constants, aligned in rows(kernels, *SOFTMAX, *PAIRS):
        if aligned:
            arrays = 2 if "probs" in kernel["label"] or "vjp" in kernel["label"] else 1
            again = arrays * (constants["LONG"] and constants.get("WRITES", True))
            if again and "log_softmax_vjp" in kernel["label"]:
                arrays = 1  # the sum is one of the gradient alone
            vectors = constants["COUNT"] // constants["WIDTH"]
            loads, expected = count(kernel, "LDG.E.128"), vectors * (arrays + again)
            unrolled = constants["LONG"] and loads > expected and loads % vectors == 0
            assert loads == expected or unrolled, kernel["label"]


def test_aligned_results_are_written_once_by_vectors(kernels):
    for kernel, constants, aligned in rows(kernels, *SOFTMAX, *PAIRS, "nll"):
        if aligned and " out #" in kernel["label"] and "no out" not in kernel["label"]:
            vectors = constants["COUNT"] // constants["WIDTH"]
            # In one place for what is computed; perhaps in another one for ignored samples, or some turns of a loop.
            times, rest = divmod(count(kernel, "STG.E.128"), vectors)
            assert rest == 0, kernel["label"]
            assert times in (1, 2) or constants["LONG"], kernel["label"]


def test_there_is_one_exponential_of_each_number(kernels):
    for kernel, constants, _ in rows(kernels, *SOFTMAX):
        times = 2 if constants["LONG"] else 1
        assert count(kernel, "MUFU.EX2") <= constants["COUNT"] * times + 6, kernel["label"]


def test_nothing_narrow_is_computed_in_double(kernels):
    for kernel, _, _ in rows(kernels, *SOFTMAX, *PAIRS, "nll"):
        assert not count(kernel, "DFMA", "DADD"), kernel["label"]
        has_factor = "cross_entropy" in kernel["label"] or "nll" in kernel["label"]
        assert count(kernel, "DMUL") == 2 * (has_factor and kernel["constants"]["WRITES"]), kernel["label"]


def test_single_numbers_are_read_by_vectors(kernels):
    terms = [kernel for kernel in kernels if "READS_Y" in kernel["constants"]]
    assert terms
    for kernel in terms:
        constants = kernel["constants"]
        # Numbers of 16 bits by one vector, what is computed with them by two.
        times = 2 if "float16" in kernel["label"] else 1
        read = 1 + constants["READS_Y"] + times * (1 + constants["READS_POS"] + constants["GRADIENT"])
        assert count(kernel, "LDG.E.128") == read, kernel["label"]
        assert count(kernel, "STG.E.128") == constants["GRADIENT"], kernel["label"]
