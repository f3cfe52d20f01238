"""Any call of any public function, for as long as one likes: `make fuzz SECONDS=600`.

Each round draws a hundred calls of every function with a seed of its own, which is printed with what it finds. With
`--atheris` (libFuzzer for Python, which has to be installed) it draws by the coverage of the package's Python code.
"""

import argparse
import os
import random
import sys
import time
import warnings

os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")  # as conftest.py does for all tests

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["fastxent"]):
        import fastxent  # noqa: F401

import hypothesis
from cases import ALL
from conftest import BACKENDS, kernels_of
from differential import check
from strategies import calls

ROUND = 100


def target(loss, kernels):
    """The test of one function, and a list that it makes longer by each of its runs."""
    runs = []

    @hypothesis.settings(
        max_examples=ROUND,
        derandomize=False,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(calls(loss))
    def any_call(call):
        runs.append(None)
        check(call, kernels)

    return any_call, runs


def at_random(kernels, seconds, seed):
    """Rounds until the time is over; how many calls there were, and what failed."""
    start, executions, findings = time.monotonic(), 0, []
    while time.monotonic() - start < seconds:
        for name, loss in ALL.items():
            any_call, runs = target(loss, kernels)
            try:
                hypothesis.seed(seed)(any_call)()
            except Exception as failure:  # a group of them where several calls fail in different ways
                findings.append(f"{name}, seed {seed}: {failure!r}\n" + "\n".join(notes(failure)))
                print(findings[-1], flush=True)
            executions += len(runs)
        seed += 1
        print(f"{time.monotonic() - start:6.0f} s, {executions} calls, {len(findings)} findings", flush=True)
    return findings


def notes(failure):
    """The calls that hypothesis has found to fail, made small."""
    for one in getattr(failure, "exceptions", [failure]):
        yield from (f"  {one!r}", *getattr(one, "__notes__", []))


def by_coverage(kernels, seconds, seed):
    """The same by libFuzzer, which ends the process: at the first finding with its call, else when the time is over."""
    targets = [target(loss, kernels)[0].hypothesis.fuzz_one_input for loss in ALL.values()]
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=4096", "-len_control=0"],
        lambda data: targets[data[0] % len(targets)](data[1:]) if data else None,
    )
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--backends", nargs="+", default=[name for name in BACKENDS if name != "cuda"])
    parser.add_argument("--atheris", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("error")
    kernels = {name: kernels_of(name) for name in options.backends}
    run = by_coverage if options.atheris else at_random
    return 1 if run(kernels, options.seconds, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
