"""The accuracy that fastxent promises, in units in the last place of the exactly rounded result.

Exact numbers come from mpmath, or from float64 where float32 is tested on more numbers than mpmath can do. `d` is the
distance of a logit to the largest: x_j - max itself rounds, which is a relative error of d/2 epsilons in its
exponential, and so up to d units in the last place just below a power of two.
"""

import math

import mpmath
import numpy as np
import pytest
from cases import BFLOAT16

import fastxent as fx
from fastxent import reference

pytestmark = pytest.mark.usefixtures("backend")
every_type = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])

mpmath.mp.dps = 50
as_mp = np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])
mp_exp = np.vectorize(mpmath.exp, otypes=[object])
mp_log1p = np.vectorize(mpmath.log1p, otypes=[object])


def ulps(got, expected, scale=None):
    """Error of `got` in units of the last place of `expected` (or of `scale`), both rounded to its type."""
    got, expected = np.asarray(got), np.asarray(expected)
    scale = np.abs(expected if scale is None else scale).astype(np.float64).astype(got.dtype)
    unit = np.spacing(np.maximum(scale, np.finfo(got.dtype).tiny)).astype(np.float64)
    wide = as_mp(got) if expected.dtype == object else got.astype(np.float64)
    return np.abs((wide - expected).astype(np.float64)) / unit


class Exact:
    """Softmax and its relatives of each row, by mpmath or (`plain`) by the reference in float64."""

    def __init__(self, x, plain=False):
        self.x, self.plain = x, plain
        top = x.max(1, keepdims=True)
        self.d = (top.astype(np.float64) - x).astype(np.float64)
        order = np.sort(self.d, 1)
        self.second = order[:, 1]  # d of the largest other term
        if plain:
            self.lse = reference.logsumexp(x)
            self.p = reference.softmax(x)
        else:
            wide = as_mp(x)
            self.terms = mp_exp(wide - as_mp(top))
            others = np.where(np.arange(x.shape[1]) == x.argmax(1)[:, None], mpmath.mpf(0), self.terms)
            self.rest = others.sum(1)
            self.lse = as_mp(top[:, 0]) + mp_log1p(self.rest)
            self.p = self.terms / (1 + self.rest)[:, None]

    def losses(self, labels):
        rows = np.arange(len(self.x))
        if self.plain:
            return reference.cross_entropy(self.x, labels, reduction="none")[0]
        return (self.lse - as_mp(self.x[rows, labels])).astype(object)

    def gradients(self, labels):
        rows = np.arange(len(self.x))
        if self.plain:
            return reference.cross_entropy(self.x, labels, reduction="sum")[1]
        grad = self.p.copy()
        grad[rows, labels] = [-np.delete(row, k).sum() for row, k in zip(self.p, labels, strict=True)]
        return grad


def rows_of(dtype, kind):
    """Rows that are hard in different ways, of few enough numbers for mpmath."""
    rng = np.random.default_rng(0)
    x = {
        "normal": 3 * rng.standard_normal((100, 10)),
        "one class dominates": rng.uniform(-30, 0, (100, 10)) - np.linspace(0, 40, 100)[:, None] * (np.arange(10) > 0),
        "far from 0": 1e4 * rng.choice([-1, 1], (50, 1)) + 5 * rng.standard_normal((50, 20)),
        "wide": rng.uniform(-80, 0, (50, 20)),
        "long": 2 * rng.standard_normal((4, 300)),
        "two classes": rng.uniform(-40, 40, (300, 2)),
        "multiples of 1/64": rng.integers(-2000, 2000, (100, 10)) / 64,
    }[kind]
    return x.astype(dtype)


KINDS = ["normal", "one class dominates", "far from 0", "wide", "long", "two classes", "multiples of 1/64"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def assert_within(errors, bound):
    errors, bound = np.broadcast_arrays(errors, bound)
    worst = np.unravel_index(np.argmax(errors - bound), errors.shape)
    assert errors[worst] <= bound[worst], f"{errors[worst]:.2f} ulp at {worst}, {bound[worst]:.2f} are promised"


def bound(d, expected, dtype, kind):
    """4 ulp, and where x_j - max is not exact, a relative error of d/2 epsilons, in ulp of the expected results."""
    if kind == "multiples of 1/64":
        return 4
    expected = np.abs(expected.astype(np.float64)).astype(dtype)
    return 4 + d / 2 * expected * np.finfo(dtype).eps / np.spacing(np.maximum(expected, np.finfo(dtype).tiny))


@every_type
@every_kind
def test_softmax(dtype, kind):
    exact = Exact(rows_of(dtype, kind))
    errors = ulps(fx.softmax(exact.x), exact.p)
    assert_within(errors, bound(exact.d, exact.p, dtype, kind))


@every_type
@every_kind
def test_log_sum_exp(dtype, kind):
    exact = Exact(rows_of(dtype, kind))
    scale = np.maximum(np.abs(exact.lse.astype(np.float64)), np.abs(exact.x).max(1))
    allowed = bound(exact.second, scale, dtype, kind)
    assert_within(ulps(fx.logsumexp(exact.x), exact.lse, scale), allowed)
    log_p = as_mp(exact.x) - exact.lse[:, None]
    assert_within(ulps(fx.log_softmax(exact.x), log_p, scale[:, None]), np.reshape(allowed, (-1, 1)))


@every_type
@every_kind
def test_losses_and_gradients_of_labels(dtype, kind):
    exact = Exact(rows_of(dtype, kind))
    for labels in (exact.x.argmax(1), exact.x.argmin(1), np.arange(len(exact.x)) % exact.x.shape[1]):
        loss, grad = fx.cross_entropy_with_grad(exact.x, labels, reduction="none")
        losses, gradients = exact.losses(labels), exact.gradients(labels)
        assert_within(ulps(loss, losses), bound(exact.second, losses, dtype, kind))
        d = np.maximum(exact.d, exact.second[:, None] * (np.arange(grad.shape[1]) == labels[:, None]))
        assert_within(ulps(grad, gradients), bound(d, gradients, dtype, kind))


@every_type
def test_losses_from_1e_minus_30_to_1e4(dtype):
    gaps = np.concatenate([np.linspace(0, 69, 139), np.geomspace(70, 1e4, 40)])
    for offset in (0.0, -3.25, 1024.0):
        # Multiples of 1/32, so that the bound is the plain one.
        x = (offset + np.stack([0 * gaps, -gaps, -gaps - 1], 1) * 32 // 1 / 32).astype(dtype)
        exact = Exact(x)
        for label in (0, 1, 2):
            labels = np.full(len(x), label)
            expected = exact.losses(labels)
            loss, grad = fx.cross_entropy_with_grad(x, labels, reduction="none")
            normal = expected >= 1e-30
            assert_within(ulps(loss, expected)[normal], 4)
            large = np.abs(exact.gradients(labels)) >= np.finfo(dtype).tiny
            assert_within(ulps(grad, exact.gradients(labels))[large], 4)


@every_type
def test_exponentials(dtype):
    # The gradient of log_softmax for an incoming sum of -1 is the bare exponential.
    low = math.log(np.finfo(dtype).tiny)
    log_p = np.concatenate([np.linspace(low, 0, 3001), -np.geomspace(1e-30, 1, 500)])[None].astype(dtype)
    log_p = log_p[:, log_p[0] > low]
    incoming = np.zeros_like(log_p)
    incoming[0, -1] = -1
    got = fx.log_softmax_vjp(incoming, log_p)[0, :-1]
    assert_within(ulps(got, mp_exp(as_mp(log_p[0, :-1]))), 1.5)


@every_type
def test_softmax_below_the_smallest_normal_number_is_0(dtype):
    tiny = np.finfo(dtype).tiny
    x = np.stack([np.zeros(2000), np.linspace(1.3, 1.01, 2000) * math.log(tiny)], 1).astype(dtype)
    assert not fx.softmax(x)[:, 1].any()
    x[:, 1] *= dtype(0.9) / dtype(1.3)
    assert fx.softmax(x)[:, 1].all()


@every_type
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_logits_of_ten_thousand(dtype, extreme):
    x = np.array([[extreme, 0, 1], [extreme, extreme, extreme], [extreme, -extreme, 0.5]], dtype)
    exact = Exact(x)
    for label in range(3):
        loss, grad = fx.cross_entropy_with_grad(x, [label] * 3, reduction="none")
        assert_within(ulps(loss, exact.losses(np.full(3, label))), 4)
        assert np.all(np.isfinite(grad))
        assert_within(ulps(grad, exact.gradients(np.full(3, label)))[1:2], 4)
    scale = np.maximum(np.abs(exact.lse.astype(np.float64)), np.abs(x).max(1))
    assert_within(ulps(fx.logsumexp(x), exact.lse, scale), 1)


def one_hot(labels, classes):
    return (np.arange(classes) == np.reshape(labels, (-1, 1))).astype(np.float64)


@every_type
@pytest.mark.parametrize("classes", [3, 5000, 9000])
def test_the_largest_numbers(dtype, classes):
    # x_j - max overflows to -inf, whose exponential is 0 all the same; in another block than the maximum, too.
    largest = np.finfo(dtype).max
    for place in (0, classes - 1):
        x = np.full((2, classes), -largest)
        x[:, place] = largest
        other = classes - 1 - place
        p, hot = one_hot([place, place], classes), one_hot([place, other], classes)
        for target in ([place, other], hot.astype(dtype)):
            loss, grad = fx.cross_entropy_with_grad(x, target, reduction="none")
            assert loss.tolist() == [0, np.inf]
            np.testing.assert_array_equal(grad, p - hot)
        np.testing.assert_array_equal(fx.softmax(x), p)
        assert fx.logsumexp(x).tolist() == [largest, largest]
        wide = np.repeat(x[:1, :, None], 64, axis=2)  # classes apart, samples side by side
        np.testing.assert_array_equal(fx.softmax(wide, 1), np.repeat(p[:1, :, None], 64, axis=2))
        loss = fx.cross_entropy(wide, np.repeat([[place, other]], 32, axis=1), reduction="none")
        assert loss.tolist() == [[0] * 32 + [np.inf] * 32]
        wide_hot = np.repeat(hot[:, :, None], 64, axis=2).astype(dtype)
        loss, grad = fx.cross_entropy_with_grad(np.repeat(wide, 2, axis=0), wide_hot, reduction="none")
        assert loss.tolist() == [[0] * 64, [np.inf] * 64]
        np.testing.assert_array_equal(grad, np.repeat(p[:, :, None], 64, axis=2) - wide_hot)


@every_type
@pytest.mark.parametrize("classes", [2, 5, 500])
def test_impossible_classes_before_a_possible_one(dtype, classes):
    x = np.full((1, classes, 64), -np.inf, dtype)  # classes apart, and in more than two tiles
    x[:, -1] = 3
    last = np.full((1, 64), classes - 1)
    for layout in (x, np.ascontiguousarray(x[0].T)):
        assert np.all(fx.logsumexp(layout, 1) == 3)
        assert np.all(fx.softmax(layout, 1) == np.isfinite(layout))
        labels = last.reshape(layout.shape[:1] + layout.shape[2:])
        assert np.all(fx.cross_entropy(layout, labels, reduction="none") == 0)


@every_kind
def test_gradients_of_probabilities_and_smoothing(kind):
    # (sum of the target) p_j - t_j may cancel: the error is in units of the larger term.
    x = rows_of(np.float32, kind)
    n, classes = x.shape
    target = reference.softmax(np.random.default_rng(1).standard_normal(x.shape)).astype(np.float32)
    labels = np.arange(n) % classes
    p, d = reference.softmax(x), x.max(1, keepdims=True).astype(float) - x
    for chosen, eps in ((target, 0.0), (target, 0.25), (labels, 0.25)):
        t = chosen if chosen is target else np.eye(classes)[labels]
        t = (1 - eps) * t.astype(np.float64) + eps / classes
        scale = np.maximum(t.sum(1, keepdims=True) * p, t)
        expected = t.sum(1, keepdims=True) * p - t
        grad = fx.cross_entropy_with_grad(x, chosen, label_smoothing=eps, reduction="sum")[1]
        assert_within(ulps(grad, expected, scale), bound(d, scale, np.float32, kind))


# --- many classes ------------------------------------------------------------------------------------------------

COUNTS = [2, 16, 64, 256, 1000, 4096, 4097, 32768, 262_144, 2**20]


def errors_by_classes(measure):
    """The largest error over the same number of rows for every number of classes; multiples of 1/64, as above."""
    rng = np.random.default_rng(0)
    return {
        c: max(measure((rng.integers(-300, 300, (1, c)) / 64).astype(np.float32)) for _ in range(3)) for c in COUNTS
    }


def loss_error(x):
    exact = Exact(x, plain=True)
    labels = np.array([0])
    return ulps(fx.cross_entropy(x, labels, reduction="none"), exact.losses(labels)).max()


def gradient_error(x):
    exact = Exact(x, plain=True)
    labels = np.array([x.shape[1] // 2])
    grad = fx.cross_entropy_with_grad(x, labels, reduction="sum")[1]
    return ulps(grad, exact.gradients(labels)).max()


MEASURES = {
    "logsumexp": lambda x: ulps(fx.logsumexp(x), reference.logsumexp(x)).max(),
    "softmax": lambda x: ulps(fx.softmax(x), reference.softmax(x)).max(),
    "loss": loss_error,
    "gradient": gradient_error,
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_errors_do_not_grow_with_the_number_of_classes(measure):
    errors = errors_by_classes(measure)
    few = max(errors[c] for c in COUNTS if c <= 1000)
    assert max(errors.values()) <= min(few + 1, 4), errors


def test_many_classes_of_samples_side_by_side():
    x = (np.random.default_rng(0).integers(-300, 300, (1, 2**17, 16)) / 64).astype(np.float32)
    assert_within(ulps(fx.softmax(x, 1), reference.softmax(x, 1)), 4)


def test_equal_logits_of_a_million_classes():
    # Sums of equal numbers drift the most when they are added up one after the other.
    for fill in (0.0, -3.7, 1e4):
        x = np.full((1, 2**20 + 1), fill, np.float32)
        loss, grad = fx.cross_entropy_with_grad(x, [5])
        assert_within(ulps(loss, math.log(2**20 + 1)), 0.5)
        expected = np.full(x.shape, 1 / (2**20 + 1))
        expected[0, 5] -= 1
        assert_within(ulps(grad, expected), 1)


def test_equal_largest_logits_of_many_classes():
    # All but one of them are in the sum of the others, however few count beside them.
    for classes in (5, 65, 100, 201, 1000, 5000):
        x = np.full((2, classes), -20, np.float32)
        x[:, [0, 2, classes - 1]] = 0
        exact = math.log(3 + (classes - 3) * math.exp(-20))
        assert_within(ulps(fx.logsumexp(x), exact), 1)
        loss, grad = fx.cross_entropy_with_grad(x, [0, 2], reduction="sum")
        assert_within(ulps(loss, 2 * exact), 1)
        assert_within(ulps(grad[:, -1], math.exp(-exact)), 2)


def test_tiny_losses_among_many_classes():
    for classes in (5, 65, 100, 201, 1000, 5000):
        for place in (0, classes // 2, classes - 1):
            for distance in (3, 10, 40, 80):
                x = np.zeros((1, classes), np.float32)
                x[0, place] = distance
                others = (classes - 1) * math.exp(-distance)
                loss, grad = fx.cross_entropy_with_grad(x, [place])
                assert_within(ulps(loss, math.log1p(others)), 4)
                assert_within(ulps(grad[0, place], -others / (1 + others)), 4)


def test_smoothing_and_probabilities_over_many_classes():
    rng = np.random.default_rng(0)
    for classes in (10, 4097, 2**17):
        x = (rng.integers(-300, 300, (2, classes)) / 64).astype(np.float32)
        target = reference.softmax(rng.standard_normal((2, classes))).astype(np.float32)
        got = fx.cross_entropy(x, target, reduction="none")
        assert_within(ulps(got, reference.cross_entropy(x, target, reduction="none")[0]), 4)
        got = fx.cross_entropy(x, [0, 1], label_smoothing=0.3, reduction="none")
        expected = reference.cross_entropy(x, np.array([0, 1]), label_smoothing=0.3, reduction="none")[0]
        assert_within(ulps(got, expected), 4)


# --- 16-bit storage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_sixteen_bits_are_rounded_once(dtype):
    rng = np.random.default_rng(0)
    for shape in ((200, 10), (3, 5000)):
        x = (4 * rng.standard_normal(shape)).astype(dtype)
        wide = x.astype(np.float32)
        target = rng.integers(shape[1], size=shape[0])
        incoming = rng.standard_normal(shape).astype(dtype)
        p, log_p = fx.softmax(x), fx.log_softmax(x)
        pairs = [
            (p, fx.softmax(wide)),
            (log_p, fx.log_softmax(wide)),
            (fx.softmax_vjp(incoming, p), fx.softmax_vjp(incoming, p.astype(np.float32))),
            (fx.log_softmax_vjp(incoming, log_p), fx.log_softmax_vjp(incoming, log_p.astype(np.float32))),
        ]
        loss, grad = fx.cross_entropy_with_grad(x, target, label_smoothing=0.1, reduction="sum")
        wide_loss, wide_grad = fx.cross_entropy_with_grad(wide, target, label_smoothing=0.1, reduction="sum")
        assert loss == wide_loss
        for got, expected in [*pairs, (grad, wide_grad)]:
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, expected.astype(dtype))
        assert fx.logsumexp(x).tolist() == fx.logsumexp(wide).tolist()


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_every_sixteen_bit_number_is_read_right(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)[:, None]
    got = fx.nll_loss(x, np.zeros(2**16, int), reduction="none")
    np.testing.assert_array_equal(got, -x[:, 0].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_every_kind_of_number_is_written_right(dtype):
    # With one class the softmax is 1, and the product with an incoming float32 is that number, rounded.
    every = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    with np.errstate(over="ignore"):
        halfway = (every[1:].astype(np.float64) + every[:-1].astype(np.float64)) / 2
        x = np.concatenate([every, halfway, *(np.nextafter(halfway.astype(np.float32), t) for t in (np.inf, -np.inf))])
        x = np.concatenate([x, [np.inf, -np.inf, np.nan, 65519.996, 65520.0, 3.4e38, 1e-45, -1e-45]]).astype(np.float32)
        x = np.append(x, np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32))  # nan that rounding would end
        expected = x.astype(dtype)
    got = fx.logsumexp_vjp(x, np.zeros((len(x), 1), dtype))[:, 0]
    np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(got) | np.isnan(got), np.signbit(expected) | np.isnan(expected))
