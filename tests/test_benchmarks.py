"""The suites of `benchmarks/`: what they measure, not how long that takes."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import ALL, ALL_WITH_GRAD
from test_cases import takes_arrays

import fastxent as fx
from benchmarks import calls, losses, memory, tracks

MISSING = ("asv", "cuda", "matplotlib", "numba.cuda", "numba_cuda", "rich", "scipy", "sklearn", "torch")
SUITES = {
    f"{suite.__name__}.{name}": (suite, name)
    for module in (losses, memory, tracks)
    for suite in vars(module).values()
    if inspect.isclass(suite)
    for name in vars(suite)
    if name.startswith(("time_", "peakmem_", "track_"))
}


def test_benchmarks_can_be_imported_where_little_is_installed():
    """Asv imports every file of the folder, in environments that have NumPy, Numba and ml_dtypes alone."""
    code = f"""
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys({MISSING}, None)
import benchmarks
for module in pkgutil.iter_modules(benchmarks.__path__):
    importlib.import_module(f"benchmarks.{{module.name}}")
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


@pytest.fixture(autouse=True)
def _configuration():
    """As it was."""
    before = fx.get_config()
    yield
    fx.set_config(**before)
    calls.bind.cache_clear()
    calls.make_inputs.cache_clear()


@pytest.mark.parametrize("suite", [losses.Shapes, losses.Types, memory.Memory])
@pytest.mark.parametrize("with_grad", [False, True])
def test_every_public_function_has_a_benchmark(suite, with_grad):
    measured = {ALL[name].name for name in suite.params[0]}
    if with_grad:
        twin = {losses.Shapes: losses.ShapesWithGrad, losses.Types: losses.TypesWithGrad}.get(
            suite, memory.MemoryWithGrad
        )
        measured = {ALL[name].with_grad.__name__ for name in twin.params[0]}
    public = {name for name in fx.__all__ if takes_arrays(getattr(fx, name))}
    assert measured == {name for name in public if name.endswith("_with_grad") == with_grad}


@pytest.fixture
def small(monkeypatch):
    """Samples of a few calls of a few numbers, and one process where the suites start several."""
    monkeypatch.setattr(losses, "SHAPES", dict.fromkeys(calls.SHAPES, (3, 4)))
    monkeypatch.setattr(tracks, "SHAPES", dict.fromkeys(calls.SHAPES, (3, 4)))
    monkeypatch.setattr(calls, "SAMPLE", 24)
    monkeypatch.setattr(memory, "SHAPE", (3, 4))
    monkeypatch.setattr(tracks.Start, "processes", 1)
    monkeypatch.setattr(tracks.Overhead, "calls", 2)


@pytest.mark.parametrize("name", SUITES)
def test_every_benchmark_runs(name, small):
    suite, method = SUITES[name]
    first = [values[0] for values in getattr(suite, "params", ())]
    benchmark = suite()
    if hasattr(benchmark, "setup"):
        benchmark.setup(*first)
    result = getattr(benchmark, method)(*first)
    assert (result is None) != method.startswith("track_")
    if result is not None:
        assert np.isfinite(result)
        assert result >= 0


@pytest.mark.parametrize("name", ALL)
def test_constant_inputs_are_like_the_others(name):
    made, constant = ALL[name].make((3, 4), 1, np.float32), calls.make_constant_inputs(ALL[name], (3, 4), "float32")
    assert [(a.shape, a.dtype) for a in constant] == [(a.shape, a.dtype) for a in made]


@pytest.mark.parametrize("name", ALL_WITH_GRAD)
def test_gradients_go_into_the_same_out_again(name):
    call = calls.bind(name, "cython", "float32", (3, 4), True)
    first = call()[1]
    assert call()[1] is first


def test_what_is_not_there_is_skipped(monkeypatch):
    def load(backend):
        raise RuntimeError(f"no {backend} here")

    monkeypatch.delattr(fx, "entropy")
    with pytest.raises(NotImplementedError, match="this version has no entropy"):
        calls.use(ALL["entropy"], "cython")
    monkeypatch.setattr(calls._backends, "load", load)
    with pytest.raises(NotImplementedError, match="no numba here"):
        calls.use(ALL["softmax"], "numba")


def test_errors_are_seen():
    assert tracks.largest_error(np.float32([1, 3]), np.array([1, 3.0])) == 0
    assert tracks.largest_error(np.float32([1, 3]), np.array([1, 3 + 2**-21])) == 2
