# The gradient of one sample's softmax, from the exponentials that its scan has kept: at once, or late.
#
# Results that are stored past the cache are stored late: during the scan of the next sample, LANES numbers in each step
# of its loop over exponentials. So memory is written to while the processor computes.

cdef struct Softmax:  # a sample's gradient, as far as it is the same for all classes
    Row row
    double scale  # factor of all
    double share  # factor of the softmax: sum of the target, and what z_loss adds
    double z  # the latter
    Py_ssize_t k  # class whose gradient is computed apart: the label, or the likeliest; -1 for none
    double e_k  # exp(x_k - top)
    double hot  # its target, apart from q
    const Dense* dense  # NULL if there is only a label
    void* kept  # exp(x - tops[b]) of all blocks b; NULL if it has to be computed again
    double tops[MAX_KEPT]


cdef struct Turns:  # two samples, for gradients that are late
    Softmax samples[2]
    int now  # the one that is scanned
    Py_ssize_t before  # number of the other one, whose gradient is still to be stored; -1 for none
    Sink* sink


cdef inline Py_ssize_t room(const Job* job) noexcept nogil:
    """For a sample's exponentials, in whole cache lines."""
    return (job.classes + LANES - 1) // LANES * LANES


cdef inline real* kept_exponentials(
    const Job* job, Py_ssize_t s, real* block, real* scratch, const Turns* turns
) noexcept nogil:
    """Where a row keeps exp(x - top): in its own result, in a block or in scratch; NULL if it is too long for that.

    If gradients are late, each step of the scan replaces the row before, of which it has just made the gradient.
    Computing them again costs 15 to 50 % more than reading them from cache.
    """
    if turns == NULL and job.direct and job.blocks <= MAX_KEPT:
        return <real*>sample_at(&job.out, job.inner, s)
    return block if turns == NULL and job.blocks == 1 else scratch


cdef inline double slope(const Softmax* p, Py_ssize_t b) noexcept nogil:
    """What the b-th block's exponentials are to be multiplied by."""
    cdef double factor = p.scale * p.share / (1 + p.row.rest)
    return factor * exp_double(p.tops[b] - p.row.top) if p.kept != NULL and p.tops[b] != p.row.top else factor


cdef inline double gradient_of_k(const Softmax* p, double t_k) noexcept nogil:
    """The gradient of class k, of whose target `t_k` is the part in q.

    p_k - 1 is computed as minus the sum of the other probabilities, which keeps tiny gradients exact.
    """
    cdef double rest = p.row.rest
    return p.scale * ((p.row.mass - t_k + p.z) * p.e_k - (p.hot + t_k) * (rest + (1 - p.e_k))) / (1 + rest)


cdef inline double gradient_scale(const Job* job, Py_ssize_t s, const real* _like) noexcept nogil:
    return job.factor * (<const real*>job.scale.data)[s * job.scale.step]


cdef inline void softmax_gradient(
    const Job* job, Py_ssize_t s, Softmax* p, real* block, Work* work, Turns* turns
) noexcept nogil:
    p.scale = gradient_scale(job, s, block)
    if turns != NULL:
        turns.before, turns.now = s, 1 - turns.now
    elif job.split:
        gradient_split(job, s, p, block)
    else:
        gradient_blocks(job, s, 0, job.blocks, p, block, work)


# --- at once -----------------------------------------------------------------------------------------------------


cdef inline real* result_block(const Job* job, Py_ssize_t s, Py_ssize_t b, real* block) noexcept nogil:
    return <real*>sample_at(&job.out, job.inner, s) + b * BLOCK if job.direct else block


cdef inline void scaled_exponentials(
    const Job* job, Py_ssize_t s, Py_ssize_t b, const Softmax* p, real* block
) noexcept nogil:
    """block = slope * exp(x - top), or the same where the result goes if that is possible."""
    cdef Py_ssize_t j, count = min(job.classes - b * BLOCK, BLOCK)
    cdef real* result = result_block(job, s, b, block)
    cdef const real* e = block
    cdef real scale = <real>slope(p, b)
    cdef Ahead none = ahead_of(NULL, 0, 0)
    if p.kept == NULL:
        block_exp_sum(
            logits_block(&job.x, sample_at(&job.x, job.inner, s), b, job.classes, block), count, <real>p.row.top,
            block, &none, NULL,
        )
    else:
        e = <const real*>p.kept + b * BLOCK
    for j in range(count):
        result[j] = scale * e[j]


cdef inline void gradient_blocks(
    const Job* job, Py_ssize_t s, Py_ssize_t first, Py_ssize_t last, const Softmax* p, real* block, Work* work
) noexcept nogil:
    """scale * (share p_j - t_j) for some blocks, with class k apart."""
    cdef real minus = <real>-p.scale, keep = job.keep, spread = job.spread
    cdef const real* target
    cdef const real* weight
    cdef double t_k
    cdef real* result
    cdef Py_ssize_t b, j
    for b in range(first, last):
        if is_stopped_at(job.watch, b):
            break
        scaled_exponentials(job, s, b, p, block)
        result = result_block(job, s, b, block)
        t_k = 0
        if p.dense != NULL:
            target, weight = target_block(job, s, b, p.dense, block), weight_block(job, b, p.dense, block)
            if 0 <= p.k - b * BLOCK < BLOCK:
                t_k = smoothed(weight[p.k - b * BLOCK], keep, target[p.k - b * BLOCK], spread)
            for j in range(min(job.classes - b * BLOCK, BLOCK)):
                result[j] += minus * smoothed(weight[j], keep, target[j], spread)
        if 0 <= p.k - b * BLOCK < BLOCK:
            result[p.k - b * BLOCK] = <real>gradient_of_k(p, t_k)
        if not job.direct:
            write(job, s, b, block, work)


# --- late --------------------------------------------------------------------------------------------------------


cdef inline bint can_be_late(const Job* job) noexcept nogil:
    """Whether a sample's exponentials fit in cache, and nothing else makes the gradient."""
    cdef Py_ssize_t size = 8 if job.x.storage == FLOAT64 else 4
    return (
        job.streamed and not (job.lanes or job.split or is_dense(job))
        and (job.operation == CROSS_ENTROPY or job.operation == SOFTMAX) and room(job) * size <= max_scratch
    )


cdef inline Behind behind_block(const Job* job, const Turns* turns, Py_ssize_t b, const real* _like) noexcept nogil:
    """The b-th block of the sample before; what no step of a loop can store is stored here.

    That is what comes before the first whole cache line, LANES numbers with the label's, and fewer at the end.
    """
    cdef const Softmax* p = &turns.samples[1 - turns.now]
    cdef Py_ssize_t after, count = min(job.classes - b * BLOCK, BLOCK), size = job.out.itemsize
    cdef real piece[LANES]
    cdef Behind behind
    behind.e = <const real*>p.kept + b * BLOCK
    behind.result = sample_at(&job.out, job.inner, turns.before) + b * BLOCK * size
    behind.storage = job.out.storage
    behind.slope = slope(p, b)
    behind.begin = min(count, <Py_ssize_t>(-<size_t>behind.result % 64 // size))
    behind.steps = (count - behind.begin) // LANES
    behind.apart = -1
    after = behind.begin + behind.steps * LANES
    make_piece(&behind, p, b, 0, piece)
    send(turns.sink, behind.result, <const char*>piece, behind.begin * size)
    if behind.begin <= p.k - b * BLOCK < after:
        behind.apart = (p.k - b * BLOCK - behind.begin) // LANES
        make_piece(&behind, p, b, behind.begin + behind.apart * LANES, piece)
        stream_bytes(behind.result + (behind.begin + behind.apart * LANES) * size, <const char*>piece, LANES * size)
    follow(turns.sink, behind.result + after * size)
    make_piece(&behind, p, b, after, piece)
    send(turns.sink, behind.result + after * size, <const char*>piece, (count - after) * size)
    return behind


cdef inline void make_piece(
    const Behind* behind, const Softmax* p, Py_ssize_t b, Py_ssize_t begin, real* piece
) noexcept nogil:
    """LANES numbers as they are stored, class k's among them if it is there."""
    cdef const real* e = <const real*>behind.e + begin
    cdef Py_ssize_t lane, k = p.k - b * BLOCK - begin
    cdef real scale = <real>behind.slope
    cdef real numbers[LANES]
    for lane in range(LANES):
        numbers[lane] = scale * e[lane]
    if 0 <= k < LANES:
        numbers[k] = <real>gradient_of_k(p, 0)
    if behind.storage == FLOAT16:
        store(numbers, LANES, <half*>piece, 1)
    elif behind.storage == BFLOAT16:
        store(numbers, LANES, <bfloat16*>piece, 1)
    else:
        for lane in range(LANES):
            piece[lane] = numbers[lane]


cdef inline void catch_up(const Job* job, Turns* turns, const real* like) noexcept nogil:
    """Store the gradient that is late, if there is one."""
    cdef Behind behind
    cdef Py_ssize_t b, step
    for b in range(job.blocks if turns.before >= 0 else 0):
        behind = behind_block(job, turns, b, like)
        for step in range(behind.steps):
            store_behind(&behind, step, <real>behind.slope)
    turns.before = -1
