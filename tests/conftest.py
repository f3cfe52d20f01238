"""The `backend` fixture: a test that uses it runs on every build of the kernels that this machine can run."""

import importlib

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

BACKENDS = (*(f"cython-{level}" for level in _backends.available_levels()), "numba")


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
