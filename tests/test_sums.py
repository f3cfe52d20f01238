"""The accuracy of sums and means over samples, in units in the last place."""

import math

import numpy as np
import pytest
from test_accuracy import assert_within, every_type, ulps

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")


def test_equal_losses_do_not_drift():
    x, target = np.zeros((2**21, 2), np.float32), np.zeros(2**21, np.int64)
    each = np.float32(math.log(2))
    assert fx.cross_entropy(x, target) == each
    assert fx.cross_entropy(x, target, reduction="sum") == each * np.float32(2**21)
    weights = np.full(2**21, 0.1, np.float32)
    assert fx.cross_entropy(x, target, sample_weight=weights) == each
    assert fx.cross_entropy(x, target, weight=[0.1, 0.7]) == each
    assert fx.cross_entropy(x, np.broadcast_to(np.float32(0.5), x.shape)) == each


@every_type
def test_sums_are_exact_to_the_last_place(dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100_003, 1)).astype(dtype) * 10.0 ** rng.integers(-6, 6, (100_003, 1)).astype(dtype)
    target = np.zeros(len(x), int)
    exact = math.fsum(-x[:, 0].astype(float))
    assert_within(ulps(fx.nll_loss(x, target, reduction="sum"), exact), 0.5)
    assert_within(ulps(fx.nll_loss(x, target), exact / len(x)), 1)


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 8191, 8192, 8193, 16384, 100_001])
def test_any_number_of_samples_is_summed(samples):
    x = -np.arange(1, samples + 1, dtype=np.float64)[:, None]
    target = np.zeros(samples, int)
    assert fx.nll_loss(x, target, reduction="sum") == samples * (samples + 1) / 2
    assert fx.nll_loss(x, target) == (samples + 1) / 2
    weights = np.arange(samples) % 3
    assert fx.nll_loss(x, target, sample_weight=weights, reduction="sum") == np.sum(-x[:, 0] * weights)
    assert fx.nll_loss(x, target, weight=[0.25]) == (samples + 1) / 2


def test_weights_that_cancel_leave_the_others():  # of as many samples as one task has: sums of tasks are rounded
    x, target = np.zeros((1000, 3)), np.ones(1000, int)
    target[0], target[-1] = 0, 2
    weight = np.array([2.0**60, 1, -(2.0**60)])
    for options in ({"weight": weight}, {"sample_weight": weight[target]}):
        assert fx.cross_entropy(x, target, **options) == pytest.approx(math.log(3), rel=1e-15)
        assert fx.cross_entropy(x, target, **options, reduction="sum") == pytest.approx(998 * math.log(3), rel=1e-15)
