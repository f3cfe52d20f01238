"""The accuracy of losses computed entry by entry, in units in the last place of the exactly rounded result."""

import math

import mpmath
import numpy as np
import pytest
from cases import DTYPES, ELEMENTWISE_WITH_GRAD
from test_accuracy import assert_within, ulps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")
mpmath.mp.dps = 50
mp_function = {
    name: np.vectorize(lambda v, f=f: f(mpmath.mpf(float(v))), otypes=[object])
    for name, f in {
        "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
        "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
        "log": mpmath.log,
        "log1p": mpmath.log1p,
        "number": lambda x: x,
    }.items()
}
every_float = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


@every_float
def test_logits_from_minus_to_plus_ten_thousand(dtype):
    large = np.geomspace(1e-30, 1e4, 300)
    x = np.concatenate([-large, [0], large, np.linspace(-110, 110, 441), np.linspace(-2, 2, 101)]).astype(dtype)
    for y, sign in ((0, 1), (1, -1)):
        target = np.full_like(x, y)
        losses, grad = fx.binary_cross_entropy_with_logits_with_grad(x, target, reduction="none")
        expected, slopes = mp_function["softplus"](sign * x), sign * mp_function["sigmoid"](sign * x)
        for got, wanted in ((losses, expected), (grad, slopes)):
            normal = np.abs(wanted) >= np.finfo(dtype).tiny
            assert_within(ulps(got, wanted)[normal], 4)
            assert np.all(np.abs(got[~normal]) <= np.finfo(dtype).tiny)


@every_float
def test_logits_with_targets_between(dtype):
    rng = np.random.default_rng(0)
    x = (30 * rng.standard_normal(500)).astype(dtype)
    y, w = rng.uniform(0, 1, 500).astype(dtype), rng.uniform(0.5, 10, 500).astype(dtype)
    losses = fx.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction="none")
    exact_y, exact_w = mp_function["number"](y), mp_function["number"](w)
    expected = (1 - exact_y) * mp_function["softplus"](x) + exact_w * exact_y * mp_function["softplus"](-x)
    assert_within(ulps(losses, expected), 5)


@every_float
def test_logarithms_of_probabilities(dtype):
    p = np.concatenate([np.geomspace(1e-37, 1, 400), np.linspace(0.5, 1, 101), 1 - np.geomspace(1e-7, 0.5, 100)])
    p = p.astype(dtype)
    exact_p = mp_function["number"](p)
    assert_within(ulps(fx.entropy(p[:, None]), -exact_p * mp_function["log"](p)), 4)
    losses = fx.binary_cross_entropy(p, np.ones_like(p), reduction="none")
    assert_within(ulps(losses, -mp_function["log"](p)), 4)
    got = fx.binary_cross_entropy(p, np.zeros_like(p), reduction="none")
    inside = p < 1
    assert_within(ulps(got[inside], -mp_function["log1p"](-p[inside])), 4)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_sixteen_bits_are_rounded_once(dtype):
    for loss in ELEMENTWISE_WITH_GRAD.values():
        x, y = loss.make((20, 300), 1, dtype)
        wide = np.float32 if dtype.itemsize == 2 else dtype
        value, grad = loss.with_grad(x, y, reduction="sum")
        expected, wide_grad = loss.with_grad(x.astype(wide), y.astype(wide), reduction="sum")
        assert value == expected
        np.testing.assert_array_equal(grad, wide_grad.astype(dtype))


@every_float
def test_divergence_of_distributions_that_are_near_and_far(dtype):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 1, 500).astype(dtype)
    for spread in (1e-6, 1e-3, 0.3, 1e6):
        q = (p * (1 + spread * rng.uniform(0, 1, 500))).astype(dtype)
        for a, b in ((p, q), (q, p)):
            exact_a = mp_function["number"](a)
            with np.errstate(divide="ignore"):
                expected = exact_a * mp_function["log"](a) - exact_a * mp_function["log"](b)
            got = fx.kl_divergence(a[:, None], b[:, None])
            assert_within(ulps(got, expected), 5)


def test_equal_losses_do_not_drift():
    x = np.zeros(2**22, np.float32)
    each = np.float32(math.log(2))
    assert fx.binary_cross_entropy_with_logits(x, x) == each
    assert fx.binary_cross_entropy_with_logits(x, x, reduction="sum") == each * np.float32(2**22)
    assert_within(ulps(fx.entropy(np.full(2**22, 0.5, np.float32)), math.log(2) * 2**21), 1)
