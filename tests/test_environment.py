"""Whatever surrounds a process: results are the same, nothing of it is changed, and a lack of memory is an error."""

import os
import platform
import shutil
import signal
from pathlib import Path

import pytest
from test_config import python

import fastxent as fx

# Losses and gradients of each kind of kernel, in one thread and in several.
RESULTS = """
import hashlib, numpy as np, fastxent as fx
INPUTS = [
    (np.sin(np.arange(samples * classes, dtype="f4")).reshape(samples, classes), np.arange(samples) % 7)
    for samples, classes in ((40, 7), (300, 1000))
]
def results():
    found = []
    for x, labels in INPUTS:
        found += fx.cross_entropy_with_grad(x, labels, reduction="none")
        found += fx.binary_cross_entropy_with_logits_with_grad(x, x > 0, reduction="none")
    return [a.tobytes() for a in found]
def digest():
    return hashlib.sha256(b"".join(results())).hexdigest()
"""


@pytest.fixture(params=["cython", "numba"])
def backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


@pytest.fixture
def expected(backend):
    space = {}
    exec(RESULTS, space)
    with fx.config_context(backend=backend):
        return space["digest"]()


def output(code, backend, *options, **environ):
    result = python(code, *options, FASTXENT_BACKEND=backend, **environ)
    assert result.stderr == ""
    assert result.returncode == 0
    return result.stdout.strip()


# What Python is told, what is done first, variables
ENVIRONMENTS = {
    "optimised": (["-OO"], "", {}),
    "warnings as errors": (["-W", "error"], "", {}),
    "checked memory": (["-X", "dev"], "", {"PYTHONMALLOC": "debug"}),
    "no home": ([], "import os; del os.environ['HOME']", {}),
    "floating-point errors raised": ([], "import numpy; numpy.seterr(all='raise')", {}),
    "one processor": ([], "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])", {}),
    "all of it": (["-OO", "-W", "error"], "import numpy, os; numpy.seterr(all='raise'); del os.environ['HOME']", {}),
}


@pytest.mark.parametrize(("options", "first", "environ"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_results_are_the_same(options, first, environ, backend, expected, request):
    if backend == "numba" and "all of it" not in request.node.name:
        pytest.skip("one of the Numba backend's slow starts is enough")
    assert output(f"{first}\n{RESULTS}print(digest())", backend, *options, **environ) == expected


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users here")
def test_nothing_may_be_written(backend, expected):
    """Neither beside the package nor at home: as for the account of a service, with the package of an administrator."""
    if not Path("/dev/full").exists():
        pytest.skip("needs a file that nobody can write to")
    cache = "/dev/full"  # neither a folder nor a place for one
    assert (
        output(RESULTS + "print(digest())", backend, HOME=cache, NUMBA_CACHE_DIR=cache, XDG_CACHE_HOME=cache)
        == expected
    )


STATE = """
import ctypes, locale, os, signal, sys, threading, warnings, numpy as np
def state():
    return {
        "locale": locale.setlocale(locale.LC_ALL),
        "rounding": ctypes.CDLL(None).fegetround(),
        "floating-point errors": np.geterr(),
        "handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "variables": dict(os.environ),
        "processors": os.sched_getaffinity(0),
        "warnings": list(warnings.filters),
        "folder and path": (os.getcwd(), list(sys.path)),
        "of Python": (sys.getswitchinterval(), sys.getrecursionlimit(), sys.excepthook, sys.gettrace()),
    }
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="asks Linux")
def test_nothing_of_the_process_is_changed(backend):
    first = "import numba\n" if backend == "numba" else ""
    use = f"{first}{STATE}before = state()\n{RESULTS}results()\nafter = state()\n"
    assert output(use + "print({k: (before[k], after[k]) for k in before if before[k] != after[k]})", backend) == "{}"


# Of glibc on x86-64: how the processor rounds, and what it does about subnormal numbers, is in the last part of fenv_t.
MODES = """
import ctypes
libm, environment = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
def mode():
    libm.fegetenv(environment)
    return environment[7] & ~0x3f
def set_mode(mode):
    libm.fegetenv(environment)
    environment[7] = mode
    libm.fesetenv(environment)
DOWN, UP, TO_ZERO, FLUSH = 0x2000, 0x4000, 0x6000, 0x8040
expected, usual = results(), mode()
for bits in (DOWN, UP, TO_ZERO, FLUSH, UP | FLUSH):
    for threads in (1, 2):
        set_mode(usual | bits)
        with fx.config_context(num_threads=threads):
            found = results()
        after = mode()
        set_mode(usual)
        assert found == expected, (hex(bits), threads)
        assert after == usual | bits, (hex(bits), threads)
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="knows fenv_t of glibc")
def test_arithmetic_that_another_library_has_changed(backend):
    """Rounding to anywhere but the nearest, and subnormal numbers taken for 0: in results as after them."""
    output(RESULTS + MODES, backend)


LIMITED = """
import resource
def repeated(x, *shape):
    return np.broadcast_to(np.asarray(x), shape)
def error_within(limit, call):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, most[1]))
    try:
        call()
    except MemoryError:
        return True
    finally:
        resource.setrlimit(resource.RLIMIT_AS, most)
row, labels, expected = np.sin(np.arange(4096, dtype="f4")), np.zeros(1 << 15, int), results()
x = np.ones(((1 << 12) + 1, 4096), "f4")
"""
ALLOCATIONS = {  # of n samples: half a gigabyte for the most; with an out, what it has to be afterwards
    "result": "fx.softmax(repeated(row, n, 4096))",
    "gradient": "fx.cross_entropy_with_grad(repeated(row, n, 4096), labels[:n])",
    "losses": "fx.binary_cross_entropy_with_logits(repeated(row, n, 4096), repeated(row, n, 4096), reduction='none')",
    "numbers of another type": "fx.logsumexp(repeated(row.astype(int), n, 4096))",
    "labels of another type": "fx.nll_loss(repeated(row[:2], n * 4096, 2), repeated(np.int8(1), n * 4096))",
    "out that overlaps": "fx.softmax(x[:n // 8], out=x[1:n // 8 + 1])",
}


@pytest.mark.skipif(platform.system() != "Linux", reason="limits memory as Linux does")
def test_a_lack_of_memory_is_an_error(backend):
    code = RESULTS + LIMITED
    for what, call in ALLOCATIONS.items():
        code += f"call = lambda n: {call}\ncall(16); x[...] = 1\n"
        code += f"assert error_within(32 << 20, lambda: call(1 << 15)), {what!r}\n"
        code += f"assert (x == 1).all() and results() == expected, {what!r}\n"
    output(code, backend)


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="no such signal here")
@pytest.mark.parametrize("read", ["fx.logsumexp(x)", "x.sum()"], ids=["fastxent", "NumPy"])
def test_a_memory_map_whose_file_has_shrunk(read, tmp_path):
    """The system ends the process, whoever reads: no library can tell before."""
    create = f"x = np.memmap({str(tmp_path / 'x')!r}, 'f4', 'w+', shape=1 << 20); open(x.filename, 'w').close()"
    result = python(f"import numpy as np, fastxent as fx; {create}; {read}", FASTXENT_BACKEND="cython")
    assert result.returncode == -signal.SIGBUS


def test_an_edit_of_what_writes_kernels_is_noticed(tmp_path):
    """Numba's copies on disk, which hold on to what the kernel's own file was, are none of what another one was."""
    pytest.importorskip("numba")
    package, cache = tmp_path / "fastxent", tmp_path / "cache"
    shutil.copytree(Path(fx.__file__).parent, package, ignore=shutil.ignore_patterns("__py*", "*.c", "*.so"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from fastxent import _numba, entropy"
    code += "; entropy([0.5]); print(_numba.__file__)"

    def copies():
        assert output(code, "numba", NUMBA_CACHE_DIR=str(cache)) == str(package / "_numba.py")
        return len(list(cache.rglob("*.nbc")))

    before = copies()
    with open(package / "_formulas.py", "a") as file:
        file.write("# another\n")
    assert copies() == 2 * before > 0
