"""The device itself: memory of our own, copies, and kernels, which are compiled when first launched."""

from functools import cache, lru_cache
from typing import Any

import numpy as np

from ._cuda_device import address_of, cuda, function_of, here, on, start, synchronize
from ._cuda_package import SIMULATED, types
from ._device import DeviceArray, Memory, contiguous_strides, numpy_type

# Storage type -> what NumPy takes it for, and what a pointer to it has in kernels.
STORED = {
    "float32": (np.float32, types.float32), "float64": (np.float64, types.float64),
    "float16": (np.int16, types.int16), "bfloat16": (np.uint16, types.uint16),
    **{name: (np.dtype(name).type, getattr(types, name)) for name in (
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
    )}, "bool": (np.uint8, types.uint8),
}  # fmt: skip

_compiled: dict[Any, Any] = {}  # (kernel, device) -> the driver's function, and what keeps it loaded


def launch(kernel, blocks, bounds, memory, *arguments):
    """Run a kernel on arrays, integers, floats and tuples of numbers, on the stream and the device of this memory.

    bounds: threads of a block, and how many blocks a multiprocessor has to have registers for.
    """
    with on(memory.device):
        compiled = _compiled.get((kernel, memory.device))
        if compiled is None:
            version = compile_kernel(kernel, bounds, tuple(map(type_of, arguments)))
            compiled = _compiled[kernel, memory.device] = function_of(version), version
        start(compiled[0], blocks, bounds[0], memory.stream, arguments)


def compile_kernel(kernel, bounds, types_of_arguments):
    """For the current device, and these types of arguments, which are the same in all launches."""
    return cuda.jit(kernel) if SIMULATED else cuda.jit(types_of_arguments, launch_bounds=bounds)(kernel)


def type_of(value):
    """The type of a kernel's parameter."""
    if isinstance(value, DeviceArray):
        return types.CPointer(STORED[value.dtype][1])
    if isinstance(value, tuple):
        return types.UniTuple(type_of(value[0]), len(value))
    return types.float64 if isinstance(value, float) else types.int64


def what_is_missing():
    """Why no kernel can run here; empty if they can."""
    if cuda.is_available():
        return ""
    error = " ".join(str(cuda.cuda_error() or "").split())
    if "driver" in error:
        return f"needs NVIDIA's driver for the GPU, which 'nvidia-smi' would show ({error})"
    return f"needs a GPU by NVIDIA, which 'nvidia-smi' would show and CUDA_VISIBLE_DEVICES may hide ({error or 'none'})"


@cache
def has_clusters(device):
    """Whether blocks can share a sample."""
    return not SIMULATED and cuda.gpus[device].compute_capability >= (9, 0)


def wait(memory):
    """Until everything before is done."""
    with on(memory.device):
        synchronize(memory.stream)


# --- memory ------------------------------------------------------------------------------------------------------


def memory_here(stream=0):
    """Numba's allocator on the current device."""
    return memory_of(here(), stream)


@lru_cache(maxsize=64)
def memory_of(device, stream):
    """Numba's allocator on this device."""
    return Memory(lambda shape, dtype: allocate(shape, dtype, device), stream, device)


def allocate(shape, dtype, device):
    """An array of Numba's, and its address."""
    with on(device):
        array = cuda.device_array(shape, numpy_type(dtype))
    return array, address_of(array)


def upload(array, dtype, memory):
    """A copy of an array of the host; what is repeated there at stride 0 is repeated here."""
    repeated = [n > 1 and step == 0 for n, step in zip(array.shape, array.strides, strict=True)]
    few = np.asarray(array[tuple(slice(1) if again else slice(None) for again in repeated)], order="C")
    with on(memory.device):
        owner = cuda.to_device(few.reshape(-1))
        synchronize(0)  # the stream of the copy, which others do not wait for
    strides = [0 if again else step for again, step in zip(repeated, contiguous_strides(few.shape), strict=True)]
    return DeviceArray(address_of(owner), array.shape, tuple(strides), dtype, memory, owner)


def download(source, array):
    """The way back, into an array of the host."""
    repeated = tuple(
        slice(1) if n > 1 and step == 0 else slice(None) for n, step in zip(array.shape, array.strides, strict=True)
    )
    target = array[repeated]
    target[...] = source.owner.copy_to_host().reshape(target.shape)


@cache
def constant(value, dtype, device):
    """A number as an array."""
    return upload(np.full(1, value, STORED[dtype][0]), dtype, memory_of(device, 0))
