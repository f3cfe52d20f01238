"""The kernels against the specification, fastxent.reference; and the specification against torch."""

import itertools

import numpy as np
import pytest
import torch
from cases import (
    ALL,
    ALL_WITH_GRAD,
    CLASS_COUNTS,
    DTYPES,
    LOSSES,
    REDUCTIONS,
    assert_close,
    exact,
    make_options,
)

import fastxent as fx
from fastxent import reference

OF_DISTRIBUTIONS = {name: loss for name, loss in ALL.items() if loss.with_grad is None}
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
every_softmax_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_map = pytest.mark.parametrize("loss", OF_DISTRIBUTIONS.values(), ids=OF_DISTRIBUTIONS)
every_loss_with_grad = pytest.mark.parametrize("loss", ALL_WITH_GRAD.values(), ids=ALL_WITH_GRAD)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def check(loss, arrays, axis, **options):
    """Value and gradient against the reference on the same numbers."""
    plain = [exact(a) for a in arrays]
    if loss.with_grad is None:
        assert_close(loss.function(*arrays, axis=axis), loss.reference(*plain, axis=axis))
        return
    expected, expected_grad = loss.reference(*plain, **loss.at(axis), **options)
    value, grad = loss.with_grad(*arrays, **loss.at(axis), **options)
    assert_close(value, expected)
    assert_close(grad, expected_grad)
    options.pop("grad_output", None)
    # Without a gradient Numba compiles another version of a kernel, which may round differently in the last place.
    assert_close(loss.function(*arrays, **loss.at(axis), **options), value.astype(np.float64))


@every_loss
@pytest.mark.parametrize("classes", CLASS_COUNTS)
def test_any_number_of_classes(backend, loss, classes):
    for dtype in DTYPES.values():
        for shape, axis in (((3, classes), 1), ((classes, 2), 0), ((2, classes, 2), 1)):
            options = make_options(loss, shape, axis, "all", dtype)
            if loss.with_grad is not None:
                options["reduction"] = "sum"  # with few classes all samples may be ignored
            check(loss, loss.make(shape, axis, dtype), axis, **options)
            check(loss, loss.make(shape, axis, dtype), axis)


# Classes and one of them: the first of a block, the last, both neighbours; what only the last load of 64 reads, which
# overlaps those before it.
PLACES = [
    (65, 0), (65, 63), (65, 64), (200, 130), (200, 199), (8200, 4095), (8200, 4096), (8200, 8191), (8200, 8199)
]  # fmt: skip


@every_softmax_loss
def test_the_largest_logit_at_any_place(backend, loss):
    # The label is there and beside it.
    for classes, place in PLACES:
        arrays = loss.make((2, classes), 1)
        if loss.function not in (fx.softmax_vjp, fx.log_softmax_vjp):  # which take no logits
            above = 1000 if classes == 200 else 12  # so much more, and exponentials of the difference would overflow
            arrays[0 if loss.with_grad else -1][..., place] += above
        for label in (place, 0, 1, classes - 1) if loss.takes_labels else (place,):
            if loss.takes_labels:
                arrays[1][...] = label
            check(loss, arrays, 1)


@every_loss
def test_few_samples_of_very_many_classes(backend, loss):
    for dtype in DTYPES.values():
        shape = 2, 140_001
        for options in ({}, make_options(loss, shape, 1, "all", dtype)):
            arrays = loss.make(shape, 1, dtype)
            if loss.takes_labels:
                arrays[1][0] = 0  # the first class of the first part
            check(loss, arrays, 1, **options)


def test_segments_without_a_finite_number(backend):
    x = np.full((1, 140_001), -np.inf, np.float32)
    assert fx.logsumexp(x) == -np.inf
    x[0, -1] = 3
    assert fx.logsumexp(x) == 3
    x[0, 7] = np.nan
    assert np.isnan(fx.logsumexp(x))


@pytest.mark.parametrize("ascending", [True, False])
@every_softmax_loss
def test_every_block_raises_the_maximum_or_none(backend, loss, ascending):
    # In one sample after the other, and in many side by side.
    for shape, dtype in itertools.product([(2, 20_000), (1, 350, 20)], ("float32", "float64")):
        arrays = loss.make(shape, 1, DTYPES[dtype])
        arrays[0 if loss.with_grad else -1].sort(axis=1)
        if not ascending:
            arrays = [a[:, ::-1] if a.shape == shape else a for a in arrays]
        options = make_options(loss, shape, 1, "all", dtype)
        check(loss, arrays, 1, **options)


@every_loss_with_grad
@every_reduction
def test_many_samples(backend, loss, reduction):
    # More than one task of 32768 elements, more than one partial sum of 8192 samples, and a rest.
    shape = (8192 * 3 + 5, 4)
    incoming = np.random.default_rng(2).standard_normal(loss.loss_shape(shape, 1)) if reduction == "none" else 0.7
    options = make_options(loss, shape, 1, "all")
    check(loss, loss.make(shape, 1), 1, reduction=reduction, grad_output=incoming, **options)
    check(loss, loss.make(shape, 1, np.float32), 1, reduction=reduction)


@every_map
def test_many_rows(backend, loss):
    check(loss, loss.make((8192 * 3 + 5, 4), 1, np.float32), 1)
    check(loss, loss.make((3, 4, 9000), 1, np.float32), 1)


def test_more_samples_than_partial_sums_of_the_usual_length(backend):
    # Beyond 1024 partial sums of 8192 they grow longer: none may be left out, and the last is short.
    n = 1024 * 8192 + 4099
    target = np.zeros((), np.int8)
    log_probs = np.broadcast_to(np.float32(-1.0), (n, 1))
    assert fx.nll_loss(log_probs, np.broadcast_to(target, n), reduction="sum") == n
    weights = np.ones(n, np.float32)
    weights[-1] = 2.0
    np.testing.assert_allclose(
        fx.nll_loss(log_probs, np.broadcast_to(target, n), sample_weight=weights, reduction="sum"), n + 1, rtol=1e-7
    )
    assert fx.nll_loss(log_probs, np.broadcast_to(target, n), sample_weight=weights) == 1


@every_loss_with_grad
@every_reduction
def test_random_combinations(backend, loss, reduction):
    rng = np.random.default_rng(5)
    for _ in range(25):
        ndim = int(rng.integers(1, 5))
        shape = tuple(rng.integers(1, 6, ndim).tolist())
        axis = int(rng.integers(-ndim, ndim))
        options = make_options(loss, shape, axis, "all", seed=rng)
        options = {name: value for name, value in options.items() if rng.random() < 0.5}
        if "ignore_index" in options:
            options["ignore_index"] = int(rng.integers(-2, shape[axis] + 2))
        with np.errstate(all="ignore"):  # where all samples are ignored, the mean is nan in both
            check(loss, loss.make(shape, axis, seed=rng), axis, reduction=reduction, **options)


# --- the specification itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "which"), [(name, which) for name, loss in ALL_WITH_GRAD.items() for which in ("no", *loss.options, "all")]
)
@every_reduction
def test_reference_is_torch(name, reduction, which):
    loss = ALL_WITH_GRAD[name]
    for shape, axis in (((5,), 0), ((6, 3), 1), ((4, 5, 3), 1), ((4, 5, 3), -1), ((3, 4, 2, 2), 0)):
        arrays = loss.make(shape, axis)
        options = make_options(loss, shape, axis, which)
        first, *rest = map(torch.from_numpy, arrays)
        first.requires_grad_()
        tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        expected = loss.oracle(first, *rest, **loss.at(axis), reduction=reduction, **tensors)
        incoming = torch.from_numpy(np.asarray(np.random.default_rng(2).standard_normal(expected.shape)))
        (expected_grad,) = torch.autograd.grad(expected, first, incoming)
        options |= {"reduction": reduction, "grad_output": incoming.numpy(), **loss.at(axis)}
        value, grad = loss.reference(*arrays, **options)
        assert_close(value, expected.detach().numpy())
        assert_close(grad, expected_grad.numpy())


@every_map
def test_reference_maps_are_torch(loss):
    for shape, axis in (((5,), 0), ((4, 5, 3), 1), ((4, 5, 3), -1)):
        arrays = loss.make(shape, axis)
        expected = loss.oracle(*map(torch.from_numpy, arrays), axis=axis).detach().numpy()
        assert_close(loss.reference(*arrays, axis=axis), expected)


def test_reference_keeps_small_numbers():
    assert reference.logsumexp([0.0, -40.0]) == 4.248354255291589e-18
    assert reference.cross_entropy([[20.0, 0.0]], [0])[0] == pytest.approx(2.0611536181902037e-09, rel=1e-15)
