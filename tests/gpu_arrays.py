"""A library of arrays on a GPU that the simulator plays: in host memory, which only kernels may touch."""

import numpy as np

from fastxent import _device


class GpuArray:
    """What CuPy and others show: the CUDA array interface."""

    def __init__(self, array):
        self._array = array
        self.dtype, self.shape = array.dtype, array.shape

    @property
    def __cuda_array_interface__(self):
        a = self._array
        return {
            "shape": a.shape,
            "strides": None if a.flags.c_contiguous else a.strides,
            "typestr": a.dtype.str,
            "data": (a.ctypes.data, False),
            "version": 3,
            "stream": None,
        }

    def __array__(self, *_, **__):
        raise TypeError("an array on a GPU, which NumPy cannot read")

    def get(self):
        return self._array


def to_gpu(array):
    """A copy, or the array itself where that would have other strides."""
    array = np.asarray(array)
    return GpuArray(array.copy() if array.flags.c_contiguous else array)


def _allocate(shape, dtype):
    array = GpuArray(np.full(shape, 77, _device.numpy_type(dtype)))  # as if somebody had used the memory before
    return array, array._array.ctypes.data


_device.MEMORIES["gpu_arrays"] = lambda array, interface: _device.Memory(_allocate, 0)
