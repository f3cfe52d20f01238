"""How many threads share a sample, and how much of it each one holds: the tables, and what is chosen from them.

Threads hold their part of a sample in registers, of which each has at most 255 and all blocks of a multiprocessor
together 65536. So a sample is read once as long as its numbers fit there, with enough blocks beside each other that
some read while others compute or write.
"""

from functools import cache

from ._cuda_device import WARP
from ._cuda_tiles import ITEMSIZE, VECTOR, Geometry

BLOCK = 4 * WARP  # threads of a block whose samples are short
WIDEST = min(16, WARP) * WARP  # threads of a block that shares a sample
THREADS = 32 * WARP  # of a multiprocessor with 64 registers each
CLUSTERS = (2, 4, 8)  # blocks; more than 8 are not portable
HELD = 32 if WARP == 32 else 8  # numbers in a thread's registers, of which it has 64 then
# A warp holds twice as many for each thread: it waits for no other warp, so that fewer of them are enough.


@cache
def choose(classes, access, arrays, storages, clusters):
    """The geometry for samples of so many classes, of which a thread holds numbers of so many arrays.

    `storages` are the types of all that is read and written, and `clusters` says whether blocks can share a sample.
    """
    words = arrays * (2 if "float64" in storages else 1)  # registers for each number
    held = HELD // words
    if access == "strided":
        vectors = next((size for size in powers(1, held) if size >= classes), None)
        return Geometry(1, BLOCK, vectors or max(1, held // 4), 1, access, vectors is None, 1, 4)
    width = max(VECTOR // ITEMSIZE[storage] for storage in storages)
    needed = classes + (width if access == "peeled" else 0)
    for threads, vectors, blocks in sizes(max(1, held // width), clusters, arrays == 1):
        if width * threads * vectors * blocks >= needed:
            crowded = blocks > 1 and access == "peeled" and storages == ("float32",)
            fit = resident_blocks(threads, width * vectors * words, words, crowded)
            return Geometry(threads, groups(threads), vectors, width, access, False, blocks, fit)
    fit = 1 if "float64" in storages else 2 if arrays > 1 else 0  # else the compiler would choose too few registers
    few = max(1, held // width // arrays)
    return Geometry(WIDEST, 1, few, width, access, True, 1, fit)


def resident_blocks(threads, held, words, crowded):
    """Blocks on a multiprocessor for which registers are set aside, 0 if that is left to the compiler.

    For warps it would choose too few registers, and spill. For blocks it chooses 64 or fewer, so that two of the
    largest fit, and would spill if told so; but for clusters that share float32 samples, not aligned, it chooses more:
    those are `crowded`. held: registers with numbers in them; words: such registers for each class.
    """
    if threads > WARP:
        return THREADS // threads if crowded and held <= HELD else 0
    if held <= HELD // 2 and words < 4:
        return 8
    return 4 if held < HELD else 3


def sizes(most, clusters, deep):
    """(threads, vectors, blocks) that share a sample, by what they hold; threads of a block hold `most` vectors.

    With a single array, those of the largest cluster may hold twice as many, `deep`, which leaves room for one block.
    """
    few = min(2, most)
    yield from ((threads, few, 1) for threads in powers(1, WARP))
    yield from ((WARP, vectors, 1) for vectors in powers(2 * few, 2 * most))
    yield from ((threads, most, 1) for threads in powers(4 * WARP, WIDEST))
    yield from ((WIDEST, most, blocks) for blocks in CLUSTERS if clusters)
    yield from ((WIDEST, 2 * most, blocks) for blocks in CLUSTERS[-1:] if clusters and deep)


def groups(threads):
    """Samples in a block."""
    return BLOCK // threads if threads <= WARP else 1


def powers(first, last):
    """The first number, twice that, and so on."""
    while first <= last:
        yield first
        first *= 2


def lines(length, access, storages):
    """The geometry for single numbers: threads hold a vector of each array at a time."""
    if access == "strided":
        return Geometry(1, BLOCK, 1, 1, access, True, 1, 4)
    width = max(VECTOR // ITEMSIZE[storage] for storage in storages)
    threads = next((size for size in powers(1, 2 * BLOCK) if size * width >= length), 2 * BLOCK)
    return Geometry(threads, groups(threads), 1, width, access, True, 1, 2)
