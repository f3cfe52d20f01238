"""Times of every public function of arrays: by shape, and by type of number."""

import os
from time import process_time
from timeit import default_timer

from .calls import BACKENDS, SHAPES, cases, make_batch

FORWARD, WITH_GRAD = tuple(cases.ALL), tuple(cases.ALL_WITH_GRAD)
ONE_THREAD = os.environ.get("FASTXENT_NUM_THREADS") == "1"
TYPES = tuple(dtype for dtype in cases.DTYPES if dtype != "float32")  # which is in the suites by shape


class Timed:
    """One sample is `count` calls: asv times one call of what has a setup, and some take a few microseconds."""

    repeat = (3, 10, 2.0)  # samples of a round: least, most, seconds
    warmup_time = 0.05
    timer = process_time if ONE_THREAD else default_timer  # the former leaves out what other processes take
    version = 1  # asv draws numbers of one version: to be raised by hand, when what is measured changes
    with_grad = False

    def setup(self, function, backend, case):
        self.call, self.count = self.make(function, backend, case)

    def run(self):
        call = self.call
        for _ in range(self.count):
            call()


class ByShape(Timed):
    param_names = ("function", "backend", "shape")

    def make(self, function, backend, shape):
        return make_batch(function, backend, "float32", SHAPES[shape], self.with_grad)


class ByType(Timed):
    param_names = ("function", "backend", "dtype")

    def make(self, function, backend, dtype):
        return make_batch(function, backend, dtype, SHAPES["ImageNet"], self.with_grad)


class Shapes(ByShape):
    params = (FORWARD, BACKENDS, tuple(SHAPES))

    def time_forward(self, *case):
        self.run()


class ShapesWithGrad(ByShape):
    params = (WITH_GRAD, BACKENDS, tuple(SHAPES))
    with_grad = True

    def time_with_grad(self, *case):
        self.run()


class Types(ByType):
    params = (FORWARD, BACKENDS, TYPES)

    def time_forward(self, *case):
        self.run()


class TypesWithGrad(ByType):
    params = (WITH_GRAD, BACKENDS, TYPES)
    with_grad = True

    def time_with_grad(self, *case):
        self.run()
