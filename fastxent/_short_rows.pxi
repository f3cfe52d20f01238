# Many samples at a time whose classes lie side by side, enough of them to fill registers: each row is computed with where
# it lies, and only what it adds up to is transposed, for the formulas of `_lane_operations.pxi`.
#
# This is for AVX-512 and floats, whose masks leave no tail of a row to be computed number by number.

cdef extern from "_simd.h" nogil:
    void fx_row_maxima(const float* x, Py_ssize_t classes, float* part)
    int fx_row_exponentials(
        const float* x, Py_ssize_t classes, float top, float* e, float* part, const char* ahead
    )
    void fx_scale_row(const float* e, Py_ssize_t classes, float factor, float* result)

cdef enum:
    PART = 16  # numbers of a row side by side, which are taken together in lanes of their own
    LEAST_SHORT = 48  # with fewer, transposing all of a row is no more than transposing its parts
    MOST_SHORT = 512  # with more, a row's own sums and logarithm cost less than a tile that fills the cache
    STORED = 4  # rows stored at a time: of most numbers of classes these end where a cache line does


cdef inline bint are_short_rows(const Job* job) noexcept nogil:
    """Whether lanes hold samples that lie in rows, and nothing but the label makes their targets."""
    return (
        FX_EXP_LANES and job.x.step == 1 and job.x.storage != FLOAT64
        and LEAST_SHORT <= job.classes <= MOST_SHORT and not is_dense(job)
        and (job.operation == CROSS_ENTROPY or job.operation == SOFTMAX or job.operation == LOGSUMEXP)
    )


cdef inline void scan_short_rows(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* state, Work* work
) noexcept nogil:
    """As `scan_tile`; `tile` is left holding exp(x - top), row by row, each put where a result that is late has been."""
    cdef real parts[PART * LANES]
    cdef real ones[LANES]
    cdef const char* sample = sample_at(&job.x, job.inner, first)
    cdef Py_ssize_t lane, label, stride = lane_step(&job.x, job) * job.x.itemsize
    cdef const real* x
    cdef bint plain = is_plain(&job.x, tile)
    set_lanes(ones, <real>1)
    for lane in range(count, LANES):
        set_part(parts + lane * PART)
    for lane in range(count):
        x = <const real*>(sample + lane * stride) if plain else tile + lane * job.classes
        if not plain:
            if lane % STORED == 0:
                finish_late_rows(job, lane, lane + STORED, tile, state, work)
            load_any(&job.x, sample + lane * stride, 1, job.classes, tile + lane * job.classes)
        row_maxima(x, job.classes, parts + lane * PART)
        label = <Py_ssize_t>state[LABEL + lane] if job.labels != NULL else -1
        state[BELOW + lane] = x[label] if label >= 0 else <real>0
    take_parts(parts, True, state + TOP)
    for lane in range(count):
        if plain and lane % STORED == 0:
            finish_late_rows(job, lane, lane + STORED, tile, state, work)
        x = <const real*>(sample + lane * stride) if plain else tile + lane * job.classes
        ones[lane] = row_exponentials(
            x, job.classes, finite_top(state[TOP + lane]), tile + lane * job.classes, parts + lane * PART,
            sample + lane * stride + max(2 * AHEAD, count * stride),
        )
    finish_late_rows(job, (count + STORED - 1) // STORED * STORED, LANES, tile, state, work)
    take_parts(parts, False, state + REST)
    for lane in range(LANES):
        state[REST + lane] += ones[lane] - 1  # all but one
        state[LOST + lane] = state[MASS + lane] = state[CROSS + lane] = 0


cdef inline void set_part(real* part) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(PART):
        part[i] = 0


cdef inline void row_maxima(const real* x, Py_ssize_t classes, real* part) noexcept nogil:
    """The largest logits, nan passed over."""
    if real is float:
        fx_row_maxima(x, classes, part)


cdef inline real row_exponentials(
    const real* x, Py_ssize_t classes, real top, real* e, real* part, const char* ahead
) noexcept nogil:
    """e = exp(x - top), which may replace x; the sums of those below 1, and how many are 1."""
    if real is float:
        return <real>fx_row_exponentials(x, classes, top, e, part, ahead)
    else:
        return 0


cdef inline void take_parts(const real* parts, bint maxima, real* lanes) noexcept nogil:
    """The largest or the sum of each lane's parts, two by two."""
    cdef real turned[PART * LANES]
    cdef real* other
    cdef Py_ssize_t i, lane, half = PART // 2
    rows_to_tile(parts, PART, PART, LANES, turned)
    while half:
        for i in range(half):
            other = turned + (i + half) * LANES
            for lane in range(LANES):
                if maxima:
                    turned[i * LANES + lane] = larger(other[lane], turned[i * LANES + lane])
                else:
                    turned[i * LANES + lane] += other[lane]
        half //= 2
    for lane in range(LANES):
        lanes[lane] = turned[lane]


cdef inline void finish_short_rows(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* state, Work* work
) noexcept nogil:
    """Store the results; those that go past the cache during the next scan, so that memory is written meanwhile."""
    cdef Py_ssize_t i
    if not job.streamed:
        finish_rows(job, first, 0, count, tile, state + LABEL, work)
        return
    for i in range(3 * LANES):
        state[LATE + i] = state[LABEL + i]
    work.late_first, work.late_count = first, count


cdef inline void finish_late_rows(
    const Job* job, Py_ssize_t begin, Py_ssize_t end, real* tile, const real* state, Work* work
) noexcept nogil:
    end = min(end, work.late_count)
    while begin < end:
        finish_rows(job, work.late_first, begin, min(end, begin + STORED), tile, state + LATE, work)
        begin += STORED


cdef inline void finish_rows(
    const Job* job, Py_ssize_t first, Py_ssize_t begin, Py_ssize_t end, real* tile, const real* found, Work* work
) noexcept nogil:
    """From exp(x - top) to factor * exp(x - top); gradients with a patch for the label, or for a skipped sample's all."""
    cdef const real* labels = found
    cdef const real* factor = found + FACTOR - LABEL
    cdef const real* patch = found + PATCH - LABEL
    cdef Sink* sink = &work.sink if job.streamed else NULL
    cdef char* result = sample_at(&job.out, job.inner, first)
    cdef Py_ssize_t lane, stride = lane_step(&job.out, job) * job.out.itemsize
    cdef bint direct = is_plain(&job.out, tile) and sink == NULL
    cdef bint together = sink != NULL and stride == job.classes * job.out.itemsize
    cdef real* row
    for lane in range(begin, end):
        row = <real*>(result + lane * stride) if direct else tile + lane * job.classes
        scale_row(tile + lane * job.classes, job.classes, factor[lane], row)
        if job.operation == CROSS_ENTROPY and labels[lane] >= 0:
            row[<Py_ssize_t>labels[lane]] = patch[lane]
        elif job.operation == CROSS_ENTROPY:
            fill_row(row, job.classes, patch[lane])
        if not (direct or together):
            store_any(&job.out, result + lane * stride, job.out.step, job.classes, row, sink)
    if together:
        row = tile + begin * job.classes
        store_any(&job.out, result + begin * stride, 1, (end - begin) * job.classes, row, sink)


cdef inline void scale_row(const real* e, Py_ssize_t classes, real factor, real* result) noexcept nogil:
    if real is float:
        fx_scale_row(e, classes, factor, result)


cdef inline void fill_row(real* row, Py_ssize_t classes, real value) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(classes):
        row[j] = value
