"""The `backend` fixture: a test that uses it runs on every build of the kernels that this machine can run."""

import importlib
import os
from pathlib import Path

# Before Numba is imported: its simulator runs the CUDA kernels. tests/gpu, which wants a GPU, is run with 0.
os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

import hypothesis
import pytest

import fastxent as fx
from fastxent import _backends

# No deadline: what a test may take is not what it tests. No database or luck: a failure is there for everyone.
hypothesis.settings.register_profile(
    "fastxent",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("fastxent")

PACKAGE = Path(fx.__file__).parent
for module in PACKAGE.glob("*.py"):
    if any(module.stat().st_mtime > compiled.stat().st_mtime for compiled in PACKAGE.glob(f"{module.stem}.*.so")):
        pytest.exit(f"{module.name} is newer than what was compiled of it: python setup.py build_ext --inplace")

BACKENDS = (*(f"cython-{level}" for level in _backends.available_levels()), "numba", "cuda")


def kernels_of(name):
    """The kernels of one of BACKENDS."""
    backend, _, level = name.partition("-")
    if level:
        return importlib.import_module(f"fastxent.{_backends.available_levels()[level]}")
    try:
        return _backends.load(backend)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """The kernels' module, in force for the test."""
    kernels = kernels_of(request.param)
    monkeypatch.setattr(_backends, "load", lambda _: kernels)
    with fx.config_context(backend=request.param.partition("-")[0]):
        yield kernels


# The simulator takes a millisecond for what a processor does in a nanosecond. So CUDA kernels run these tests, less
# those of many samples or classes; what is special about them is in test_cuda.py, at sizes that reach each kernel.
SIMULATED = ("test_backends.py", "test_published.py", "test_semantics.py")
TOO_LONG = (
    "test_nan_in_a_row_gives_nan_for_that_row_alone_and_infinities_as_torch",
    "test_nan_is_seen_at_any_place",
    "test_finite_input_never_raises_a_floating_point_warning",
    "test_types_of_losses_and_gradients",
    "test_gradient_0_of_ignored_targets_is_written",
)


def pytest_collection_modifyitems(config, items):
    """Leave out what would take the simulator too long."""

    def takes_too_long(item):
        if getattr(item, "callspec", None) is None or item.callspec.params.get("backend") != "cuda":
            return False
        return item.path.name not in SIMULATED or item.originalname in TOO_LONG

    left_out = [item for item in items if takes_too_long(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not takes_too_long(item)]
