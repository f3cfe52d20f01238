# Few samples of very many classes: the team works at one after the other, each thread at segments of its classes.
#
# Whether a sample is split, and where, depends on the shape alone, and what segments have found is put together in
# order, so that results do not depend on the number of threads.

cdef enum:
    SEGMENT = 16  # blocks: 65536 classes
    MAX_SEGMENTS = 256  # more classes make them longer


cdef struct Segments:
    const Job* job
    Py_ssize_t s
    Py_ssize_t length  # blocks
    const Softmax* p  # of the gradient
    bint dense  # of the scan, as what follows
    void* kept
    double* tops
    Row rows[MAX_SEGMENTS]


cdef inline Py_ssize_t segment_length(const Job* job) noexcept nogil:
    return max(<Py_ssize_t>SEGMENT, (job.blocks + MAX_SEGMENTS - 1) // MAX_SEGMENTS)


cdef inline void join_rows(Row* row, const Row* other) noexcept nogil:
    """What two parts of a sample have found."""
    cdef const Row* low = other
    cdef Row lower
    if other.top > row.top:
        lower = row[0]
        row[0] = other[0]
        low = &lower
    row.mass += low.mass
    row.cross += low.cross
    if low.top != -INFINITY:
        row.rest += (low.rest + 1) * exp_double(low.top - row.top)
        if low.mass != 0:  # the difference may overflow to inf
            row.cross -= low.mass * (row.top - low.top)
    else:
        row.rest += low.rest  # 0, or nan


cdef void scan_segment(const Segments* segments, Py_ssize_t i, const real* _like) noexcept nogil:
    cdef real block[BLOCK]
    cdef real weights[BLOCK]
    cdef real targets[BLOCK]
    cdef Dense dense = prepare_dense(segments.job, weights, targets)
    cdef Py_ssize_t first = i * segments.length, last = min(first + segments.length, segments.job.blocks)
    (<Segments*>segments).rows[i] = scan_blocks(
        segments.job, segments.s, first, last, block, &dense if segments.dense else NULL, <real*>segments.kept,
        segments.tops, NULL,
    )


cdef void do_scan(void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const Segments* segments = <const Segments*>context
    if is_stopped(segments.job.watch):
        return
    if segments.job.x.storage == FLOAT64:
        scan_segment(segments, task, <const double*>NULL)
    else:
        scan_segment(segments, task, <const float*>NULL)


cdef Row scan_split(const Job* job, Py_ssize_t s, bint dense, void* kept, double* tops) noexcept nogil:
    """`scan_blocks` over all blocks."""
    cdef Segments segments
    cdef Py_ssize_t i, count
    memset(&segments, 0, sizeof(segments))  # a call that is stopped leaves some out
    segments.job, segments.s, segments.dense, segments.kept, segments.tops = job, s, dense, kept, tops
    segments.length = segment_length(job)
    count = (job.blocks + segments.length - 1) // segments.length
    deal(do_scan, &segments, count, job.team)
    for i in range(1, count):
        join_rows(&segments.rows[0], &segments.rows[i])
    return segments.rows[0]


cdef void gradient_segment(const Segments* segments, Py_ssize_t i, const real* _like) noexcept nogil:
    cdef real block[BLOCK]
    cdef real weights[BLOCK]
    cdef real targets[BLOCK]
    cdef Work work
    cdef const Job* job = segments.job
    cdef Dense dense = prepare_dense(job, weights, targets)  # blocks that no other thread writes to
    cdef Softmax p = segments.p[0]
    p.dense = &dense if p.dense != NULL else NULL
    cdef Py_ssize_t first = i * segments.length, last = min(first + segments.length, job.blocks)
    memset(&work, 0, sizeof(work))
    gradient_blocks(job, segments.s, first, last, &p, block, &work)
    if job.streamed:
        flush(&work.sink)


cdef void do_gradient(void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const Segments* segments = <const Segments*>context
    if is_stopped(segments.job.watch):
        return
    if segments.job.x.storage == FLOAT64:
        gradient_segment(segments, task, <const double*>NULL)
    else:
        gradient_segment(segments, task, <const float*>NULL)


cdef void gradient_split(const Job* job, Py_ssize_t s, const Softmax* p, const real* _like) noexcept nogil:
    """`gradient_blocks` for all blocks."""
    cdef Segments segments
    segments.job, segments.s, segments.p = job, s, p
    segments.length = segment_length(job)
    deal(do_gradient, &segments, (job.blocks + segments.length - 1) // segments.length, job.team)
