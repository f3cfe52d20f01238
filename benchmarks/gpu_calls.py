"""Microseconds of Python in a call on arrays of a GPU: everything but what the driver does, so that no GPU is needed.

``NUMBA_ENABLE_CUDASIM=0 python benchmarks/gpu_calls.py``. What is left out is the driver's launch, two or three
microseconds each, and the allocation of results by the caller's library.
"""

import itertools
import timeit
from functools import cache

import numpy as np

import fastxent as fx

# What needs numba-cuda is imported where it is used: asv imports this file as well, in environments that lack it.

CALLS, ROUNDS = 20, 1000  # short rounds, some of which nothing else interrupts


class Array:
    """The CUDA array interface, as cheap as Numba's."""

    addresses = itertools.count(1 << 20, 1 << 20)

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)
        data = next(self.addresses), False
        self.interface = {
            "shape": shape, "strides": None, "typestr": self.dtype.str, "data": data, "version": 3, "stream": None
        }  # fmt: skip

    __cuda_array_interface__ = property(lambda self: self.interface)


def stub(numbers):
    """Replace what needs a driver; `numbers` is what is read back by the check of labels."""
    from cuda.core.cu13._kernel_arg_handler import ParamHolder

    from fastxent import _backends, _cuda_driver, _cuda_launch, _cuda_run
    from fastxent._device import DeviceArray

    _backends.load = lambda backend: None
    _cuda_launch.compile_kernel = _cuda_launch.function_of = lambda *_: "a function"
    _cuda_driver.current_device = lambda: 0
    _cuda_launch.allocate = lambda shape, dtype, device: (None, 1 << 40)
    _cuda_driver.launch = lambda stream, geometry, function, *numbers: ParamHolder(numbers)
    _cuda_run.has_clusters = lambda device: True
    _cuda_run.Sums.read = lambda sums: numbers
    _cuda_run.constant = cache(lambda value, dtype, device: DeviceArray(16, (1,), (1,), dtype, None))


def main():
    """Print the best of several rounds for each call."""
    stub((0.0, -1))
    x, y, out = Array((32, 10), np.float32), Array((32,), np.int64), Array((32, 10), np.float32)
    p = Array((32, 10), np.float32)
    calls = {
        "softmax": lambda: fx.softmax(x, out=out),
        "cross_entropy": lambda: fx.cross_entropy(x, y),
        "cross_entropy_with_grad": lambda: fx.cross_entropy_with_grad(x, y, out=out),
        "the same, unchecked sum": lambda: fx.cross_entropy_with_grad(x, y, out=out, reduction="sum"),
        "bce_with_logits_with_grad": lambda: fx.binary_cross_entropy_with_logits_with_grad(x, p, out=out),
    }
    for name, call in calls.items():
        with fx.config_context(check_targets="unchecked" not in name):
            call()
            best = min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS
        print(f"{name:<26}{best * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
