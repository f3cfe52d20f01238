# Losses of one number and its target: blocks of elements, whatever the shape, and sums over one axis or all.
#
# Arrays are (outer, middle, inner) views with stride 0 where they are broadcast. A block lies along the inner axis.

cdef enum:
    SPAN = 1024  # elements in a block: six of them are 24 KiB of float32, which stay in L1

cdef enum Term:
    BCE_WITH_LOGITS
    BCE
    KL_DIV
    KL_DIV_LOG
    ENTROPY
    PROBS_CROSS_ENTROPY
    KL_DIVERGENCE
    OUTSIDE

TERMS = {
    "bce_with_logits": BCE_WITH_LOGITS,
    "bce": BCE,
    "kl_div": KL_DIV,
    "kl_div_log": KL_DIV_LOG,
    "entropy": ENTROPY,
    "probs_cross_entropy": PROBS_CROSS_ENTROPY,
    "kl_divergence": KL_DIVERGENCE,
    "outside": OUTSIDE,
}

cdef struct Elements:
    Term term
    Py_ssize_t outer, middle, inner
    Py_ssize_t depth  # blocks added up one over the other: `middle` where that axis is summed, else 1
    Py_ssize_t span  # elements along the inner axis in one piece of work
    bint streamed  # whether the gradient is stored past the cache
    Tensor x, y, weight, pos_weight, scale
    Tensor loss, grad
    double factor
    Watch* watch  # over the call


# --- one block ---------------------------------------------------------------------------------------------------


cdef inline char* element_at(const Tensor* tensor, Py_ssize_t o, Py_ssize_t m, Py_ssize_t i) noexcept nogil:
    return tensor.data + (o * tensor.outer + m * tensor.step + i * tensor.inner) * tensor.itemsize


cdef inline bint is_constant(const Tensor* tensor) noexcept nogil:
    return tensor.outer == tensor.step == tensor.inner == 0


cdef inline void fill_constant(const Tensor* tensor, double factor, real* buffer) noexcept nogil:
    """What the buffer of a constant holds during a task; 1 where there is no array."""
    cdef real value = <real>factor
    cdef Py_ssize_t j
    if tensor.storage != NO_ARRAY and is_constant(tensor):
        value = <real>(factor * (<const real*>tensor.data)[0])
    for j in range(SPAN):
        buffer[j] = value


cdef inline const real* elements(
    const Tensor* tensor, Py_ssize_t o, Py_ssize_t m, Py_ssize_t i, Py_ssize_t count, real* buffer
) noexcept nogil:
    """A block where it lies if it can be computed with there, else widened into the buffer."""
    cdef const char* source = element_at(tensor, o, m, i)
    if tensor.inner == 1 and is_native(tensor, buffer):
        return <const real*>source
    load_any(tensor, source, tensor.inner, count, buffer)
    return buffer


cdef inline void scaled(const real* scale, real factor, Py_ssize_t count, real* result) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(count):
        result[j] = factor * scale[j]


cdef inline void element_block(
    const Elements* e, Py_ssize_t o, Py_ssize_t m, Py_ssize_t i, Py_ssize_t count, real* buffers, real* f, Work* work
) noexcept nogil:
    """f = weight times the terms of a block, whose gradient is stored."""
    cdef real* g = buffers + 5 * SPAN
    cdef bint gradient = e.grad.storage != NO_ARRAY
    cdef const real* x = elements(&e.x, o, m, i, count, buffers)
    cdef const real* y = elements(&e.y, o, m, i, count, buffers + SPAN) if e.y.storage != NO_ARRAY else x
    cdef const real* weight = buffers + 2 * SPAN
    cdef const real* pos_weight = buffers + 3 * SPAN
    cdef const real* scale = buffers + 4 * SPAN
    if not is_constant(&e.weight):
        weight = elements(&e.weight, o, m, i, count, buffers + 2 * SPAN)
    if not is_constant(&e.pos_weight):
        pos_weight = elements(&e.pos_weight, o, m, i, count, buffers + 3 * SPAN)
    if gradient and not is_constant(&e.scale):
        scaled(elements(&e.scale, o, m, i, count, buffers + 4 * SPAN), <real>e.factor, count, buffers + 4 * SPAN)
    if e.term == BCE_WITH_LOGITS:
        bce_with_logits(x, y, weight, pos_weight, count, f, g)
        if gradient:
            bce_with_logits_gradient(x, y, weight, pos_weight, scale, count, g)
    elif e.term == BCE:
        bce(x, y, weight, count, f)
        if gradient:
            bce_gradient(x, y, weight, scale, count, g)
    elif e.term == KL_DIV:
        kl_div(x, y, weight, count, f)
        if gradient:
            kl_div_gradient(y, weight, scale, count, g)
    elif e.term == KL_DIV_LOG:
        kl_div_log(x, y, weight, count, f, g)
        if gradient:
            kl_div_gradient(g, weight, scale, count, g)
    elif e.term == ENTROPY:
        entropy(x, weight, count, f)
    elif e.term == PROBS_CROSS_ENTROPY:
        probs_cross_entropy(x, y, weight, count, f)
    elif e.term == KL_DIVERGENCE:
        kl_divergence(x, y, weight, count, f)
    else:
        outside(x, count, f)
    if gradient:
        store_any(
            &e.grad, element_at(&e.grad, o, m, i), e.grad.inner, count, g, &work.sink if e.streamed else NULL
        )


cdef inline void add_elements(const real* f, Py_ssize_t count, Work* work) noexcept nogil:
    """Into the sums, in double; with compensation only for doubles."""
    cdef Py_ssize_t j, lane
    for j in range(count // LANES):
        for lane in range(LANES):
            if real is float:
                work.total[lane] += f[j * LANES + lane]
            else:
                add(&work.total[lane], &work.error[lane], f[j * LANES + lane])
    for lane in range(count % LANES):
        add(&work.total[lane], &work.error[lane], f[count // LANES * LANES + lane])


# --- all elements ------------------------------------------------------------------------------------------------


cdef void element_piece(
    const Elements* e, Py_ssize_t o, Py_ssize_t m, Py_ssize_t begin, Py_ssize_t end, real* buffers, Work* work
) noexcept nogil:
    """One row from `begin` to `end`, or the rows of all of the middle axis added up."""
    cdef real f[SPAN]
    cdef double column[SPAN]
    cdef double total
    cdef Py_ssize_t i = begin, j, k, count
    while i < end:
        count = min(end - i, SPAN)
        if is_stopped_at(e.watch, i // SPAN):
            break
        for j in range(count if e.depth > 1 else 0):
            column[j] = 0
        for k in range(e.depth):
            if is_stopped_at(e.watch, k):
                break
            element_block(e, o, m + k, i, count, buffers, f, work)
            if e.loss.storage == NO_ARRAY or e.loss.inner == 0:
                add_elements(f, count, work)
            elif e.depth == 1:
                store_any(&e.loss, element_at(&e.loss, o, m, i), e.loss.inner, count, f, NULL)
            else:
                for j in range(count):
                    column[j] += f[j]
        if e.depth > 1:
            for j in range(count):
                f[j] = <real>column[j]
            store_any(&e.loss, element_at(&e.loss, o, m, i), e.loss.inner, count, f, NULL)
        i += count
    if e.loss.storage != NO_ARRAY and e.loss.inner == 0:
        total = settle_work(work, min(e.inner, <Py_ssize_t>LANES))
        (<real*>element_at(&e.loss, o, m, 0))[0] = <real>total


cdef double element_task(
    const Elements* e, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t spans, const real* _like
) noexcept nogil:
    """Some pieces; the sum of all of their elements, where that is asked for."""
    cdef real buffers[6 * SPAN]
    cdef Work work
    cdef Py_ssize_t piece, row, start, rows = e.middle // e.depth
    memset(&work, 0, sizeof(work))
    fill_constant(&e.weight, 1, buffers + 2 * SPAN)
    fill_constant(&e.pos_weight, 1, buffers + 3 * SPAN)
    fill_constant(&e.scale, e.factor, buffers + 4 * SPAN)
    for piece in range(begin, end):
        row = piece // spans
        start = piece % spans * e.span
        element_piece(e, row // rows, row % rows, start, min(start + e.span, e.inner), buffers, &work)
    if e.streamed:
        flush(&work.sink)
    return settle_work(&work, LANES)


cdef struct Pieces:  # what the tasks of a call have in common
    const Elements* e
    Py_ssize_t pieces, per_task
    Py_ssize_t spans  # pieces of a row
    double sums[MAX_TASKS]


cdef void do_pieces(void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef Pieces* p = <Pieces*>context
    cdef Py_ssize_t begin = task * p.per_task
    cdef Py_ssize_t end = min(begin + p.per_task, p.pieces)
    if task > 0 and is_stopped(p.e.watch):
        return
    if p.e.x.storage == FLOAT64:
        p.sums[task] = element_task(p.e, begin, end, p.spans, <const double*>NULL)
    else:
        p.sums[task] = element_task(p.e, begin, end, p.spans, <const float*>NULL)


cdef double run_elements(Elements* e, int num_threads) except? -1 nogil:
    """Deal the pieces out, in tasks whose bounds depend on the shape alone, and add up their sums in order."""
    cdef Pieces p
    cdef Watch watch = new_watch()
    cdef Py_ssize_t tasks
    p.e = e
    e.watch = &watch
    p.spans = (e.inner + e.span - 1) // e.span
    p.pieces = e.outer * (e.middle // e.depth) * p.spans
    p.per_task = max(max(1, GRAIN // (e.span * e.depth)), (p.pieces + MAX_TASKS - 1) // MAX_TASKS)
    tasks = (p.pieces + p.per_task - 1) // p.per_task
    deal(do_pieces, &p, tasks, num_threads)
    return -1 if watch.stopped else total_of(p.sums, tasks)
