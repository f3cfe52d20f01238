"""One sample for each group of threads: a pass over its classes, then the formula of the operation, then the result.

All kernels of the softmax family are one body. What it is to do is a `Task`, and how threads share the work a
`Geometry`; both are constants of the compiled code, as the names in capitals are.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from ._cuda_device import (
    WARP,
    barrier_of_cluster,
    cluster_of,
    count_of,
    cuda,
    device,
    divide,
    exp_float32,
    exp_float64,
    exp_short,
    from_block,
    get,
    larger,
    largest,
    log1p,
    misaligned,
    put,
    sync_warp,
    total_of,
)
from ._cuda_tiles import finder, number_type, placer, reader, writer

DOUBLE = np.float64
EXP = {"float32": exp_float32, "float64": exp_float64, "float16": exp_short, "bfloat16": exp_short}
PARTS = 4  # sums of a thread, added up in the end: rounding errors grow with the terms of each


class Task(NamedTuple):
    """What a kernel computes."""

    operation: str  # of `Kernels`
    storage: str  # of x and out
    target: str = ""  # "label", "smoothed" (a label, and some of every class) or "probs"
    target_storage: str = ""
    writes: bool = True  # whether there is an out

    @property
    def labelled(self) -> bool:
        """Whether the target is a label, which stands for a hot class."""
        return self.target in ("label", "smoothed")

    @property
    def dense(self) -> bool:
        """Whether the target is a number for every class (besides)."""
        return self.target in ("smoothed", "probs")


# A row is what is known of a sample, or of a part of it, as in _rows.pxi: top, the largest logit; rest, the sum of
# exp(x - top) over the other classes; mass, the sum of q = weight * (keep * target + spread); cross, of q * (x - top).


@cache
def scanner(task, geometry):
    """scan(values, q): the row of what a thread holds, where -inf, as beyond the end, adds nothing.

    Values become exp(x - top), unless the result needs them as they are.
    """
    KIND, EXP_OF, COUNT = number_type(task.storage), EXP[task.storage], geometry.count
    ZERO, ONE, LOWEST = KIND(0), KIND(1), KIND(-math.inf)
    NLL, KEEPS, DENSE = task.operation == "nll", task.operation == "log_softmax", task.dense

    @device
    def scan(values, q):
        top, ties, mass, cross = LOWEST, 0, ZERO, ZERO
        sums = cuda.local.array(PARTS, KIND)
        for part in range(PARTS):
            sums[part] = ZERO
        for k in range(COUNT):
            top = larger(top, values[k])
        top = ZERO if NLL else top
        shift = ZERO if math.isinf(top) else top
        for k in range(COUNT):
            x = values[k] - shift
            if DENSE:
                mass += q[k]
                cross += q[k] * x if q[k] != ZERO else ZERO
            if not NLL:
                e = EXP_OF(x)
                tied = e == ONE
                ties += tied
                sums[k % PARTS] += ZERO if tied else e
                if not KEEPS:
                    values[k] = e
        rest = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + KIND(max(ties, 1) - 1)
        return top, rest, mass, cross

    return scan


@cache
def merger(task):
    """merge(row, width): the rows of `width` lanes as one, the same in all of these lanes."""
    KIND, EXP_OF, DENSE = number_type(task.storage), EXP[task.storage], task.dense
    ZERO, ONE = KIND(0), KIND(1)

    @device
    def merge(row, width):
        top, rest, mass, cross = row
        highest = largest(top, width)
        tied = top == highest
        rise = ZERO if tied else highest - top
        ties = count_of(tied, width)
        rest = total_of(rest if tied else (rest + ONE) * EXP_OF(-rise), width) + KIND(ties - 1)
        if DENSE:
            cross = total_of(cross - mass * rise if mass != ZERO else cross, width)
            mass = total_of(mass, width)
        return highest, rest, mass, cross

    return merge


@cache
def joiner(task):
    """join(row, other): two rows as one, for the parts of a long sample."""
    KIND, EXP_OF = number_type(task.storage), EXP[task.storage]
    ZERO, ONE = KIND(0), KIND(1)

    @device
    def join(row, other):
        if other[0] > row[0]:
            row, other = other, row
        top, rest, mass, cross = row
        other_top, other_rest, other_mass, other_cross = other
        rise = ZERO if top == other_top else top - other_top
        rest += (other_rest + ONE) * EXP_OF(-rise)
        other_cross = other_cross - other_mass * rise if other_mass != ZERO else other_cross
        return top, rest, mass + other_mass, cross + other_cross

    return join


@cache
def gatherer(task, geometry):
    """gather(row): the row of a whole sample, from all its threads: lanes, then warps, then the blocks of a cluster."""
    KIND, BLOCKS = number_type(task.storage), geometry.blocks
    WARPS, LANES = max(1, geometry.threads // WARP), min(geometry.threads, WARP)
    merge = merger(task)

    @device
    def gather(row):
        sync_warp()  # all have read the logit of the label, which another thread may overwrite
        row = merge(row, LANES)
        if WARPS > 1:
            parts, lane = cuda.shared.array((4, WARPS), KIND), cuda.threadIdx.x % WARP
            if lane == 0:
                for i in range(4):
                    parts[i, cuda.threadIdx.x // WARP] = row[i]
            cuda.syncthreads()
            warp = lane % WARPS
            row = merge((parts[0, warp], parts[1, warp], parts[2, warp], parts[3, warp]), WARPS)
        if BLOCKS > 1:
            part, block = cuda.shared.array(4, KIND), cuda.threadIdx.x % BLOCKS
            if cuda.threadIdx.x == 0:
                for i in range(4):
                    part[i] = row[i]
            barrier_of_cluster()
            row = (
                from_block(part, 0, block),
                from_block(part, 1, block),
                from_block(part, 2, block),
                from_block(part, 3, block),
            )
            row = merge(row, BLOCKS)
            barrier_of_cluster()  # no block may end, and its shared memory with it, before all have read
        return row

    return gather


# --- what follows from a row -------------------------------------------------------------------------------------


@cache
def formulas(task):
    """loss(row, log_total, hot, x_k, z_loss) and likely(row, hot, q_k, e_k, z), as in `_formulas.py`."""
    KIND, NLL = number_type(task.storage), task.operation == "nll"
    ONE = KIND(1)

    @device
    def loss(row, log_total, hot, x_k, z_loss):
        top, _, mass, cross = row
        lse = top + log_total
        if NLL:
            return -(cross + hot * x_k)
        return mass * log_total - cross + z_loss * lse * lse + hot * (log_total - (x_k - top))

    @device
    def likely(row, hot, q_k, e_k, z):
        _, rest, mass, _ = row
        if NLL:
            return -hot
        return divide((mass - q_k + z) * e_k - (hot + q_k) * (rest + (ONE - e_k)), ONE + rest)

    return loss, likely


@cache
def finisher(task, geometry):
    """finish(values, q, row, lift, share, scale, z): the result for what a thread holds.

    Values are exp(x - own top), or x itself for its logarithm; lift is exp(own top - top), share the factor of the
    softmax and scale that of the target.
    """
    KIND, COUNT, OPERATION = number_type(task.storage), geometry.count, task.operation
    ZERO, ONE, DENSE = KIND(0), KIND(1), task.dense
    NLL, LOGARITHM, APART = OPERATION == "nll", OPERATION == "log_softmax", task.target == "probs"
    _, likely = formulas(task)

    @device
    def finish(values, q, row, log_total, lift, share, scale, z):
        top, factor = row[0], lift * share
        for k in range(COUNT):
            result = ZERO if NLL else (values[k] - top) - log_total if LOGARITHM else values[k] * factor
            if DENSE:
                result -= scale * q[k] if q[k] != ZERO else ZERO
            if APART and not NLL and values[k] * lift == ONE:
                result = scale * likely(row, ZERO, q[k], ONE, z)
            values[k] = result

    return finish


@device
def find_label(labels, s, classes, ignore_index):
    """A sample's label, or -1 where there is nothing to compute."""
    label = labels[s]
    return -1 if label == ignore_index or label < 0 or label >= classes else label


@cache
def fetcher(task, geometry):
    """fetch(...): the part of a sample that a thread holds, from memory: values of x, and of q."""
    KIND, READS, DENSE = number_type(task.storage), task.operation != "nll" or not task.labelled, task.dense
    COUNT, WIDTH, APART, PROBS = geometry.count, geometry.width, geometry.apart, task.target == "probs"
    LONG = geometry.long
    ZERO, LOWEST, PEELED = KIND(0), KIND(-math.inf), geometry.access == "peeled"
    read, read_target = reader(geometry, task.storage), reader(geometry, task.target_storage or task.storage)

    @device
    def fetch(x, y, weight, weight_step, keep, spread, first, skew, length, start, y_start, step, y_step, values, q):
        if READS:
            read(x, start, step, first, length, True, LOWEST, values)
        if PROBS:
            read_target(y, y_start, y_step, first, length, not PEELED or misaligned(y, y_start, WIDTH) == skew, ZERO, q)
        if DENSE:
            before, room = np.int32(-first), np.int32(length - first)  # in long samples it takes fewer registers
            for k in range(COUNT):
                i = k // WIDTH * APART + k % WIDTH
                t = keep * q[k] + spread if PROBS else spread
                inside = before <= i < room if LONG else 0 <= first + i < length
                q[k] = weight[(first + i) * weight_step] * t if inside else ZERO

    return fetch


@cache
def row_kernel(task, geometry):
    """The kernel of this task and geometry.

    x, y, out: strides in elements for (outer, class, inner); y holds target probabilities. labels, losses: (samples,);
    weight: (classes,); scale: (samples,); the last two have step 0 for a constant. The gradient is multiplied by scale,
    inverse[0] and factor; coefficients: keep, spread, z_loss.
    x is read once and out written once, unless samples are long: then x is read twice.
    """
    OPERATION, STORAGE, WRITES, LABELLED, DENSE = *task[:2], task.writes, task.labelled, task.dense
    KIND, COUNT, WIDTH, LONG = number_type(STORAGE), geometry.count, geometry.width, geometry.long
    BLOCKS, LANES, CAPACITY = geometry.blocks, geometry.threads * geometry.blocks, geometry.capacity
    ZERO, ONE, LOWEST, NAN = KIND(0), KIND(1), KIND(-math.inf), KIND(math.nan)
    PEELED, HELD = geometry.access == "peeled", COUNT if DENSE else 1
    EXPONENTIAL, LOSS = OPERATION not in ("nll", "log_softmax"), OPERATION in ("cross_entropy", "nll")
    place, find, fetch = placer(geometry), finder(geometry), fetcher(task, geometry)
    write, exp = writer(geometry, STORAGE), EXP[STORAGE]
    scan, join, gather = scanner(task, geometry), joiner(task), gatherer(task, geometry)
    finish, form_cluster = finisher(task, geometry), cluster_of(BLOCKS)
    loss_of, likely = formulas(task)

    def kernel(
        x, y, out, labels, weight, scale, inverse, losses, shape, x_strides, y_strides, out_strides, steps,
        ignore_index, coefficients, factor,
    ):  # fmt: skip
        if BLOCKS > 1:
            form_cluster()
        values, q, row = cuda.local.array(COUNT, KIND), cuda.local.array(HELD, KIND), (LOWEST, ZERO, ZERO, ZERO)
        samples, classes, inner = shape
        s, lane = place()
        active, s = s < samples, min(s, samples - 1)
        length = classes if active else 0
        start, y_start = find(s, inner, x_strides), find(s, inner, y_strides)
        skew = misaligned(x, start, WIDTH) if PEELED else 0
        tiles = (classes + skew + CAPACITY - 1) // CAPACITY if LONG else 1
        keep, spread, z_loss = KIND(coefficients[0]), KIND(coefficients[1]), KIND(coefficients[2])
        dense = weight, steps[0], keep, spread
        k, hot, x_k = 0, ZERO, ZERO
        if LABELLED:
            k = find_label(labels, s, classes, ignore_index)
            hot = keep * weight[max(k, 0) * steps[0]]
            x_k = get(x, start + max(k, 0) * x_strides[1])  # before it may be overwritten
        for tile in range(tiles):
            first = np.int32(tile * CAPACITY + lane * WIDTH - skew)
            fetch(x, y, *dense, first, skew, length, start, y_start, x_strides[1], y_strides[1], values, q)
            row = join(row, scan(values, q)) if LONG else scan(values, q)
        own = row[0]
        top, rest, mass, cross = gather(row)
        log_total = log1p(rest)
        if OPERATION == "logsumexp":
            if lane == 0 and active:
                losses[s] = top if math.isinf(top) and rest == rest else top + log_total
            return
        rest, log_total = (NAN, NAN) if math.isinf(top) else (rest, log_total)
        row = top, rest, mass, cross
        if LOSS and lane == 0 and active:
            loss = loss_of(row, log_total, hot, x_k, z_loss)
            losses[s] = loss if k >= 0 else ZERO if labels[s] == ignore_index else NAN
        if not WRITES:
            return
        out_start, scale_s = find(s, inner, out_strides), scale[s * steps[1]]
        if LOSS:  # in double: over tiny weights the mean's factor is no float32
            scale_s = KIND(DOUBLE(scale_s) * (factor * inverse[0]))
        fits = not PEELED or misaligned(out, out_start, WIDTH) == skew
        z = KIND(2) * z_loss * (top + log_total) if LOSS else ZERO
        share = divide(scale_s * (mass + hot + z if LOSS else ONE), ONE + rest)
        lift = ONE if LONG or own == top else exp(own - top)
        for tile in range(tiles):
            first = np.int32(tile * CAPACITY + lane * WIDTH - skew)
            if LONG:
                fetch(x, y, *dense, first, skew, length, start, y_start, x_strides[1], y_strides[1], values, q)
                for i in range(COUNT):
                    values[i] = exp(values[i] - top) if EXPONENTIAL else values[i]
            finish(values, q, row, log_total, lift, share, scale_s, z)
            if k < 0:
                for i in range(COUNT):
                    values[i] = ZERO if labels[s] == ignore_index else NAN
            write(out, out_start, out_strides[1], first, length, fits, values)
        if LABELLED and k >= 0 and (k + skew) // WIDTH % LANES == lane and active:
            q_k = weight[k * steps[0]] * spread
            put(out, out_start + k * out_strides[1], scale_s * likely(row, hot, q_k, exp(x_k - top), z))

    return kernel
