"""Calls from many threads at once, in children of a process that has called before, and in pools of processes."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from cases import ALL, DTYPES, make_options
from test_config import python

import fastxent as fx
from fastxent import _config

THREADS, ROUNDS = 8, 2
SHAPES = [(3, 4), (40, 130), (20_000, 20), (3, 100_000)]  # from one task to several for each thread
METHODS = [method for method in ("fork", "forkserver", "spawn") if method in multiprocessing.get_all_start_methods()]


def calls():
    """Every public function on every shape, in turns of types."""
    types = list(DTYPES.values())
    for shape_number, shape in enumerate(SHAPES):
        for number, loss in enumerate(ALL.values()):
            dtype = types[(number + shape_number) % len(types)]
            arguments = loss.make(shape, 1, dtype), make_options(loss, shape, 1, "all", dtype) | loss.at(1)
            yield loss.with_grad or loss.function, *arguments


def bits(call):
    function, arrays, options = call
    result = function(*arrays, **options)
    return [np.asarray(part).tobytes() for part in (result if isinstance(result, tuple) else (result,))]


def test_threads_give_what_one_thread_gives(backend, monkeypatch):
    monkeypatch.setattr(_config, "_processors", 3)
    work, config, start = list(calls()), fx.get_config(), threading.Barrier(THREADS)
    with fx.config_context(num_threads=1):
        expected = [bits(call) for call in work]

    def run(first):
        order = np.random.default_rng(first).permutation(len(work))
        start.wait()
        with fx.config_context(**config):
            return [i for _ in range(ROUNDS) for i in order if bits(work[i]) != expected[i]]

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(run, range(THREADS))) == [[]] * THREADS


def result_of(backend):
    """What a child gives; a function of the module, so that children find it."""
    x = np.sin(np.arange(600_000.0)).reshape(60_000, 10)
    with fx.config_context(backend=backend):
        loss, grad = fx.cross_entropy_with_grad(x, np.arange(60_000) % 10)
        return loss.tobytes(), grad.tobytes(), fx.binary_cross_entropy_with_logits(x, x > 0).tobytes()


@pytest.mark.parametrize("name", ["cython", "numba"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_children_of_a_process_that_has_called(method, name):
    if name == "numba":
        pytest.importorskip("numba")
    expected = result_of(name)
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        assert list(pool.map(result_of, [name] * 4, timeout=120)) == [expected] * 4
    assert result_of(name) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_amid_calls(backend, monkeypatch):
    """Whatever locks other threads held: the child has to do without them and their threads."""
    monkeypatch.setattr(_config, "_processors", 3)
    x, target, config, stop = np.zeros((20_000, 20)), np.zeros(20_000, int), fx.get_config(), threading.Event()

    def call_on():
        with fx.config_context(**config):
            while not stop.is_set():
                fx.cross_entropy_with_grad(x, target)

    callers = [threading.Thread(target=call_on) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(10):
            child = context.Process(target=fx.cross_entropy_with_grad, args=(x, target))
            child.start()
            child.join(60)
            assert child.exitcode == 0
    finally:
        stop.set()
        for caller in callers:
            caller.join()


@pytest.mark.parametrize("name", ["cython", "numba"])
def test_workers_of_joblib(name):
    joblib = pytest.importorskip("joblib")
    if name == "numba":
        pytest.importorskip("numba")
    expected = result_of(name)
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
        assert joblib.Parallel()(joblib.delayed(result_of)(name) for _ in range(4)) == [expected] * 4


# As servers do: all is loaded and used before workers are forked, and a signal ends these in the middle of a call.
SERVER = """
import os, signal, sys, time, numpy as np, fastxent as fx
row = np.sin(np.arange(65536, dtype="f4"))
def result():
    return fx.softmax(np.broadcast_to(row, (20, 65536))).tobytes()
def serve(ready):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    os.write(ready, b"1" if result() == expected else b"0")
    fx.cross_entropy(np.broadcast_to(row, (1 << 20, 65536)), np.zeros(1 << 20, int))
expected, (heard, ready), workers = result(), os.pipe(), []
for _ in range(3):
    child = os.fork()
    if child == 0:
        serve(ready)
    workers.append(child)
print(b"".join(os.read(heard, 1) for _ in workers))
time.sleep(0.1)
for child in workers:
    os.kill(child, signal.SIGTERM)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in workers], result() == expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("name", ["cython", "numba"])
def test_workers_of_a_server(name):
    if name == "numba":
        pytest.importorskip("numba")
    result = python(SERVER, FASTXENT_BACKEND=name, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert result.stderr == ""
    assert result.stdout == "b'111'\n[7, 7, 7] True\n"


OTHERS = """
import numba, numpy as np, torch, fastxent as fx
from threadpoolctl import threadpool_info
def counts():
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} | {
        "torch": (torch.get_num_threads(), torch.get_num_interop_threads()), "numba": numba.get_num_threads()
    }
x, before = np.ones((600, 1000)), counts()
for name in ("cython", "numba"):
    with fx.config_context(backend=name):
        fx.cross_entropy_with_grad(x, np.zeros(600, int)), fx.entropy(x)
print(len(before), {name for name, count in before.items() if counts()[name] != count})
"""


def test_threads_of_other_libraries_are_left_alone():
    for library in ("torch", "threadpoolctl", "numba"):
        pytest.importorskip(library)
    number, changed = python(OTHERS).stdout.split(maxsplit=1)
    assert int(number) > 2  # BLAS or OpenMP besides
    assert changed.strip() == "set()"
