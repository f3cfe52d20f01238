"""How numba-cuda and cuda.core are asked to launch kernels, on two devices of a driver that does nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_config import ROOT

pytest.importorskip("cuda.bindings.nvjitlink")

CODE = """
import sys, threading

import numpy as np
from numba import cuda

import fastxent as fx
from fastxent import _cuda_driver, _cuda_launch
from fastxent._device import DeviceArray

x, y = cuda.to_device(np.zeros((32, 10), np.float32)), cuda.to_device(np.zeros(32, np.int64))
there = DeviceArray(4096, (32, 10), (10, 1), "float32", _cuda_launch.memory_of(1, 0))


class Streamed:
    dtype = x.dtype
    __cuda_array_interface__ = x.__cuda_array_interface__ | {"stream": 77}


def step(name, function, *arguments, **options):
    print("#", name, file=sys.stderr, flush=True)
    return function(*arguments, **options)


step("first", fx.softmax, x)
step("other device", fx.softmax, there)
assert _cuda_driver.current_device() == 0
thread = threading.Thread(target=fx.softmax, args=[there])
step("other thread", thread.start)
thread.join()
with cuda.gpus[1]:
    step("from there", fx.softmax, there)
step("again", fx.softmax, x, out=x)
step("stream", fx.softmax, Streamed())
with fx.config_context(check_targets=False):
    loss, grad = step("mean", fx.cross_entropy_with_grad, x, y, out=x)
assert grad is x and loss.dtype == np.float32 and loss.shape == ()
half = step("half", fx.softmax, cuda.to_device(np.zeros((2, 4), np.float16)))
assert half.dtype == np.float16
long = DeviceArray(4096, (3, 20000), (20000, 1), "float32", _cuda_launch.memory_of(0, 0))
step("cluster", fx.softmax, long)
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What the driver was asked for in each step."""
    folder = tmp_path_factory.mktemp("driver")
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs a compiler on Linux")
    source = Path(__file__).with_name("driver.c")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", folder / "libcuda.so.1", "-ldl"], check=True)
    environ = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": ROOT, "LD_LIBRARY_PATH": str(folder)}
    result = subprocess.run([sys.executable, "-c", CODE], env=environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {name: lines for name, *lines in (part.splitlines() for part in result.stderr.split("# ")[1:])}


def launches(lines):
    return [line.removeprefix("launch on ") for line in lines if line.startswith("launch")]


def test_launches_are_where_the_arrays_are(steps):
    assert launches(steps["first"]) == launches(steps["again"]) == ["0, stream 0: 1 x 128"]
    for name in ("other device", "other thread", "from there"):
        assert launches(steps[name]) == ["1, stream 0: 1 x 128"], name


def test_so_are_results_and_constants(steps):
    # The result, and the constant 1 of two types; afterwards the result alone, and nothing if there is room for it.
    assert steps["first"][:3] == ["memory on 0"] * 3
    assert steps["other device"][:3] == ["memory on 1"] * 3
    assert steps["other thread"][:-1] == steps["from there"][:-1] == ["memory on 1"]
    assert steps["again"][:-1] == []


def test_the_stream_is_that_of_the_array(steps):
    assert launches(steps["stream"]) == ["0, stream 77: 1 x 128"]


def test_a_mean_with_its_gradient_is_three_launches(steps):
    assert len(launches(steps["mean"])) == 3


def test_clusters_are_whole(steps):
    assert launches(steps["cluster"]) == ["0, stream 0: 6 x 512"]
