"""What `_cuda_hardware.py` does, for threads that Numba's simulator plays: in Python, with no GPU.

A warp has four lanes, so that tests reach every kind of kernel with few threads.
"""

import ctypes
import math
import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext
from threading import Lock
from types import SimpleNamespace

import numpy as np

from ._cuda_package import cuda as numba_cuda
from ._device import DeviceArray

WARP = 4
TURN = 2e-4  # seconds
STORAGE = {"bfloat16": np.uint16}  # of what NumPy has no name for


class Cuda:
    """What kernels find in `cuda`. The simulator puts that into the module of a kernel alone, not of what it calls."""

    threadIdx = property(lambda self: threading.current_thread().threadIdx)
    blockIdx = property(lambda self: threading.current_thread().blockIdx)

    def __init__(self):
        self.local = SimpleNamespace(array=np.empty)
        self.shared = SimpleNamespace(array=self._shared)

    def syncthreads(self):
        threading.current_thread().syncthreads()

    def _shared(self, shape, dtype):
        """One array for all threads of a block that come by this line."""
        line = sys._getframe(1).f_code, sys._getframe(1).f_lineno
        return of_block("shared").setdefault(line, np.empty(shape, dtype))

    def __getattr__(self, name):
        return getattr(numba_cuda, name)


cuda = Cuda()


def of_block(name):
    """A dictionary that the threads of a block share."""
    return vars(threading.current_thread()._manager).setdefault(name, {})


class Pointer:
    """A typed address in memory of which `low` to `high` (in elements) may be touched, an error beyond."""

    def __init__(self, address, storage, low=0, high=0):
        dtype = np.dtype(STORAGE.get(storage, storage))
        size = (high - low) * dtype.itemsize
        buffer = (ctypes.c_char * size).from_address(address + low * dtype.itemsize) if size else b""
        self.numbers = np.frombuffer(buffer, dtype)
        self.address, self.storage, self.low, self.high = address, storage, low, high

    def place(self, index):
        index = int(index)  # of 32 bits in kernels
        if not self.low <= index < self.high:
            raise IndexError(f"element {index} of memory that has {self.low} to {self.high}")
        return index - self.low

    def __getitem__(self, index):
        return self.numbers[self.place(index)]

    def __setitem__(self, index, number):
        self.numbers[self.place(index)] = number


def device(function):
    return function


# --- numbers as they are stored ----------------------------------------------------------------------------------


def get(pointer, index):
    number = pointer[index]
    if pointer.storage == "bfloat16":
        return (np.uint32(number) << np.uint32(16)).view(np.float32)
    return np.float32(number) if pointer.storage == "float16" else number


def put(pointer, index, number):
    if pointer.storage == "bfloat16":
        bits = int(np.float32(number).view(np.uint32))
        number = bits >> 16 | 0x40 if math.isnan(number) else bits + 0x7FFF + (bits >> 16 & 1) >> 16
    pointer[index] = number


def _whole(pointer, index):
    """How many numbers a vector has; it has to be aligned."""
    itemsize = pointer.numbers.itemsize
    if (pointer.address + int(index) * itemsize) % 16:
        raise ValueError(f"a vector at element {index}, which is not aligned")
    return 16 // itemsize


def load(pointer, index, values, slot):
    for i in range(_whole(pointer, index)):
        values[slot + i] = get(pointer, index + i)


def store(pointer, index, values, slot):
    for i in range(_whole(pointer, index)):
        put(pointer, index + i, values[slot + i])


def misaligned(pointer, index, width):
    return (pointer.address // pointer.numbers.itemsize + int(index)) % width


# --- maths -------------------------------------------------------------------------------------------------------


larger, log, log1p, divide = np.fmax, np.log, np.log1p, np.divide
exp_any = exp_float64 = exp_float32 = exp_short = np.exp

# --- the lanes of a warp -----------------------------------------------------------------------------------------


def sync_warp():
    pass  # what follows waits for all threads


def _numbers(number, width):
    """What `width` lanes have brought, and the place of one's own among them."""
    thread = threading.current_thread()
    brought = of_block("brought")
    brought[thread.thread_id] = number
    thread.syncthreads()
    lane = thread.thread_id % width
    first = thread.thread_id - lane
    numbers = [brought[first + i] for i in range(width)]
    thread.syncthreads()
    return numbers, lane


def largest(number, width):
    if width == 1:
        return number
    numbers, _ = _numbers(number, width)
    return np.fmax.reduce(numbers)


def total_of(number, width):
    if width == 1:
        return number
    numbers, _ = _numbers(number, width)
    while len(numbers) > 1:
        half = len(numbers) // 2
        numbers = [numbers[i] + numbers[i + half] for i in range(half)]
    return numbers[0]


def count_of(chosen, width):
    return int(chosen) if width == 1 else sum(map(bool, _numbers(chosen, width)[0]))


# --- the blocks of a cluster: there are none ---------------------------------------------------------------------

barrier_of_cluster = from_block = None


def cluster_of(blocks):
    return None


# --- what the host hands over ------------------------------------------------------------------------------------


def address_of(array):
    return array._ary.ctypes.data


_one_launch = Lock()  # as the simulator runs one kernel at a time


def here():
    return 0


def on(device):
    return nullcontext()


def function_of(version):
    return version


def start(version, blocks, threads, stream, arguments):
    arguments = [Pointer(a.pointer, a.dtype, *a.extent()) if isinstance(a, DeviceArray) else a for a in arguments]
    with _one_launch, quick_turns(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers overflow with a warning here
        version[blocks, threads](*arguments)


@contextmanager
def quick_turns():
    """Without it, Numba's loop that waits for the threads would keep each from its turn for 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def synchronize(stream):
    pass
