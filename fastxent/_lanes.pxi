# LANES samples at a time, one per SIMD lane: for few classes, and for classes that lie apart while samples lie side by
# side, as in images of shape (N, C, H, W).
#
# What is known of each lane's sample is kept in `state`, an array [quantity][lane] of the computing type, so that every
# loop over lanes is SIMD code without a conversion.

cdef enum:
    GROUP = 8  # classes summed before their sum is added to the total: keeps the error of float32 below 1 ulp

cdef enum Quantity:  # offsets into state
    TOP = 0 * LANES  # largest logit
    AT = 1 * LANES  # its class, where exponentials are kept
    REST = 2 * LANES  # sum of exp(x - top) over the other classes
    LOST = 3 * LANES  # what rounding has taken from REST
    MASS = 4 * LANES  # sum of q
    CROSS = 5 * LANES  # sum of q * (x - top)
    BELOW = 6 * LANES  # the label's logit, less TOP
    HOT = 7 * LANES  # its weight
    MINUS = 8 * LANES  # factor of q, that is of the gradient
    SCRATCH = 9 * LANES
    LABEL = 10 * LANES  # the class whose gradient is PATCH; -1 for a label that does not count
    FACTOR = 11 * LANES  # factor of exp(x - top), or the constant of a vector-Jacobian product
    PATCH = 12 * LANES
    LATE = 13 * LANES  # the last three, of samples whose results are still to be stored
    STATE = 16 * LANES


cdef inline void scan_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, real* tile, real* q, real* state
) noexcept nogil:
    """One pass over the classes of LANES samples, as `scan` of one.

    A single tile is left holding exp(x - top) where something is made of these.
    """
    cdef bint kept = q != NULL or (job.out.storage != NO_ARRAY and job.operation != LOG_SOFTMAX)
    cdef Py_ssize_t b, classes
    cdef Ahead ahead, target_ahead
    set_lanes(state + MASS, <real>0)
    set_lanes(state + CROSS, <real>0)
    if job.tiles == 0:  # else the first sets these
        set_lanes(state + TOP, <real>-INFINITY)
        set_lanes(state + AT, <real>-1)
        set_lanes(state + REST, <real>0)
        set_lanes(state + LOST, <real>0)
        set_lanes(state + BELOW, <real>0)
    for b in range(job.tiles):
        if is_stopped_at(job.watch, b):
            break
        classes = read_tile(&job.x, job, first, count, b, tile)
        if job.labels != NULL:
            pick_labels(tile, b * job.tile, classes, state)
        ahead = tile_ahead(&job.x, job, first, b, classes)
        if not kept:
            classes = take_tops(tile, b * job.tile, classes, state)
            sum_exponentials(tile, b * job.tile, classes, state, &ahead)
            continue
        raise_tops(tile, b * job.tile, classes, state)
        if q != NULL:
            read_target_tile(job, first, count, b, classes, q)
            target_ahead = tile_ahead(&job.y, job, first, b, classes)
            add_target(tile, q, classes, state, &target_ahead)
        add_exponentials(tile, b * job.tile, classes, state, &ahead)


cdef inline void raise_tops(const real* tile, Py_ssize_t begin, Py_ssize_t classes, real* state) noexcept nogil:
    """The new maximum and its class in every lane; what was summed under the old one is rescaled."""
    cdef real top[LANES]  # what nothing else can point to stays in registers
    cdef real at[LANES]
    cdef real new_top[LANES]
    cdef real new_at[LANES]
    cdef real value, rest, lost, mass, cross, before, rise, scale, zero = 0, one = 1
    cdef real c_real = <real>begin
    cdef Py_ssize_t c, lane
    for lane in range(LANES):
        top[lane], at[lane] = -INFINITY, -1
    if begin > 0:
        for lane in range(LANES):
            top[lane], at[lane] = state[TOP + lane], state[AT + lane]
    for c in range(classes):
        for lane in range(LANES):
            value = tile[c * LANES + lane]
            new_at[lane] = c_real if value > top[lane] else at[lane]
            new_top[lane] = larger(value, top[lane])
        for lane in range(LANES):  # a loop of its own, or GCC stores only where something changes
            top[lane], at[lane] = new_top[lane], new_at[lane]
        c_real += one
    for lane in range(LANES if begin > 0 else 0):
        before = state[TOP + lane]
        rise = top[lane] - before  # may overflow to inf
        rise = rise if before != -INFINITY else zero  # nothing has been summed yet
        scale = exp_negative(<real>-rise)
        rest, lost = state[REST + lane], state[LOST + lane]
        value = (rest + lost + one) * scale
        state[REST + lane] = value if rise > zero else rest
        state[LOST + lane] = zero if rise > zero else lost
        mass, cross = state[MASS + lane], state[CROSS + lane]
        state[CROSS + lane] = cross - mass * rise if mass != zero else cross
    for lane in range(LANES):
        state[TOP + lane], state[AT + lane] = top[lane], at[lane]


cdef inline real finite_top(real top) noexcept nogil:
    return top if top != -INFINITY else <real>0  # -inf - -inf would be nan


cdef inline real add_unless(bint left_out, real total, real term) noexcept nogil:
    """total + term, or total: one masked addition with AVX-512, an addition of 0 where selecting takes longer."""
    if FX_EXP_LANES:
        return total if left_out else total + term
    return total + (<real>0 if left_out else term)


cdef inline void add_exponentials(
    real* tile, Py_ssize_t begin, Py_ssize_t classes, real* state, const Ahead* ahead
) noexcept nogil:
    """tile = exp(x - top), added to REST without the largest term."""
    cdef real total[LANES]
    cdef real part[LANES]
    cdef real tops[LANES]
    cdef real at[LANES]
    cdef real values[LANES]
    cdef real c_real = <real>begin, one = 1
    cdef Py_ssize_t c, lane, start = 0
    for lane in range(LANES):
        total[lane] = 0
        tops[lane], at[lane] = finite_top(state[TOP + lane]), state[AT + lane]
    while start < classes:
        for lane in range(LANES):
            part[lane] = 0
        for c in range(start, min(start + GROUP, classes)):
            fetch(ahead, c)
            exp_lanes(tile + c * LANES, tops, values)
            for lane in range(LANES):
                tile[c * LANES + lane] = values[lane]
                part[lane] = add_unless(c_real == at[lane], part[lane], values[lane])
            c_real += one
        for lane in range(LANES):
            total[lane] += part[lane]
        start += GROUP
    for lane in range(LANES):
        values[lane] = total[lane]
    add_rest(values, begin, state)


cdef inline void add_rest(const real* term, Py_ssize_t begin, real* state) noexcept nogil:
    """Add what a tile that begins at class `begin` sums up to."""
    cdef Py_ssize_t lane
    if begin > 0:
        add_lanes(state + REST, state + LOST, term)
        return
    for lane in range(LANES):
        state[REST + lane], state[LOST + lane] = term[lane], 0


cdef inline Py_ssize_t take_tops(real* tile, Py_ssize_t begin, Py_ssize_t classes, real* state) noexcept nogil:
    """The new maximum in every lane, which changes places with the one before it; how many others that leaves.

    So no sum has to leave out a class, as in `add_exponentials`, and no exponential is 1; but the tile's classes are
    moved. A nan stays one of the others, or the maximum.
    """
    cdef real top[LANES]
    cdef real values[LANES]
    cdef real others[LANES]
    cdef real rise, scale, value, zero = 0
    cdef const real* before = state + TOP if begin > 0 else tile
    cdef Py_ssize_t c, lane, left = 0
    for lane in range(LANES):
        top[lane] = before[lane]
    for c in range(0 if begin > 0 else 1, classes):
        for lane in range(LANES):
            values[lane] = tile[c * LANES + lane]
        for lane in range(LANES):  # loops of their own, as above
            others[lane] = top[lane] if top[lane] < values[lane] else values[lane]
            top[lane] = larger(values[lane], top[lane])
        for lane in range(LANES):
            tile[left * LANES + lane] = others[lane]
        left += 1
    for lane in range(LANES if begin > 0 else 0):
        rise = top[lane] - state[TOP + lane]  # may overflow to inf
        scale = exp_negative(<real>-rise)
        value = (state[REST + lane] + state[LOST + lane]) * scale
        state[REST + lane] = value if rise > zero else state[REST + lane]
        state[LOST + lane] = zero if rise > zero else state[LOST + lane]
    for lane in range(LANES):
        state[TOP + lane] = top[lane]
    return left


cdef inline void sum_exponentials(
    const real* tile, Py_ssize_t begin, Py_ssize_t left, real* state, const Ahead* ahead
) noexcept nogil:
    """exp(x - top) of what `take_tops` has left, added to REST."""
    cdef real total[LANES]
    cdef real part[LANES]
    cdef real tops[LANES]
    cdef real values[LANES]
    cdef Py_ssize_t c, lane, start = 0
    for lane in range(LANES):
        total[lane] = 0
        tops[lane] = finite_top(state[TOP + lane])
    while start < left:
        for lane in range(LANES):
            part[lane] = 0
        for c in range(start, min(start + GROUP, left)):
            fetch(ahead, c)
            exp_lanes(tile + c * LANES, tops, values)
            for lane in range(LANES):
                part[lane] += values[lane]
        for lane in range(LANES):
            total[lane] += part[lane]
        start += GROUP
    if begin == 0:
        fetch(ahead, left)  # for the class that was taken
    for lane in range(LANES):
        values[lane] = total[lane]
    add_rest(values, begin, state)


cdef inline void add_target(
    const real* tile, const real* q, Py_ssize_t classes, real* state, const Ahead* ahead
) noexcept nogil:
    """MASS and CROSS of one tile of q."""
    cdef real mass[LANES]
    cdef real cross[LANES]
    cdef real tops[LANES]
    cdef real term
    cdef Py_ssize_t c, lane, start = 0
    for lane in range(LANES):
        tops[lane] = finite_top(state[TOP + lane])
    while start < classes:
        set_lanes(mass, <real>0)
        set_lanes(cross, <real>0)
        for c in range(start, min(start + GROUP, classes)):
            fetch(ahead, c)
            for lane in range(LANES):
                term = q[c * LANES + lane] * (tile[c * LANES + lane] - tops[lane])
                mass[lane] += q[c * LANES + lane]
                cross[lane] += term if q[c * LANES + lane] != <real>0 else <real>0
        for lane in range(LANES):
            state[MASS + lane] += mass[lane]
            state[CROSS + lane] += cross[lane]
        start += GROUP


cdef inline real settled(real top, real rest) noexcept nogil:
    """`rest`, or nan if the largest logit is infinite."""
    cdef real zero = 0, largest = FLT_MAX if real is float else DBL_MAX
    cdef real size = top if top > zero else -top
    return <real>NAN if size > largest else rest


cdef inline void settle_lanes(real* state) noexcept nogil:
    """REST is final; it is nan where the largest logit is infinite."""
    cdef Py_ssize_t lane
    for lane in range(LANES):
        state[REST + lane] = settled(state[TOP + lane], state[REST + lane] + state[LOST + lane])


cdef inline void exponential_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, Py_ssize_t b, const real* state, real* tile
) noexcept nogil:
    """tile = exp(x - top); still there from the scan when it was the only tile."""
    cdef Py_ssize_t c, lane, classes
    if job.tiles == 1:
        return
    classes = read_tile(&job.x, job, first, count, b, tile)
    for c in range(classes):
        exp_lanes(tile + c * LANES, state + TOP, tile + c * LANES)
