"""Compiled kernels: one pass over each sample's classes, forward and gradient together.

Arrays arrive checked, as (outer, classes, inner) views with any strides; sample s = outer index * inner + inner index.
Per-sample arrays are contiguous, of length n = outer * inner; `weight` is per class. Either may have length 1, which
stands for a constant. int16 and uint16 hold the bits of float16 and bfloat16. The names, signatures and results are
those of `_backends.Kernels`, which documents them; `reference.py` says what they compute.

This file is compiled once per instruction-set level (see setup.py), so nothing in it may depend on one.
"""

cimport numpy as cnp
from libc.stdlib cimport free, malloc
from libc.string cimport memset

include "_numbers.pxi"
include "_blocks.pxi"
include "_watch.pxi"
include "_job.pxi"
include "_gradient.pxi"
include "_rows.pxi"
include "_split.pxi"
include "_tiles.pxi"
include "_lanes.pxi"
include "_short_rows.pxi"
include "_lane_operations.pxi"
include "_few_classes.pxi"
include "_tasks.pxi"
include "_terms.pxi"
include "_elementwise.pxi"

cnp.import_array()

cdef enum:
    FEW_SAMPLES = 8  # up to here samples of very many classes are split
    STREAM_BYTES = 1 << 23  # results of this size pass the cache by: with the logits they would not fit in most
    MAX_LANE_CLASSES = 1 << 24  # lane kernels keep class numbers in the computing type

cdef extern from *:
    """
    #ifndef FASTXENT_FLAGS
    #define FASTXENT_FLAGS "unknown"
    #endif
    #if defined(__clang__)
    #define FASTXENT_COMPILER "Clang " __clang_version__
    #elif defined(__GNUC__)
    #define FASTXENT_COMPILER "GCC " __VERSION__
    #else
    #define FASTXENT_COMPILER "other"
    #endif
    """
    const char* FASTXENT_FLAGS
    const char* FASTXENT_COMPILER
    const bint FX_THREADS

BUILD = {
    "compiler": FASTXENT_COMPILER.decode(),
    "flags": FASTXENT_FLAGS.decode(),
    "threads": bool(FX_THREADS),
}


cdef Tensor as_tensor(cnp.ndarray a):
    cdef Tensor tensor
    cdef int kind = cnp.PyArray_TYPE(a)
    tensor.itemsize = cnp.PyArray_ITEMSIZE(a)
    tensor.data = cnp.PyArray_BYTES(a)
    tensor.outer = cnp.PyArray_STRIDE(a, 0) // tensor.itemsize
    tensor.step = cnp.PyArray_STRIDE(a, 1) // tensor.itemsize
    tensor.inner = cnp.PyArray_STRIDE(a, 2) // tensor.itemsize if cnp.PyArray_NDIM(a) > 2 else 0
    if kind == cnp.NPY_FLOAT32:
        tensor.storage = FLOAT32
    elif kind == cnp.NPY_FLOAT64:
        tensor.storage = FLOAT64
    elif kind == cnp.NPY_INT16:
        tensor.storage = FLOAT16
    elif kind == cnp.NPY_UINT16:
        tensor.storage = BFLOAT16
    else:
        raise TypeError(f"no kernel for arrays of {a.dtype}")
    return tensor


cdef Constants as_constants(cnp.ndarray a):
    cdef Constants constants
    constants.data = cnp.PyArray_DATA(a)
    constants.step = 0 if cnp.PyArray_SIZE(a) == 1 else 1
    return constants


cdef Job new_job(Operation operation, cnp.ndarray x, cnp.ndarray y, cnp.ndarray out):
    cdef Job job
    memset(&job, 0, sizeof(job))
    job.operation = operation
    job.inner = cnp.PyArray_DIM(x, 2) if cnp.PyArray_NDIM(x) > 2 else 1
    job.samples = cnp.PyArray_DIM(x, 0) * job.inner
    job.classes = cnp.PyArray_DIM(x, 1)
    if out is not None and operation < CROSS_ENTROPY and job.classes == 0:
        job.samples = 0  # an array of no bytes may well have 2^60
    job.blocks = (job.classes + BLOCK - 1) // BLOCK
    job.tile = TILE_CLASSES if out is None else MOST_CLASSES
    job.tiles = (job.classes + job.tile - 1) // job.tile
    job.inner = max(1, job.inner)
    job.x = as_tensor(x)
    if y is not None:
        job.y = as_tensor(y)
    if out is not None:
        job.out = as_tensor(out)
    job.lanes = use_lanes(&job)
    job.split = (
        job.samples <= FEW_SAMPLES and job.blocks > 2 * SEGMENT and not job.lanes
        and (operation == CROSS_ENTROPY or operation == SOFTMAX or operation == LOGSUMEXP)
    )
    cdef bint fits = job.classes * (8 if job.x.storage == FLOAT64 else 4) <= max_scratch
    job.streamed = (
        out is not None and (job.out.step == 1 or are_lines(&job))
        and job.out.data != job.x.data and job.out.data != job.y.data
        and (fits or job.operation != CROSS_ENTROPY and job.operation != SOFTMAX)
        and job.samples * job.classes * job.out.itemsize >= STREAM_BYTES
    )
    job.lines = job.streamed and job.out.step != 1
    job.phase = <size_t>job.out.data % CACHE_LINE // max(1, job.out.itemsize)
    if not job.streamed:
        job.direct = job.out.step == 1 and job.out.storage == (FLOAT64 if job.x.storage == FLOAT64 else FLOAT32)
    job.scratch = fits and job.blocks > 1 and out is not None and not (job.direct or job.lanes)
    return job


cdef bint are_lines(const Job* job) noexcept:
    """Whether results are written lane beside lane, at the same place in cache lines for all classes."""
    cdef Py_ssize_t apart = job.out.step * job.out.itemsize, outer = job.out.outer * job.out.itemsize
    return (
        job.lanes and lane_step(&job.out, job) == 1 and apart % CACHE_LINE == 0
        and (job.inner == 1 or outer % CACHE_LINE == 0)
    )


cdef bint use_lanes(const Job* job) noexcept:
    """Whether SIMD lanes run along samples rather than along classes."""
    if job.operation == NLL or job.classes > MAX_LANE_CLASSES:
        return False
    if job.x.step == 1 or job.classes == 1:
        return job.classes <= MOST_CLASSES
    return lane_step(&job.x, job) == 1 and (job.inner == 1 or job.inner >= LANES // 4)


cdef Job new_loss(
    Operation operation, cnp.ndarray x, cnp.ndarray target, cnp.ndarray weight, cnp.ndarray scale, int64_t ignore_index,
    double factor, cnp.ndarray loss, cnp.ndarray grad,
):
    cdef bint labelled = cnp.PyArray_NDIM(target) == 1
    cdef Job job = new_job(operation, x, None if labelled else target, grad)
    if labelled:
        job.labels = <const int64_t*>cnp.PyArray_DATA(target)
    job.weight = as_constants(weight)
    job.scale = as_constants(scale)
    if loss is not None:
        job.per_sample = cnp.PyArray_DATA(loss)
    job.ignore_index = ignore_index
    job.factor = factor
    job.keep = 1
    return job


def logsumexp(cnp.ndarray x, int num_threads, cnp.ndarray out):
    cdef Job job = new_job(LOGSUMEXP, x, None, None)
    job.per_sample = cnp.PyArray_DATA(out)
    with nogil:
        run(&job, num_threads)


def softmax(cnp.ndarray x, cnp.ndarray scale, int num_threads, cnp.ndarray out):
    cdef Job job = new_job(SOFTMAX, x, None, out)
    job.scale = as_constants(scale)
    job.factor = 1
    with nogil:
        run(&job, num_threads)


def log_softmax(cnp.ndarray x, int num_threads, cnp.ndarray out):
    cdef Job job = new_job(LOG_SOFTMAX, x, None, out)
    with nogil:
        run(&job, num_threads)


def softmax_vjp(cnp.ndarray grad_output, cnp.ndarray probs, int num_threads, cnp.ndarray out):
    cdef Job job = new_job(SOFTMAX_VJP, probs, grad_output, out)
    with nogil:
        run(&job, num_threads)


def log_softmax_vjp(cnp.ndarray grad_output, cnp.ndarray log_probs, int num_threads, cnp.ndarray out):
    cdef Job job = new_job(LOG_SOFTMAX_VJP, log_probs, grad_output, out)
    with nogil:
        run(&job, num_threads)


def cross_entropy(
    cnp.ndarray x, cnp.ndarray target, cnp.ndarray weight, cnp.ndarray scale, double label_smoothing, double z_loss,
    int64_t ignore_index, double factor, int num_threads, cnp.ndarray loss, cnp.ndarray grad,
):
    cdef double total
    cdef Job job = new_loss(CROSS_ENTROPY, x, target, weight, scale, ignore_index, factor, loss, grad)
    job.keep = 1 - label_smoothing
    job.spread = label_smoothing / job.classes
    job.z_loss = z_loss
    with nogil:
        total = run(&job, num_threads)
    return total


def nll(
    cnp.ndarray x, cnp.ndarray target, cnp.ndarray weight, cnp.ndarray scale, int64_t ignore_index, double factor,
    int num_threads, cnp.ndarray loss, cnp.ndarray grad,
):
    cdef double total
    cdef Job job = new_loss(NLL, x, target, weight, scale, ignore_index, factor, loss, grad)
    with nogil:
        total = run(&job, num_threads)
    return total


def check_target(
    cnp.ndarray target, cnp.ndarray weight, cnp.ndarray sample_weight, Py_ssize_t num_classes, int64_t ignore_index,
    int num_threads,
):
    cdef Job job
    cdef Py_ssize_t bad
    cdef double total
    memset(&job, 0, sizeof(job))
    job.operation = CHECK_TARGET
    job.precise = cnp.PyArray_TYPE(weight) == cnp.NPY_FLOAT64
    job.samples = cnp.PyArray_SIZE(target)
    job.classes = num_classes
    job.labels = <const int64_t*>cnp.PyArray_DATA(target)
    job.weight = as_constants(weight)
    job.scale = as_constants(sample_weight)
    job.ignore_index = ignore_index
    if job.samples <= SAMPLES:  # soon done: to let other threads run meanwhile would take as long
        total = run_chunks(&job, &bad, 1)
    else:
        with nogil:
            total = run_chunks(&job, &bad, num_threads)
    return bad, total


def weighted_sum(cnp.ndarray values, cnp.ndarray weight, int num_threads):
    cdef Job job
    cdef Py_ssize_t bad
    cdef double total
    memset(&job, 0, sizeof(job))
    job.operation = WEIGHTED_SUM
    job.precise = cnp.PyArray_TYPE(values) == cnp.NPY_FLOAT64
    job.samples = cnp.PyArray_SIZE(values)
    job.per_sample = cnp.PyArray_DATA(values)
    job.scale = as_constants(weight)
    with nogil:
        total = run_chunks(&job, &bad, num_threads)
    return total


def elementwise(
    str name, cnp.ndarray x, cnp.ndarray y, cnp.ndarray weight, cnp.ndarray pos_weight, cnp.ndarray scale,
    double factor, int num_threads, cnp.ndarray loss, cnp.ndarray grad,
):
    cdef Elements e
    cdef double total
    memset(&e, 0, sizeof(e))
    e.term = TERMS[name]
    e.outer, e.middle, e.inner = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2)
    e.x, e.weight, e.scale = as_tensor(x), as_tensor(weight), as_tensor(scale)
    if e.term != ENTROPY and e.term != OUTSIDE:
        e.y = as_tensor(y)
    if e.term == BCE_WITH_LOGITS:
        e.pos_weight = as_tensor(pos_weight)
    e.factor = factor
    e.depth, e.span = 1, min(e.inner, GRAIN)
    if loss is not None:
        e.loss = as_tensor(loss)
        if e.loss.inner == 0 and e.inner > 1:
            e.span = e.inner
        elif e.loss.step == 0 and e.middle > 1:
            e.depth, e.span = e.middle, min(e.inner, SPAN)
    if grad is not None:
        e.grad = as_tensor(grad)
        e.streamed = (
            e.grad.inner == 1 and e.grad.data != e.x.data and e.grad.data != e.y.data
            and cnp.PyArray_SIZE(x) * e.grad.itemsize >= STREAM_BYTES
        )
    if cnp.PyArray_SIZE(x) == 0:
        return 0.0
    with nogil:
        total = run_elements(&e, num_threads)
    return total
