# What lane kernels make of what a pass over a tile has found, as `_rows.pxi` does for one sample.


cdef inline void scan_lanes(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* q, real* state, Work* work
) noexcept nogil:
    if job.rows:
        scan_short_rows(job, first, count, tile, state, work)
    else:
        scan_tile(job, first, count, tile, q, state)


cdef inline void logsumexp_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* state, Work* work
) noexcept nogil:
    cdef real* result = <real*>job.per_sample + first
    cdef Py_ssize_t lane
    scan_lanes(job, first, count, tile, <real*>NULL, state, work)
    settle_lanes(state)
    for lane in range(LANES):
        state[SCRATCH + lane] = state[TOP + lane] + log1p_above(state[REST + lane])
    for lane in range(count):
        result[lane] = state[SCRATCH + lane]
        if isinf(state[TOP + lane]):
            result[lane] = <real>infinite_logsumexp(job, first + lane, state[TOP + lane])


cdef inline void softmax_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* state, Work* work
) noexcept nogil:
    cdef real one = 1
    cdef Py_ssize_t b, c, lane
    scan_lanes(job, first, count, tile, <real*>NULL, state, work)
    settle_lanes(state)
    read_scale(job, first, count, state)
    for lane in range(LANES):
        state[FACTOR + lane] = state[MINUS + lane] / (one + state[REST + lane])
    if job.rows:
        finish_short_rows(job, first, count, tile, state, work)
        return
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        exponential_tile(job, first, count, b, state, tile)
        for c in range(min(job.classes - b * job.tile, job.tile)):
            for lane in range(LANES):
                tile[c * LANES + lane] = tile[c * LANES + lane] * state[FACTOR + lane]
        write_tile(job, first, count, b, tile, work)


cdef inline void read_scale(const Job* job, Py_ssize_t first, Py_ssize_t count, real* state) noexcept nogil:
    """MINUS = factor * scale."""
    cdef const real* scale = <const real*>job.scale.data + first * job.scale.step
    cdef Py_ssize_t lane
    set_lanes(state + MINUS, <real>(job.factor * scale[0]))
    if job.scale.step:
        for lane in range(count):
            state[MINUS + lane] = <real>(job.factor * scale[lane])


cdef inline void log_softmax_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* state, Work* work
) noexcept nogil:
    cdef Py_ssize_t b, c, lane, classes
    scan_lanes(job, first, count, tile, <real*>NULL, state, work)
    settle_lanes(state)
    for lane in range(LANES):
        state[FACTOR + lane] = log1p_above(state[REST + lane])
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        classes = read_tile(&job.x, job, first, count, b, tile)
        for c in range(classes):
            for lane in range(LANES):
                tile[c * LANES + lane] = (tile[c * LANES + lane] - state[TOP + lane]) - state[FACTOR + lane]
        write_tile(job, first, count, b, tile, work)


cdef inline void cross_entropy_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* q, real* state, Work* work
) noexcept nogil:
    """`cross_entropy_sample` for LANES samples."""
    cdef bint labelled = job.y.storage == NO_ARRAY
    cdef bint dense = not labelled or job.spread != 0
    cdef bint skips = read_labels(job, first, count, state) if labelled else False
    cdef real log_total, lse, below, loss, z_loss = job.z_loss, two_z = 2 * job.z_loss
    cdef Py_ssize_t lane
    scan_lanes(job, first, count, tile, q if dense else <real*>NULL, state, work)
    settle_lanes(state)
    if not labelled:
        use_likeliest(job, first, count, state)
    if dense or z_loss != 0:
        for lane in range(LANES):
            log_total = log1p_above(state[REST + lane])
            lse = state[TOP + lane] + log_total
            below = state[BELOW + lane] - state[TOP + lane]
            loss = state[MASS + lane] * log_total - state[CROSS + lane] + z_loss * lse * lse
            state[SCRATCH + lane] = loss + state[HOT + lane] * (log_total - below)
            state[BELOW + lane] = below
            state[FACTOR + lane] = two_z * lse
    else:
        for lane in range(LANES):
            below = state[BELOW + lane] - state[TOP + lane]
            state[SCRATCH + lane] = state[HOT + lane] * (log1p_above(state[REST + lane]) - below)
            state[BELOW + lane], state[FACTOR + lane] = below, 0
    if skips:
        skip_lanes(job, first, count, state + SCRATCH, state)
    put_losses(job, first, count, state + SCRATCH, work)
    if job.out.storage != NO_ARRAY:
        cross_entropy_gradient_tile(job, first, count, tile, q if dense else <real*>NULL, skips, state, work)


cdef inline void put_losses(
    const Job* job, Py_ssize_t first, Py_ssize_t count, const real* losses, Work* work
) noexcept nogil:
    """Where the caller wants them, or into the sums: of floats without compensation, their products are exact."""
    cdef real* result = <real*>job.per_sample + first
    cdef const real* scale = <const real*>job.scale.data + first * job.scale.step
    cdef double constant = scale[0]
    cdef Py_ssize_t lane, i, turn = first % LANES  # sums must not depend on where tiles begin
    if job.per_sample != NULL:
        for lane in range(count):
            result[lane] = losses[lane]
    elif real is float and count == LANES and turn == 0 and job.scale.step == 0 and isfinite(constant):
        for lane in range(LANES):
            work.total[lane] += losses[lane] * constant  # as `weighted`, whose product is 0 too
    elif real is float and job.scale.step == 0:
        for lane in range(count):
            work.total[(turn + lane) % LANES] += weighted(losses[lane], constant)
    else:
        for lane in range(count):
            i = (turn + lane) % LANES
            add(&work.total[i], &work.error[i], weighted(losses[lane], scale[lane * job.scale.step]))


cdef inline void skip_lanes(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* quantity, const real* state
) noexcept nogil:
    """What `skip_label` says of samples whose label does not count: 0 if ignored, else nan."""
    cdef Py_ssize_t lane
    for lane in range(count):
        if state[LABEL + lane] < 0:
            quantity[lane] = 0 if job.labels[first + lane] == job.ignore_index else <real>NAN


cdef inline bint read_labels(const Job* job, Py_ssize_t first, Py_ssize_t count, real* state) noexcept nogil:
    """LABEL and HOT; whether any label is to be skipped."""
    cdef const real* weight = <const real*>job.weight.data
    cdef const int64_t* labels = job.labels + first
    cdef int label[LANES]
    cdef int skips = 0
    cdef real hot = <real>job.keep * weight[0]
    cdef Py_ssize_t lane
    if count == LANES:
        counted_labels(job, labels, LANES, label)
    else:
        for lane in range(LANES):
            label[lane] = 0
        counted_labels(job, labels, count, label)
    for lane in range(LANES):
        skips |= label[lane] < 0
        state[LABEL + lane] = <real>label[lane]
        state[HOT + lane] = hot
    if job.weight.step:
        for lane in range(count):
            state[HOT + lane] = <real>(job.keep * weight[max(label[lane], 0)])
    return skips != 0


cdef inline void counted_labels(
    const Job* job, const int64_t* labels, Py_ssize_t count, int* result
) noexcept nogil:
    """Labels, which fit since classes <= MAX_LANE_CLASSES; -1 for those that do not count."""
    cdef int64_t ignored = job.ignore_index
    cdef uint64_t classes = job.classes
    cdef int counts
    cdef Py_ssize_t lane
    for lane in range(count):
        counts = (labels[lane] != ignored) & (<uint64_t>labels[lane] < classes)
        result[lane] = <int>labels[lane] if counts else -1


cdef inline void pick_labels(const real* tile, Py_ssize_t begin, Py_ssize_t classes, real* state) noexcept nogil:
    """BELOW = x[label], where the label is in this tile."""
    cdef real label[LANES]
    cdef real at_label[LANES]
    cdef real value  # loaded first: a load that depends on a condition is no SIMD code below AVX
    cdef real c_real = <real>begin, one = 1
    cdef Py_ssize_t c, lane
    for lane in range(LANES):
        label[lane], at_label[lane] = state[LABEL + lane], 0
    if begin > 0:
        for lane in range(LANES):
            at_label[lane] = state[BELOW + lane]
    for c in range(classes):
        for lane in range(LANES):
            value = tile[c * LANES + lane]
            at_label[lane] = value if label[lane] == c_real else at_label[lane]
        c_real += one
    for lane in range(LANES):
        state[BELOW + lane] = at_label[lane]


cdef inline void use_likeliest(const Job* job, Py_ssize_t first, Py_ssize_t count, real* state) noexcept nogil:
    """For probabilities, the class whose gradient needs care is the likeliest."""
    cdef Py_ssize_t lane
    for lane in range(LANES):
        state[LABEL + lane] = state[AT + lane]
        state[BELOW + lane] = state[TOP + lane]
        state[HOT + lane] = 0


cdef inline void cross_entropy_gradient_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* q, bint skips, real* state, Work* work
) noexcept nogil:
    """`cross_entropy_gradient` for LANES samples; the gradient of class LABEL is PATCH."""
    cdef real share, e_k, t_k, z, rest, one = 1
    cdef Py_ssize_t b, c, lane
    label_targets(job, first, count, q != NULL, state)
    read_scale(job, first, count, state)
    for lane in range(LANES):
        rest = state[REST + lane]
        share = one / (one + rest)  # the likeliest class's probability
        e_k = exp_negative(state[BELOW + lane])
        t_k = state[SCRATCH + lane]
        z = state[FACTOR + lane]
        state[PATCH + lane] = state[MINUS + lane] * (
            (state[MASS + lane] - t_k + z) * e_k - (state[HOT + lane] + t_k) * (rest + (one - e_k))
        ) * share
        state[FACTOR + lane] = state[MINUS + lane] * (state[MASS + lane] + state[HOT + lane] + z) * share
    if skips:
        skip_lanes(job, first, count, state + PATCH, state)
    if job.rows:
        finish_short_rows(job, first, count, tile, state, work)
        return
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        exponential_tile(job, first, count, b, state, tile)
        if q != NULL and job.tiles > 1:
            read_target_tile(job, first, count, b, min(job.classes - b * job.tile, job.tile), q)
        finish_gradient(tile, q, b * job.tile, min(job.classes - b * job.tile, job.tile), skips, state)
        write_tile(job, first, count, b, tile, work)


cdef inline void finish_gradient(
    real* tile, const real* q, Py_ssize_t begin, Py_ssize_t classes, bint skips, const real* state
) noexcept nogil:
    """From exp(x - top) to FACTOR * exp(x - top) - MINUS * q, or PATCH for LABEL and for all of a skipped sample."""
    cdef real factor[LANES]
    cdef real patch[LANES]
    cdef real label[LANES]
    cdef real minus[LANES]
    cdef real g, value, c_real = <real>begin, one = 1
    cdef Py_ssize_t c, lane
    for lane in range(LANES):
        factor[lane], patch[lane] = state[FACTOR + lane], state[PATCH + lane]
        label[lane], minus[lane] = state[LABEL + lane], state[MINUS + lane]
    for c in range(classes):
        for lane in range(LANES):
            g = factor[lane] * tile[c * LANES + lane]
            if q != NULL:
                g = g - minus[lane] * q[c * LANES + lane]
            value = patch[lane]
            tile[c * LANES + lane] = value if label[lane] == c_real else g
        c_real += one
        if skips:
            skip_class(tile + c * LANES, state)


cdef inline void skip_class(real* tile, const real* state) noexcept nogil:
    """PATCH for samples without a label that counts."""
    cdef real value, patch, zero = 0
    cdef Py_ssize_t lane
    for lane in range(LANES):
        value, patch = tile[lane], state[PATCH + lane]
        tile[lane] = patch if state[LABEL + lane] < zero else value


cdef inline void label_targets(
    const Job* job, Py_ssize_t first, Py_ssize_t count, bint dense, real* state
) noexcept nogil:
    """SCRATCH = q of class LABEL."""
    cdef const real* weight = <const real*>job.weight.data
    cdef const char* y
    cdef Py_ssize_t lane, k
    cdef real keep = job.keep, spread = job.spread, t = 0
    set_lanes(state + SCRATCH, <real>0)
    if not dense:
        return
    for lane in range(count):
        if state[LABEL + lane] >= 0:
            k = <Py_ssize_t>state[LABEL + lane]
            if job.y.storage != NO_ARRAY:
                y = sample_at(&job.y, job.inner, first + lane)
                t = <real>read_one(&job.y, y, k)
            state[SCRATCH + lane] = smoothed(weight[k * job.weight.step], keep, t, spread)


cdef inline void softmax_vjp_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* p, real* g, real* state, Work* work
) noexcept nogil:
    """`softmax_vjp_sample` for LANES samples."""
    cdef Py_ssize_t b, c, lane, classes
    cdef Ahead ahead
    set_lanes(state + MASS, <real>0)
    set_lanes(state + CROSS, <real>0)
    set_lanes(state + TOP, <real>0)
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        classes = read_tile(&job.x, job, first, count, b, p)
        read_tile(&job.y, job, first, count, b, g)
        ahead = tile_ahead(&job.y, job, first, b, classes)
        add_target(g, p, classes, state, &ahead)
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        classes = read_tile(&job.x, job, first, count, b, p)
        read_tile(&job.y, job, first, count, b, g)
        for c in range(classes):
            for lane in range(LANES):
                p[c * LANES + lane] = p[c * LANES + lane] * (g[c * LANES + lane] - state[CROSS + lane])
        write_tile(job, first, count, b, p, work)


cdef inline void log_softmax_vjp_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* p, real* g, real* state, Work* work
) noexcept nogil:
    """`log_softmax_vjp_sample` for LANES samples."""
    cdef Py_ssize_t b, c, lane, classes
    cdef Ahead ahead
    set_lanes(state + MASS, <real>0)
    set_lanes(state + CROSS, <real>0)
    set_lanes(state + TOP, <real>0)
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        classes = read_tile(&job.y, job, first, count, b, g)
        ahead = tile_ahead(&job.y, job, first, b, classes)
        add_target(g, g, classes, state, &ahead)
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        classes = read_tile(&job.x, job, first, count, b, p)
        read_tile(&job.y, job, first, count, b, g)
        for c in range(classes):
            for lane in range(LANES):
                g[c * LANES + lane] = g[c * LANES + lane] - exp_any(p[c * LANES + lane]) * state[MASS + lane]
        write_tile(job, first, count, b, g, work)
