# What every lane kernel is made of: transposition, and tiles of LANES samples.
#
# A tile is a scratch array [class][lane] in the computing type.

cdef enum:
    TILE_CLASSES = 64  # in one tile, where each is read once: 16 KiB of float32, half of a 32 KiB L1
    MOST_CLASSES = 160  # in one tile, where a second one would have to be read and transposed twice
    TILE = MOST_CLASSES * LANES


cdef inline void set_lanes(real* quantity, real value) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(LANES):
        quantity[lane] = value


# --- tiles -------------------------------------------------------------------------------------------------------


cdef inline void add_lanes(real* total, real* lost, const real* term) noexcept nogil:
    """Knuth's two-sum in every lane."""
    cdef real before, after, shift
    cdef Py_ssize_t lane
    for lane in range(LANES):
        before = total[lane]
        after = before + term[lane]
        shift = after - before
        lost[lane] += (before - (after - shift)) + (term[lane] - shift)
        total[lane] = after


cdef extern from "_simd.h" nogil:
    void fx_transpose4_double(const double* source, Py_ssize_t stride, double* target, Py_ssize_t target_stride)
    void fx_rows_to_lanes(const float* rows, Py_ssize_t stride, float* lanes, Py_ssize_t step)
    void fx_lanes_to_rows(const float* lanes, Py_ssize_t step, float* rows, Py_ssize_t stride)
    const int FX_ROWS


cdef inline Py_ssize_t rows_to_lanes(
    const real* rows, Py_ssize_t stride, real* lanes, Py_ssize_t step
) noexcept nogil:
    """lanes[j, i] = rows[i, j] for j in 0..3 and some i; returns how many."""
    if real is float:
        fx_rows_to_lanes(rows, stride, lanes, step)
        return FX_ROWS
    else:
        fx_transpose4_double(rows, stride, lanes, step)
        return 4


cdef inline Py_ssize_t lanes_to_rows(
    const real* lanes, Py_ssize_t step, real* rows, Py_ssize_t stride
) noexcept nogil:
    """The way back."""
    if real is float:
        fx_lanes_to_rows(lanes, step, rows, stride)
        return FX_ROWS
    else:
        fx_transpose4_double(lanes, step, rows, stride)
        return 4


cdef inline void move_few(real* rows, real* tile, Py_ssize_t classes, bint back) noexcept nogil:
    """tile[class][lane] = rows[lane][class], or back: shuffles, once compiled for a constant number of classes."""
    cdef Py_ssize_t lane, c
    for lane in range(LANES):
        for c in range(classes):
            if back:
                rows[lane * classes + c] = tile[c * LANES + lane]
            else:
                tile[c * LANES + lane] = rows[lane * classes + c]


cdef inline bint moved_few(real* rows, Py_ssize_t stride, real* tile, Py_ssize_t classes, bint back) noexcept nogil:
    """Whether there are so few classes, one row behind the other, that this was the way."""
    if classes > 4 or stride != classes:
        return False
    if classes == 1:
        move_few(rows, tile, 1, back)
    elif classes == 2:
        move_few(rows, tile, 2, back)
    elif classes == 3:
        move_few(rows, tile, 3, back)
    else:
        move_few(rows, tile, 4, back)
    return True


cdef inline void rows_to_tile(
    const real* rows, Py_ssize_t stride, Py_ssize_t classes, Py_ssize_t count, real* tile
) noexcept nogil:
    """tile[class][lane] = rows[lane][class], some lanes more than `count`; all of them of fewer than 4 classes."""
    cdef Py_ssize_t lane = 0, done = 0, c
    if moved_few(<real*>rows, stride, tile, classes, False):
        return
    while lane < count:
        c = 0
        while True:
            done = rows_to_lanes(rows + lane * stride + c, stride, tile + c * LANES + lane, LANES)
            if c + 4 >= classes:
                break
            c = min(c + 4, classes - 4)
        lane += done


cdef inline void tile_to_rows(
    const real* tile, Py_ssize_t stride, Py_ssize_t classes, Py_ssize_t count, real* rows
) noexcept nogil:
    """The way back."""
    cdef Py_ssize_t lane = 0, done = 0, c
    if moved_few(rows, stride, <real*>tile, classes, True):
        return
    while lane < count:
        c = 0
        while True:
            done = lanes_to_rows(tile + c * LANES + lane, LANES, rows + lane * stride + c, stride)
            if c + 4 >= classes:
                break
            c = min(c + 4, classes - 4)
        lane += done


cdef inline void load_tile(
    const storage* source, Py_ssize_t class_step, Py_ssize_t lane_step, Py_ssize_t classes, Py_ssize_t count,
    real* tile,
) noexcept nogil:
    cdef real rows[TILE]
    cdef Py_ssize_t c, lane
    if lane_step == 1:
        for c in range(classes):
            load(source + c * class_step, 1, count, tile + c * LANES)
        return
    if storage is real:  # nothing to widen: saves a copy where no load reaches beyond the array
        if class_step == 1 and count == LANES and (classes >= 4 or lane_step == classes):
            rows_to_tile(source, lane_step, classes, count, tile)
            return
    if class_step == 1 and lane_step == classes:
        load(source, 1, count * classes, rows)
    else:
        for lane in range(count):
            load(source + lane * lane_step, class_step, classes, rows + lane * classes)
    rows_to_tile(rows, classes, classes, count, tile)


cdef inline void store_tile(
    const real* tile, Py_ssize_t class_step, Py_ssize_t lane_step, Py_ssize_t classes, Py_ssize_t count,
    storage* target, Sink* sink,
) noexcept nogil:
    cdef real rows[TILE]
    cdef storage narrowed[TILE]
    cdef Py_ssize_t c, lane
    if lane_step == 1:
        for c in range(classes):
            if sink == NULL:
                store(tile + c * LANES, count, target + c * class_step, 1)
            elif storage is real:
                stream_inside(<char*>(target + c * class_step), <const char*>(tile + c * LANES), count * sizeof(storage))
            else:
                store(tile + c * LANES, count, narrowed, 1)
                stream_inside(<char*>(target + c * class_step), <const char*>narrowed, count * sizeof(storage))
        return
    if storage is real:
        if class_step == 1 and count == LANES and sink == NULL and (classes >= 4 or lane_step == classes):
            tile_to_rows(tile, lane_step, classes, count, target)
            return
    tile_to_rows(tile, classes, classes, count, rows)
    if class_step == 1 and lane_step == classes:
        if sink == NULL:
            store(rows, count * classes, target, 1)
        elif storage is real:
            send(sink, <char*>target, <const char*>rows, count * classes * sizeof(storage))
        else:
            store(rows, count * classes, narrowed, 1)
            send(sink, <char*>target, <const char*>narrowed, count * classes * sizeof(storage))
    else:
        for lane in range(count):
            store(rows + lane * classes, classes, target + lane * lane_step, class_step)


cdef inline Py_ssize_t lane_step(const Tensor* tensor, const Job* job) noexcept nogil:
    return tensor.inner if job.inner > 1 else tensor.outer


cdef inline Py_ssize_t read_tile(
    const Tensor* tensor, const Job* job, Py_ssize_t first, Py_ssize_t count, Py_ssize_t b, real* tile
) noexcept nogil:
    """Widen the b-th tile of `count` samples from `first` on; the other lanes are 0."""
    cdef Py_ssize_t c, lane
    cdef Py_ssize_t classes = min(job.classes - b * job.tile, job.tile)
    cdef Py_ssize_t step = lane_step(tensor, job)
    cdef const char* source = sample_at(tensor, job.inner, first) + b * job.tile * tensor.step * tensor.itemsize
    if tensor.storage == FLOAT32:
        load_tile(<const float*>source, tensor.step, step, classes, count, tile)
    elif tensor.storage == FLOAT64:
        load_tile(<const double*>source, tensor.step, step, classes, count, tile)
    elif tensor.storage == FLOAT16:
        load_tile(<const half*>source, tensor.step, step, classes, count, tile)
    else:
        load_tile(<const bfloat16*>source, tensor.step, step, classes, count, tile)
    for c in range(classes if count < LANES else 0):
        for lane in range(count, LANES):
            tile[c * LANES + lane] = 0
    return classes


cdef inline Ahead tile_ahead(
    const Tensor* tensor, const Job* job, Py_ssize_t first, Py_ssize_t b, Py_ssize_t classes
) noexcept nogil:
    """What to fetch during a pass over the classes of a tile: as much of what comes after it."""
    cdef Py_ssize_t size = LANES * tensor.itemsize
    cdef const char* tile = sample_at(tensor, job.inner, first) + b * job.tile * tensor.step * tensor.itemsize
    if lane_step(tensor, job) == 1:
        return ahead_of(tile + size, tensor.step * tensor.itemsize, size // 64)
    return ahead_of(tile + max(2 * AHEAD, classes * size), size, size // 64 if tensor.step == 1 else 0)


cdef inline void write_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, Py_ssize_t b, const real* tile, Work* work
) noexcept nogil:
    cdef const Tensor* tensor = &job.out
    cdef Sink* sink = &work.sink if job.streamed else NULL
    cdef Py_ssize_t classes = min(job.classes - b * job.tile, job.tile)
    cdef Py_ssize_t step = lane_step(tensor, job)
    cdef char* target = sample_at(tensor, job.inner, first) + b * job.tile * tensor.step * tensor.itemsize
    if tensor.storage == FLOAT32:
        store_tile(tile, tensor.step, step, classes, count, <float*>target, sink)
    elif tensor.storage == FLOAT64:
        store_tile(tile, tensor.step, step, classes, count, <double*>target, sink)
    elif tensor.storage == FLOAT16:
        store_tile(tile, tensor.step, step, classes, count, <half*>target, sink)
    else:
        store_tile(tile, tensor.step, step, classes, count, <bfloat16*>target, sink)


cdef inline void read_target_tile(
    const Job* job, Py_ssize_t first, Py_ssize_t count, Py_ssize_t b, Py_ssize_t classes, real* q
) noexcept nogil:
    """q = weight * (keep * target + spread), the target being 0 where only labels are known."""
    cdef const real* weight = <const real*>job.weight.data + b * job.tile * job.weight.step
    cdef real keep = job.keep, spread = job.spread, w
    cdef Py_ssize_t c, lane
    if job.y.storage == NO_ARRAY:
        for c in range(classes):
            set_lanes(q + c * LANES, <real>0)
    else:
        read_tile(&job.y, job, first, count, b, q)
    for c in range(classes):
        w = weight[c * job.weight.step]
        for lane in range(LANES):
            q[c * LANES + lane] = smoothed(w, keep, q[c * LANES + lane], spread)
