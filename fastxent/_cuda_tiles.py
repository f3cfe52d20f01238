"""What each thread holds of a sample: reading and writing it, whatever its storage type and however it lies in memory.

A group of threads shares a sample. Where its classes are contiguous, threads take vectors of numbers in turn: vector v
of a thread begins (v * threads + lane) * width numbers after the start. Where they lie apart, a sample has one thread,
and neighbouring threads have neighbouring samples.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from ._cuda_device import cuda, device, get, load, put, store

ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
VECTOR = 16  # bytes
MOST = 2**31 - 1  # classes: within a sample 32 bits are enough, and spare registers


class Geometry(NamedTuple):
    """How threads divide samples among them."""

    threads: int  # of a block that share a sample, a power of two
    samples: int  # of a block
    vectors: int  # that a thread holds at a time
    width: int  # numbers in a vector
    access: str  # "aligned": vectors are whole; "peeled": those at the ends of a sample may not be; "strided": none is
    long: bool = False  # samples are longer than what their threads hold, and are read twice
    blocks: int = 1  # of a cluster, that share a sample
    resident: int = 0  # blocks that a multiprocessor has to have registers for; 0 for as many as the compiler likes

    @property
    def count(self) -> int:
        """Numbers that a thread holds at a time."""
        return self.vectors * self.width

    @property
    def bounds(self) -> tuple[int, ...]:
        """Threads of a block, and `resident` unless that is 0: the bounds of a launch to the compiler."""
        return (self.threads * self.samples, self.resident)[: 2 if self.resident else 1]

    @property
    def apart(self) -> int:
        """Numbers from one of a thread's vectors to the next."""
        return self.threads * self.blocks * self.width

    @property
    def capacity(self) -> int:
        """Numbers that the threads of a sample hold at a time."""
        return self.vectors * self.apart


@cache
def reader(geometry, storage):
    """read(pointer, start, step, first, classes, fits, filler, values) for arrays of this storage type.

    It reads the VECTORS of the thread whose first number has index `first` in its sample, which begins at
    pointer[start]. `fits` says whether VECTORS are ALIGNED.
    """
    VECTORS, WIDTH, APART, WHOLE = geometry.vectors, geometry.width, geometry.apart, VECTOR // ITEMSIZE[storage]
    ALIGNED, STRIDED = geometry.access == "aligned", geometry.access == "strided"

    @device
    def read(pointer, start, step, first, classes, fits, filler, values):
        pitch = step if STRIDED else 1  # a constant, so that addresses are one start and constants
        begin, before, room = start + first * pitch, np.int32(-first), np.int32(classes - first)
        for v in range(VECTORS):
            if not STRIDED and fits and (v > 0 or ALIGNED or first >= 0) and v * APART + WIDTH <= room:
                for k in range(0, WIDTH, WHOLE):
                    load(pointer, begin + (v * APART + k), values, v * WIDTH + k)
            elif ALIGNED:
                for k in range(WIDTH):
                    values[v * WIDTH + k] = filler
            else:
                for k in range(WIDTH):
                    i = v * APART + k
                    values[v * WIDTH + k] = get(pointer, begin + i * pitch) if before <= i < room else filler

    return read


@cache
def writer(geometry, storage):
    """write(pointer, start, step, first, classes, fits, values), the way back."""
    VECTORS, WIDTH, APART, WHOLE = geometry.vectors, geometry.width, geometry.apart, VECTOR // ITEMSIZE[storage]
    ALIGNED, STRIDED = geometry.access == "aligned", geometry.access == "strided"

    @device
    def write(pointer, start, step, first, classes, fits, values):
        pitch = step if STRIDED else 1  # a constant, so that addresses are one start and constants
        begin, before, room = start + first * pitch, np.int32(-first), np.int32(classes - first)
        for v in range(VECTORS):
            if not STRIDED and fits and (v > 0 or ALIGNED or first >= 0) and v * APART + WIDTH <= room:
                for k in range(0, WIDTH, WHOLE):
                    store(pointer, begin + (v * APART + k), values, v * WIDTH + k)
            elif not ALIGNED:
                for k in range(WIDTH):
                    i = v * APART + k
                    if before <= i < room:
                        put(pointer, begin + i * pitch, values[v * WIDTH + k])

    return write


def number_type(storage):
    """The type that such numbers are computed in."""
    return np.float64 if storage == "float64" else np.float32


@cache
def finder(geometry):
    """find(sample, inner, strides): where a sample begins; those with contiguous classes have one stride.

    A division of 64-bit numbers takes as long as ten classes.
    """
    STRIDED = geometry.access == "strided"

    @device
    def find(sample, inner, strides):
        if STRIDED:
            return sample // inner * strides[0] + sample % inner * strides[2]
        return sample * strides[0]

    return find


@cache
def placer(geometry):
    """place(): the sample of this thread, which may be beyond the last one, and its place among that one's threads."""
    THREADS, SAMPLES, BLOCKS = geometry.threads, geometry.samples, geometry.blocks
    SHIFT = THREADS.bit_length() - 1  # as the compiler does not know that indices are not negative

    @device
    def place():
        block, thread = cuda.blockIdx.x, cuda.threadIdx.x
        if BLOCKS > 1:
            return block // BLOCKS, (block & (BLOCKS - 1)) * THREADS + thread
        if SAMPLES > 1:
            return block * SAMPLES + (thread >> SHIFT), thread & (THREADS - 1)
        return block, thread

    return place
