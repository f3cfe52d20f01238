"""The semantics that people get wrong, one test for each promise of the interface, named after it."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import DTYPES, INTEGERS, LOSS_DTYPE, LOSSES, MAPS, WITH_GRAD, exact, make_options
from torch.nn import functional as F

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")
INF, NAN = math.inf, math.nan
LABELLED = {name: loss for name, loss in LOSSES.items() if loss.takes_labels}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_loss_with_grad = pytest.mark.parametrize("loss", WITH_GRAD.values(), ids=WITH_GRAD)
every_labelled_loss = pytest.mark.parametrize("loss", LABELLED.values(), ids=LABELLED)

X = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [2.0, 2.0, 2.0], [-1.0, 0.0, 1.0]])
LOG_P = fx.log_softmax(X)
LSE = np.log(np.exp(X).sum(1))
Y = np.array([0, 2, 1, 2])
W = np.array([0.5, 2.0, 3.0])
S = np.array([1.0, 0.25, 4.0, 2.0])


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-14, atol=1e-300)


# --- the mean ----------------------------------------------------------------------------------------------------


def test_mean_over_class_indices_divides_by_the_summed_weight_of_the_targets_that_count():
    nll = -LOG_P[range(4), Y]
    close(fx.cross_entropy(X, Y, weight=W), (W[Y] * nll).sum() / W[Y].sum())
    kept = Y != 2
    close(fx.cross_entropy(X, Y, weight=W, ignore_index=2), (W[Y] * nll)[kept].sum() / W[Y][kept].sum())
    close(fx.cross_entropy(X, Y, weight=W, sample_weight=S), (S * W[Y] * nll).sum() / (S * W[Y]).sum())
    close(fx.nll_loss(LOG_P, Y, weight=W, sample_weight=S), (S * W[Y] * nll).sum() / (S * W[Y]).sum())


def test_mean_over_class_probabilities_divides_by_the_number_of_samples():
    target = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [2.0, 1.0, 0.0]])
    each = -(W * target * LOG_P).sum(1)
    close(fx.cross_entropy(X, target, weight=W), each.sum() / 4)
    close(fx.nll_loss(LOG_P, target, weight=W), each.sum() / 4)
    close(fx.cross_entropy(X, target, weight=W, sample_weight=S), (S * each).sum() / S.sum())
    close(fx.cross_entropy(X, target, weight=W, sample_weight=0.5), each.sum() / 4)


def test_sample_weight_multiplies_the_loss_and_its_share():
    nll = -LOG_P[range(4), Y]
    close(fx.cross_entropy(X, Y, sample_weight=S, reduction="none"), S * nll)
    close(fx.cross_entropy(X, Y, sample_weight=S, reduction="sum"), (S * nll).sum())
    close(fx.cross_entropy(X, Y, sample_weight=S), (S * nll).sum() / S.sum())


@every_loss_with_grad
def test_mean_over_no_weight_is_nan(loss):
    arrays = loss.make((4, 3), 1)
    value, grad = loss.with_grad(*arrays, sample_weight=np.zeros(4))
    assert np.isnan(value)
    assert np.isnan(grad).any(1).all()
    assert loss.function(*arrays, sample_weight=np.zeros(4), reduction="sum") == 0
    if loss.takes_labels:
        assert np.isnan(loss.function(*arrays, weight=np.zeros(3)))


# --- ignored targets ---------------------------------------------------------------------------------------------


@every_labelled_loss
@pytest.mark.parametrize("ignored", [-100, 1, 0, -(2**63), 2**63 - 1, 77])
def test_ignored_targets_give_loss_0_and_gradient_0_and_no_share_in_the_denominator(loss, ignored):
    target = np.array([0, ignored, 2, ignored])
    kept = target != ignored
    for reduction in ("mean", "sum", "none"):
        value, grad = loss.with_grad(LOG_P, target, ignore_index=ignored, reduction=reduction, weight=W)
        few, few_grad = loss.with_grad(LOG_P[kept], target[kept], ignore_index=ignored, reduction=reduction, weight=W)
        close(value[kept] if reduction == "none" else value, few)
        close(grad[kept], few_grad)
        assert not grad[~kept].any()
        assert reduction != "none" or not value[~kept].any()


@every_labelled_loss
@pytest.mark.parametrize("classes", [3, 65, 4097, 9000])
def test_gradient_0_of_ignored_targets_is_written(loss, classes):
    x, target = loss.make((3, classes), 1, np.float32)
    target[1] = -100
    out = np.full(x.shape, NAN, np.float32)
    loss.with_grad(x, target, out=out)
    assert not out[1].any()
    assert out[0].any()
    assert np.isfinite(out).all()


@every_labelled_loss
def test_all_ignored_under_mean_is_nan_and_under_sum_0(loss):
    for dtype in DTYPES.values():
        x, target = LOG_P.astype(dtype), np.full(4, -100)
        value, grad = loss.with_grad(x, target)
        assert np.isnan(value)
        assert not exact(grad).any()
        assert loss.function(x, target, reduction="sum") == 0
        assert not loss.function(x, target, reduction="none").any()
    assert np.isnan(loss.function(LOG_P[0], -100))


@every_labelled_loss
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_ignored_rows_may_hold_anything(loss, bad):
    x, target = LOG_P.copy(), np.array([0, -100, 2, 1])
    options = {"weight": W} | ({"label_smoothing": 0.1, "z_loss": 0.1} if loss.function is fx.cross_entropy else {})
    expected, expected_grad = loss.with_grad(x, target, **options)
    x[1] = bad
    value, grad = loss.with_grad(x, target, **options)
    assert value == expected
    np.testing.assert_array_equal(grad, expected_grad)


@every_labelled_loss
@pytest.mark.parametrize("bad", [NAN, INF])
def test_ignored_samples_may_have_any_sample_weight(loss, bad):
    target, weights = np.array([0, -100, 2, 1]), np.array([1.0, bad, 3.0, 4.0])
    for reduction in ("mean", "sum", "none"):
        value, grad = loss.with_grad(LOG_P, target, sample_weight=weights, reduction=reduction)
        expected, expected_grad = loss.with_grad(LOG_P, target, sample_weight=[1, 2, 3, 4], reduction=reduction)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(grad, expected_grad)


@every_labelled_loss
def test_ignore_index_may_itself_be_a_valid_class(loss):
    for ignored in range(3):
        value = loss.function(LOG_P, Y, ignore_index=ignored, reduction="none")
        np.testing.assert_array_equal(value == 0, ignored == Y)
        expected = F.nll_loss(torch.from_numpy(LOG_P), torch.from_numpy(Y), ignore_index=ignored)
        close(loss.function(LOG_P, Y, ignore_index=ignored), expected.item())


@every_labelled_loss
def test_the_weight_of_an_ignored_valid_class_is_not_counted(loss):
    weight = np.array([NAN, 2.0, 3.0])
    value, grad = loss.with_grad(LOG_P, [0, 2, 1, 0], ignore_index=0, weight=weight)
    expected, expected_grad = loss.with_grad(LOG_P[1:3], [2, 1], weight=[7.0, 2.0, 3.0])
    close(value, expected)
    close(grad[1:3], expected_grad)


@pytest.mark.parametrize("function", [fx.cross_entropy, fx.nll_loss, fx.cross_entropy_with_grad, fx.nll_loss_with_grad])
def test_probabilities_with_a_valid_ignore_index_is_an_error(function):
    with pytest.raises(ValueError, match=r"ignore_index is 0, expected a negative number .* for class probabilities"):
        function(X, X, ignore_index=0)
    function(X, X, ignore_index=-1)


# --- smoothing and z-loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5, 1.0])
def test_label_smoothing_with_class_weights(eps):
    nll = -LOG_P
    each = (1 - eps) * W[Y] * nll[range(4), Y] + eps / 3 * (W * nll).sum(1)
    close(fx.cross_entropy(X, Y, weight=W, label_smoothing=eps, reduction="none"), each)
    close(fx.cross_entropy(X, Y, weight=W, label_smoothing=eps), each.sum() / W[Y].sum())
    target = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
    each = (W * ((1 - eps) * target + eps / 3) * nll).sum(1)
    close(fx.cross_entropy(X, target, weight=W, label_smoothing=eps), each.sum() / 4)


@pytest.mark.parametrize("z", [1e-4, 0.5])
def test_z_loss_comes_before_sample_weight_and_reduction_and_without_class_weight(z):
    nll = -LOG_P[range(4), Y]
    each = W[Y] * nll + z * LSE**2
    close(fx.cross_entropy(X, Y, weight=W, z_loss=z, reduction="none"), each)
    close(fx.cross_entropy(X, Y, weight=W, z_loss=z, sample_weight=S, reduction="none"), S * each)
    close(fx.cross_entropy(X, Y, weight=W, z_loss=z, sample_weight=S), (S * each).sum() / (S * W[Y]).sum())
    kept = Y != 2
    close(fx.cross_entropy(X, Y, z_loss=z, ignore_index=2), (nll + z * LSE**2)[kept].mean())


# --- nan and infinity --------------------------------------------------------------------------------------------

SPECIAL = [
    [NAN, 0, 1], [0, 1, NAN], [NAN, NAN, NAN], [-INF, 0, 1], [-INF, -INF, 1], [-INF, -INF, -INF], [INF, 0, 1],
    [INF, INF, 0], [INF, -INF, 0], [NAN, INF, 0], [NAN, -INF, -INF], [0, 1, 2],
]  # fmt: skip


@pytest.mark.parametrize("padding", [0, 100, 5000])
def test_nan_in_a_row_gives_nan_for_that_row_alone_and_infinities_as_torch(padding):
    # Padded with -inf on either side, the special numbers lie in other lanes and blocks.
    for dtype in ("float32", "float64", "float16"):
        x = np.pad(np.array(SPECIAL), ((0, 0), (padding, padding)), constant_values=-INF).astype(dtype)
        wide = torch.from_numpy(x.astype(np.float64)).requires_grad_()
        for got, expected in (
            (fx.softmax(x), wide.softmax(1)),
            (fx.log_softmax(x), wide.log_softmax(1)),
            (fx.logsumexp(x), wide.logsumexp(1)),
        ):
            np.testing.assert_allclose(got, expected.detach(), rtol=2e-3 if dtype == "float16" else 1e-6)
        for label in range(padding, padding + 3):
            target = torch.full((len(x),), label)
            expected = F.cross_entropy(wide, target, reduction="none")
            (expected_grad,) = torch.autograd.grad(expected.sum(), wide)
            loss, grad = fx.cross_entropy_with_grad(x, target.numpy(), reduction="none")
            np.testing.assert_allclose(loss, expected.detach(), rtol=1e-6)
            np.testing.assert_allclose(grad, expected_grad, rtol=2e-3 if dtype == "float16" else 1e-6)


def test_nan_is_seen_at_any_place():
    for classes in (1, 2, 64, 65, 200, 4096, 4097, 9000):
        for place in {0, classes // 2, classes - 1, min(4095, classes - 1)}:
            x = np.zeros((3, classes), np.float32)
            x[1, place] = NAN
            for label in {0, classes - 1}:
                loss, grad = fx.cross_entropy_with_grad(x, [label] * 3, reduction="none")
                assert np.isnan(loss).tolist() == [False, True, False]
                assert np.isnan(grad).all(1).tolist() == [False, True, False]
            assert np.isnan(fx.softmax(x)).all(1).tolist() == [False, True, False]
            assert np.isnan(fx.log_softmax(x)).all(1).tolist() == [False, True, False]
            assert np.isnan(fx.logsumexp(x)).tolist() == [False, True, False]
            x[1, :] = INF
            x[1, place] = NAN
            assert np.isnan(fx.logsumexp(x)).tolist() == [False, True, False]


def test_minus_infinity_is_probability_0():
    x = np.array([[0.0, -INF, 1.0], [2.0, -INF, -INF]])
    loss, grad = fx.cross_entropy_with_grad(x, [0, 0], reduction="none")
    kept_loss, kept_grad = fx.cross_entropy_with_grad(x[:1, [0, 2]], [0], reduction="none")
    assert loss.tolist() == [kept_loss[0], 0.0]
    np.testing.assert_array_equal(grad, [[kept_grad[0, 0], 0, kept_grad[0, 1]], [0, 0, 0]])
    assert fx.cross_entropy(x, [1, 1], reduction="none").tolist() == [INF, INF]
    assert fx.softmax(x)[1].tolist() == [1, 0, 0]
    # A class that the target does not want may be impossible.
    target = np.array([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    assert np.isfinite(fx.cross_entropy(x, target, reduction="none")).all()
    assert np.isfinite(fx.nll_loss(fx.log_softmax(x), target, reduction="none")).all()


def test_a_row_of_only_minus_infinity_gives_nan_and_its_log_sum_exp_minus_infinity():
    for classes in (1, 3, 65, 5000):
        x = np.full((2, classes), -INF, np.float32)
        x[1] = 0
        loss, grad = fx.cross_entropy_with_grad(x, [0, 0], reduction="none")
        assert np.isnan(loss).tolist() == [True, False]
        assert np.isnan(grad).all(1).tolist() == [True, False]
        assert np.isnan(fx.softmax(x)).all(1).tolist() == [True, False]
        assert np.isnan(fx.log_softmax(x)).all(1).tolist() == [True, False]
        assert fx.logsumexp(x)[0] == -INF


def test_log_sum_exp_of_nothing_is_minus_infinity():
    assert fx.logsumexp(np.zeros((2, 0))).tolist() == [-INF, -INF]
    assert fx.logsumexp(np.zeros((0, 2)), axis=None) == -INF
    assert fx.softmax(np.zeros((2, 0))).shape == (2, 0)


def test_probabilities_need_not_sum_to_1():
    target = np.array([[2.0, 0.0, 1.0]] * 4)
    loss, grad = fx.cross_entropy_with_grad(X, target, reduction="none")
    close(loss, -(target * LOG_P).sum(1))
    np.testing.assert_allclose(grad, 3 * np.exp(LOG_P) - target, rtol=1e-14)


# --- empty batches -----------------------------------------------------------------------------------------------


@every_loss_with_grad
@pytest.mark.parametrize(("shape", "axis"), [((0, 3), 1), ((2, 3, 0), 1), ((0, 3, 0), 1), ((3, 0), 0)])
def test_an_empty_batch_has_mean_nan_and_sum_0(loss, shape, axis):
    arrays = loss.make(shape, axis)
    assert np.isnan(loss.function(*arrays, axis=axis))
    assert loss.function(*arrays, axis=axis, reduction="sum") == 0
    value, grad = loss.with_grad(*arrays, axis=axis, reduction="none", out=np.empty(shape))
    assert value.size == 0
    assert grad.shape == shape
    options = make_options(loss, shape, axis, "all")
    assert loss.function(*arrays, axis=axis, reduction="sum", **options) == 0
    assert np.isnan(fx.cross_entropy(np.zeros((0, 3)), []))


# --- types -------------------------------------------------------------------------------------------------------


@every_loss_with_grad
def test_types_of_losses_and_gradients(loss):
    table = {**{d: (LOSS_DTYPE[d], d) for d in DTYPES.values()}, **dict.fromkeys(INTEGERS, (np.float64, np.float64))}
    for dtype, (loss_dtype, grad_dtype) in table.items():
        first, target = loss.make((4, 3), 1)
        for reduction in ("mean", "sum", "none"):
            value, grad = loss.with_grad(np.abs(first).astype(dtype), target, reduction=reduction)
            assert value.dtype == loss_dtype
            assert grad.dtype == grad_dtype
            assert isinstance(value, np.ndarray if reduction == "none" else np.dtype(loss_dtype).type)


def test_scalars_come_back_as_numpy_scalars():
    for dtype, scalar in ((np.float64, np.float64), (np.float32, np.float32), (np.float16, np.float32)):
        x = X.astype(dtype)
        for reduction in ("mean", "sum"):
            assert type(fx.cross_entropy(x, Y, reduction=reduction)) is scalar
            assert type(fx.nll_loss_with_grad(x, Y, reduction=reduction)[0]) is scalar
        assert type(fx.cross_entropy(x[0], 1, reduction="none")) is scalar
        assert type(fx.logsumexp(x, None)) is scalar
        assert type(fx.logsumexp(x[0])) is scalar
    assert type(fx.cross_entropy(X[0].astype(ml_dtypes.bfloat16), 1)) is np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_are_those_of_torch(dtype):
    x = torch.from_numpy(X.astype(dtype)).requires_grad_()
    expected = F.cross_entropy(x, torch.from_numpy(Y))
    expected.backward()
    loss, grad = fx.cross_entropy_with_grad(X.astype(dtype), Y)
    assert (loss.dtype, grad.dtype) == (expected.detach().numpy().dtype, x.grad.numpy().dtype)


def test_options_never_change_the_type():
    x = X.astype(np.float32)
    wide = {"weight": W, "sample_weight": S, "label_smoothing": np.float64(0.1), "z_loss": np.float64(0.1)}
    for reduction, incoming in (("mean", np.float64(2)), ("none", np.ones(4))):
        loss, grad = fx.cross_entropy_with_grad(x, Y, reduction=reduction, grad_output=incoming, **wide)
        assert (loss.dtype, grad.dtype) == (np.float32, np.float32)
    assert fx.cross_entropy(x, X).dtype == np.float32


# --- floating-point warnings -------------------------------------------------------------------------------------

LARGEST = {"float16": 65504.0, "float32": 3.4028235e38, "float64": 1.7976931348623157e308}
HARD = [[1, -1, 0], [1, 1, 1], [-1, -1, -1], [1e-40, 1e-300, -1e-310], [0, -88, -800], [0, -1e4, 1e4]]


def hard_rows(dtype):
    x = np.array(HARD)
    with np.errstate(all="ignore"):
        return np.where(np.abs(x) == 1, x * LARGEST[dtype], x).astype(dtype)


@pytest.mark.parametrize("dtype", LARGEST)
def test_finite_input_never_raises_a_floating_point_warning(dtype):
    x = hard_rows(dtype)
    options = [
        {}, {"label_smoothing": 0.1}, {"z_loss": 1e300}, {"weight": [1e-300, 1.0, 1e300]}, {"sample_weight": 1e300},
        {"sample_weight": np.full(6, 1e-300)}, {"weight": [0.0, 0.0, 0.0]}, {"reduction": "none"},
    ]  # fmt: skip
    with np.errstate(all="raise"):
        for function in (fx.softmax, fx.log_softmax, fx.logsumexp):
            function(x)
        for name in ("softmax_vjp", "log_softmax_vjp"):
            MAPS[name].function(x, x)
            MAPS[name].function(np.full(x.shape, 1e300), x)
        fx.logsumexp_vjp(np.full(6, 1e-300), x)
        for chosen in options:
            for label in (0, 1, 2, -100):
                for incoming in (None, 1e300, 1e-300):
                    fx.cross_entropy_with_grad(x, np.full(6, label), grad_output=incoming, **chosen)


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("extreme", [1e300, 1e-300])
def test_finite_probabilities_never_raise_a_floating_point_warning(dtype, extreme):
    x = hard_rows(dtype)
    with np.errstate(all="raise"):
        for function in (fx.cross_entropy_with_grad, fx.nll_loss_with_grad):
            function(x, np.full(x.shape, extreme))
            function(x, np.full(x.shape, 0.5), weight=[extreme] * 3, sample_weight=extreme)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_sum_beyond_the_largest_number_is_infinite(sign):
    log_probs = np.full((2, 1), sign * 3e38, np.float32)
    assert fx.nll_loss(log_probs, [0, 0], reduction="sum") == -sign * INF
    assert fx.nll_loss(log_probs, [0, 0]) == -log_probs[0, 0]


def test_an_infinite_loss_is_infinite_in_the_sum_and_the_mean(backend):
    x = np.zeros((40, 3))
    x[7, 1] = -np.inf
    target = np.ones(40, int)
    assert fx.cross_entropy(x, target, reduction="sum") == np.inf
    assert fx.cross_entropy(x, target) == np.inf


@pytest.mark.parametrize(("dtype", "log_prob"), [(np.float32, 85), (np.float32, 88.6), (np.float64, 705)])
def test_log_softmax_vjp_of_what_is_no_log_probability(backend, dtype, log_prob):
    grad = fx.log_softmax_vjp(np.array([1, 0], dtype), np.array([log_prob, 0], dtype))
    np.testing.assert_allclose(grad, [1 - np.exp(np.longdouble(dtype(log_prob))), -1], rtol=1e-6)
    assert fx.log_softmax_vjp(np.array([1, 0], dtype), np.array([2 * log_prob, 0], dtype))[0] == -np.inf
