"""Do the tests notice? Plants small faults one at a time, in a copy of the checkout, and runs the tests on each.

`make mutants` prints which survive. A fault is a text that occurs exactly once in its file, and what replaces it: once
the code has changed, an entry that no longer fits is an error. What changes nothing that is promised is no fault.
Compiled faults are built for the best level alone, and with little optimisation, which takes a third of the time.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import FAULTS

from fastxent import _backends

ROOT = Path(__file__).parents[1]

# Which backend's tests, and the tests: those that fail soonest first, the next ones for what has survived.
CYTHON = ("not numba and not cuda", "fuzz", "odd_inputs elementwise_kernel determinism", "semantics accuracy reference",
          "elementwise_accuracy properties elementwise out backends concurrency")  # fmt: skip
NUMBA = ("numba and not cuda", "odd_inputs", "semantics elementwise_kernel", "reference accuracy determinism")
PYTHON = ("not numba and not cuda", "bad_inputs", "odd_inputs out fuzz", "semantics elementwise modules reference")

# Builds the module named last, and no other.
BUILD = """
import runpy, sys
import Cython.Build
cythonize, module = Cython.Build.cythonize, sys.argv.pop()
def one(extensions, **options):
    chosen = [extension for extension in extensions if extension.name == module]
    for extension in chosen:
        extension.extra_compile_args = ["-O1" if flag == "-O3" else flag for flag in extension.extra_compile_args]
    return cythonize(chosen, **options)
Cython.Build.cythonize = one
runpy.run_path("setup.py", run_name="__main__")
"""


def run(copy, *command):
    """A command in the copy, with a cache of its own for what Numba compiles: how it ended, and its last words."""
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(copy / "cache"),
    }
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, timeout=3600
        )
    except subprocess.TimeoutExpired:
        return "hangs", ""
    return done.returncode, (done.stdout + done.stderr)[-2000:]


def copied(place):
    """A copy of the checkout with nothing that is compiled."""
    copy = Path(place) / "fastxent"
    left_out = shutil.ignore_patterns(".*", "build", "*.so", "*.c", "__pycache__", "dist", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


def build(copy, module):
    """The module alone: tests run on what is there."""
    code, words = run(copy, "-c", BUILD, "build_ext", "--inplace", module)
    if code:
        raise SystemExit(words)


def tests_of(file):
    """Those that run what is in a file."""
    if not file.endswith(".py"):
        return CYTHON
    return NUMBA if Path(file).name.startswith(("_numba", "_formulas")) else PYTHON


def failure(copy, files, selected):
    """The first test of some files that fails, or nothing."""
    paths = [f"tests/test_{name}.py" for name in files.split()]
    code, words = run(copy, "-m", "pytest", "-xq", "--no-header", "-p", "no:cacheprovider", "-k", selected, *paths)
    return code and next((line for line in words.splitlines() if line.startswith("FAILED")), f"pytest: {code}")


def noticed(copy, tests, first=()):
    """What fails, or nothing."""
    selected, *groups = tests
    shutil.rmtree(copy / "cache", ignore_errors=True)
    for name in first:
        file, _, part = name.partition("::")
        found = failure(copy, file, f"{part} and {selected}")
        if found:
            return found
    return next(filter(None, (failure(copy, files, selected) for files in groups)), "")


def test_with(copy, module, file, old, new, *first):
    """Plant a fault, run the tests, and take it out again."""
    path = copy / file
    text = path.read_text()
    path.write_text(text.replace(old, new))
    try:
        if path.suffix != ".py":
            build(copy, module)
        return noticed(copy, tests_of(file), first)
    finally:
        path.write_text(text)


def chosen(pattern, most):
    """Some faults, those of Python first: a build with a fault stays until the next one."""
    faults = [(file, *fault) for file, found in FAULTS.items() for fault in found if re.search(pattern, file)]
    for file, old, *_ in faults:
        assert (ROOT / file).read_text().count(old) == 1, f"{file} has {old!r} not once"
    return sorted(random.sample(faults, min(most, len(faults))), key=lambda fault: not fault[0].endswith(".py"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", default="", help="only faults of files that this regular expression finds")
    parser.add_argument("--sample", type=int, default=sys.maxsize, help="only so many, chosen at random")
    parser.add_argument("--unchecked", action="store_true", help="leave out that the tests pass without a fault")
    options = parser.parse_args()
    faults, survivors = chosen(options.file, options.sample), []
    module = f"fastxent.{list(_backends.available_levels().values())[-1]}"
    with tempfile.TemporaryDirectory() as place:
        copy = copied(place)
        if not options.unchecked or faults[0][0].endswith(".py"):
            build(copy, module)
        for tests in () if options.unchecked else {tests_of(file) for file, *_ in faults}:
            failed = noticed(copy, tests)
            assert not failed, failed
        for fault in faults:
            start, (file, old, new, *_) = time.monotonic(), fault
            how = test_with(copy, module, *fault)
            survivors += [] if how else [fault]
            print(f"{time.monotonic() - start:4.0f} s  {file}: {old!r} -> {new!r}: {how or 'SURVIVES'}", flush=True)
    print(f"{len(faults) - len(survivors)} of {len(faults)} faults are noticed")
    return 1 if 20 * len(survivors) > len(faults) else 0


if __name__ == "__main__":
    sys.exit(main())
