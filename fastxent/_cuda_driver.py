"""What the host asks of CUDA's driver: which device is current, to launch what Numba has compiled, and to wait.

Numba's own launch takes ten times as long: it looks a kernel up by its types, asks for the context, and makes an object
of ctypes for each number.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any

from ._cuda_package import LaunchConfig, Stream, contexts, cuda, launch
from ._device import DeviceArray

HERE = nullcontext()


def current_device() -> int | None:
    """The device on which this thread works, None if it has none yet."""
    error, device = contexts.cuCtxGetDevice()
    return None if error else int(device)


def here() -> int:
    """The current device, or the one that becomes it where there is none yet."""
    device = current_device()
    return cuda.current_context().device.id if device is None else device


def on(device: int) -> AbstractContextManager[None]:
    """A block of code in which this device is the current one."""
    if current_device() == device:
        return HERE
    make_context(device)
    return cuda.gpus[device]  # type: ignore[no-any-return]


@cache
def make_context(device: int) -> None:
    """Let Numba make its context for a device, which takes the thread's own away from it."""
    _, own = contexts.cuCtxGetCurrent()
    cuda.gpus[device].get_primary_context()
    contexts.cuCtxSetCurrent(own)


def function_of(version: Any) -> Any:
    """What the driver launches, from what Numba has compiled for the current device."""
    (kernel,) = version.overloads.values()
    return kernel._codelibrary.get_cufunc().kernel


def start(function: Any, blocks: int, threads: int, stream: int, arguments: tuple[Any, ...]) -> None:
    """Launch a function, whose parameters are pointers, 64-bit integers and doubles, or tuples of those."""
    numbers: list[int | float] = []
    for value in arguments:
        kind = type(value)
        if kind is DeviceArray:
            numbers.append(value[0])  # its pointer
        elif kind is tuple:
            numbers += value
        else:
            numbers.append(value)
    launch(stream_of(stream), geometry_of(blocks, threads), function, *numbers)


@lru_cache
def geometry_of(blocks: int, threads: int) -> Any:
    """So many blocks of so many threads."""
    return LaunchConfig(grid=blocks, block=threads)


@cache
def stream_of(pointer: int) -> Any:
    """The stream of a library; 0 is the default stream of the current device."""
    return Stream.from_handle(pointer)


def synchronize(stream: int) -> None:
    """Wait until everything on this stream is done."""
    stream_of(stream).sync()


def address_of(array: Any) -> int:
    """Where an array of Numba's lies."""
    return array.__cuda_array_interface__["data"][0]  # type: ignore[no-any-return]
