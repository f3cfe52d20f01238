"""The tables themselves: nothing public is left out of them, and all that belongs together has one signature."""

import doctest
import inspect

import oracles
import pytest
from cases import ALL, ALL_WITH_GRAD, OPTIONS
from numpy.typing import ArrayLike

import fastxent as fx
from fastxent import reference


def takes_arrays(function):
    return inspect.isroutine(function) and any(
        p.annotation in (ArrayLike, "ArrayLike") for p in inspect.signature(function).parameters.values()
    )


def test_every_public_function_of_arrays_is_in_the_table():
    public = {name for name in fx.__all__ if takes_arrays(getattr(fx, name))}
    tested = {f.__name__ for loss in ALL.values() for f in (loss.function, loss.with_grad) if f}
    assert public == tested


def test_all_names_are_there():
    assert sorted(fx.__all__) == fx.__all__
    assert [name for name in fx.__all__ if not hasattr(fx, name)] == []


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_reference_and_oracle_go_by_the_same_name(loss):
    name = loss.function.__name__
    assert loss.function is getattr(fx, name)
    assert loss.reference is getattr(reference, name)
    assert loss.oracle is getattr(oracles, name)


@pytest.mark.parametrize("loss", ALL_WITH_GRAD.values(), ids=ALL_WITH_GRAD)
def test_twin_has_the_signature_of_its_loss(loss):
    assert loss.with_grad is getattr(fx, f"{loss.function.__name__}_with_grad")
    plain = inspect.signature(loss.function).parameters
    twin = dict(inspect.signature(loss.with_grad).parameters)
    added = {name: twin.pop(name) for name in ("grad_output", "out")}
    assert twin == dict(plain)
    assert list(twin) == list(plain)
    assert [(p.default, p.kind) for p in added.values()] == [(None, inspect.Parameter.KEYWORD_ONLY)] * 2


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_reference_takes_what_the_function_takes(loss):
    def defaults(function):
        parameters = inspect.signature(function).parameters
        return {name: p.default for name, p in parameters.items() if name not in ("out", "grad_output")}

    assert defaults(loss.reference) == defaults(loss.function)


@pytest.mark.parametrize("loss", ALL_WITH_GRAD.values(), ids=ALL_WITH_GRAD)
def test_every_option_is_in_the_table(loss):
    parameters = inspect.signature(loss.function).parameters
    keywords = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY} - {"axis", "reduction"}
    left_out = set() if loss.takes_labels else {"ignore_index"}
    assert keywords - left_out == set(loss.options)
    assert keywords <= set(OPTIONS)


@pytest.mark.parametrize("name", [name for name in fx.__all__ if name != "__version__"])
def test_everything_public_is_documented_with_an_example_that_runs(name):
    # Not by pytest's own search, which takes compiled modules for other files.
    documented = doctest.DocTestFinder().find(getattr(fx, name), name, globs={})
    assert any(part.examples for part in documented)
    for part in documented:
        printed = []
        assert doctest.DocTestRunner().run(part, out=printed.append).failed == 0, "".join(printed)
