"""Arrays in the memory of a device, as far as kernels and checks need to know them."""

import ctypes
import importlib
import math
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]

ITEMSIZE = {
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip


FLOATS = ("float16", "bfloat16", "float32", "float64")


class Memory(NamedTuple):
    """Where results go: who allocates them, and the stream on which everything happens in order."""

    allocate: Callable[[Shape, str], tuple[Any, int]]  # an array of that library, and its address
    stream: int
    device: int = 0
    waits: bool = False  # whether the host has to wait for results, as the library would not

    def empty(self, shape: Shape, dtype: str) -> "DeviceArray":
        """A contiguous array."""
        owner, pointer = self.allocate(shape, dtype)
        return DeviceArray(pointer, shape, contiguous_strides(shape), dtype, self, owner)


NOWHERE = Memory(lambda shape, dtype: (None, 0), 0)


class DeviceArray(NamedTuple):
    """A view of an array on a device; strides in elements."""

    pointer: int
    shape: Shape
    strides: Shape
    dtype: str
    memory: Memory
    owner: Any = None  # what has to live as long as this

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ITEMSIZE[self.dtype]

    def extent(self) -> tuple[int, int]:
        """The first element in memory and the end of the last one, relative to the pointer."""
        return _extent(self.shape, self.strides)

    def is_contiguous(self) -> bool:
        """Whether it lies as in C."""
        usual = contiguous_strides(self.shape)
        return self.strides == usual or all(
            n == 1 or step == wanted for n, step, wanted in zip(self.shape, self.strides, usual, strict=True)
        )

    def transpose(self, order: Shape) -> "DeviceArray":
        """A view with its axes in another order."""
        return self._replace(shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order))

    def broadcast(self, shape: Shape) -> "DeviceArray | None":
        """A view of this shape, with stride 0 where it is repeated; None if there is none."""
        added = len(shape) - len(self.shape)
        if added < 0 or any(n not in (1, m) for n, m in zip(self.shape, shape[added:], strict=True)):
            return None
        strides = [0 if n == 1 else step for n, step in zip(self.shape, self.strides, strict=True)]
        return self._replace(shape=shape, strides=(*[0] * added, *strides))

    def reshape(self, shape: Shape) -> "DeviceArray | None":
        """A view of another shape of as many elements; None if only a copy has one."""
        if shape == self.shape:
            return self
        if self.size == 0:
            return self._replace(shape=shape, strides=contiguous_strides(shape))
        axes = [(n, step) for n, step in zip(self.shape, self.strides, strict=True) if n != 1]
        strides: list[int] = []
        for n in reversed(shape):
            if n == 1:
                strides.append(0)
                continue
            if not axes:
                return None
            size, step = axes.pop()
            strides.append(step)
            while size < n and axes and axes[-1][1] == size * step:  # axes that lie as one
                size *= axes.pop()[0]
            if size % n:
                return None
            if size > n:
                axes.append((size // n, n * step))
        return self._replace(shape=shape, strides=tuple(reversed(strides)))


@lru_cache(maxsize=256)
def contiguous_strides(shape: Shape) -> Shape:
    """Of an array in C order."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


@lru_cache(maxsize=256)
def _extent(shape: Shape, strides: Shape) -> tuple[int, int]:
    if 0 in shape:
        return 0, 0
    reach = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
    return sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + 1


def overlap(a: DeviceArray, b: DeviceArray) -> bool:
    """Whether the stretches of memory from first to last element meet."""
    (low, high), (other_low, other_high) = a.extent(), b.extent()
    place, size, other_place, other_size = a.pointer, a.itemsize, b.pointer, b.itemsize
    return (
        place + low * size < other_place + other_high * other_size
        and other_place + other_low * other_size < place + high * size
    )


# --- libraries ---------------------------------------------------------------------------------------------------

CUDA = 2  # the kind of device, to DLPack


def on_device(value: Any) -> bool:
    """Whether it is an array in the memory of a GPU, of whatever library."""
    kind = type(value)
    if kind is DeviceArray:
        return True
    if hasattr(kind, "__dlpack_device__"):
        return bool(value.__dlpack_device__()[0] == CUDA)
    return hasattr(kind, "__cuda_array_interface__")


def view(name: str, value: Any, memory: Memory | None = None) -> DeviceArray:
    """What kernels see of an array of some library; `memory` is that of the call's first array, if there is one."""
    kind: Any = type(value)
    if kind is DeviceArray:
        return value  # type: ignore[no-any-return]
    library = _library_of(kind)
    if library == "torch":
        return view_torch(name, value, memory)
    interface = getattr(value, "__cuda_array_interface__", None)
    own = MEMORIES.get(library, numba_memory)(value, interface)
    if memory is not None and library in MEMORIES:
        check_device(name, own, memory)
    if not interface:
        return view_dlpack(name, value, own, (memory or own).stream)
    if memory is not None and own.stream != memory.stream and interface.get("stream") is not None:
        _launch_module().wait(own)  # as the interface asks of who reads on another stream
    return view_interface(name, value, interface, own)


def check_device(name: str, own: Memory, memory: Memory) -> None:
    """Refuse an array on another GPU than the first one's, whose kernels cannot be sure to read it."""
    if own.device != memory.device:
        raise ValueError(f"{name} is on GPU {own.device}, expected GPU {memory.device}, where the first array is")


@lru_cache(maxsize=64)
def _library_of(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def view_torch(name: str, tensor: Any, memory: Memory | None) -> DeviceArray:
    """PyTorch's own attributes: several times as fast as its interfaces, and bfloat16 is among its types."""
    if tensor.requires_grad:
        raise TypeError(f"{name} requires a gradient, which would be lost: pass {name}.detach()")
    if memory is None:
        memory = torch_memory(tensor.device)
    elif memory.allocate is not _torch_allocator(tensor.device):
        own = torch_memory(tensor.device)
        check_device(name, own, memory)
        if own.stream != memory.stream:
            _launch_module().wait(own)
    dtype = _torch_name(tensor.dtype)
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), dtype, memory, tensor)


@cache
def _torch_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def view_interface(name: str, array: Any, interface: dict[str, Any], memory: Memory) -> DeviceArray:
    """The CUDA array interface, version 3."""
    if interface.get("mask") is not None:
        raise TypeError(f"{name} is a masked array, whose mask would be ignored: fill it, or pass sample_weight")
    shape, strides, pointer = interface["shape"], interface.get("strides"), interface["data"][0]
    dtype, itemsize = _name_and_size(getattr(array, "dtype", None) or interface["typestr"])
    if strides is None:
        steps = contiguous_strides(shape)
    elif any(step % itemsize for step in strides):
        raise ValueError(f"{name} has strides {strides}, expected multiples of its item size, {itemsize}")
    else:
        steps = tuple(step // itemsize for step in strides)
    return DeviceArray(pointer, shape, steps, dtype, memory, array)


@lru_cache(maxsize=64)  # as NumPy takes longer to say a type's name than all of this function
def _name_and_size(dtype: Any) -> tuple[str, int]:
    dtype = np.dtype(dtype)
    return dtype.name, dtype.itemsize


class _Tensor(ctypes.Structure):
    """DLTensor of DLPack, with which a DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


DLPACK_TYPES = {0: "int{}", 1: "uint{}", 2: "float{}", 4: "bfloat{}", 6: "bool"}


def view_dlpack(name: str, array: Any, memory: Memory, stream: int) -> DeviceArray:
    """DLPack, for what the interface has no word for, such as bfloat16."""
    capsule = array.__dlpack__(stream=stream or 1)  # that of the reader; 1 is the default one
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer_of(capsule, b"dltensor"))
    if tensor.lanes != 1 or tensor.code not in DLPACK_TYPES:
        raise TypeError(f"{name} has elements of DLPack's type {tensor.code}, expected numbers")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else contiguous_strides(shape)
    dtype = DLPACK_TYPES[tensor.code].format(tensor.bits)
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype, memory, (array, capsule))


# --- where results go --------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _torch_allocator(device: Any) -> Callable[[Shape, str], tuple[Any, int]]:
    torch = sys.modules["torch"]

    def allocate(shape: Shape, dtype: str) -> tuple[Any, int]:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        return tensor, tensor.data_ptr()

    return allocate


def torch_memory(device: Any) -> Memory:
    """PyTorch's allocator, and its current stream."""
    stream = sys.modules["torch"].cuda.current_stream(device).cuda_stream
    return Memory(_torch_allocator(device), stream, device.index or 0)


def _cupy_allocate(shape: Shape, dtype: str) -> tuple[Any, int]:
    array = sys.modules["cupy"].empty(shape, numpy_type(dtype))
    return array, array.data.ptr


def cupy_memory(array: Any, _: Any) -> Memory:
    """CuPy's allocator, and its current stream."""
    return Memory(_cupy_allocate, sys.modules["cupy"].cuda.get_current_stream().ptr, array.device.id)


@lru_cache(maxsize=64)
def _jax_on(device: Any) -> Memory:
    jax, ordinal = sys.modules["jax"], device.local_hardware_id

    def allocate(shape: Shape, dtype: str) -> tuple[Any, int]:
        wanted = numpy_type(dtype)
        if jax.dtypes.canonicalize_dtype(wanted) != wanted:  # it has 64 bits only if told so, and our sums need them
            return _launch_module().allocate(shape, dtype, ordinal)  # type: ignore[no-any-return]
        array = jax.numpy.empty(shape, wanted, device=device).block_until_ready()  # as it is filled with zeros
        return array, array.unsafe_buffer_pointer()

    return Memory(allocate, 0, ordinal, waits=True)


def jax_memory(array: Any, _: Any) -> Memory:
    """JAX's allocator; it shows nobody its streams, so that the host has to wait for each result."""
    array.block_until_ready()
    return _jax_on(array.device)


def numba_memory(_: Any, interface: Any) -> Memory:
    """Numba's allocator on the current device, as in Numba's own launches, and the stream that the interface names."""
    stream = None if interface is None else interface.get("stream")
    return _launch_module().memory_here(0 if stream in (None, 1) else stream)  # type: ignore[no-any-return]


@cache
def _launch_module() -> Any:
    return importlib.import_module(f"{__package__}._cuda_launch")


def numpy_type(dtype: str) -> Any:
    """What NumPy, with ml_dtypes, calls this type."""
    return importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


MEMORIES: dict[str, Callable[[Any, Any], Memory]] = {"cupy": cupy_memory, "jaxlib": jax_memory, "jax": jax_memory}
