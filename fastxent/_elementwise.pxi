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


# --- one element -------------------------------------------------------------------------------------------------


cdef inline real reciprocal(real u) noexcept nogil:
    """1 / u for u in [1, 2]: what Chebyshev gives within 1 %, and Newton; a division takes three times as long."""
    cdef real one = 1
    cdef real r = (<real>0.3232323232323232 * u - <real>1.4545454545454546) * u + <real>2.1212121212121211
    r += r * (one - u * r)
    r += r * (one - u * r)
    if real is double:
        r += r * (one - u * r)
    return r


cdef inline real log1p_unit(real e) noexcept nogil:
    """log(1 + e) for 0 <= e <= 1, within 1 ulp: a minimax polynomial, so that nothing depends on the size of e."""
    cdef real p
    if real is float:
        p = <float>-0.003318474015
        p = p * e + <float>0.02020458927
        p = p * e - <float>0.05766444755
        p = p * e + <float>0.1068055529
        p = p * e - <float>0.1535539578
        p = p * e + <float>0.196954002
        p = p * e - <float>0.2495858732
        p = p * e + <float>0.3333051131
        p = p * e - <float>0.4999993276
    else:
        p = -1.6598277914440267e-05
        p = p * e + 0.00019944056320965052
        p = p * e - 0.0011396118810021395
        p = p * e + 0.0041397308609861004
        p = p * e - 0.010807694136273416
        p = p * e + 0.02180784442503687
        p = p * e - 0.03587667690316385
        p = p * e + 0.05039004550401851
        p = p * e - 0.06310894739740852
        p = p * e + 0.07341389066784662
        p = p * e - 0.08212629025468092
        p = p * e + 0.09057469673792325
        p = p * e - 0.09992645708362773
        p = p * e + 0.11109849882529499
        p = p * e - 0.12499835187408333
        p = p * e + 0.1428569837158833
        p = p * e - 0.1666666557830351
        p = p * e + 0.1999999995041043
        p = p * e - 0.24999999998630903
        p = p * e + 0.3333333333331393
        p = p * e - 0.499999999999999
    return e + e * e * p


cdef inline void bce_with_logits(
    const real* x, const real* y, const real* weight, const real* pos_weight, Py_ssize_t count, real* f, real* e
) noexcept nogil:
    """(1 - y) softplus(x) + p y softplus(-x), a sum of terms of one sign; e = exp(-|x|)."""
    cdef real above, below, off, on, z, zero = 0, one = 1
    cdef Py_ssize_t j
    for j in range(count):
        z = x[j]
        off, on = one - y[j], pos_weight[j] * y[j]
        above, below = z if z > zero else zero, zero if z > zero else -z
        e[j] = exp_negative(<real>-(above + below))
        f[j] = weight[j] * (off * above + on * below + (off + on) * log1p_unit(e[j]))


cdef inline void bce_with_logits_gradient(
    const real* x, const real* y, const real* weight, const real* pos_weight, const real* scale, Py_ssize_t count,
    real* g,
) noexcept nogil:
    """(1 - y) sigmoid(x) - p y sigmoid(-x), from exp(-|x|)."""
    cdef real likely, unlikely, off, on, z, zero = 0, one = 1
    cdef Py_ssize_t j
    for j in range(count):
        z = x[j]
        off, on = one - y[j], pos_weight[j] * y[j]
        likely = reciprocal(one + g[j])
        unlikely = g[j] * likely
        g[j] = scale[j] * weight[j] * (
            off * (likely if z > zero else unlikely) - on * (unlikely if z > zero else likely)
        )


cdef inline void bce(const real* x, const real* y, const real* weight, Py_ssize_t count, real* f) noexcept nogil:
    """-y log x - (1 - y) log(1 - x), each logarithm at least -100."""
    cdef real p, log_p, log_rest, one = 1, least = -100
    cdef Py_ssize_t j
    for j in range(count):
        p = x[j]
        log_p = log_of(p)
        log_p = least if log_p < least else log_p
        log_rest = log1p_above(<real>-p)
        log_rest = least if log_rest < least else log_rest
        log_rest = least if p == one else log_rest
        f[j] = weight[j] * ((y[j] - one) * log_rest - y[j] * log_p)


cdef inline void bce_gradient(
    const real* x, const real* y, const real* weight, const real* scale, Py_ssize_t count, real* g
) noexcept nogil:
    """(x - y) / (x (1 - x)), the denominator at least 1e-12."""
    cdef real product, one = 1, least = 1e-12
    cdef Py_ssize_t j
    for j in range(count):
        product = x[j] * (one - x[j])
        product = least if product < least else product
        g[j] = scale[j] * weight[j] * ((x[j] - y[j]) / product)


cdef inline void kl_div(const real* x, const real* y, const real* weight, Py_ssize_t count, real* f) noexcept nogil:
    """y (log y - x), and 0 for y = 0."""
    cdef real p, term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        p = y[j]
        term = p * (log_of(p) - x[j])
        f[j] = weight[j] * (term if p != zero else zero)


cdef inline void kl_div_log(
    const real* x, const real* y, const real* weight, Py_ssize_t count, real* f, real* p
) noexcept nogil:
    """exp(y) (y - x), and 0 for exp(y) = 0; p = exp(y)."""
    cdef real q, term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        p[j] = exp_any(y[j])
    for j in range(count):
        q = p[j]
        term = q * (y[j] - x[j])
        f[j] = weight[j] * (term if q != zero else zero)


cdef inline void kl_div_gradient(
    const real* p, const real* weight, const real* scale, Py_ssize_t count, real* g
) noexcept nogil:
    """-p, the target's probability."""
    cdef Py_ssize_t j
    for j in range(count):
        g[j] = -scale[j] * weight[j] * p[j]


cdef inline void entropy(const real* x, const real* weight, Py_ssize_t count, real* f) noexcept nogil:
    """-x log x, and 0 for x = 0."""
    cdef real term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        term = -x[j] * log_of(x[j])
        f[j] = weight[j] * (term if x[j] != zero else zero)


cdef inline void probs_cross_entropy(
    const real* x, const real* y, const real* weight, Py_ssize_t count, real* f
) noexcept nogil:
    """-x log y, and 0 for x = 0."""
    cdef real term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        term = -x[j] * log_of(y[j])
        f[j] = weight[j] * (term if x[j] != zero else zero)


cdef inline void kl_divergence(
    const real* x, const real* y, const real* weight, Py_ssize_t count, real* f
) noexcept nogil:
    """x log(x / y), and 0 for x = 0; numbers close to each other by way of their difference, which is exact."""
    cdef real near, apart, term, zero = 0, half = 0.5, twice = 1.5
    cdef Py_ssize_t j
    for j in range(count):
        near = log1p_above(<real>((x[j] - y[j]) / y[j]))
        apart = log_of(x[j]) - log_of(y[j])
        term = x[j] * (near if half * y[j] < x[j] < twice * y[j] else apart)
        f[j] = weight[j] * (term if x[j] != zero else zero)


cdef inline void outside(const real* x, Py_ssize_t count, real* f) noexcept nogil:
    """0 in [0, 1], else 1, nan included."""
    cdef real zero = 0, one = 1, within
    cdef Py_ssize_t j
    for j in range(count):
        within = zero if x[j] <= one else one
        f[j] = within if x[j] >= zero else one


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
    cdef Py_ssize_t line
    for line in range(count * tensor.itemsize // 64 if tensor.inner == 1 else 0):
        prefetch(source + AHEAD + line * 64)
    if tensor.inner == 1 and is_native(tensor, buffer):
        return <const real*>source
    if tensor.storage == FLOAT32:
        load(<const float*>source, tensor.inner, count, buffer)
    elif tensor.storage == FLOAT64:
        load(<const double*>source, tensor.inner, count, buffer)
    elif tensor.storage == FLOAT16:
        load(<const half*>source, tensor.inner, count, buffer)
    else:
        load(<const bfloat16*>source, tensor.inner, count, buffer)
    return buffer


cdef inline void put_elements(
    const Tensor* tensor, Py_ssize_t o, Py_ssize_t m, Py_ssize_t i, Py_ssize_t count, const real* block, Sink* sink
) noexcept nogil:
    cdef uint16_t narrowed[SPAN]
    cdef char* place = element_at(tensor, o, m, i)
    cdef char* target = place
    if sink != NULL and is_native(tensor, block):
        send(sink, place, <const char*>block, count * tensor.itemsize)
        return
    if sink != NULL:
        target = <char*>narrowed
    if tensor.storage == FLOAT32:
        store(block, count, <float*>target, tensor.inner)
    elif tensor.storage == FLOAT64:
        store(block, count, <double*>target, tensor.inner)
    elif tensor.storage == FLOAT16:
        store(block, count, <half*>target, tensor.inner)
    else:
        store(block, count, <bfloat16*>target, tensor.inner)
    if sink != NULL:
        send(sink, place, target, count * tensor.itemsize)


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
        put_elements(&e.grad, o, m, i, count, g, &work.sink if e.streamed else NULL)


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


cdef inline double settle_work(Work* work) noexcept nogil:
    """The sum of what has been added up, which starts again from 0."""
    cdef double total = 0, error = 0
    cdef Py_ssize_t i
    for i in range(LANES):
        add(&total, &error, settle(work.total[i], work.error[i]))
        work.total[i] = work.error[i] = 0
    return settle(total, error)


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
        for j in range(count if e.depth > 1 else 0):
            column[j] = 0
        for k in range(e.depth):
            element_block(e, o, m + k, i, count, buffers, f, work)
            if e.loss.storage == NO_ARRAY or e.loss.inner == 0:
                add_elements(f, count, work)
            elif e.depth == 1:
                put_elements(&e.loss, o, m, i, count, f, NULL)
            else:
                for j in range(count):
                    column[j] += f[j]
        if e.depth > 1:
            for j in range(count):
                f[j] = <real>column[j]
            put_elements(&e.loss, o, m, i, count, f, NULL)
        i += count
    if e.loss.storage != NO_ARRAY and e.loss.inner == 0:
        total = settle_work(work)
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
    return settle_work(&work)


cdef double run_elements(const Elements* e, bint precise, int num_threads) noexcept nogil:
    """Deal the pieces out, in tasks whose bounds depend on the shape alone."""
    cdef double sums[MAX_TASKS]
    cdef double total = 0, error = 0
    cdef Py_ssize_t spans = (e.inner + e.span - 1) // e.span
    cdef Py_ssize_t pieces = e.outer * (e.middle // e.depth) * spans
    cdef Py_ssize_t per_task = max(1, GRAIN // max(1, e.span * e.depth)), tasks, task
    per_task = max(per_task, (pieces + MAX_TASKS - 1) // MAX_TASKS)
    tasks = (pieces + per_task - 1) // per_task
    cdef int team = <int>min(<Py_ssize_t>num_threads, tasks)
    if team <= 1:
        for task in range(tasks):
            sums[task] = some_elements(e, task * per_task, min((task + 1) * per_task, pieces), spans, precise)
    else:
        for task in prange(tasks, num_threads=team, schedule="dynamic", chunksize=1):
            sums[task] = some_elements(e, task * per_task, min((task + 1) * per_task, pieces), spans, precise)
    for task in range(tasks):
        add(&total, &error, sums[task])
    return settle(total, error)


cdef inline double some_elements(
    const Elements* e, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t spans, bint precise
) noexcept nogil:
    if precise:
        return element_task(e, begin, end, spans, <const double*>NULL)
    return element_task(e, begin, end, spans, <const float*>NULL)
