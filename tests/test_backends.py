"""The narrow waist: every backend offers the same names, and says clearly when it cannot run."""

import inspect
import os

import numpy as np
import pytest
from test_config import python

from fastxent import _backends

KERNELS = {name: f for name, f in vars(_backends.Kernels).items() if inspect.isroutine(f) and name[0] != "_"}


@pytest.mark.parametrize("name", KERNELS)
def test_every_backend_has_the_kernels_of_the_protocol(backend, name):
    _, *expected = inspect.signature(KERNELS[name]).parameters
    assert list(inspect.signature(getattr(backend, name)).parameters) == expected


def test_no_backend_has_other_kernels(backend):
    public = {
        name
        for name, value in vars(backend).items()
        if callable(value) and not inspect.isclass(value) and getattr(value, "__module__", "") == backend.__name__
    }
    assert {name for name in public if name[0] != "_"} == set(KERNELS)


@pytest.mark.parametrize("label", [-1, 3, 2**62, -(2**63)])
def test_a_label_that_changed_since_it_was_checked_gives_nan(backend, label):
    # Another thread may write to the caller's array: not an error, but never a read or write out of bounds.
    labels, weight, one, x = np.array([0, label, 2]), np.array([1.0, 2.0, 3.0]), np.ones(1), np.zeros((3, 3, 1))
    for run in (
        lambda loss, grad: backend.cross_entropy(x, labels, weight, one, 0.0, 0.0, -100, 1.0, 1, loss, grad),
        lambda loss, grad: backend.nll(x, labels, weight, one, -100, 1.0, 1, loss, grad),
    ):
        loss, grad = np.zeros(3), np.zeros((3, 3, 1))
        run(loss, grad)
        assert np.isnan(loss).tolist() == [False, True, False]
        assert np.isnan(grad).all((1, 2)).tolist() == [False, True, False]


def test_the_protocol_is_not_empty():
    assert {"cross_entropy", "softmax", "check_target", "weighted_sum"} <= set(KERNELS)
    assert len(KERNELS) <= 12


def test_every_level_is_another_module():
    modules = list(_backends.available_levels().values())
    assert len(set(modules)) == len(modules) >= 1


def test_levels_of_other_processors(monkeypatch):
    def levels(*features):
        monkeypatch.setattr(_backends, "_cpu_features", lambda: dict.fromkeys(features, True))
        return list(_backends.available_levels())

    monkeypatch.setattr(_backends, "_is_installed", lambda module: True)
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert levels() == ["v2"]
    assert levels("AVX2", "FMA3") == ["v2"]
    assert levels("AVX2", "FMA3", "F16C") == ["v2", "v3"]
    assert levels("AVX2", "FMA3", "F16C", "AVX512_SKX") == ["v2", "v3", "v4"]
    assert levels("AVX512_SKX") == ["v2"]
    assert _backends.choose_level({"FASTXENT_ISA": "v2"}) == "v2"
    with pytest.raises(RuntimeError, match=r"FASTXENT_ISA is 'v4', expected one of v2 on this machine"):
        _backends.choose_level({"FASTXENT_ISA": "v4"})
    monkeypatch.setattr(_backends, "_is_installed", lambda module: module == "_kernels")
    assert levels("AVX2", "FMA3", "F16C", "AVX512_SKX") == ["v2"]
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert levels() == ["baseline"]


def test_import_is_light():
    heavy = ("numba", "scipy", "torch", "sklearn", "ml_dtypes", "matplotlib", "rich")
    for use in ("", "fx.cross_entropy([[0.0, 1.0]], [1])"):
        code = f"import sys, fastxent as fx; {use}\nprint([name for name in {heavy} if name in sys.modules])"
        result = python(code)
        assert result.stderr == ""
        assert result.stdout.strip() == "[]"


def test_numba_that_is_not_installed_is_one_clear_error():
    missing = "import sys; sys.modules['numba'] = None\nimport fastxent as fx\nfx.set_config(backend='numba')\n"
    result = python(missing + "fx.softmax([1.0, 2.0])")
    message = "RuntimeError: backend 'numba' needs Numba: pip install 'fastxent[numba]'"
    assert result.stderr.splitlines()[-1].startswith(message)
    result = python(missing + "print(fx.show_config('dicts')['backends']['numba'])")
    assert result.stdout.startswith("unavailable: backend 'numba' needs Numba")


def test_numba_that_must_not_compile_is_one_clear_error():
    pytest.importorskip("numba")
    result = python("import fastxent as fx; fx.softmax([1.0, 2.0])", FASTXENT_BACKEND="numba", NUMBA_DISABLE_JIT="1")
    message = "RuntimeError: backend 'numba' has compiled kernels only, which NUMBA_DISABLE_JIT rules out"
    assert result.stderr.splitlines()[-1] == message


# A team of threads has worked before the fork, so that the child would wait for threads that it lacks.
FORK = """
import os, signal, numpy as np, fastxent as fx
x = np.random.default_rng(0).standard_normal((4096, 200))
labels = np.arange(4096) % 200
def results():
    return fx.softmax(x).tobytes(), fx.cross_entropy(x, labels), fx.logsumexp(x, 0).tobytes()
expected = results()
child = os.fork()
if child == 0:
    signal.alarm(20)
    {first}
    os._exit(0 if results() == expected else 3)
print(os.waitpid(child, 0)[1])
assert results() == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    "first", ["pass", "fx.set_config(num_threads=2)", "fx.set_config(backend='cython', num_threads=None)"]
)
def test_a_forked_child_computes(first):
    result = python(FORK.replace("{first}", first), PYTHONWARNINGS="ignore::DeprecationWarning")
    assert result.stderr == ""
    assert result.stdout.strip() == "0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_grandchild_computes():
    first = "child = os.fork()\n    if child: os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    result = python(FORK.replace("{first}", first), PYTHONWARNINGS="ignore::DeprecationWarning")
    assert result.stdout.strip() == "0"


def test_calls_of_a_child_process():
    code = (
        "import multiprocessing, numpy as np, fastxent as fx\n"
        "if __name__ == '__main__':\n"
        "    x = np.zeros((4096, 200)); fx.softmax(x)\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        print({r.tobytes() == fx.softmax(x).tobytes() for r in pool.map(fx.softmax, [x] * 4)})\n"
    )
    result = python(code, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert result.stdout.strip() == "{True}"
