"""The `backend` fixture: a test that uses it runs on every build of the kernels that this machine can run."""

import importlib

import hypothesis
import pytest
from cases import ELEMENTWISE

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

WITHOUT_ELEMENTWISE = ("numba",)  # backends that lack this kernel
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


def _uses_elementwise(request):
    return (
        request.node.callspec.params.get("loss") in ELEMENTWISE.values()
        or request.node.callspec.params.get("name") == "elementwise"
        or request.module.__name__ in ("test_elementwise", "test_modules")
        or request.function.__name__ == "test_no_backend_has_other_kernels"
    )


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """The kernels' module, in force for the test."""
    if request.param in WITHOUT_ELEMENTWISE and _uses_elementwise(request):
        pytest.skip("no elementwise kernel")
    kernels = kernels_of(request.param)
    monkeypatch.setattr(_backends, "load", lambda _: kernels)
    with fx.config_context(backend=request.param.partition("-")[0]):
        yield kernels
