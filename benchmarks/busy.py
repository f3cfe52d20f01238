"""Loss and gradient beside a process that keeps one core busy, in some minutes: ``python -m benchmarks.busy``."""

import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from statistics import median, quantiles
from time import perf_counter

import numpy as np

import fastxent as fx

# Rich and torch are imported where they are used: asv imports this file as well, and has neither.

SHAPES = ((1024, 10), (8192, 1000), (1024, 32000))
CALLS = 200
WARM_UP = 10

# Ends with its parent, even if that is killed.
SPIN = """
import os
parent = os.getppid()
print("spinning", flush=True)
while os.getppid() == parent:
    sum(range(10_000))
"""


@contextmanager
def busy_core():
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()


def bind_fastxent(logits, target):
    out = np.empty_like(logits)
    return lambda: fx.cross_entropy_with_grad(logits, target, out=out)


def bind_torch(logits, target):
    import torch

    tracked, labels = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(target)
    return lambda: torch.autograd.grad(torch.nn.functional.cross_entropy(tracked, labels), tracked)


def median_and_late(call):
    """Seconds of a call: the median and the 95th percentile."""
    times = []
    for _ in range(WARM_UP + CALLS):
        begin = perf_counter()
        call()
        times.append(perf_counter() - begin)
    return np.array([median(times[WARM_UP:]), quantiles(times[WARM_UP:], n=20)[-1]])


def measure(shape):
    """For each library its seconds of a call, and how many times as long they are beside a busy core."""
    rng = np.random.default_rng(0)
    problem = rng.standard_normal(shape, np.float32), rng.integers(shape[1], size=shape[0])
    calls = {"fastxent": bind_fastxent(*problem)} | ({"torch": bind_torch(*problem)} if find_spec("torch") else {})
    quiet = {name: median_and_late(call) for name, call in calls.items()}
    with busy_core():
        return {name: (quiet[name], median_and_late(call) / quiet[name]) for name, call in calls.items()}


def main():
    from rich import print
    from rich.table import Table

    from fastxent._report import duration

    table = Table("shape", "", "median", "95 %", "x median, busy", "x 95 %, busy", box=None)
    for shape in SHAPES:
        for name, (quiet, ratios) in measure(shape).items():
            table.add_row(str(shape), name, *map(duration, quiet), *(f"{ratio:.2f}" for ratio in ratios))
    print(table)


if __name__ == "__main__":
    main()
