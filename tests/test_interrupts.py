"""Ctrl-C during a long call: the exception arrives while it would still take long, and the next call is right."""

import os
import signal
import threading
import time

import pytest
from test_config import python

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")

SOON = 10  # seconds, where a tenth of one is usual, and the calls below take a minute or more

# Arrays that are long without memory: the same row, or the same number, again and again.
SETUP = """
import os, signal, sys, threading, time
import numpy as np, fastxent as fx

def repeated(x, *shape):
    return np.broadcast_to(np.asarray(x, np.float32), shape)

def interrupt(*_):
    raise KeyboardInterrupt

def seconds_until_interrupted(call):
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    start = time.monotonic()
    try:
        call()
    except KeyboardInterrupt:
        return time.monotonic() - start
    return float("inf")

def result():
    loss, grad = fx.cross_entropy_with_grad(X, LABELS)
    return loss, grad.tobytes(), fx.binary_cross_entropy_with_logits(X, X > 0)

X, LABELS = np.sin(np.arange(2e6)).reshape(2000, 1000), np.arange(2000) % 1000
expected = result()
row = np.sin(np.arange(65536.0))
rows, labels = repeated(row, 1 << 20, 65536), np.zeros(1 << 20, int)
"""
JOBS = {
    "rows": "fx.cross_entropy(rows, labels)",
    "single entries": "fx.binary_cross_entropy_with_logits(rows, rows)",
    "in one thread": "with fx.config_context(num_threads=1): fx.cross_entropy(rows, labels)",
}
HUGE_SAMPLES = {  # where one task would take long
    "one row": "fx.logsumexp(repeated(1, 1 << 36))",
    "rows of no probability": "fx.logsumexp(repeated(-np.inf, 99, 1 << 32))",
    "lanes": "fx.logsumexp(repeated(row[:64], 64, 1 << 24, 64), axis=1)",
    "a sum": "fx.multilabel_soft_margin_loss(repeated(1, 1, 1 << 36), repeated(1, 1, 1 << 36))",
    "columns": "fx.multilabel_soft_margin_loss(repeated(1, 1 << 30, 64), repeated(1, 1 << 30, 64), axis=0)",
}


def run(backend, code):
    result = python(SETUP + code, FASTXENT_BACKEND=backend)
    assert result.stderr == ""
    return result.stdout


def calls(jobs):
    """Code that interrupts one job after the other, and calls again."""
    return (
        "\n".join(
            f"def call():\n    {job}\nprint(f'{{seconds_until_interrupted(call):.3f}} {name}')"
            for name, job in jobs.items()
        )
        + "\nassert result() == expected"
    )


@pytest.mark.parametrize(
    ("backend", "jobs"), [("cython", JOBS | HUGE_SAMPLES), ("numba", JOBS)], ids=["cython", "numba"]
)
def test_a_long_call_is_interrupted(backend, jobs):
    if backend == "numba":
        pytest.importorskip("numba")
    output = run(backend, calls(jobs))
    seconds = {name: float(number) for number, name in (line.split(" ", 1) for line in output.splitlines())}
    assert seconds.keys() == jobs.keys()
    assert max(seconds.values()) < SOON, seconds


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_by_a_thread_is_interrupted():
    """Its main thread is another one than the parent's."""
    child = (
        f"child = os.fork()\n    if child == 0: os._exit(seconds_until_interrupted(lambda: {JOBS['rows']}) > {SOON})"
    )
    code = f"def fork():\n    {child}\n    print(os.waitpid(child, 0)[1])\n"
    assert run("cython", code + "t = threading.Thread(target=fork); t.start(); t.join()").strip() == "0"


def test_no_thread_works_on_after_an_interrupt():
    """Nothing may be written to the caller's arrays any more."""
    threads = pytest.importorskip("fastxent._numba_threads")
    started, finished, lock = [], [], threading.Lock()

    def work(counter, _size):
        for _ in range(counter[1] if counter.size > 1 else 1000):
            with lock:
                task, counter[0] = counter[0], counter[0] + 1
            if task >= 1000:
                return
            started.append(task)
            time.sleep(0.01)
            finished.append(task)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            threads.deal(work, (), 1, 1000, 1000 * threads.SLICE, 3)
        assert len(started) < 1000
        at_work = set(started) - set(finished)
        assert len(at_work) <= 1  # that of this thread
        time.sleep(0.05)
        assert set(started) - set(finished) == at_work
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
