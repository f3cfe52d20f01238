"""Lane kernels for Numba: LANES samples at a time, one in each SIMD lane.

They are for few classes, and for classes that lie apart while samples lie side by side, as in images of shape (N, C, H,
W); they are right for any array. What is known of each sample is a pack, so that the code reads as that of one sample.
"""

import math

from ._formulas import (
    add,
    exp_any,
    exp_negative,
    finite,
    log1p_above,
    log_sum_exp,
    raise_top,
    sample_loss,
    settled,
    widen,
)  # fmt: skip
from ._numba_around import kernel
from ._numba_blocks import is_large, shares
from ._numba_gradient import Gradient
from ._numba_sums import sum_if
from ._numba_tiles import NUMBERS, TILE, Tiles, load_some, store_some
from ._numba_trace import FLOAT64, INT32, LANES, Variables, during, each, larger, smaller, tasks, when, where

GROUP = 8  # classes summed before their sum is added to the total: keeps the error of float32 below 1 ulp


def tiles(x, counter, size):
    """First sample and number of each tile."""
    samples, inner = x.shape[0] * x.shape[2], x.shape[2]
    run = where(inner > 1, inner, samples)
    for begin, end in tasks(counter, size, samples):
        yield from pieces(begin, end, run)


def pieces(begin, end, run):
    """The tiles of one task, which end where samples stop lying side by side: at the end of each inner axis."""
    s = Variables(first=begin)
    for _ in during(end.builder, lambda: s.first < end):
        count = smaller(smaller(end - s.first, run - s.first % run), end.like(LANES))
        yield s.first, count
        s.first = s.first + count


def parts(classes):
    """First class and number of classes of each tile."""
    for start in each(0, classes, TILE):
        yield start, smaller(classes - start, classes.like(TILE))


# --- one tile ----------------------------------------------------------------------------------------------------


class Target:
    """What samples are compared with: labels, or probabilities, and how they are weighed."""

    def __init__(self, labels, probs, weight, keep, spread, tile):
        self.labels, self.weight, self.keep, self.spread = labels, weight, keep, spread
        self.probs = None if probs is None else Tiles(probs)
        self.tile = tile.scratch(NUMBERS)
        if labels is not None:
            self.stage, self.weights = labels.data.scratch(LANES), tile.scratch(LANES)

    @property
    def dense(self):
        """Whether classes have a target besides the label's."""
        return self.spread != 0.0 if self.probs is None else self.spread == self.spread

    def read(self, first, lanes, start, classes):
        """Probabilities of a tile."""
        if self.probs is not None:
            self.probs.read(self.tile, first, lanes, start, classes)

    def at(self, start, c):
        """Target of the c-th class of the tile that begins at class `start`, times the class's weight."""
        weight = self.weight.at(start + c)
        if self.probs is None:
            return (weight * self.spread).to(self.tile.kind).splat()
        return (self.tile.load(c * LANES) * self.keep + self.spread) * weight

    def read_labels(self, first, lanes, classes, ignore_index):
        """Each lane's label, or -1; what takes the place of results if so; its weight."""
        labels = load_some(self.labels.data, first, lanes, self.stage)
        valid = (labels != ignore_index) & (labels >= 0) & (labels < classes)
        without = where(labels == ignore_index, self.tile.number(0.0), math.nan)
        weights = Variables(pack=self.weight.data[0].splat())
        with when(self.weight.size > 1):
            for lane in each(0, lanes):
                label = self.labels.data[first + lane]
                counts = (label >= 0) & (label < classes)
                self.weights[lane] = self.weight.data[where(counts, label, 0)]
            weights.pack = self.weights.load(0)
        return where(valid, labels, -1).to(INT32), without, weights.pack


def scan(x, tile, first, lanes, label=None, target=None):
    """One pass over the classes of LANES samples; a single tile is left holding exp(x - top).

    `rest` is the sum of exp(x - top) without the largest term, so that log1p(rest) and rest / (1 + rest) keep full
    precision where one class has nearly all the probability (Blanchard, Higham, Higham 2021, algorithm 4.1). It is nan
    if and only if an x is. `mass` and `cross` are the sums of q and q * (x - top), `below` is the logit of the label.
    """
    zero = tile.number(0.0)
    s = Variables(top=tile.number(-math.inf), rest=zero, lost=zero, mass=zero, cross=zero, below=zero)
    for start, classes in parts(x.classes):
        x.read(tile, first, lanes, start, classes)
        new = Variables(top=s.top)
        for c in each(0, classes):
            value = tile.load(c * LANES)
            new.top = larger(value, new.top)
            if label is not None:
                s.below = where(label == start + c, value, s.below)
        with when(start > 0):
            raise_top(s, new.top)
        if target is not None:
            target.read(first, lanes, start, classes)
            with when(target.dense):
                add_target(s, tile, new.top, start, classes, target)
        total, ties = add_exponentials(tile, classes, new.top)
        s.rest, s.lost = add(s.rest, s.lost, total + where(new.top > s.top, ties - 1.0, ties))
        s.top = new.top
    return s.top, s.rest + s.lost, s.mass, s.cross, s.below - s.top


def groups(classes):
    """The classes of a tile, some at a time."""
    for start in each(0, classes, GROUP):
        yield each(start, smaller(start + GROUP, classes))


def add_exponentials(tile, classes, top):
    """tile = exp(x - top); the sum of these, in which an x that is top counts 0, and how many are."""
    base, zero = finite(top), tile.number(0.0)
    s = Variables(total=zero, ties=zero, part=zero)
    for group in groups(classes):
        s.part = zero
        for c in group:
            x = tile.load(c * LANES)
            e = exp_negative(x - base)
            tile.store(c * LANES, e)
            s.part, s.ties = where(x == base, s.part, s.part + e), where(x == base, s.ties + 1.0, s.ties)
        s.total = s.total + s.part
    return s.total, s.ties


def add_target(s, tile, top, start, classes, target):
    """Add one tile to `mass` and `cross`, where a q of 0 counts 0 even against inf."""
    base, zero = finite(top), tile.number(0.0)
    part = Variables(mass=zero, cross=zero)
    for group in groups(classes):
        part.mass = part.cross = zero
        for c in group:
            q = target.at(start, c)
            part.mass = part.mass + q
            part.cross = part.cross + where(q != 0.0, q * (tile.load(c * LANES) - base), 0.0)
        s.mass, s.cross = s.mass + part.mass, s.cross + part.cross


def exponentials(x, tile, first, lanes, start, classes, top):
    """tile = exp(x - top), which is there already if it is the only one."""
    with when(x.classes > TILE):
        x.read(tile, first, lanes, start, classes)
        for c in each(0, classes):
            tile.store(c * LANES, exp_negative(tile.load(c * LANES) - top))


class Scale:
    """Each sample's factor."""

    def __init__(self, scale, factor):
        self.scale, self.factor, self.stage = scale, factor, scale.data.scratch(LANES)

    def read(self, first, lanes):
        """So many samples' factors, in the computing type."""
        s = Variables(pack=self.scale.data[0].splat())
        with when(self.scale.size > 1):
            s.pack = load_some(self.scale.data, first, lanes, self.stage)
        return (s.pack.to(FLOAT64) * self.factor).to(s.pack.kind)  # a mean of tiny weights is a float32 only now


# --- kernels -----------------------------------------------------------------------------------------------------
# x, probs, grad_output, out, grad: (outer, classes, inner) with any strides; labels, loss and scale: (samples,);
# weight: (classes,); the last two may have length 1. Labels or probs are None, and grad if it is not wanted. Losses are
# summed if `summed` is not 0.
# `spare` has the computing type; counter: how many tasks of `size` samples have been taken, see `tasks`.


@kernel()
def logsumexp(x, out, counter, size, spare):
    """One pass; out is (samples,)."""
    tile, stage, logits = out.data.scratch(NUMBERS), out.data.scratch(LANES), Tiles(x)
    for first, lanes in tiles(x, counter, size):
        top, rest, *_ = scan(logits, tile, first, lanes)
        store_some(out.data, first, lanes, log_sum_exp(top, rest), stage)


@kernel()
def softmax(x, scale, out, counter, size, spare):
    """One pass; two and twice the exponentials over more than TILE classes."""
    tile, logits, result, scales = scale.data.scratch(NUMBERS), Tiles(x), Tiles(out), Scale(scale, 1.0)
    for first, lanes in tiles(x, counter, size):
        top, rest, *_ = scan(logits, tile, first, lanes)
        factor = scales.read(first, lanes) / (settled(top, rest) + 1.0)
        for start, classes in parts(logits.classes):
            exponentials(logits, tile, first, lanes, start, classes, top)
            for c in each(0, classes):
                tile.store(c * LANES, tile.load(c * LANES) * factor)
            result.write(tile, first, lanes, start, classes)


@kernel()
def log_softmax(x, out, counter, size, spare):
    """Two passes; x - top - log_total in this order: the first difference is exact where it matters."""
    tile, logits, result = spare.data.scratch(NUMBERS), Tiles(x), Tiles(out)
    for first, lanes in tiles(x, counter, size):
        top, rest, *_ = scan(logits, tile, first, lanes)
        log_total = log1p_above(settled(top, rest))
        for start, classes in parts(logits.classes):
            logits.read(tile, first, lanes, start, classes)
            for c in each(0, classes):
                tile.store(c * LANES, (tile.load(c * LANES) - top) - log_total)
            result.write(tile, first, lanes, start, classes)


def vjp(value, grad_output, out, counter, size, spare, term, gradient):
    """`term` of each class summed, then `gradient` from the sum; two passes over both arrays."""
    p, g, zero = spare.data.scratch(NUMBERS), spare.data.scratch(NUMBERS), spare.data.number(0.0)
    values, incoming, result = Tiles(value), Tiles(grad_output), Tiles(out)
    for first, lanes in tiles(value, counter, size):
        s = Variables(total=zero, part=zero)
        for start, classes in parts(values.classes):
            values.read(p, first, lanes, start, classes)
            incoming.read(g, first, lanes, start, classes)
            for group in groups(classes):
                s.part = zero
                for c in group:
                    s.part = s.part + term(p.load(c * LANES), g.load(c * LANES))
                s.total = s.total + s.part
        for start, classes in parts(values.classes):
            with when(values.classes > TILE):
                values.read(p, first, lanes, start, classes)
                incoming.read(g, first, lanes, start, classes)
            for c in each(0, classes):
                p.store(c * LANES, gradient(p.load(c * LANES), g.load(c * LANES), s.total))
            result.write(p, first, lanes, start, classes)


@kernel()
def softmax_vjp(probs, grad_output, out, counter, size, spare):
    """p * (g - sum(g * p)), where a probability of 0 counts 0 even against inf."""
    vjp(probs, grad_output, out, counter, size, spare,
        lambda p, g: where(p != 0.0, p * g, 0.0), lambda p, g, total: p * (g - total))  # fmt: skip


@kernel()
def log_softmax_vjp(log_probs, grad_output, out, counter, size, spare):
    """g - exp(log_probs) * sum(g)."""
    vjp(log_probs, grad_output, out, counter, size, spare,
        lambda p, g: g, lambda p, g, total: g - exp_any(p) * total)  # fmt: skip


@kernel(FLOAT64)
def cross_entropy(
    x, labels, probs, weight, scale, label_smoothing, z_loss, ignore_index, factor, loss, summed, grad, counter, size,
    spare
):  # fmt: skip
    """One pass; for the gradient of more than TILE classes two, and twice the exponentials."""
    keep, spread = shares(label_smoothing, x)
    tile, stage, logits = loss.data.scratch(NUMBERS), loss.data.scratch(LANES), Tiles(x)
    target, scales, result = (
        Target(labels, probs, weight, keep, spread, tile),
        Scale(scale, factor),
        grad and Tiles(grad, is_large(grad, [x, probs])),
    )
    hot = q_k = zero = tile.number(0.0)
    label = without = None
    for first, lanes in tiles(x, counter, size):
        if probs is None:
            label, without, weights = target.read_labels(first, lanes, logits.classes, ignore_index)
            hot, q_k = weights * keep, weights * spread
        top, rest, mass, cross, below = scan(logits, tile, first, lanes, label, target)
        rest = settled(top, rest)
        log_total = log1p_above(rest)
        below = zero if probs is not None else below
        losses = sample_loss(top, log_total, mass, cross, hot, below, z_loss)
        store_some(loss.data, first, lanes, losses if label is None else where(label < 0, without, losses), stage)
        if grad is None:
            continue
        minus, z = scales.read(first, lanes), (top + log_total) * (z_loss * 2.0)
        gradient = Gradient(minus, rest, mass, hot, z)
        slope, patch = gradient.share * minus, gradient.likely(q_k, exp_negative(below)) * minus
        if probs is None:
            patch = where(label < 0, without, patch)
        for start, classes in parts(logits.classes):
            exponentials(logits, tile, first, lanes, start, classes, top)
            with when(logits.classes > TILE):
                target.read(first, lanes, start, classes)
            for c in each(0, classes):
                e = tile.load(c * LANES)
                g = Variables(value=slope * e)
                with when(target.dense):
                    q = target.at(start, c)
                    value = gradient.share * e - q
                    if probs is not None:
                        value = where(e == 1.0, gradient.likely(q, 1.0), value)
                    g.value = value * minus
                if probs is None:
                    g.value = where((label == start + c) | (label < 0), patch, g.value)
                tile.store(c * LANES, g.value)
            result.write(tile, first, lanes, start, classes)
    return sum_if(summed, loss, scale)


@kernel(FLOAT64)
def nll(x, labels, probs, weight, scale, ignore_index, factor, loss, summed, grad, counter, size, spare):
    """-sum_j t_j x_j and its gradient -t: only the label's class is read, or all classes once for probabilities."""
    tile, stage, logits = loss.data.scratch(NUMBERS), loss.data.scratch(LANES), Tiles(x)
    one, zero = factor.like(1.0), tile.number(0.0)
    target, scales, result = (
        Target(labels, probs, weight, one, one * 0.0, tile),
        Scale(scale, factor),
        grad and Tiles(grad),
    )
    label = without = patch = None
    for first, lanes in tiles(x, counter, size):
        minus, s = zero - scales.read(first, lanes), Variables(mass=zero, cross=zero)
        if labels is not None:
            label, without, weights = target.read_labels(first, lanes, logits.classes, ignore_index)
            rows = logits.rows(first, lanes.like(0))
            for lane in each(0, lanes):
                k = labels.data[first + lane]
                counts = (k >= 0) & (k < logits.classes)
                stage[lane] = widen(rows[lane, where(counts, k, 0)])
            s.cross = where(label < 0, without, weights * stage.load(0))
            patch = where(label < 0, without, minus * weights)
        else:
            for start, classes in parts(logits.classes):
                logits.read(tile, first, lanes, start, classes)
                target.read(first, lanes, start, classes)
                add_target(s, tile, zero, start, classes, target)
        store_some(loss.data, first, lanes, zero - s.cross, stage)
        if grad is None:
            continue
        for start, classes in parts(logits.classes):
            target.read(first, lanes, start, classes)
            for c in each(0, classes):
                if labels is not None:
                    g = where((label == start + c) | (label < 0), patch, zero)
                else:
                    q = target.at(start, c)
                    g = where(q != 0.0, minus * q, 0.0)
                tile.store(c * LANES, g)
            result.write(tile, first, lanes, start, classes)
    return sum_if(summed, loss, scale)
