# One sample at a time: a pass over its classes, block by block, then the formula of the operation.

cdef inline Row scan_blocks(
    const Job* job, Py_ssize_t s, Py_ssize_t first, Py_ssize_t last, real* block, const Dense* dense, real* kept,
    double* tops, Turns* turns,
) noexcept nogil:
    """One pass over some blocks: largest logit, sum of the other exponentials, and the target's cross terms.

    The sum leaves the largest term out, so that log1p(rest) and rest / (1 + rest) keep full precision where one class
    has nearly all the probability (Blanchard, Higham, Higham 2021, algorithm 4.1). Blocks are summed in double, and
    the sum is rescaled once per block that raises the maximum (Milakov, Gimelshein 2018).
    exp(x - top), with each block's own top, is left in `kept` unless that is NULL.
    """
    cdef Row row
    cdef Py_ssize_t b, count
    cdef double block_top, total
    cdef real top
    cdef real* e
    cdef const real* x
    cdef bint raised
    cdef const char* sample = sample_at(&job.x, job.inner, s)
    cdef Ahead ahead
    cdef Behind behind
    row.top = -INFINITY
    row.at = -1
    row.rest = row.mass = row.cross = 0
    for b in range(first, last):
        if is_stopped_at(job.watch, b):
            break
        count = min(job.classes - b * BLOCK, BLOCK)
        x = logits_block(&job.x, sample, b, job.classes, block)
        block_top = block_max(x, count)
        raised = block_top > row.top
        if raised:
            if row.top != -INFINITY:
                row.rest = (row.rest + 1) * exp_double(row.top - block_top)
                if row.mass != 0:  # the difference may overflow to inf
                    row.cross -= row.mass * (block_top - row.top)
            row.top = block_top
            if dense != NULL and job.labels == NULL:
                row.at = b * BLOCK + block_find(x, count, <real>block_top)
        top = <real>(row.top if row.top != -INFINITY else 0)
        if dense != NULL:
            ahead = block_ahead(&job.y, sample_at(&job.y, job.inner, s), b, job.classes)
            block_target(
                x, target_block(job, s, b, dense, block), weight_block(job, b, dense, block), count, top,
                <real>dense.keep, <real>dense.spread, &row.mass, &row.cross, &ahead,
            )
        ahead = block_ahead(&job.x, sample, b, job.classes)
        e = block if kept == NULL else kept + b * BLOCK
        if turns != NULL and turns.before >= 0:
            behind = behind_block(job, turns, b, block)
            total = block_exp_sum(x, count, top, e, &ahead, &behind)
        else:
            total = block_exp_sum(x, count, top, e, &ahead, NULL)
        row.rest += sum_but_largest(e, count, total) if raised else total
        tops[b % MAX_KEPT] = row.top
    return row


cdef inline Row scan(
    const Job* job, Py_ssize_t s, real* block, const Dense* dense, real* kept, double* tops, Turns* turns
) noexcept nogil:
    """All blocks of a sample; `rest` is nan if the largest logit is infinite."""
    cdef Row row
    if job.split:
        row = scan_split(job, s, dense != NULL, kept, tops)
    else:
        row = scan_blocks(job, s, 0, job.blocks, block, dense, kept, tops, turns)
        if turns != NULL:
            turns.before = -1
    if isinf(row.top):
        row.rest = NAN
    return row


cdef inline void logsumexp_sample(const Job* job, Py_ssize_t s, real* block, Work* work) noexcept nogil:
    """The loss of a target that is 1 where the logit would be 0."""
    cdef double tops[MAX_KEPT]
    cdef Row row = scan(job, s, block, NULL, <real*>NULL, tops, NULL)
    if isinf(row.top):
        (<real*>job.per_sample)[s] = <real>infinite_logsumexp(job, s, row.top)
        return
    row.mass, row.cross = 1, -row.top
    expect_loss(job, s, &row, 0, 0, work, block)


cdef inline double infinite_logsumexp(const Job* job, Py_ssize_t s, double top) noexcept nogil:
    """All -inf, or some inf: that, unless there is a nan."""
    cdef const char* sample = sample_at(&job.x, job.inner, s)
    cdef Py_ssize_t j
    for j in range(job.classes):
        if j % BLOCK == 0 and is_stopped_at(job.watch, j // BLOCK):
            break
        if isnan(read_one(&job.x, sample, j)):
            return NAN
    return top


cdef inline void softmax_sample(
    const Job* job, Py_ssize_t s, real* block, real* scratch, Work* work, Turns* turns
) noexcept nogil:
    """The gradient of cross-entropy without its target."""
    cdef real* kept = kept_exponentials(job, s, block, scratch, turns)
    cdef Softmax own
    cdef Softmax* p = &own if turns == NULL else &turns.samples[turns.now]
    p.kept, p.share, p.dense, p.k = kept, 1, NULL, -1
    p.row = scan(job, s, block, NULL, kept, p.tops, turns)
    softmax_gradient(job, s, p, block, work, turns)


cdef inline void log_softmax_sample(const Job* job, Py_ssize_t s, real* block, Work* work) noexcept nogil:
    cdef double tops[MAX_KEPT]
    cdef Row row = scan(job, s, block, NULL, <real*>NULL, tops, NULL)
    cdef real top = <real>row.top, log_total = <real>log1p_double(row.rest)
    cdef const char* sample = sample_at(&job.x, job.inner, s)
    cdef Py_ssize_t b, full, j
    for b in range(job.blocks):
        if is_stopped_at(job.watch, b):
            break
        full = read(&job.x, sample, b, job.classes, block, <real>0)
        for j in range(full):
            block[j] = (block[j] - top) - log_total
        write(job, s, b, block, work)


cdef inline void softmax_vjp_sample(const Job* job, Py_ssize_t s, real* p, real* g, Work* work) noexcept nogil:
    """p * (g - sum(g * p)); two passes over both arrays."""
    cdef const char* probs = sample_at(&job.x, job.inner, s)
    cdef const char* grad = sample_at(&job.y, job.inner, s)
    cdef Py_ssize_t b, full, j
    cdef double dot = 0
    for b in range(job.blocks):
        if is_stopped_at(job.watch, b):
            break
        full = read(&job.x, probs, b, job.classes, p, <real>0)
        read(&job.y, grad, b, job.classes, g, <real>0)
        dot += block_dot(p, g, full, <real>0)
    for b in range(job.blocks):
        if is_stopped_at(job.watch, b):
            break
        full = read(&job.x, probs, b, job.classes, p, <real>0)
        read(&job.y, grad, b, job.classes, g, <real>0)
        for j in range(full):
            p[j] = p[j] * (g[j] - <real>dot)
        write(job, s, b, p, work)


cdef inline void log_softmax_vjp_sample(const Job* job, Py_ssize_t s, real* p, real* g, Work* work) noexcept nogil:
    """g - exp(log_probs) * sum(g); two passes over g, one over log_probs."""
    cdef const char* log_probs = sample_at(&job.x, job.inner, s)
    cdef const char* grad = sample_at(&job.y, job.inner, s)
    cdef Py_ssize_t b, full, j
    cdef double total = 0
    for b in range(job.blocks):
        if is_stopped_at(job.watch, b):
            break
        full = read(&job.y, grad, b, job.classes, g, <real>0)
        total += block_sum(g, full)
    for b in range(job.blocks):
        if is_stopped_at(job.watch, b):
            break
        full = read(&job.x, log_probs, b, job.classes, p, <real>0)
        read(&job.y, grad, b, job.classes, g, <real>0)
        for j in range(full):
            g[j] = g[j] - exp_any(p[j]) * <real>total
        write(job, s, b, g, work)


cdef inline void put_loss(const Job* job, Py_ssize_t s, real loss, Work* work) noexcept nogil:
    """Where the caller wants it, or into the sum."""
    if job.per_sample != NULL:
        (<real*>job.per_sample)[s] = loss
    else:
        add(&work.total[0], &work.error[0], weighted(loss, (<const real*>job.scale.data)[s * job.scale.step]))


cdef inline void expect_loss(
    const Job* job, Py_ssize_t s, const Row* row, double hot, double below, Work* work, const real* like
) noexcept nogil:
    """mass (lse - top) - cross + z lse^2 + hot (lse - top - below), once there are PENDING logarithms to take."""
    cdef Losses* losses = &work.losses
    cdef Py_ssize_t i = losses.count
    losses.samples[i], losses.top[i], losses.rest[i] = s, row.top, row.rest
    losses.mass[i], losses.cross[i], losses.hot[i], losses.below[i] = row.mass, row.cross, hot, below
    losses.count = i + 1
    if losses.count == PENDING:
        settle_losses(job, work, like)


cdef void settle_losses(const Job* job, Work* work, const real* _like) noexcept nogil:
    cdef Losses* losses = &work.losses
    cdef double values[PENDING]
    cdef double log_total, lse
    cdef Py_ssize_t i
    for i in range(PENDING if losses.count else 0):  # what lies beyond the count does no harm
        log_total = log1p_double(losses.rest[i])
        lse = losses.top[i] + log_total
        values[i] = losses.mass[i] * log_total - losses.cross[i] + job.z_loss * lse * lse
        values[i] += losses.hot[i] * (log_total - losses.below[i])
    for i in range(losses.count):
        put_loss(job, losses.samples[i], <real>values[i], work)
    losses.count = 0


cdef inline void fill_sample(const Job* job, Py_ssize_t s, real value, real* block, Work* work) noexcept nogil:
    cdef Py_ssize_t b, j
    for j in range(min(job.classes, BLOCK)):
        block[j] = value
    for b in range(job.blocks):
        if is_stopped_at(job.watch, b):
            break
        write(job, s, b, block, work)


cdef inline bint skip_label(const Job* job, Py_ssize_t s, real* block, Work* work, Turns* turns) noexcept nogil:
    """Settle samples with an ignored label (0) or one that became invalid since it was checked (nan)."""
    if job.y.storage != NO_ARRAY:
        return False
    cdef int64_t label = job.labels[s]
    cdef real value = 0
    if label != job.ignore_index:
        if 0 <= label < job.classes:
            return False
        value = NAN
    put_loss(job, s, value, work)
    if turns != NULL:
        catch_up(job, turns, block)
    if job.out.storage != NO_ARRAY:
        fill_sample(job, s, value, block, work)
    return True


cdef inline void cross_entropy_sample(
    const Job* job, Py_ssize_t s, real* block, const Dense* dense, real* scratch, Work* work,
    Turns* turns,
) noexcept nogil:
    """loss = sum_j t_j (lse - x_j) + z lse^2, t = q + hot [j == label]; every term is >= 0, so nothing cancels."""
    if skip_label(job, s, block, work, turns):
        return
    cdef bint labelled = job.y.storage == NO_ARRAY
    cdef real* kept = <real*>NULL
    cdef double below = 0
    cdef Softmax own
    cdef Softmax* p = &own if turns == NULL else &turns.samples[turns.now]
    if job.out.storage != NO_ARRAY:
        kept = kept_exponentials(job, s, block, scratch, turns)
    p.kept, p.dense, p.hot, p.k = kept, dense, 0, -1
    if labelled:  # before the scan, which may overwrite the logits with their exponentials
        p.k = job.labels[s]
        p.hot = job.keep * (<const real*>job.weight.data)[p.k * job.weight.step]
        below = read_one(&job.x, sample_at(&job.x, job.inner, s), p.k)
    p.row = scan(job, s, block, dense, kept, p.tops, turns)
    if labelled:
        below -= p.row.top
    else:
        p.k = p.row.at
    expect_loss(job, s, &p.row, p.hot, below, work, block)
    if job.out.storage != NO_ARRAY:
        p.z = 0
        if job.z_loss != 0:  # else the gradient would wait for the logarithm
            p.z = 2 * job.z_loss * (p.row.top + log1p_double(p.row.rest))
        p.share = p.row.mass + p.hot + p.z
        if labelled and kept != NULL and job.blocks == 1:
            p.e_k = kept[p.k]
        else:
            p.e_k = exp_double(below)
        softmax_gradient(job, s, p, block, work, turns)


cdef inline void nll_sample(
    const Job* job, Py_ssize_t s, real* block, const Dense* dense, Work* work
) noexcept nogil:
    """loss = -sum_j t_j x_j, gradient -t: only the label's class is read, or all classes once for probabilities."""
    if skip_label(job, s, block, work, NULL):
        return
    cdef const char* sample = sample_at(&job.x, job.inner, s)
    cdef double loss = 0, hot = 0, mass = 0
    cdef Py_ssize_t b, label = -1
    cdef Ahead ahead
    if job.y.storage == NO_ARRAY:
        label = job.labels[s]
        hot = (<const real*>job.weight.data)[label * job.weight.step]
        loss = hot * read_one(&job.x, sample, label)
    else:
        for b in range(job.blocks):
            if is_stopped_at(job.watch, b):
                break
            ahead = block_ahead(&job.y, sample_at(&job.y, job.inner, s), b, job.classes)
            block_target(
                logits_block(&job.x, sample, b, job.classes, block), target_block(job, s, b, dense, block),
                weight_block(job, b, dense, block), min(job.classes - b * BLOCK, BLOCK), 0, 1, 0, &mass, &loss, &ahead,
            )
    put_loss(job, s, <real>-loss, work)
    if job.out.storage != NO_ARRAY:
        nll_gradient(job, s, hot, label, block, dense, work)


cdef inline void nll_gradient(
    const Job* job, Py_ssize_t s, double hot, Py_ssize_t label, real* block, const Dense* dense, Work* work
) noexcept nogil:
    """-scale * t: one entry under zeros, or the target's probabilities."""
    cdef real minus = <real>-gradient_scale(job, s, block), t, zero = 0
    cdef const real* target
    cdef const real* weight
    cdef Py_ssize_t b, j
    for j in range(min(job.classes, BLOCK) if label >= 0 else 0):
        block[j] = 0
    for b in range(job.blocks):
        if is_stopped_at(job.watch, b):
            break
        if 0 <= label - b * BLOCK < BLOCK:
            block[label - b * BLOCK] = <real>(minus * hot)
        elif label < 0:
            target, weight = target_block(job, s, b, dense, block), weight_block(job, b, dense, block)
            for j in range(min(job.classes - b * BLOCK, BLOCK)):
                t = weight[j] * target[j]
                block[j] = minus * t if t != zero else zero
        write(job, s, b, block, work)
        if 0 <= label - b * BLOCK < BLOCK:
            block[label - b * BLOCK] = 0
