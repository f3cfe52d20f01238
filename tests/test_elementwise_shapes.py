"""Losses computed entry by entry, of arrays of any shape: how axes are merged, what broadcasts, what is empty."""

import itertools
import math

import numpy as np
import pytest
from cases import (
    DTYPES,
    ELEMENTWISE,
    ELEMENTWISE_WITH_GRAD,
    REDUCTIONS,
    WRITEABLE,
    assert_close,
    batch_shape,
    exact,
    make_options,
)
from hypothesis import given
from hypothesis import strategies as st
from test_elementwise import every_loss, every_loss_with_grad, every_type
from test_torch import check

import fastxent as fx
from fastxent._elementwise import make_plan

pytestmark = pytest.mark.usefixtures("backend")
NAN = math.nan


# --- axes --------------------------------------------------------------------------------------------------------


def plan_of(*arrays, axis=None):
    return make_plan(arrays[0].shape, tuple(a.strides for a in arrays), axis)


def test_as_many_axes_as_possible_are_merged():
    x = np.zeros((4, 5, 6))
    row = np.broadcast_to(np.zeros(6), x.shape)
    assert plan_of(x).view == (1, 1, 120)
    assert plan_of(np.asfortranarray(x)).view == (1, 1, 120)
    assert plan_of(x.transpose(2, 0, 1)).view == (1, 1, 120)
    assert plan_of(x[::-1, ::-1, ::-1]).view == (1, 1, 120)
    assert plan_of(x, np.asfortranarray(x)).view == (4, 5, 6)
    assert plan_of(x, row).view == (1, 20, 6)
    assert plan_of(x.transpose(2, 0, 1), row.transpose(2, 0, 1)).view == (1, 20, 6)
    assert plan_of(x[:, ::2]).view == (4, 3, 6)
    assert plan_of(x[:, :, :3]).view == (1, 20, 3)
    assert plan_of(x[:1, :, :1]).view == (1, 1, 5)
    assert plan_of(np.zeros(())).view == (1, 1, 1)
    assert plan_of(np.zeros((2, 0, 3))).view == (1, 1, 0)


def test_the_class_axis_stays_one_of_its_own_and_is_not_the_first():
    x = np.zeros((4, 5, 6))
    assert plan_of(x, axis=2).view == (1, 20, 6)
    assert plan_of(x, axis=1).view == (4, 5, 6)
    assert plan_of(x, axis=0).view == (1, 4, 30)
    assert plan_of(x.T, axis=0).view == (1, 20, 6)
    assert plan_of(x[:, :, :1], axis=2).view == (1, 20, 1)
    assert [plan_of(x, axis=k).class_axis for k in range(3)] == [1, 1, 2]
    assert plan_of(x[:, ::2], axis=0) is None  # the other two cannot be merged


def test_more_than_three_axes_have_no_plan():
    assert plan_of(np.zeros((4, 4, 4, 4))[::2, ::2, ::2, ::2]) is None
    assert plan_of(np.zeros((2, 3, 4, 5))[..., ::2]).view == (1, 24, 3)


@given(st.permutations(range(4)), st.lists(st.sampled_from([1, 2, -1]), min_size=4, max_size=4), st.integers(0, 3))
def test_views_are_views_and_come_back(order, steps, axis):
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).transpose(order)[tuple(slice(None, None, k) for k in steps)]
    for class_axis in (None, axis):
        plan = plan_of(x, axis=class_axis)
        if plan is not None:
            view = plan.split(x)
            assert np.shares_memory(view, x)
            np.testing.assert_array_equal(plan.join(np.ascontiguousarray(view)), x)
            if class_axis is not None:
                summed = np.ascontiguousarray(view.sum(plan.class_axis))
                np.testing.assert_array_equal(plan.join(summed, class_axis), x.sum(class_axis))


@every_loss_with_grad
@pytest.mark.parametrize("layouts", list(itertools.product(WRITEABLE, repeat=2)), ids="-".join)
def test_every_combination_of_layouts(loss, layouts):
    x, y = loss.make((2, 3, 4, 5), 1)
    options = make_options(loss, x.shape, 1, "all")
    for reduction in REDUCTIONS:
        expected = loss.with_grad(x, y, reduction=reduction, **loss.at(1), **options)
        first, second, out = WRITEABLE[layouts[0]](x), WRITEABLE[layouts[1]](y), WRITEABLE[layouts[1]](np.zeros_like(x))
        for result in (None, out, first):
            value, grad = loss.with_grad(first, second, reduction=reduction, out=result, **loss.at(1), **options)
            assert_close(value, expected[0])
            assert_close(grad, expected[1])


@every_loss_with_grad
def test_results_lie_in_memory_as_the_input(loss):
    for x, y in (loss.make((4, 5, 6), 1), [a.T for a in loss.make((4, 5, 6), 1)]):
        losses, grad = loss.with_grad(x, y, reduction="none")
        assert grad.strides == x.strides
        assert loss.has_axis or losses.strides == x.strides


# --- what broadcasts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 1), (3, 4), (2, 1, 1), (2, 1, 4), (1, 3, 4), (2, 3, 4)])
@pytest.mark.parametrize("option", ["weight", "pos_weight", "grad_output"])
def test_weights_of_any_shape_that_broadcasts(shape, option):
    values = np.random.default_rng(3).uniform(0.5, 2, shape)
    full = np.broadcast_to(values, (2, 3, 4))
    for name in ("binary_cross_entropy_with_logits", "binary_cross_entropy"):
        loss = ELEMENTWISE[name]
        if option == "grad_output" or option in loss.options:
            for dtype in DTYPES.values():
                x, y = loss.make((2, 3, 4), 2, dtype)
                check(loss, (x, y), 2, reduction="none", **{option: full.astype(dtype)})
                got = loss.with_grad(x, y, reduction="none", **{option: values})
                expected = loss.with_grad(x, y, reduction="none", **{option: full})
                for one, other in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(exact(one), exact(other))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (5, 2, 3, 4), (1, 1, 1, 1), (0,), (2, 3, 4, 1)])
@pytest.mark.parametrize("option", ["weight", "pos_weight", "grad_output"])
def test_weights_that_do_not_broadcast(shape, option):
    x, y = ELEMENTWISE["binary_cross_entropy_with_logits"].make((2, 3, 4), 2)
    out = np.full(x.shape, 77.0)
    with pytest.raises(ValueError, match=f"^{option} has shape"):
        fx.binary_cross_entropy_with_logits_with_grad(x, y, reduction="none", out=out, **{option: np.ones(shape)})
    assert (out == 77).all()


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_a_weight_for_each_class_of_any_axis(axis):
    loss = ELEMENTWISE["multilabel_soft_margin_loss"]
    x, y = loss.make((3, 4, 5), axis)
    weight = np.random.default_rng(1).uniform(0.5, 2, x.shape[axis])
    for reduction in REDUCTIONS:
        check(loss, (x, y), axis, weight=weight, reduction=reduction)
    aligned = weight.reshape([-1 if k == axis % 3 else 1 for k in range(3)])
    got = fx.multilabel_soft_margin_loss(x, y, weight=np.broadcast_to(aligned, x.shape), axis=axis, reduction="none")
    np.testing.assert_array_equal(got, fx.multilabel_soft_margin_loss(x, y, weight=weight, axis=axis, reduction="none"))


def test_one_incoming_gradient_for_every_loss():
    for loss in ELEMENTWISE_WITH_GRAD.values():
        x, y = loss.make((3, 4), 1)
        grad = loss.with_grad(x, y, reduction="none", grad_output=2)[1]
        np.testing.assert_allclose(grad, 2 * loss.with_grad(x, y, reduction="sum")[1], rtol=1e-15)


# --- shapes ------------------------------------------------------------------------------------------------------


@every_loss_with_grad
@every_type
def test_scalars(loss, dtype):
    if not loss.has_axis:
        for reduction in REDUCTIONS:
            x, y = loss.make((), -1, dtype) if loss.function is not fx.kl_div else (dtype.type(-1.5), dtype.type(0.25))
            check(loss, (np.asarray(x), np.asarray(y)), 0, reduction=reduction)
            value, grad = loss.with_grad(np.asarray(x), np.asarray(y), reduction=reduction)
            assert not isinstance(value, np.ndarray)
            assert isinstance(grad, np.ndarray)
            assert grad.shape == ()


@every_loss_with_grad
@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3)])
def test_nothing_has_mean_nan_and_sum_0(loss, shape):
    arrays = np.zeros((2, *shape))
    assert np.isnan(loss.function(*arrays))
    if shape[-1] or not loss.has_axis:
        assert loss.function(*arrays, reduction="sum") == 0
    value, grad = loss.with_grad(*arrays, reduction="none", out=np.empty(shape))
    assert value.shape == loss.loss_shape(shape, -1)
    assert grad.shape == shape


@every_loss
@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 0, 0, 0), (2, 0, 3, 0), (0, 2, 0, 4, 0)])
def test_nothing_of_any_strides(loss, shape):
    """Those that NumPy gives to arrays without entries fit together in no way."""
    wide = np.zeros([n + 1 for n in shape])[tuple(slice(n) for n in shape)]
    for arrays in ([np.zeros(shape, np.float16)] * len(loss.arrays), [wide, wide.copy(order="F")][: len(loss.arrays)]):
        for axis in range(len(shape) if loss.has_axis else 1):
            options = {"reduction": "none"} if loss.has_gradient else {}
            with np.errstate(invalid="ignore"):
                value = loss.function(*arrays, **loss.at(axis), **options)
            assert value.shape == (loss.loss_shape(shape, axis) if loss.has_gradient else batch_shape(shape, axis))


def test_no_class():
    assert fx.entropy(np.zeros((2, 0))).tolist() == [0, 0]
    assert fx.kl_divergence(np.zeros((0, 3)), np.zeros((0, 3)), axis=0).tolist() == [0, 0, 0]
    assert np.isnan(fx.multilabel_soft_margin_loss(np.zeros((2, 0)), np.zeros((2, 0)), reduction="none")).tolist() == [
        1,
        1,
    ]
    for function in (fx.entropy, fx.multilabel_soft_margin_loss, fx.kl_divergence):
        with pytest.raises(ValueError, match="axis -1 is out of bounds for array of dimension 0"):
            function(*[1.0] * (1 + (function is not fx.entropy)))


@pytest.mark.parametrize("shape", [(4, 3), (4,), (), (2, 3, 4), (0, 3), (3, 0)])
def test_batchmean_divides_by_the_length_of_the_first_axis(shape):
    rng = np.random.default_rng(0)
    x, y = np.asarray(rng.standard_normal(shape)), np.asarray(rng.uniform(0, 1, shape))
    for log_target in (False, True):
        if shape != (0, 3):
            check(ELEMENTWISE["kl_div"], (x, y), 0, reduction="batchmean", log_target=log_target)
    got = fx.kl_div(x, y, reduction="batchmean")
    np.testing.assert_equal(got, fx.kl_div(x, y, reduction="sum") / (len(x) or NAN if shape else 1))


def test_kl_divergence_is_batchmean_of_kl_div():
    p, q = ELEMENTWISE["kl_divergence"].make((6, 5), 1)
    np.testing.assert_allclose(
        fx.kl_divergence(p, q).mean(), fx.kl_div(np.log(q), p, reduction="batchmean"), rtol=1e-14
    )
    np.testing.assert_allclose(fx.kl_divergence(p, q), fx.categorical_cross_entropy(p, q) - fx.entropy(p), rtol=1e-13)
