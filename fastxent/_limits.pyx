"""What this machine can do at best: streams through memory, and the arithmetic of a softmax on rows in L1.

Lower bounds for the benchmark to compare with, and nothing that the library uses. Like the kernels, this file is
compiled once per instruction-set level.
"""

cimport numpy as cnp
from libc.string cimport memcpy

include "_numbers.pxi"
include "_blocks.pxi"

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t fx_read(const char *from, size_t count) {
        uint64_t seen = 0, word;
        size_t i = 0, j;
        for (; i + 64 <= count; i += 64) {
            fx_prefetch(from + i + 16384); /* where pages are small, processors stop at their ends by themselves */
            for (j = 0; j < 64; j += 8) { memcpy(&word, from + i + j, 8); seen |= word; }
        }
        for (; i < count; i++) seen |= (unsigned char)from[i];
        return seen;
    }
    """
    uint64_t read_bytes "fx_read"(const char* source, size_t count)

cnp.import_array()

cdef enum:
    PIECE = 131072  # bytes that a thread takes at a time, as much as a task of the kernels
    ROW = 2048  # classes; a row and its exponentials are 16 KiB of float32, half of a 32 KiB L1
    ROWS = 16  # that a thread takes at a time

ROW_CLASSES = ROW  # for Python


def stream(cnp.ndarray source, cnp.ndarray out, bint past_caches, int num_threads):
    """Read `source` once; with `out`, contiguous like it and no smaller, also write it there."""
    cdef Stream stream
    stream.source = cnp.PyArray_BYTES(source)
    stream.target = NULL if out is None else cnp.PyArray_BYTES(out)
    stream.size = cnp.PyArray_NBYTES(source)
    stream.past_caches = past_caches
    stream.seen = 0
    with nogil:
        deal(do_piece, &stream, (stream.size + PIECE - 1) // PIECE, num_threads)
    return stream.seen


cdef struct Stream:
    const char* source
    char* target
    size_t size
    bint past_caches
    uint64_t seen  # what some piece had; keeps compilers from leaving the reading out


cdef void do_piece(void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef Stream* stream = <Stream*>context
    cdef size_t begin = task * PIECE
    cdef size_t size = min(<size_t>PIECE, stream.size - begin)
    cdef char* target = stream.target + begin if stream.target else NULL
    cdef uint64_t seen = stream_piece(stream.source + begin, target, size, stream.past_caches)
    if seen:
        stream.seen = seen


cdef inline uint64_t stream_piece(const char* begin, char* target, size_t size, bint past_caches) noexcept nogil:
    cdef Sink sink
    if target == NULL:
        return read_bytes(begin, size)
    if past_caches:
        sink.held, sink.next = 0, NULL
        send(&sink, target, begin, size)
        flush(&sink)
    else:
        memcpy(target, begin, size)
    return 0


def softmax_rows(Py_ssize_t rows, bint gradient, bint in_double, int num_threads):
    """The sum of exp(x - max) of a row in L1, worked out `rows` times; with `gradient` also its softmax."""
    cdef Repeat repeat
    repeat.rows, repeat.gradient, repeat.in_double = rows, gradient, in_double
    with nogil:
        deal(do_rows, &repeat, (rows + ROWS - 1) // ROWS, num_threads)
    return repeat.mean


cdef struct Repeat:
    Py_ssize_t rows
    bint gradient, in_double
    double mean  # of the rows of any task


cdef void do_rows(void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef Repeat* repeat = <Repeat*>context
    cdef Py_ssize_t rows = min(ROWS, repeat.rows - task * ROWS)
    if repeat.in_double:
        repeat.mean = repeat_row(rows, repeat.gradient, <double>0) / rows
    else:
        repeat.mean = repeat_row(rows, repeat.gradient, <float>0) / rows


cdef double repeat_row(Py_ssize_t rows, bint gradient, real _like) noexcept nogil:
    cdef real x[ROW]
    cdef real e[ROW]
    cdef double total = 0, rest
    cdef Py_ssize_t row, j
    for j in range(ROW):
        x[j] = -<real>j / (ROW // 8)
    for row in range(rows):
        x[ROW - 1] = -8 - <real>(row & 1)  # a row that changes, or compilers work it out once
        rest = exp_sum(x, block_max(x, ROW), e)
        if gradient:
            scale(e, <real>(1 / rest))
        total += rest
    return total


cdef inline double exp_sum(const real* x, real top, real* e) noexcept nogil:
    cdef real lanes[LANES]
    cdef real value
    cdef Py_ssize_t j, lane
    for lane in range(LANES):
        lanes[lane] = 0
    for j in range(ROW // LANES):
        for lane in range(LANES):
            value = exp_bare(x[j * LANES + lane] - top)
            e[j * LANES + lane] = value
            lanes[lane] += value
    return lanes_sum(lanes)


cdef inline void scale(real* e, real factor) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(ROW):
        e[j] *= factor


cdef inline real exp_bare(real x) noexcept nogil:
    """The least that rounding to a multiple of ln2 and a polynomial of full precision take; no care for any edge."""
    cdef real shifted, r
    if real is float:
        shifted = x * <float>1.4426950408889634 + <float>12582912.0
        r = x - (shifted - <float>12582912.0) * <float>0.6931471805599453
        return float_from(bits32(poly_float(r)) + (bits32(shifted) << 23))
    else:
        shifted = x * 1.4426950408889634 + 6755399441055744.0
        r = x - (shifted - 6755399441055744.0) * 0.6931471805599453
        return double_from(bits64(poly_double(r)) + (bits64(shifted) << 52))


cdef inline float poly_float(float r) noexcept nogil:
    cdef float p = <float>0.008368724
    p = p * r + <float>0.04166839
    p = p * r + <float>0.16666521
    p = p * r + <float>0.49999994
    p = p * r + 1
    return p * r + 1


cdef inline double poly_double(double r) noexcept nogil:
    cdef double p = 2.5e-08
    p = p * r + 2.755731922398589e-07
    p = p * r + 2.755731922398589e-06
    p = p * r + 2.48015873015873e-05
    p = p * r + 0.0001984126984126984
    p = p * r + 0.001388888888888889
    p = p * r + 0.008333333333333333
    p = p * r + 0.041666666666666664
    p = p * r + 0.16666666666666666
    p = p * r + 0.5
    p = p * r + 1
    return p * r + 1
