"""What the suites measure: calls that follow from the tables of tests/cases.py, with all they need made beforehand."""

import contextlib
import importlib
import inspect
import math
import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

import fastxent as fx
from fastxent import _backends

sys.path.append(str(Path(__file__).parents[1] / "tests"))
cases = importlib.import_module("cases")  # by name: asv hides from import all that lies beside this folder

BACKENDS = ("cython", "numba")
SHAPES = {  # class axis 1
    "small batch": (32, 10),
    "few classes": (65536, 10),
    "ImageNet": (1024, 1000),
    "vocabulary": (64, 32000),
    "segmentation": (4, 21, 128, 128),
}
for backend in BACKENDS:  # asv measures in forks of a process that has imported this: none has to import Numba again
    with contextlib.suppress(RuntimeError):
        _backends.load(backend)

SAMPLE = 1 << 19  # entries: what is measured at once takes a tenth of a millisecond at least,
MOST_CALLS = 200  # and of the smallest ones a millisecond, in which it is seldom interrupted


def use(loss, backend):
    """Put the backend in force. To asv the error means that there is nothing to measure, which is no failure."""
    if not hasattr(fx, loss.name):
        raise NotImplementedError(f"this version has no {loss.name}")
    try:
        _backends.load(backend)
    except RuntimeError as error:
        raise NotImplementedError(str(error)) from error
    fx.set_config(backend=backend)


@lru_cache(maxsize=1)  # asv calls setup before each sample
def make_inputs(name, dtype, shape):
    return cases.ALL[name].make(shape, 1, cases.DTYPES[dtype])


@lru_cache(maxsize=1)
def bind(name, backend, dtype, shape, with_grad):
    """The call without arguments, compiled, into an `out` that has been written before if the function takes one."""
    loss = cases.ALL[name]
    use(loss, backend)
    return bind_arrays(loss, make_inputs(name, dtype, shape), with_grad)


def bind_arrays(loss, arrays, with_grad):
    call = partial(loss.with_grad if with_grad else loss.function, *arrays, **loss.at(1))
    result = call()
    if "out" not in inspect.signature(call.func).parameters:
        return call
    return partial(call, out=result[1] if with_grad else result)


def make_batch(name, backend, dtype, shape, with_grad):
    """The call, and how many of them make up a sample that a clock can tell from noise."""
    return bind(name, backend, dtype, shape, with_grad), min(MOST_CALLS, max(1, SAMPLE // math.prod(shape)))


def make_constant_inputs(loss, shape, dtype):
    """Every sample the same: no array but the inputs is ever made, so the peak of a process is that of its calls."""
    samples = shape[0]
    return [np.repeat(array, samples, axis=0) for array in loss.make((1, *shape[1:]), 1, cases.DTYPES[dtype])]
