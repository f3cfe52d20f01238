# All samples: dealt out to threads in pieces that depend on the problem alone, so that results never depend on the
# number of threads.

# --- all samples -------------------------------------------------------------------------------------------------


cdef void run_rows(const Job* job, Py_ssize_t begin, Py_ssize_t end, real* scratch, Work* work) noexcept nogil:
    cdef real block[BLOCK]
    cdef real q[BLOCK]
    cdef real weights[BLOCK]
    cdef Dense numbers
    cdef const Dense* dense = NULL
    cdef Turns two
    cdef Turns* turns = NULL
    cdef Py_ssize_t s, j
    if is_dense(job):
        numbers = prepare_dense(job, weights, q)
        dense = &numbers
    if job.late and scratch != NULL:
        turns = &two
        turns.now, turns.before, turns.sink = 0, -1, &work.sink
        for j in range(job.classes, room(job) + LANES):  # what was left there may be subnormal, which is slow
            scratch[j] = 0
    for s in range(begin, end):
        if job.operation == CROSS_ENTROPY:
            cross_entropy_sample(job, s, block, dense, scratch, work, turns)
        elif job.operation == NLL:
            nll_sample(job, s, block, dense, work)
        elif job.operation == LOGSUMEXP:
            logsumexp_sample(job, s, block, work)
        elif job.operation == SOFTMAX:
            softmax_sample(job, s, block, scratch, work, turns)
        elif job.operation == LOG_SOFTMAX:
            log_softmax_sample(job, s, block, work)
        elif job.operation == SOFTMAX_VJP:
            softmax_vjp_sample(job, s, block, q, work)
        elif job.operation == LOG_SOFTMAX_VJP:
            log_softmax_vjp_sample(job, s, block, q, work)
    settle_losses(job, work, block)
    if turns != NULL:
        catch_up(job, turns, block)


cdef void run_lanes(const Job* job, Py_ssize_t begin, Py_ssize_t end, Work* work, const real* _like) noexcept nogil:
    """Tiles end where samples stop lying side by side: at the end of each inner axis, and where lines of `out` do."""
    cdef real tile[TILE]
    cdef real q[TILE]
    cdef real state[STATE]
    cdef Py_ssize_t first = begin, count
    cdef Py_ssize_t run = job.inner if job.inner > 1 else job.samples
    cdef Py_ssize_t line = CACHE_LINE // max(1, job.out.itemsize)
    cdef bint few = are_few(job)
    while first < end:
        count = min(min(end - first, run - first % run), LANES)
        if job.rows:
            count = min(count, <Py_ssize_t>TILE // job.classes)
        if job.lines:
            count = min(count, LANES - (job.phase + first % run) % line)
        if few:
            cross_entropy_of_few(job, first, count, tile, state, work)
        elif job.operation == CROSS_ENTROPY:
            cross_entropy_tile(job, first, count, tile, q, state, work)
        elif job.operation == LOGSUMEXP:
            logsumexp_tile(job, first, count, tile, state, work)
        elif job.operation == SOFTMAX:
            softmax_tile(job, first, count, tile, state, work)
        elif job.operation == LOG_SOFTMAX:
            log_softmax_tile(job, first, count, tile, state, work)
        elif job.operation == SOFTMAX_VJP:
            softmax_vjp_tile(job, first, count, tile, q, state, work)
        elif job.operation == LOG_SOFTMAX_VJP:
            log_softmax_vjp_tile(job, first, count, tile, q, state, work)
        first += count
    finish_late_rows(job, 0, work.late_count, tile, state, work)


cdef double run_task(const Job* job, Py_ssize_t begin, Py_ssize_t end, void* scratch) noexcept nogil:
    """Some samples; the sum of their weighted losses where that is asked for."""
    cdef Work work
    memset(&work, 0, sizeof(work))
    if job.x.storage == FLOAT64:
        if job.lanes:
            run_lanes(job, begin, end, &work, <const double*>NULL)
        else:
            run_rows(job, begin, end, <double*>scratch, &work)
    elif job.lanes:
        run_lanes(job, begin, end, &work, <const float*>NULL)
    else:
        run_rows(job, begin, end, <float*>scratch, &work)
    if job.streamed:
        flush(&work.sink)
    return settle_work(&work, LANES if job.lanes else 1)


cdef struct Share:  # what the tasks of a call have in common
    const Job* job
    Py_ssize_t per_task  # samples
    Py_ssize_t kept  # bytes of each thread's scratch memory
    char* scratch
    double sums[MAX_TASKS]
    Py_ssize_t bads[MAX_TASKS]


cdef void do_task(void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef Share* share = <Share*>context
    cdef Py_ssize_t begin = task * share.per_task
    if task > 0 and is_stopped(share.job.watch):
        return
    cdef void* scratch = NULL if share.scratch == NULL else share.scratch + thread * share.kept
    share.sums[task] = run_task(share.job, begin, min(begin + share.per_task, share.job.samples), scratch)


cdef double run(Job* job, int num_threads) except? -1 nogil:
    """Deal the samples out in tasks of about GRAIN elements, and add up their sums in order."""
    cdef Share share
    cdef Watch watch = new_watch()
    cdef Py_ssize_t tasks
    cdef int team
    cdef void* memory = NULL
    share.job = job
    job.watch = &watch
    job.team = num_threads
    if job.split:
        num_threads = 1  # the team works at each sample
    job.rows = are_short_rows(job)
    job.lanes |= job.rows
    job.late = can_be_late(job)
    share.per_task = max(max(1, GRAIN // max(1, job.classes)), (job.samples + MAX_TASKS - 1) // MAX_TASKS)
    if job.late:  # the last of each task is not
        share.per_task = max(share.per_task, min(TOGETHER, job.samples // LEAST_TASKS))
    if job.lines:  # the first and the last of each task may be broken
        share.per_task = max(share.per_task, min(TOGETHER * LANES, job.samples // LEAST_TASKS))
    if job.lanes:
        share.per_task = (share.per_task + LANES - 1) // LANES * LANES
    tasks = (job.samples + share.per_task - 1) // share.per_task
    team = <int>min(<Py_ssize_t>num_threads, tasks)
    share.scratch = NULL
    if job.scratch or job.late:
        share.kept = (room(job) + LANES) * (8 if job.x.storage == FLOAT64 else 4)  # `make_piece` reads beyond the row
        memory = malloc(team * share.kept + CACHE_LINE)  # NULL will do too, it is only slower
        if memory != NULL:
            share.scratch = <char*>memory + -<size_t>memory % CACHE_LINE
    deal(do_task, &share, tasks, team)
    free(memory)
    return -1 if watch.stopped else total_of(share.sums, tasks)


# --- per-sample sums ---------------------------------------------------------------------------------------------


cdef double sum_chunk(const Job* job, Py_ssize_t begin, Py_ssize_t end, const real* _like) noexcept nogil:
    """Sum of per_sample * scale in double, where products of floats are exact; compensated for doubles."""
    cdef const real* values = <const real*>job.per_sample
    cdef const real* scale = <const real*>job.scale.data
    cdef double totals[SUM_LANES]
    cdef double errors[SUM_LANES]
    cdef double total = 0, error = 0, constant = scale[0]
    cdef Py_ssize_t s = begin, lane
    for lane in range(SUM_LANES):
        totals[lane] = errors[lane] = 0
    while s + SUM_LANES <= end:
        if real is float and job.scale.step == 0:
            for lane in range(SUM_LANES):
                totals[lane] += weighted(values[s + lane], constant)
        elif real is float:
            for lane in range(SUM_LANES):
                totals[lane] += weighted(values[s + lane], scale[s + lane])
        else:
            for lane in range(SUM_LANES):
                add(&totals[lane], &errors[lane], weighted(values[s + lane], scale[(s + lane) * job.scale.step]))
        s += SUM_LANES
    while s < end:
        add(&total, &error, weighted(values[s], scale[s * job.scale.step]))
        s += 1
    for lane in range(SUM_LANES if end - begin >= SUM_LANES else 0):
        add_sum(&total, &error, totals[lane], errors[lane])
    return settle(total, error)


cdef double label_chunk(
    const Job* job, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t* bad, const real* _like
) noexcept nogil:
    """Sum of weight[label] * scale over the labels that count; `bad` is the first label out of range, or -1."""
    cdef const real* weight = <const real*>job.weight.data
    cdef const real* scale = <const real*>job.scale.data
    cdef double total = 0, error = 0
    cdef int64_t label
    cdef Py_ssize_t s, counted = 0
    cdef int invalid = 0
    bad[0] = -1
    for s in range(begin, end):
        label = job.labels[s]
        counted += label != job.ignore_index
        invalid |= (label != job.ignore_index) & (<uint64_t>label >= <uint64_t>job.classes)
    if invalid:
        for s in range(begin, end):
            label = job.labels[s]
            if label != job.ignore_index and not 0 <= label < job.classes:
                bad[0] = s
                return 0
    if job.weight.step == 0 and job.scale.step == 0:
        return <double>counted * weight[0] * scale[0]
    for s in range(begin, end):
        label = job.labels[s]
        if label != job.ignore_index and 0 <= label < job.classes:
            add(&total, &error, <double>weight[label * job.weight.step] * scale[s * job.scale.step])
    return settle(total, error)


cdef inline double chunk(const Job* job, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t* bad) noexcept nogil:
    if job.operation == CHECK_TARGET:
        if job.precise:
            return label_chunk(job, begin, end, bad, <const double*>NULL)
        return label_chunk(job, begin, end, bad, <const float*>NULL)
    if job.precise:
        return sum_chunk(job, begin, end, <const double*>NULL)
    return sum_chunk(job, begin, end, <const float*>NULL)


cdef void do_chunk(void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef Share* share = <Share*>context
    cdef Py_ssize_t begin = task * share.per_task
    cdef Py_ssize_t end = min(begin + share.per_task, share.job.samples)
    if task > 0 and is_stopped(share.job.watch):
        return
    share.sums[task] = chunk(share.job, begin, end, &share.bads[task])


cdef double run_chunks(Job* job, Py_ssize_t* bad, int num_threads) except? -1 nogil:
    """Add up chunks whose bounds depend on the number of samples alone, in order."""
    cdef Share share
    cdef Watch watch = new_watch()
    cdef Py_ssize_t tasks, task
    share.job = job
    job.watch = &watch
    share.per_task = max(SAMPLES, (job.samples + MAX_TASKS - 1) // MAX_TASKS)
    tasks = (job.samples + share.per_task - 1) // share.per_task
    deal(do_chunk, &share, tasks, num_threads)
    if watch.stopped:
        return -1
    bad[0] = -1
    for task in range(tasks):
        if job.operation == CHECK_TARGET and bad[0] < 0:
            bad[0] = share.bads[task]
    return total_of(share.sums, tasks)
