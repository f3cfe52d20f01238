"""Numbers that are no plain times: errors, ratios to what the machine can do, what a call and a start cost."""

import importlib
import subprocess
import sys
from statistics import median
from timeit import repeat

import numpy as np

from fastxent import _backends, _config

from .calls import BACKENDS, SHAPES, bind, cases, use

ROUNDS = 15
LARGE = ("ImageNet", "vocabulary", "segmentation")


class Compared:
    """The largest error of an entry against float64, in float32's units in the last place of the largest entry.

    Of the largest entry: those that are differences of numbers near each other have as large an error as those.
    """

    param_names = ("function", "backend")
    version = 1
    shape = (256, 1000)

    def setup(self, function, backend):
        loss = self.loss = cases.ALL[function]
        use(loss, backend)
        self.arrays = loss.make(self.shape, 1, np.float32)
        self.options = loss.at(1) | ({"reduction": "none"} if loss.has_gradient else {})
        self.exact = loss.reference(*map(cases.exact, self.arrays), **self.options)


class Accuracy(Compared):
    params = (tuple(cases.ALL), BACKENDS)

    def track_error(self, function, backend):
        expected = self.exact[0] if self.loss.has_gradient else self.exact
        return largest_error(self.loss.function(*self.arrays, **self.options), expected)

    track_error.unit = "ulp"


class AccuracyOfGradient(Compared):
    params = (tuple(cases.ALL_WITH_GRAD), BACKENDS)

    def track_error_of_gradient(self, function, backend):
        return largest_error(self.loss.with_grad(*self.arrays, **self.options)[1], self.exact[1])

    track_error_of_gradient.unit = "ulp"


def largest_error(got, expected):
    largest = np.abs(expected).max()
    return float(np.abs(got - expected).max() / np.spacing(np.float32(largest)))


class Limit:
    """A call's time over that of reading the logits once, or of copying them if there is a gradient to be written."""

    params = (("forward", "with gradient"), BACKENDS, LARGE)
    param_names = ("mode", "backend", "shape")

    def setup(self, mode, backend, shape):
        self.call = bind("cross_entropy", backend, "float32", SHAPES[shape], mode == "with gradient")

    def track_ratio_to_limit(self, mode, backend, shape):
        """Taken in turns, so that whatever else the machine does hits both."""
        logits, threads = self.call.args[0], _config.num_threads(None)
        limits, out = load_limits(), np.zeros_like(logits) if mode == "with gradient" else None
        contenders = [self.call, *(lambda p=p: limits.stream(logits, out, p, threads) for p in (False, True))]
        times = zip(*([repeat(c, number=1, repeat=1)[0] for c in contenders] for _ in range(ROUNDS)), strict=True)
        call, cached, past_caches = map(median, times)
        return call / min(cached, past_caches)

    track_ratio_to_limit.unit = "times the limit"


def load_limits():
    """Streams as fast as this processor's best instructions make them."""
    level = list(_backends.available_levels().values())[-1]
    return importlib.import_module(f"fastxent.{level.replace('_kernels', '_limits')}")


class Overhead:
    """What a call takes whose arrays hold next to nothing."""

    params = (("forward", "with gradient"), BACKENDS)
    param_names = ("mode", "backend")
    calls = 1000

    def setup(self, mode, backend):
        self.call = bind("cross_entropy", backend, "float32", (1, 2), mode == "with gradient")

    def track_call_overhead(self, mode, backend):
        return min(repeat(self.call, number=self.calls, repeat=ROUNDS)) / self.calls * 1e6

    track_call_overhead.unit = "µs"


class Start:
    """What new processes take: the least of several, in turns where they are compared."""

    processes = 5
    timeout = 300

    def track_import_ratio(self):
        """Of importing fastxent over importing NumPy, which that does too."""
        rounds = [(seconds("import fastxent"), seconds("import numpy")) for _ in range(self.processes)]
        ours, numpys = map(min, zip(*rounds, strict=True))
        return ours / numpys

    track_import_ratio.unit = "times NumPy's"

    def track_first_call_of_numba(self):
        """With Numba's import, and the kernel from Numba's cache on disk."""
        use(cases.ALL["cross_entropy"], "numba")
        seconds(FIRST_CALL, PREPARE)  # fills the cache
        return min(seconds(FIRST_CALL, PREPARE) for _ in range(self.processes))

    track_first_call_of_numba.unit = "s"


PREPARE = "import numpy as np; import fastxent as fx; logits, target = np.zeros((32, 10)), np.zeros(32, int)"
FIRST_CALL = "fx.set_config(backend='numba'); fx.cross_entropy(logits, target)"
TIMER = "from time import perf_counter; {}; begin = perf_counter(); {}; print(perf_counter() - begin)"


def seconds(statement, prepare="pass"):
    """In a new process, which imports the fastxent that this one has."""
    code = f"import sys; sys.path[:] = {sys.path!r}; {TIMER.format(prepare, statement)}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)
