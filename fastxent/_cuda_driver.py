"""What the host asks of CUDA's driver: to launch what Numba has compiled, and to wait.

Numba's own launch makes an object of ctypes for each number, which takes three times as long as all the rest.
"""

from functools import cache, lru_cache
from typing import Any

from ._cuda_package import LaunchConfig, Stream, launch
from ._device import DeviceArray


def start(version: Any, blocks: int, threads: int, stream: int, arguments: tuple[Any, ...]) -> None:
    """Launch a compiled kernel, whose parameters are pointers, 64-bit integers and doubles, or tuples of those."""
    numbers: list[int | float] = []
    for value in arguments:
        kind = type(value)
        if kind is DeviceArray:
            numbers.append(value[0])  # its pointer
        elif kind is tuple:
            numbers += value
        else:
            numbers.append(value)
    launch(stream_of(stream), geometry_of(blocks, threads), function_of(version), *numbers)


def function_of(version: Any) -> Any:
    """What the driver launches, on the current device."""
    (kernel,) = version.overloads.values()
    return kernel._codelibrary.get_cufunc().kernel


@lru_cache
def geometry_of(blocks: int, threads: int) -> Any:
    """So many blocks of so many threads."""
    return LaunchConfig(grid=blocks, block=threads)


@cache
def stream_of(pointer: int) -> Any:
    """The stream of a library; 0 is the default stream."""
    return Stream.from_handle(pointer)


def wait(stream: int) -> None:
    """Until everything on this stream is done."""
    stream_of(stream).sync()


def address_of(array: Any) -> int:
    """Where an array of Numba's lies."""
    return array.__cuda_array_interface__["data"][0]  # type: ignore[no-any-return]
