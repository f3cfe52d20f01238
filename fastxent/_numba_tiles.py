"""Tiles for Numba's lane kernels: LANES samples of any array, one in each lane.

A tile is scratch memory [class][lane] in the computing type.
"""

from ._formulas import narrow, widen
from ._numba_blocks import Row
from ._numba_trace import LANES, each, either, smaller, when, where

TILE = 64  # classes in one tile, which with LANES samples of float32 takes 8 KiB
NUMBERS = LANES * TILE
CHUNK = 4  # classes that are transposed in registers
STREAMED = 12  # classes from which large results pass the cache by: with fewer, too many lines lie in two tiles


def _transposed(a, b, c, d):
    """Four packs as the columns of 4 x 4 matrices, one in each four lanes: their rows."""

    def mixed(pair, lanes):
        return pair[0].shuffle((start + lane for start in range(0, LANES, CHUNK) for lane in lanes), pair[1])

    low, high = (0, LANES, 1, LANES + 1), (2, LANES + 2, 3, LANES + 3)
    left, right = (0, 1, LANES, LANES + 1), (2, 3, LANES + 2, LANES + 3)
    pairs = [[mixed(pair, lanes) for pair in ((a, b), (c, d))] for lanes in (low, high)]
    return [mixed(pair, lanes) for pair in pairs for lanes in (left, right)]


def _column(source, offset, stride):
    """CHUNK numbers from each of LANES / CHUNK places, side by side."""
    parts = [source.load(offset + stride * i, CHUNK) for i in range(LANES // CHUNK)]
    while len(parts) > 1:
        size = range(2 * parts[0].count)
        parts = [one.shuffle(size, other) for one, other in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _chunks(classes):
    """First classes of chunks, the last of which overlaps the one before."""
    for c in each(0, classes, CHUNK):
        last = smaller(c, classes - CHUNK)
        yield where(last < 0, 0, last)


class Rows:
    """Where samples lie side by side: a pointer, an offset, and strides to the next sample and class."""

    def __init__(self, pointer, offset, across, step):
        self.pointer, self.offset, self.across, self.step = pointer, offset, across, step

    def __getitem__(self, place):
        lane, c = place
        return self.pointer[self.offset + lane * self.across + c * self.step]

    def __setitem__(self, place, value):
        lane, c = place
        self.pointer[self.offset + lane * self.across + c * self.step] = value

    def copy(self, source, lanes, classes, streamed=None):
        """Take so many numbers from other rows; in one go where neither has gaps, and perhaps past the cache."""
        dense = (self.step == 1) & (source.step == 1) & (self.across == classes) & (source.across == classes)
        with when(dense):
            target, nothing = Row(self.pointer, self.offset, streamed), self.pointer.number(0)
            for i, left in target.packs(lanes.like(0), lanes * classes):
                if left is None:
                    target.store(self.offset + i, source.pointer.load(source.offset + i))
                else:
                    rest = source.pointer.load_first(source.offset + i, left, nothing)
                    self.pointer.store_first(self.offset + i, left, rest)
        with when(dense == 0):
            for lane in each(0, lanes):
                for c in each(0, classes):
                    self[lane, c] = source[lane, c]


class Tiles:
    """An (outer, classes, inner) array of any strides as tiles."""

    def __init__(self, array, streamed=None):
        self.array, self.streamed, self.classes = array, streamed, array.shape[1]
        self.stage = array.data.scratch(NUMBERS + CHUNK)  # fewer classes move as CHUNK

    def following(self, first):
        """How many samples lie side by side from this one on."""
        outer, _, inner = self.array.shape
        run = where(inner > 1, inner, outer)
        return run - first % run

    def rows(self, first, start):
        """Where class `start` of sample `first` lies."""
        outer, step, inner = self.array.strides
        run = self.array.shape[2]
        offset = (first // run) * outer + (first % run) * inner + start * step
        return Rows(self.array.data, offset, where(run > 1, inner, outer), step)

    def read(self, tile, first, lanes, start, classes):
        """Widen classes from `start` on of so many samples from `first` on; other lanes get any numbers."""
        rows = self.rows(first, start)
        strided = rows.across == 1
        with when(strided):
            for c in each(0, classes):
                place = rows.offset + c * rows.step
                rows.pointer.fetch(place + LANES)  # for the next tile: too many streams for a processor to foresee
                tile.store(c * LANES, widen(load_some(rows.pointer, place, lanes, self.stage)))
        with when(strided == 0):
            # Fewer classes than CHUNK are read with the next sample's, where there is one.
            alone = (rows.across != classes) | (self.following(first) < lanes + CHUNK)
            staged = (rows.step != 1) | (lanes < LANES) | ((classes < CHUNK) & alone)
            with when(staged):
                Rows(self.stage, rows.offset.like(0), classes, rows.step.like(1)).copy(rows, lanes, classes)
            source = either(staged, self.stage, rows.pointer)
            offset, across = where(staged, 0, rows.offset), where(staged, classes, rows.across)
            for c in _chunks(classes):
                columns = [_column(source, offset + c + across * k, across * CHUNK) for k in range(CHUNK)]
                for k, pack in enumerate(_transposed(*columns)):
                    tile.store((c + k) * LANES, widen(pack))

    def write(self, tile, first, lanes, start, classes):
        """The way back."""
        rows = self.rows(first, start)
        strided = rows.across == 1
        with when(strided):
            for c in each(0, classes):
                pack = narrow(tile.load(c * LANES), rows.pointer)
                store_some(rows.pointer, rows.offset + c * rows.step, lanes, pack, self.stage)
        with when(strided == 0):
            staged = (rows.step != 1) | (lanes < LANES) | (classes < CHUNK)
            if self.streamed is not None:
                staged = staged | (self.streamed & (rows.across == classes) & (classes >= STREAMED))
            target = either(staged, self.stage, rows.pointer)
            offset, across = where(staged, 0, rows.offset), where(staged, classes, rows.across)
            for c in _chunks(classes):
                packs = _transposed(*(narrow(tile.load((c + k) * LANES), target) for k in range(CHUNK)))
                for lane in range(LANES):  # in ascending order: fewer classes than CHUNK spill into the next row
                    start = lane // CHUNK * CHUNK
                    numbers = packs[lane % CHUNK].shuffle(range(start, start + CHUNK))
                    target.store(offset + c + across * lane, numbers)
            with when(staged):
                source = Rows(self.stage, rows.offset.like(0), classes, rows.step.like(1))
                rows.copy(source, lanes, classes, self.streamed)


def load_some(pointer, offset, count, stage):
    """A pack whose first `count` numbers are read from a pointer; the others are what the stage held."""
    part = count < LANES
    with when(part):
        for i in each(0, count):
            stage[i] = pointer[offset + i]
    return either(part, stage, pointer).load(where(part, 0, offset))


def store_some(pointer, offset, count, pack, stage):
    """Store the first `count` numbers of a pack."""
    part = count < LANES
    either(part, stage, pointer).store(where(part, 0, offset), pack)
    with when(part):
        for i in each(0, count):
            pointer[offset + i] = stage[i]
