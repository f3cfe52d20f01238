"""Arrays of any type and layout to others, for what the other kernels do not take as it is."""

from functools import cache

import numpy as np

from ._cuda_device import WARP, cuda, get, put
from ._cuda_tiles import number_type

THREADS = 8 * WARP
AXES = 8  # more have to be merged before
FLOATS = ("float16", "bfloat16", "float32", "float64")


@cache
def copy_kernel(source_type, target_type):
    """target = source, element by element; labels beyond int64 become its largest number.

    shape, strides: of the last axis first, in elements.
    """
    FROM_FLOAT, TO_LABEL, UNSIGNED = source_type in FLOATS, target_type == "int64", source_type == "uint64"
    KIND, MOST = np.int64 if TO_LABEL else number_type(target_type), np.int64(2**63 - 1)

    def kernel(source, target, size, shape, source_strides, target_strides):
        left, start, place = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, 0, 0
        if left >= size:
            return
        for axis in range(AXES):
            i = left % shape[axis]
            left //= shape[axis]
            start += i * source_strides[axis]
            place += i * target_strides[axis]
        if FROM_FLOAT:
            put(target, place, KIND(get(source, start)))
        elif TO_LABEL:
            label = source[start]
            target[place] = MOST if UNSIGNED and label > MOST else KIND(label)
        else:
            put(target, place, KIND(source[start]))

    return kernel


@cache
def product_kernel(storage, factor_storage, product_storage):
    """product_i = array_i factor_i, and 0 for an array_i of 0, whatever the factor."""
    KIND, ZERO, NOTHING = number_type(product_storage), number_type(storage)(0), number_type(product_storage)(0)

    def kernel(array, factors, product, count, step):
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if i < count:
            product[i] = KIND(array[i] * factors[i * step]) if array[i] != ZERO else NOTHING

    return kernel
