# What a kernel is to do, and one block of classes at a time of the arrays that it does it with.

cdef enum Operation:
    LOGSUMEXP
    SOFTMAX
    LOG_SOFTMAX
    SOFTMAX_VJP
    LOG_SOFTMAX_VJP
    CROSS_ENTROPY
    NLL
    CHECK_TARGET
    WEIGHTED_SUM

cdef enum:
    GRAIN = 32768  # elements in one task: about 5 us of work, below which a team of threads costs more than it gives
    SAMPLES = 8192  # per-sample numbers in one partial sum
    SUM_LANES = 32
    TOGETHER = 8  # samples, or tiles of them, in one task at least where those that follow on one another gain, but
    LEAST_TASKS = 64  # there should be so many tasks
    MAX_TASKS = 1024  # more samples make them, or the partial sums, longer
    PENDING = 16  # rows whose losses are computed together, at most

cdef enum:
    MAX_KEPT = 256  # blocks whose tops are remembered: a million classes
    LEAST_SCRATCH = 1 << 18  # bytes, a part of any second-level cache

cdef extern from * nogil:
    """
    #if defined(__unix__) || defined(__APPLE__)
    #include <unistd.h>
    #endif
    static ptrdiff_t fx_second_cache(void) {
    #ifdef _SC_LEVEL2_CACHE_SIZE
        return sysconf(_SC_LEVEL2_CACHE_SIZE);
    #else
        return 0;
    #endif
    }
    """
    Py_ssize_t second_cache "fx_second_cache"()

# Bytes of exponentials that a thread keeps for a row's gradient: half of its second-level cache.
cdef Py_ssize_t max_scratch = max(<Py_ssize_t>LEAST_SCRATCH, second_cache() // 2)

cdef struct Tensor:
    char* data
    Py_ssize_t outer, step, inner  # strides in elements; step is the class axis's
    Py_ssize_t itemsize
    Storage storage

cdef struct Constants:  # a per-sample or per-class array, or one constant
    void* data
    Py_ssize_t step  # 0 for a constant

cdef struct Job:
    Operation operation
    Py_ssize_t samples, classes, inner
    Py_ssize_t blocks  # of BLOCK classes, for row kernels
    Py_ssize_t tile, tiles  # classes in a tile, and how many tiles, for lane kernels
    bint lanes  # whether lane kernels are to run
    bint precise  # for sums over samples: whether their numbers are doubles
    bint direct  # whether row kernels may compute where the result goes
    bint rows  # whether lane kernels compute with rows where they lie
    bint split  # whether the team works at one sample after the other
    int team  # threads, for that
    Watch* watch  # over the call
    bint scratch  # whether rows keep their exponentials in scratch memory
    bint late  # whether a sample's gradient is stored during the scan of the next one
    bint streamed  # whether the result is stored past the cache
    bint lines  # whether lane kernels store whole lines of it, side by side
    Py_ssize_t phase  # where in a cache line it begins
    Tensor x  # (outer, classes, inner): logits, log-probabilities or probabilities
    Tensor y  # (outer, classes, inner): target probabilities or the incoming gradient
    Tensor out  # (outer, classes, inner): result or gradient
    const int64_t* labels  # (samples,)
    Constants weight  # (classes,)
    Constants scale  # (samples,)
    void* per_sample  # (samples,): loss or log-sum-exp; NULL if losses are only summed
    double keep, spread, z_loss  # the target is keep * target + spread
    double factor  # of every sample's gradient
    int64_t ignore_index

cdef struct Losses:  # of rows that wait for their logarithms, which are taken together
    Py_ssize_t count
    Py_ssize_t samples[PENDING]
    double top[PENDING]
    double rest[PENDING]
    double mass[PENDING]
    double cross[PENDING]
    double hot[PENDING]
    double below[PENDING]


cdef struct Work:  # what a task has under way
    double total[LANES]  # sum of the weighted losses; rows use the first
    double error[LANES]  # what rounding has taken from it
    Losses losses
    Sink sink
    Py_ssize_t late_first, late_count  # short rows whose results are still to be stored


cdef inline void add(double* total, double* error, double term) noexcept nogil:
    """Knuth's two-sum: total + error stays the exact sum."""
    cdef double before = total[0]
    cdef double after = before + term
    cdef double shift = after - before
    error[0] += (before - (after - shift)) + (term - shift)
    total[0] = after


cdef inline void add_sum(double* total, double* error, double other, double lost) noexcept nogil:
    """The same for what `add` has added up elsewhere."""
    add(total, error, other)
    error[0] += lost


cdef inline double settle(double total, double error) noexcept nogil:
    return total + error if not isinf(total) else total  # beside inf the error is nan


cdef inline double weighted(double value, double weight) noexcept nogil:
    return value * weight if value != 0 else 0  # the loss of an ignored sample, whatever its weight


cdef inline double settle_work(Work* work, Py_ssize_t lanes) noexcept nogil:
    """The sum of what has been added up in so many lanes, which start again from 0."""
    cdef double total = 0, error = 0
    cdef Py_ssize_t i
    for i in range(lanes):
        add_sum(&total, &error, work.total[i], work.error[i])
        work.total[i] = work.error[i] = 0
    return settle(total, error)


cdef inline double total_of(const double* sums, Py_ssize_t tasks) noexcept nogil:
    """The sums of all tasks, added up in their order."""
    cdef double total = 0, error = 0
    cdef Py_ssize_t task
    for task in range(tasks):
        add(&total, &error, sums[task])
    return settle(total, error)


# --- one block of one sample -------------------------------------------------------------------------------------


cdef inline char* sample_at(const Tensor* tensor, Py_ssize_t inner, Py_ssize_t s) noexcept nogil:
    if inner == 1:  # no division
        return tensor.data + s * tensor.outer * tensor.itemsize
    return tensor.data + ((s // inner) * tensor.outer + (s % inner) * tensor.inner) * tensor.itemsize


cdef inline void load_any(
    const Tensor* tensor, const char* source, Py_ssize_t step, Py_ssize_t count, real* block
) noexcept nogil:
    """`load` from an array of whatever type."""
    if tensor.storage == FLOAT32:
        load(<const float*>source, step, count, block)
    elif tensor.storage == FLOAT64:
        load(<const double*>source, step, count, block)
    elif tensor.storage == FLOAT16:
        load(<const half*>source, step, count, block)
    else:
        load(<const bfloat16*>source, step, count, block)


cdef inline void store_any(
    const Tensor* tensor, char* place, Py_ssize_t step, Py_ssize_t count, const real* block, Sink* sink
) noexcept nogil:
    """`store` into an array of whatever type; past the cache if there is a sink, for which `step` is 1."""
    cdef uint16_t narrowed[BLOCK]
    cdef char* target = place
    if sink != NULL and is_native(tensor, block):
        send(sink, place, <const char*>block, count * tensor.itemsize)
        return
    if sink != NULL:
        target = <char*>narrowed
    if tensor.storage == FLOAT32:
        store(block, count, <float*>target, step)
    elif tensor.storage == FLOAT64:
        store(block, count, <double*>target, step)
    elif tensor.storage == FLOAT16:
        store(block, count, <half*>target, step)
    else:
        store(block, count, <bfloat16*>target, step)
    if sink != NULL:
        send(sink, place, target, count * tensor.itemsize)


cdef inline Py_ssize_t read(
    const Tensor* tensor, const char* sample, Py_ssize_t b, Py_ssize_t classes, real* block, real filler
) noexcept nogil:
    """Widen the b-th BLOCK of a sample's classes; returns the filled length."""
    cdef Py_ssize_t count = min(classes - b * BLOCK, BLOCK)
    cdef const char* source = sample + b * BLOCK * tensor.step * tensor.itemsize
    load_any(tensor, source, tensor.step, count, block)
    return fill_up(block, count, filler)


cdef inline bint is_plain(const Tensor* tensor, const real* _like) noexcept nogil:
    """Whether a sample's classes can be computed with where they lie."""
    return tensor.step == 1 and is_native(tensor, _like)


cdef inline bint is_native(const Tensor* tensor, const real* _like) noexcept nogil:
    return tensor.storage == FLOAT32 if real is float else tensor.storage == FLOAT64


cdef inline const real* logits_block(
    const Tensor* tensor, const char* sample, Py_ssize_t b, Py_ssize_t classes, real* block
) noexcept nogil:
    """The b-th BLOCK of a sample's classes: where they lie if they can be computed with there, else in `block`."""
    if is_plain(tensor, block):
        return <const real*>sample + b * BLOCK
    read(tensor, sample, b, classes, block, <real>0)
    return block


cdef inline void write(const Job* job, Py_ssize_t s, Py_ssize_t b, const real* block, Work* work) noexcept nogil:
    """The b-th BLOCK of a sample's results."""
    cdef const Tensor* out = &job.out
    cdef char* place = sample_at(out, job.inner, s) + b * BLOCK * out.step * out.itemsize
    cdef Py_ssize_t count = min(job.classes - b * BLOCK, BLOCK)
    store_any(out, place, out.step, count, block, &work.sink if job.streamed else NULL)


cdef inline double read_one(const Tensor* tensor, const char* sample, Py_ssize_t j) noexcept nogil:
    cdef double value
    cdef const char* source = sample + j * tensor.step * tensor.itemsize
    if tensor.storage == FLOAT32:
        return (<const float*>source)[0]
    elif tensor.storage == FLOAT64:
        return (<const double*>source)[0]
    elif tensor.storage == FLOAT16:
        return half_to_float((<const half*>source).bits)
    return float_from(<uint32_t>(<const bfloat16*>source).bits << 16)


cdef struct Row:  # what one pass over a sample's classes finds
    double top  # the largest logit
    Py_ssize_t at  # its class, found for target probabilities only
    double rest  # sum of exp(x - top) over the other classes
    double mass  # sum of q, the target distribution times class weights (without the hot label)
    double cross  # sum of q * (x - top)


cdef struct Dense:  # a target with a number for every class: weight * (keep * target + spread)
    double keep, spread
    void* weights  # a block of them, where all are the same
    void* targets  # room for a block; zeros where only a label is known


cdef inline Ahead block_ahead(
    const Tensor* tensor, const char* sample, Py_ssize_t b, Py_ssize_t classes
) noexcept nogil:
    """What to fetch during a pass over the b-th block: as much of the next one, or of the sample after the next."""
    cdef Py_ssize_t size = LANES * tensor.itemsize
    cdef Py_ssize_t distance = max(<Py_ssize_t>AHEAD // 2, min(<Py_ssize_t>AHEAD, 2 * classes * tensor.itemsize))
    cdef bint fetches = tensor.storage != NO_ARRAY and tensor.step == 1
    return ahead_of(sample + b * BLOCK * tensor.itemsize + distance, size, size // 64 if fetches else 0)


cdef inline const real* weight_block(const Job* job, Py_ssize_t b, const Dense* dense, const real* _like) noexcept nogil:
    return <const real*>job.weight.data + b * BLOCK if job.weight.step else <const real*>dense.weights


cdef inline const real* target_block(
    const Job* job, Py_ssize_t s, Py_ssize_t b, const Dense* dense, const real* _like
) noexcept nogil:
    cdef const char* sample = sample_at(&job.y, job.inner, s)
    if job.y.storage == NO_ARRAY:
        return <const real*>dense.targets
    return logits_block(&job.y, sample, b, job.classes, <real*>dense.targets)


cdef inline bint is_dense(const Job* job) noexcept nogil:
    return (job.operation == CROSS_ENTROPY or job.operation == NLL) and (
        job.y.storage != NO_ARRAY or job.spread != 0
    )


cdef inline Dense prepare_dense(const Job* job, real* weights, real* targets) noexcept nogil:
    """The two blocks, filled for all samples of a task."""
    cdef Dense dense
    cdef real weight = 0
    cdef Py_ssize_t j, count = min(job.classes, BLOCK)
    dense.keep, dense.spread, dense.weights, dense.targets = job.keep, job.spread, weights, targets
    if job.weight.data != NULL:
        weight = (<const real*>job.weight.data)[0]
    for j in range(count):
        weights[j] = weight
        targets[j] = 0
    return dense
