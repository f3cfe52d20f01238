# Two to four classes with a label, for both loss and gradient: one loop over lanes has all of a sample's classes in
# registers, where longer tiles go through memory from step to step.

cdef enum:
    FEW = 4  # classes


cdef inline bint are_few(const Job* job) noexcept nogil:
    """Whether this is for them: a gradient of labels alone."""
    return (
        job.operation == CROSS_ENTROPY and 1 < job.classes <= FEW and job.y.storage == NO_ARRAY
        and job.spread == 0 and job.z_loss == 0 and job.out.storage != NO_ARRAY
    )


cdef inline void cross_entropy_of_few(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* state, Work* work
) noexcept nogil:
    """`cross_entropy_tile` for them."""
    cdef bint skips = read_labels(job, first, count, state)
    cdef Ahead ahead = tile_ahead(&job.x, job, first, 0, job.classes)
    cdef Py_ssize_t c
    read_tile(&job.x, job, first, count, 0, tile)
    for c in range(job.classes):
        fetch(&ahead, c)
    read_scale(job, first, count, state)
    if job.classes == 2:
        make_few(tile, 2, state)
    elif job.classes == 3:
        make_few(tile, 3, state)
    else:
        make_few(tile, 4, state)
    if skips:
        skip_lanes(job, first, count, state + SCRATCH, state)
        skip_lanes(job, first, count, state + PATCH, state)
        for c in range(job.classes):
            skip_class(tile + c * LANES, state)
    put_losses(job, first, count, state + SCRATCH, work)
    write_tile(job, first, count, 0, tile, work)


cdef inline void make_few(real* tile, Py_ssize_t classes, real* state) noexcept nogil:
    """SCRATCH, PATCH and the tile: from logits to losses and gradients, compiled for a constant number of classes."""
    cdef real e[FEW * LANES]
    cdef real tops[LANES]
    cdef real bases[LANES]
    cdef real top, label, rest, ties, own, e_k, x, factor, patch, c_real, one = 1
    cdef Py_ssize_t lane, c
    for lane in range(LANES):
        top = -INFINITY
        for c in range(classes):
            top = larger(tile[c * LANES + lane], top)
        tops[lane], bases[lane] = top, finite_top(top)
    for c in range(classes):
        exp_lanes(tile + c * LANES, bases, e + c * LANES)
    for lane in range(LANES):
        top, label = tops[lane], state[LABEL + lane]
        rest, ties, own, e_k, c_real = 0, -1, 0, 0, 0
        for c in range(classes):
            x = tile[c * LANES + lane]
            rest = add_unless(x == top, rest, e[c * LANES + lane])
            ties = add_unless(x != top, ties, one)
            own = x if label == c_real else own
            e_k = e[c * LANES + lane] if label == c_real else e_k
            c_real += one
        rest = settled(top, <real>(rest + ties))
        state[SCRATCH + lane] = state[HOT + lane] * (log1p_above(rest) - (own - top))
        factor = state[MINUS + lane] * state[HOT + lane] / (one + rest)
        patch = -factor * (rest + (one - e_k))
        state[PATCH + lane], c_real = patch, 0
        for c in range(classes):
            x = factor * e[c * LANES + lane]
            tile[c * LANES + lane] = patch if label == c_real else x
            c_real += one
