# Loops over one block of classes in L1.
#
# A block is a scratch array of BLOCK numbers in the computing type, filled to a multiple of LANES. Each loop below
# runs over LANES independent lanes, so that compilers turn it into SIMD code of any width without being allowed to
# reorder floating-point sums, and so that the order of a sum is the same on every machine and for every thread count.

cdef enum:
    CACHE_LINE = 64
    LANES = 64  # four AVX-512 or eight AVX2 registers of float32: enough to hide the latency of an addition
    AHEAD = 16384  # bytes from what is computed with to what is fetched into the cache
    BLOCK = 4096  # 16 KiB of float32: half of a 32 KiB L1, and short enough that lane sums stay accurate
    RUN = 16  # numbers that a lane adds up one after the other, before it adds their sum: equal ones drift
    LARGE_SUM = 8  # of exponentials, from which 1 can be taken without a loss of accuracy


cdef struct Ahead:  # cache lines that a loop fetches for a later one: so many in each of its steps
    const char* data  # of the first step
    Py_ssize_t stride  # bytes from step to step
    Py_ssize_t lines


cdef inline Ahead ahead_of(const char* data, Py_ssize_t stride, Py_ssize_t lines) noexcept nogil:
    cdef Ahead ahead
    ahead.data, ahead.stride, ahead.lines = data, stride, lines
    return ahead


cdef inline void fetch(const Ahead* ahead, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t line
    for line in range(ahead.lines):
        prefetch(ahead.data + step * ahead.stride + line * 64)


cdef inline Py_ssize_t fill_up(real* block, Py_ssize_t count, real value) noexcept nogil:
    """Fill the block up to a multiple of LANES and return that multiple."""
    cdef Py_ssize_t j, full = (count + LANES - 1) // LANES * LANES
    for j in range(count, full):
        block[j] = value
    return full


cdef inline double lanes_sum(const real* lanes) noexcept nogil:
    """Sum in double, in several sums: one after the other, the additions would wait for each other."""
    cdef double quarter[16]
    cdef double few[4]
    cdef Py_ssize_t i
    for i in range(16):
        quarter[i] = (<double>lanes[i] + <double>lanes[i + 16]) + (<double>lanes[i + 32] + <double>lanes[i + 48])
    for i in range(4):
        few[i] = (quarter[i] + quarter[i + 4]) + (quarter[i + 8] + quarter[i + 12])
    return (few[0] + few[1]) + (few[2] + few[3])


cdef inline real larger(real a, real b) noexcept nogil:
    return a if a > b else b


cdef inline real lanes_max(const real* lanes) noexcept nogil:
    """The largest; no lane is nan."""
    cdef real quarter[16]
    cdef real eighth[8]
    cdef Py_ssize_t i
    for i in range(16):
        quarter[i] = larger(larger(lanes[i], lanes[i + 16]), larger(lanes[i + 32], lanes[i + 48]))
    for i in range(8):
        eighth[i] = larger(quarter[i], quarter[i + 8])
    return larger(
        larger(larger(eighth[0], eighth[1]), larger(eighth[2], eighth[3])),
        larger(larger(eighth[4], eighth[5]), larger(eighth[6], eighth[7])),
    )


cdef inline Py_ssize_t past_line(const real* x) noexcept nogil:
    """How many numbers lie between the beginning of x's cache line and x: loads across lines take twice as long."""
    return <Py_ssize_t>(<size_t>x % 64 // sizeof(real))


cdef inline real block_max(const real* block, Py_ssize_t count) noexcept nogil:
    """The largest number, nan passed over; -inf for nan alone."""
    cdef real lanes[LANES]
    cdef Py_ssize_t lane, start = LANES - past_line(block)
    for lane in range(LANES):
        lanes[lane] = -INFINITY
    if count < LANES:
        for lane in range(count):
            lanes[0] = larger(block[lane], lanes[0])
        return lanes[0]
    for lane in range(LANES):
        lanes[lane] = larger(block[lane], lanes[lane])
    while start + LANES < count:
        for lane in range(LANES):
            lanes[lane] = larger(block[start + lane], lanes[lane])
        start += LANES
    for lane in range(LANES):  # the first and the last lanes overlap others, which does a maximum no harm
        lanes[lane] = larger(block[count - LANES + lane], lanes[lane])
    return lanes_max(lanes)


cdef inline Py_ssize_t block_find(const real* block, Py_ssize_t count, real value) noexcept nogil:
    """The first position of `value`, or `count`."""
    cdef int at = <int>count, j
    for j in range(<int>count):
        at = min(at, j if block[j] == value else <int>count)
    return at


cdef struct Behind:  # what a loop stores past the cache beside its work: slope * e, LANES numbers in each of its steps
    const void* e
    double slope
    char* result
    Storage storage
    Py_ssize_t begin  # of the first step, at the beginning of a cache line
    Py_ssize_t steps
    Py_ssize_t apart  # the step that is left out


cdef inline void store_behind(const Behind* behind, Py_ssize_t step, real slope) noexcept nogil:
    cdef Py_ssize_t begin = behind.begin + step * LANES
    cdef const real* e = <const real*>behind.e + begin
    if step >= behind.steps or step == behind.apart:
        return
    if real is double:
        stream_scaled_double(<double*>behind.result + begin, e, slope)
    elif behind.storage == FLOAT32:
        stream_scaled_float(<float*>behind.result + begin, e, slope)
    elif FX_STREAM_NARROWED and slope == slope and behind.storage == FLOAT16:
        stream_scaled_half(<half*>behind.result + begin, e, slope)
    elif FX_STREAM_NARROWED and slope == slope:
        stream_scaled_bfloat16(<bfloat16*>behind.result + begin, e, slope)
    else:
        store_narrowed(e, slope, behind.storage, behind.result + begin * sizeof(half))


cdef inline void store_narrowed(const real* e, real slope, Storage narrow, char* result) noexcept nogil:
    cdef real numbers[LANES]
    cdef uint16_t narrowed[LANES]
    cdef Py_ssize_t lane
    for lane in range(LANES):
        numbers[lane] = slope * e[lane]
    if narrow == FLOAT16:
        store(numbers, LANES, <half*>narrowed, 1)
    else:
        store(numbers, LANES, <bfloat16*>narrowed, 1)
    stream_bytes(result, <const char*>narrowed, sizeof(narrowed))


cdef extern from "_simd.h" nogil:
    void fx_exp_lanes(const float* x, const float* top, float* e)
    const bint FX_EXP_LANES


cdef inline void exp_lanes(const real* x, const real* top, real* e) noexcept nogil:
    """e = exp(x - top) of LANES numbers, each with its own top."""
    cdef Py_ssize_t lane
    if real is float and FX_EXP_LANES:
        fx_exp_lanes(x, top, e)
    else:
        for lane in range(LANES):
            e[lane] = exp_negative(<real>(x[lane] - top[lane]))


cdef inline void add_exp(
    const real* x, Py_ssize_t groups, real top, real* e, real* total, const Ahead* ahead, const Behind* behind
) noexcept nogil:
    """e = exp(x - top), which may replace x, added to the lanes of `total`."""
    cdef real part[LANES]  # what nothing else can point to stays in registers
    cdef real values[LANES]
    cdef real tops[LANES]
    cdef real slope = <real>behind.slope if behind != NULL else 0
    cdef Py_ssize_t j, lane, start = 0
    for lane in range(LANES):
        tops[lane] = top
    while start < groups:
        for lane in range(LANES):
            part[lane] = 0
        for j in range(start, min(start + RUN, groups)):
            fetch(ahead, j)
            if behind != NULL:
                store_behind(behind, j, slope)
            exp_lanes(x + j * LANES, tops, values)
            for lane in range(LANES):
                part[lane] += values[lane]
            for lane in range(LANES):
                e[j * LANES + lane] = values[lane]
        for lane in range(LANES):
            total[lane] += part[lane]
        start += RUN


cdef inline void exp_tail(const real* x, int counted, real top, real* e, real* total) noexcept nogil:
    """e = exp(x - top) of LANES numbers; the last `counted` of them begin the sums that `add_exp` goes on with."""
    cdef real tops[LANES]
    cdef real value, zero = 0
    cdef int lane
    for lane in range(LANES):
        tops[lane] = top
    exp_lanes(x, tops, e)
    for lane in range(LANES):
        value = e[lane]
        total[lane] = value if lane >= LANES - counted else zero


cdef inline double block_exp_sum(
    const real* x, Py_ssize_t count, real top, real* e, const Ahead* ahead, const Behind* behind
) noexcept nogil:
    """The sum of e = exp(x - top), which may replace x."""
    cdef real total[LANES]
    cdef real edge[LANES]
    cdef Ahead none = ahead_of(NULL, 0, 0)
    cdef Py_ssize_t lane, groups = count // LANES, tail = count // LANES * LANES, last = count - LANES
    if tail < count and last >= 0:  # first, as the numbers before the tail may be replaced
        exp_tail(x + last, <int>(count - tail), top, edge, total)
    else:
        for lane in range(LANES):
            total[lane] = 0
    add_exp(x, groups, top, e, total, ahead, behind)
    if tail < count and last >= 0:
        for lane in range(LANES):
            e[last + lane] = edge[lane]
    elif tail < count:
        for lane in range(LANES):
            edge[lane] = -INFINITY
        for lane in range(count):
            edge[lane] = x[lane]
        add_exp(edge, 1, top, edge, total, &none, NULL)
        for lane in range(count):
            e[lane] = edge[lane]
    return lanes_sum(total)


cdef inline double sum_but_largest(const real* e, Py_ssize_t count, double total) noexcept nogil:
    """The sum of all but one of the classes with x = top, whose e is 1."""
    cdef real lanes[LANES]
    cdef real part[LANES]
    cdef real one = 1, zero = 0
    cdef double others
    cdef Py_ssize_t j, lane, groups = count // LANES, start = 0
    if not total < LARGE_SUM:  # nan too
        return total - 1
    for lane in range(LANES):
        lanes[lane] = 0
    for lane in range(count - groups * LANES):
        lanes[lane] = e[groups * LANES + lane] if e[groups * LANES + lane] < one else zero
    while start < groups:
        for lane in range(LANES):
            part[lane] = 0
        for j in range(start, min(start + RUN, groups)):
            for lane in range(LANES):
                part[lane] += e[j * LANES + lane] if e[j * LANES + lane] < one else zero
        for lane in range(LANES):
            lanes[lane] += part[lane]
        start += RUN
    others = lanes_sum(lanes)
    return others + (rint(total - others) - 1)  # as many ones as there are, less one


cdef inline void add_dense(
    const real* x, const real* target, const real* weight, Py_ssize_t groups, real top, real keep, real spread,
    real* mass, real* cross, const Ahead* ahead,
) noexcept nogil:
    """q = weight * (keep * target + spread) and q * (x - top), added to lanes; q = 0 counts 0 even against inf."""
    cdef real masses[LANES]  # what nothing else can point to stays in registers
    cdef real crosses[LANES]
    cdef real q, term, zero = 0
    cdef Py_ssize_t j, lane
    for lane in range(LANES):
        masses[lane], crosses[lane] = mass[lane], cross[lane]
    for j in range(groups):
        fetch(ahead, j)
        for lane in range(LANES):
            q = smoothed(weight[j * LANES + lane], keep, target[j * LANES + lane], spread)
            term = q * (x[j * LANES + lane] - top)
            masses[lane] += q
            crosses[lane] += term if q != zero else zero
    for lane in range(LANES):
        mass[lane], cross[lane] = masses[lane], crosses[lane]


cdef inline void block_target(
    const real* x, const real* target, const real* weight, Py_ssize_t count, real top, real keep, real spread,
    double* mass, double* cross, const Ahead* ahead,
) noexcept nogil:
    """The sums of what `add_dense` adds."""
    cdef real masses[LANES]
    cdef real crosses[LANES]
    cdef real edge[3 * LANES]
    cdef Py_ssize_t i, lane, tail = count // LANES * LANES
    cdef Ahead none = ahead_of(NULL, 0, 0)
    for lane in range(LANES):
        masses[lane] = crosses[lane] = 0
    add_dense(x, target, weight, count // LANES, top, keep, spread, masses, crosses, ahead)
    if tail < count:
        for i in range(3 * LANES):
            edge[i] = 0
        for i in range(count - tail):
            edge[i], edge[LANES + i], edge[2 * LANES + i] = x[tail + i], target[tail + i], weight[tail + i]
        add_dense(edge, edge + LANES, edge + 2 * LANES, 1, top, keep, spread, masses, crosses, &none)
    mass[0] += lanes_sum(masses)
    cross[0] += lanes_sum(crosses)


cdef inline real smoothed(real weight, real keep, real target, real spread) noexcept nogil:
    return weight * (keep * target + spread)


cdef inline double block_sum(const real* block, Py_ssize_t count) noexcept nogil:
    cdef real lanes[LANES]
    cdef Py_ssize_t j, lane
    for lane in range(LANES):
        lanes[lane] = 0
    for j in range(count // LANES):
        for lane in range(LANES):
            lanes[lane] += block[j * LANES + lane]
    for j in range(count // LANES * LANES, count):
        lanes[j % LANES] += block[j]
    return lanes_sum(lanes)


cdef inline double block_dot(const real* weights, const real* block, Py_ssize_t count, real top) noexcept nogil:
    """sum of weights * (block - top), where a weight of 0 counts 0 even against inf."""
    cdef real lanes[LANES]
    cdef real term, zero = 0
    cdef Py_ssize_t j, lane
    for lane in range(LANES):
        lanes[lane] = 0
    for j in range(count // LANES):
        for lane in range(LANES):
            term = weights[j * LANES + lane] * (block[j * LANES + lane] - top)
            lanes[lane] += term if weights[j * LANES + lane] != zero else zero
    for j in range(count // LANES * LANES, count):
        term = weights[j] * (block[j] - top)
        lanes[j % LANES] += term if weights[j] != zero else zero
    return lanes_sum(lanes)
