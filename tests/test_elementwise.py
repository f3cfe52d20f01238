"""What is special about losses computed entry by entry: their targets, their limits, their mathematics."""

import math

import numpy as np
import pytest
import torch
from cases import (
    DTYPES,
    ELEMENTWISE,
    ELEMENTWISE_WITH_GRAD,
    INTEGERS,
    REDUCTIONS,
    assert_close,
    exact,
    make_options,
)
from hypothesis import given
from hypothesis import strategies as st
from test_properties import SHAPES, seeds, slope

import fastxent as fx
from fastxent import _config

pytestmark = pytest.mark.usefixtures("backend")
every_loss = pytest.mark.parametrize("loss", ELEMENTWISE.values(), ids=ELEMENTWISE)
every_loss_with_grad = pytest.mark.parametrize("loss", ELEMENTWISE_WITH_GRAD.values(), ids=ELEMENTWISE_WITH_GRAD)
every_type = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
INF, NAN = math.inf, math.nan


# --- targets -----------------------------------------------------------------------------------------------------


@every_loss_with_grad
def test_integers_and_booleans_are_numbers(loss):
    x = loss.make((2, 3), 1)[0]
    target = np.array([[0, 1, 1], [1, 0, 0]])
    for dtype in (np.float32, np.float64):
        expected = loss.with_grad(x.astype(dtype), target.astype(np.float64))
        for integer in (bool, *INTEGERS):
            got = loss.with_grad(x.astype(dtype), target.astype(integer))
            assert got[0] == expected[0]
            np.testing.assert_array_equal(got[1], expected[1])


@every_loss
@every_type
def test_second_arrays_of_any_type(loss, dtype):
    arrays = loss.make((4, 3), 1)
    for other in DTYPES.values():
        mixed = [arrays[0].astype(dtype), *(a.astype(other) for a in arrays[1:])]
        assert_close(loss.function(*mixed, **loss.at(1)), loss.function(*map(exact, mixed), **loss.at(1)))


@every_loss
def test_first_integers_are_computed_in_float64(loss):
    arrays = [np.array([[0, 1, 1], [1, 0, 0]]) for _ in loss.arrays]
    for integer in INTEGERS:
        got = loss.function(*[a.astype(integer) for a in arrays])
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, loss.function(*[a.astype(np.float64) for a in arrays]))


# --- special numbers ---------------------------------------------------------------------------------------------


def torch_loss(name, x, y, **options):
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    losses = getattr(torch.nn.functional, name)(x, torch.tensor(y, dtype=torch.float64), reduction="none", **options)
    return losses.detach().numpy(), torch.autograd.grad(losses.sum(), x)[0].numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithms_of_probabilities_stop_at_minus_100(dtype):
    p = [0, 0, 0, 1, 1, 1, 1e-30, 1e-44, 0.5]
    y = [0, 0.25, 1, 0, 0.25, 1, 1, 1, 0.5]
    p = np.array(p, dtype)
    losses, grad = fx.binary_cross_entropy_with_grad(p, y, reduction="none")
    expected = torch_loss("binary_cross_entropy", p.tolist(), y)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-6)
    assert losses[:6].tolist() == [0, 25, 100, 100, 75, 0]


def test_logits_without_end():
    x, y = [INF, -INF, NAN, 0.0], [0, 1, 1, NAN]
    losses, grad = fx.binary_cross_entropy_with_logits_with_grad(x, y, reduction="none")
    np.testing.assert_array_equal(losses, [INF, INF, NAN, NAN])
    np.testing.assert_allclose(grad, [1, -1, NAN, NAN], rtol=4e-16)


def test_impossible_classes():
    assert fx.kl_div([-INF, -1.0, 0.0], [0.0, 0.0, 0.0], reduction="none").tolist() == [0, 0, 0]
    assert fx.kl_div([-INF, -INF], [0.5, 1.0], reduction="none").tolist() == [INF, INF]
    assert fx.kl_div([-INF, -1.0], [-INF, -INF], reduction="none", log_target=True).tolist() == [0, 0]
    p, q = [[0.0, 1.0], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]
    assert fx.entropy(p).tolist() == [0, math.log(2), 0, 0]
    assert fx.categorical_cross_entropy(p, q).tolist() == [0, INF, math.log(2), 0]
    assert fx.kl_divergence(p, q).tolist() == [0, INF, math.log(2), 0]
    for function in (fx.categorical_cross_entropy, fx.kl_divergence):
        assert np.isnan(function([[NAN, 1.0], [0.5, 0.5]], [[0.5, 0.5], [NAN, 0.5]])).all()
    assert np.isnan(fx.entropy([NAN, 1.0]))


@every_loss
@given(SHAPES, seeds, st.sampled_from([NAN, INF, 0.0]))
def test_samples_do_not_touch_each_other(loss, shape, seed, other):
    arrays = loss.make(shape, 1, seed=seed)
    changed = [a.copy() for a in arrays]
    for array in changed[-1:]:
        array[-1] = other
    before, after = (
        (loss.function(*a),) if loss.with_grad is None else loss.with_grad(*a, reduction="none")
        for a in (arrays, changed)
    )
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[:-1], two[:-1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_finite_input_never_raises_a_floating_point_warning(dtype):
    largest = float(np.finfo(dtype).max)
    with np.errstate(all="ignore"):
        x = np.array([-largest, -1e4, -800, -88, -1e-310, 0, 1e-300, 1e-40, 0.5, 1, 88, 800, 1e4, largest]).astype(
            dtype
        )
    y = x[:, None] * np.ones_like(x)
    x, chance = x * np.ones_like(y), np.clip(y, 0, 1)
    with np.errstate(all="raise"):
        for reduction in REDUCTIONS:
            for factor in (None, 1e300, 1e-300):
                options = {"reduction": reduction, "grad_output": factor}
                fx.binary_cross_entropy_with_grad(chance, chance.T, weight=factor, **options)
                fx.binary_cross_entropy_with_logits_with_grad(x, y, weight=factor, pos_weight=factor, **options)
                fx.multilabel_soft_margin_loss_with_grad(x, y, weight=factor, **options)
                for log_target in (False, True):
                    fx.kl_div_with_grad(x, y, log_target=log_target, **options)
        fx.entropy(x)
        fx.categorical_cross_entropy(x, y)
        fx.kl_divergence(x, y)


# --- any number of threads ---------------------------------------------------------------------------------------


def bits(loss, arrays, options):
    if loss.with_grad is None:
        return [np.asarray(loss.function(*arrays, **loss.at(1))).tobytes()]
    reductions = (loss.with_grad(*arrays, reduction=r, **loss.at(1), **options) for r in REDUCTIONS)
    return [np.asarray(result).tobytes() for pair in reductions for result in pair]


@every_loss
@pytest.mark.parametrize("shape", [(20_003, 7), (301, 1000), (3, 50_003), (3, 21, 4001)])
def test_results_do_not_depend_on_the_number_of_threads(loss, shape, monkeypatch):
    monkeypatch.setattr(_config, "_processors", 8)
    for dtype in ("float32", "float64", "float16"):
        arrays = loss.make(shape, 1, DTYPES[dtype])
        options = make_options(loss, shape, 1, "all")
        with fx.config_context(num_threads=1):
            expected = bits(loss, arrays, options)
        for threads in (2, 3, 8):
            with fx.config_context(num_threads=threads):
                assert bits(loss, arrays, options) == expected


# --- mathematics -------------------------------------------------------------------------------------------------


@every_loss_with_grad
@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(SHAPES, seeds)
def test_gradients_are_numerical_derivatives(loss, reduction, shape, seed):
    x, target = loss.make(shape, 1, seed=seed)
    x = np.clip(x, 0.05, 0.95) if loss.function is fx.binary_cross_entropy else x
    rng = np.random.default_rng(seed)
    options = make_options(loss, shape, 1, "all", seed=seed) | {"reduction": reduction}
    incoming = rng.standard_normal(loss.loss_shape(shape, -1) if reduction == "none" else ())
    direction = rng.standard_normal(shape)
    grad = loss.with_grad(x, target, grad_output=incoming, **options)[1]
    expected = slope(lambda x: np.sum(incoming * loss.function(x, target, **options)), x, direction, 1e-6)
    np.testing.assert_allclose(np.sum(grad * direction), expected, rtol=1e-6, atol=1e-7)


@every_loss_with_grad
@given(SHAPES, seeds)
def test_reductions_agree(loss, shape, seed):
    arrays = loss.make(shape, 1, seed=seed)
    options = make_options(loss, shape, 1, "all", seed=seed)
    each, total, mean = (loss.function(*arrays, reduction=r, **options) for r in ("none", "sum", "mean"))
    np.testing.assert_allclose(each.sum(), total, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(each.mean(), mean, rtol=1e-12, atol=1e-14)


def test_weights_do_not_count_in_the_mean():
    x, y = ELEMENTWISE["binary_cross_entropy"].make((4, 3), 1)
    for function in (fx.binary_cross_entropy, fx.binary_cross_entropy_with_logits, fx.multilabel_soft_margin_loss):
        np.testing.assert_allclose(function(x, y, weight=2.0), 2 * function(x, y), rtol=1e-15)
        assert function(x, y, weight=np.zeros(3)) == 0


def test_the_same_loss_under_several_names():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 4)), rng.integers(2, size=(50, 4))
    each = fx.binary_cross_entropy_with_logits(x, y, reduction="none")
    np.testing.assert_allclose(each, fx.binary_cross_entropy(1 / (1 + np.exp(-x)), y, reduction="none"), rtol=1e-12)
    np.testing.assert_allclose(each, fx.binary_cross_entropy_with_logits(-x, 1 - y, reduction="none"), rtol=1e-15)
    pairs = np.stack([np.zeros_like(x), x], -1)
    np.testing.assert_allclose(each, fx.cross_entropy(pairs, y, axis=-1, reduction="none"), rtol=1e-14)
    np.testing.assert_allclose(each.mean(1), fx.multilabel_soft_margin_loss(x, y, reduction="none"), rtol=1e-14)
    p = fx.softmax(x)
    labels = np.eye(4)[y[:, 0]]
    np.testing.assert_allclose(
        fx.categorical_cross_entropy(labels, p), fx.cross_entropy(x, y[:, 0], reduction="none"), rtol=1e-13
    )
    np.testing.assert_allclose(fx.kl_divergence(p, p), 0, atol=1e-15)
    assert np.all(fx.entropy(p) <= math.log(4))
