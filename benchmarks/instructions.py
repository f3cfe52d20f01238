"""Instructions that fixed calls take: numbers without noise. ``python -m benchmarks.instructions [--update]``.

Valgrind counts them, from one call of a marker to the next. It knows no AVX-512, hence the level v2; one thread, so
that none waits in a loop. Counts hold for the versions that they were taken with, and are kept for each.
"""

import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

STORED = Path(__file__).with_suffix(".json")
MARKER = "getppid"  # called by nothing else here; a function of the C library
TOLERANCE = 0.03
FEW, MANY = 5, 15  # calls; the difference leaves out what is done once
ENVIRONMENT = {"FASTXENT_ISA": "v2", "FASTXENT_NUM_THREADS": "1", "FASTXENT_BACKEND": "cython", "PYTHONHASHSEED": "0"}
SHAPES = {"call": (32, 10), "lanes": (2048, 10), "rows": (64, 1000), "long row": (1, 100_000), "image": (1, 21, 64, 64)}


def make_calls():
    """The fixed paths by name: the softmax family at each kind of shape, the losses of single entries at one."""
    from .calls import bind, cases

    def calls(name, kind, shape):
        modes = {"forward": False} | ({"with gradient": True} if cases.ALL[name].has_gradient else {})
        return {f"{name}, {kind}, {mode}": bind(name, "cython", "float32", shape, g) for mode, g in modes.items()}

    result = {}
    for kind, shape in SHAPES.items():
        result |= calls("cross_entropy", kind, shape)
    for name in cases.ELEMENTWISE | {"logsumexp": None, "softmax": None, "log_softmax": None, "nll_loss": None}:
        result |= calls(name, "rows", SHAPES["rows"])
    return result


def run_marked():
    """Under Valgrind: every call once, a few times and many times, between markers; prints the names of the calls."""
    calls = make_calls()
    gc.collect()
    gc.disable()
    for call in calls.values():
        for count in (1, FEW, MANY):
            os.getppid()
            for _ in range(count):
                call()
    os.getppid()
    print(json.dumps(list(calls)))


def measure():
    """Instructions of one call for each of the fixed paths."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "counts")
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARKER}"]
        command = [*valgrind, sys.executable, "-m", "benchmarks.instructions", "--run"]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(valgrind)} failed:\n{done.stderr}")
        sections = len(list(Path(folder).glob("counts.*")))
        counts = [read_total(out.with_name(f"counts.{number}")) for number in range(2, sections + 1)]  # 1: the start
    names = json.loads(done.stdout)
    if len(counts) != 3 * len(names):
        sys.exit(f"{len(counts)} sections of {len(names)} calls: is {MARKER} called elsewhere, or not found?")
    return {
        name: round((many - few) / (MANY - FEW))
        for name, few, many in zip(names, counts[1::3], counts[2::3], strict=True)
    }


def read_total(path):
    return int(re.search(r"^summary: (\d+)", path.read_text(), re.MULTILINE)[1])


def environment():
    """All that counts depend on beside this project's code.

    Of Python it is the patch release, by which distributors' builds differ: two of 3.11 are 7 % apart in a small call.
    """
    numpy = ".".join(np.__version__.split(".")[:2])
    gcc = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{platform.machine()}, Python {platform.python_version()}, NumPy {numpy}, GCC {gcc.partition('.')[0]}"


def why_not(stored, here, update):
    """Why nothing can be compared, or stored; None if it can."""
    if not shutil.which("valgrind"):
        return "Nothing was measured: valgrind is not installed"
    if here in stored or update:
        return None
    there = "; ".join(stored)
    return f"Nothing was compared: there are counts for {there}, but here is {here}. On a good commit: --update"


def compare(counts, stored):
    """Prints the table; the names of what has become dearer than the tolerance allows, or is not stored."""
    refused = []
    for name, count in counts.items():
        before = stored.get(name, 0)
        cheaper, dearer = count < before * (1 - TOLERANCE), count > before * (1 + TOLERANCE)
        mark = "not stored" if not before else "DEARER" if dearer else "cheaper: --update" if cheaper else ""
        print(f"{name:55} {before:>12,} {count:>12,} {count / before if before else 0:6.3f} {mark}".rstrip())
        refused += [name] * dearer
    return refused


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="store the counts, for the versions that are here")
    parser.add_argument("--lenient", action="store_true", help="succeed where nothing can be compared, and say so")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        return run_marked()
    stored, here = json.loads(STORED.read_text()), environment()
    if reason := why_not(stored, here, options.update):
        print(reason, file=sys.stderr)
        return int(not options.lenient)
    counts = measure()
    refused = compare(counts, stored.get(here, {}))
    if options.update:
        STORED.write_text(json.dumps(stored | {here: counts}, indent=2) + "\n")
        return 0
    print(f"{here}: {len(refused)} of {len(counts)} take over {TOLERANCE:.0%} more instructions than stored")
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
