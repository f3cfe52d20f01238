"""What holds for any input, by the mathematics of the functions."""

import math

import numpy as np
import pytest
from cases import LOSSES, MAPS, REDUCTIONS, WITH_GRAD, assert_close, batch_shape, make_options
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_loss_with_grad = pytest.mark.parametrize("loss", WITH_GRAD.values(), ids=WITH_GRAD)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
seeds = st.integers(0, 2**32 - 1)


def matrices(low=-40, high=40, denominator=16):
    """Multiples of 1/16, whose differences and sums are exact in every type that computes."""
    integers = st.integers(low * denominator, high * denominator)
    return hnp.arrays(np.int64, SHAPES, elements=integers).map(lambda x: x / denominator)


def labels_for(x, seed):
    return np.random.default_rng(seed).integers(x.shape[1], size=len(x))


@given(matrices(), st.integers(-1000, 1000), seeds)
def test_shifting_the_logits_changes_nothing(x, shift, seed):
    labels = labels_for(x, seed)
    for dtype in (np.float32, np.float64):
        a, b = x.astype(dtype), (x + shift).astype(dtype)
        np.testing.assert_array_equal(fx.softmax(a), fx.softmax(b))
        np.testing.assert_array_equal(fx.log_softmax(a), fx.log_softmax(b))
        for got, expected in zip(
            fx.cross_entropy_with_grad(a, labels, label_smoothing=0.1),
            fx.cross_entropy_with_grad(b, labels, label_smoothing=0.1),
            strict=True,
        ):
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_allclose(fx.logsumexp(b), fx.logsumexp(a) + shift, rtol=1e-6, atol=1e-6)


@given(matrices(), seeds)
def test_permuting_the_classes_permutes_the_result(x, seed):
    order = np.random.default_rng(seed).permutation(x.shape[1])
    labels = labels_for(x, seed)
    np.testing.assert_allclose(fx.softmax(x[:, order]), fx.softmax(x)[:, order], rtol=1e-14)
    np.testing.assert_allclose(fx.logsumexp(x[:, order]), fx.logsumexp(x), rtol=1e-14, atol=1e-300)
    loss, grad = fx.cross_entropy_with_grad(x, labels, z_loss=0.1, reduction="none")
    moved = np.argsort(order)[labels]
    loss2, grad2 = fx.cross_entropy_with_grad(x[:, order], moved, z_loss=0.1, reduction="none")
    np.testing.assert_allclose(loss2, loss, rtol=1e-14)
    np.testing.assert_allclose(grad2, grad[:, order], rtol=1e-13, atol=1e-16)


@every_loss
@given(SHAPES, seeds, st.sampled_from([np.nan, np.inf, -np.inf, 1e300, 0.0]))
def test_samples_do_not_touch_each_other(loss, shape, seed, other):
    arrays = loss.make(shape, 1, seed=seed)
    changed = [a.copy() for a in arrays]
    for array in changed:
        array[-1] = other if array.dtype.kind == "f" else (array[-1] + 1) % shape[1]
    if loss.with_grad is None:
        before, after = loss.function(*arrays, axis=1), loss.function(*changed, axis=1)
        np.testing.assert_array_equal(before[:-1], after[:-1])
    else:
        for before, after in zip(
            loss.with_grad(*arrays, axis=1, reduction="none"),
            loss.with_grad(*changed, axis=1, reduction="none"),
            strict=True,
        ):
            np.testing.assert_array_equal(before[:-1], after[:-1])


@given(matrices(), seeds, st.floats(0, 1), st.floats(0, 1))
def test_gradients_sum_to_the_z_term(x, seed, smoothing, z):
    # The softmax and the target have the same sum, so that only 2 z lse is left of each sample's gradient.
    weight = np.random.default_rng(seed).uniform(0.5, 2, x.shape[1])
    options = {"weight": weight, "label_smoothing": smoothing, "reduction": "sum"}
    expected = 2 * z * fx.logsumexp(x)
    probs = fx.softmax(np.sqrt(np.abs(x)))
    for target in (labels_for(x, seed), probs):
        grad = fx.cross_entropy_with_grad(x, target, z_loss=z, **options)[1]
        np.testing.assert_allclose(grad.sum(1), expected, rtol=1e-12, atol=1e-13)


@given(matrices())
def test_softmax_is_a_distribution(x):
    p, log_p = fx.softmax(x), fx.log_softmax(x)
    assert np.all(p >= 0)
    assert np.all(log_p <= 0)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-15 * x.shape[1])
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-13)
    np.testing.assert_allclose(x - fx.logsumexp(x, keepdims=True), log_p, rtol=1e-12, atol=1e-13)


@given(matrices(), seeds)
def test_labels_are_one_hot_probabilities(x, seed):
    labels = labels_for(x, seed)
    one_hot = np.eye(x.shape[1])[labels]
    weight = np.random.default_rng(seed).uniform(0.5, 2, x.shape[1])
    for function in (fx.cross_entropy_with_grad, fx.nll_loss_with_grad):
        loss, grad = function(x, labels, weight=weight, reduction="sum")
        loss2, grad2 = function(x, one_hot, weight=weight, reduction="sum")
        np.testing.assert_allclose(loss2, loss, rtol=1e-13)
        np.testing.assert_allclose(grad2, grad, rtol=1e-12, atol=1e-15)


@every_loss_with_grad
@given(SHAPES, seeds)
def test_reductions_agree(loss, shape, seed):
    arrays = loss.make(shape, 1, seed=seed)
    options = make_options(loss, shape, 1, "all", seed=seed)
    each, total, mean = (loss.function(*arrays, reduction=r, **options) for r in ("none", "sum", "mean"))
    np.testing.assert_allclose(each.sum(), total, rtol=1e-13)
    shares = options["sample_weight"]
    if loss.takes_labels:
        shares = shares * options["weight"][arrays[1]] * (arrays[1] != options["ignore_index"])
    if shares.sum():
        np.testing.assert_allclose(mean * shares.sum(), total, rtol=1e-13)


@every_loss_with_grad
@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(SHAPES, seeds)
def test_sample_weights_count_repetitions(loss, reduction, shape, seed):
    arrays = loss.make(shape, 1, seed=seed)
    times = np.random.default_rng(seed).integers(0, 4, shape[0])
    times[0] += 1
    loss_value, grad = loss.with_grad(*arrays, sample_weight=times, reduction=reduction)
    repeated, repeated_grad = loss.with_grad(*[a.repeat(times, 0) for a in arrays], reduction=reduction)
    if reduction == "none":
        np.testing.assert_allclose(loss_value.repeat(times), repeated * times.repeat(times), rtol=1e-15)
    else:
        np.testing.assert_allclose(loss_value, repeated, rtol=1e-13)
    first = np.cumsum(times) - times
    for row, n in enumerate(times):
        expected = repeated_grad[first[row]] * n if n else 0
        np.testing.assert_allclose(grad[row], expected, rtol=1e-13, atol=1e-300)


@every_loss_with_grad
@pytest.mark.parametrize("unit", [2.0**-147, 2.0**126], ids=["tiny", "huge"])
@pytest.mark.parametrize("shape", [(9, 3), (2, 3, 40), (3, 500)], ids=["lanes", "lanes apart", "rows"])
def test_only_the_ratios_of_weights_matter_to_the_mean(loss, shape, unit):
    """Where its denominator, or the factor that this makes of the gradient, is beyond float32."""
    arrays, batch = loss.make(shape, 1, np.float32), batch_shape(shape, 1)
    shares = np.arange(math.prod(batch)).reshape(batch) % 4
    expected = loss.with_grad(*arrays, sample_weight=shares)
    for got, wanted in zip(loss.with_grad(*arrays, sample_weight=shares * unit), expected, strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.takes_labels])
@given(SHAPES.filter(lambda shape: shape[1] > 1), seeds)
def test_ignoring_samples_is_leaving_them_out(name, shape, seed):
    x, target = LOSSES[name].make(shape, 1, seed=seed)
    x[0, 0] += 1
    target[0] = 0
    kept = target != 1
    options = make_options(LOSSES[name], shape, 1, "all", seed=seed) | {"ignore_index": 1}
    for reduction in ("mean", "sum"):
        loss, grad = LOSSES[name].with_grad(x, target, reduction=reduction, **options)
        few = options | {"sample_weight": options["sample_weight"][kept]}
        loss2, grad2 = LOSSES[name].with_grad(x[kept], target[kept], reduction=reduction, **few)
        np.testing.assert_allclose(loss, loss2, rtol=1e-13)
        np.testing.assert_allclose(grad[kept], grad2, rtol=1e-13, atol=1e-300)
        assert not grad[~kept].any()


# --- derivatives -------------------------------------------------------------------------------------------------


def slope(function, x, direction, step=1e-5):
    """The derivative along a direction, with an error of the fourth order in the step."""
    f = [function(x + k * step * direction) for k in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)


@every_loss_with_grad
@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(SHAPES, seeds)
def test_gradients_are_numerical_derivatives(loss, reduction, shape, seed):
    x, target = loss.make(shape, 1, seed=seed)
    if loss.takes_labels:
        target[0] = 0  # so that not all are ignored
    rng = np.random.default_rng(seed)
    options = make_options(loss, shape, 1, "all", seed=seed) | {"reduction": reduction}
    incoming = rng.standard_normal(shape[0]) if reduction == "none" else rng.standard_normal()
    direction = rng.standard_normal(shape)
    grad = loss.with_grad(x, target, grad_output=incoming, **options)[1]
    expected = slope(lambda x: np.sum(incoming * loss.function(x, target, **options)), x, direction)
    np.testing.assert_allclose(np.sum(grad * direction), expected, rtol=1e-7, atol=1e-8)


FORWARD = {"logsumexp_vjp": fx.logsumexp, "softmax_vjp": fx.softmax, "log_softmax_vjp": fx.log_softmax}


@pytest.mark.parametrize("name", [name for name in MAPS if name.endswith("_vjp")])
@given(SHAPES, seeds, st.sampled_from([0, 1]))
def test_vector_jacobian_products_are_numerical_derivatives(name, shape, seed, axis):
    rng = np.random.default_rng(seed)
    x, direction = rng.standard_normal((2, *shape))
    value = FORWARD[name](x, axis)
    incoming = rng.standard_normal(value.shape)
    saved = x if name == "logsumexp_vjp" else value
    vjp = MAPS[name].function(incoming, saved, axis)
    expected = slope(lambda x: np.sum(incoming * FORWARD[name](x, axis)), x, direction)
    np.testing.assert_allclose(np.sum(vjp * direction), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in MAPS if name.endswith("_vjp")])
@given(SHAPES, seeds)
def test_vector_jacobian_products_are_linear(name, shape, seed):
    incoming, saved = MAPS[name].make(shape, 1, seed=seed)
    other = np.random.default_rng(seed + 1).standard_normal(incoming.shape)
    vjp = MAPS[name].function
    together = vjp(2 * incoming - 3 * other, saved, 1)
    apart = 2 * vjp(incoming, saved, 1) - 3 * vjp(other, saved, 1)
    np.testing.assert_allclose(together, apart, rtol=1e-12, atol=1e-12)
