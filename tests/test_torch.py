"""Value and gradient as torch gives them, whatever the type, shape, layout and options.

Torch computes in float64 on the numbers that fastxent gets, so that differences are fastxent's own.
"""

import numpy as np
import pytest
import torch
from cases import (
    ALL,
    ALL_WITH_GRAD,
    DTYPES,
    INTEGERS,
    LAYOUTS,
    LOSS_DTYPE,
    LOSSES,
    MAPS,
    REDUCTIONS,
    SHAPES,
    WITH_GRAD,
    WRITEABLE,
    assert_close,
    exact,
    make_options,
)

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")
OUT = ALL_WITH_GRAD | MAPS
every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
every_loss_with_out = pytest.mark.parametrize("loss", OUT.values(), ids=OUT)
every_loss_with_grad = pytest.mark.parametrize("loss", ALL_WITH_GRAD.values(), ids=ALL_WITH_GRAD)
every_weighted_loss = pytest.mark.parametrize("loss", WITH_GRAD.values(), ids=WITH_GRAD)
every_option = pytest.mark.parametrize(
    ("loss", "which"),
    [(loss, which) for loss in ALL_WITH_GRAD.values() for which in ("no", *loss.options, "all")],
    ids=[f"{name}-{which}" for name, loss in ALL_WITH_GRAD.items() for which in ("no", *loss.options, "all")],
)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
every_writeable_layout = pytest.mark.parametrize("layout", WRITEABLE.values(), ids=WRITEABLE)

SHAPE = (3, 5, 2, 2)  # class axis 1, with two axes behind it


def as_tensor(value):
    return torch.from_numpy(exact(value)) if isinstance(value, np.ndarray) else value


def torch_value_and_grad(loss, arrays, axis, grad_output=None, **options):
    first, *rest = map(as_tensor, arrays)
    first.requires_grad_()
    value = loss.oracle(first, *rest, **loss.at(axis), **{name: as_tensor(v) for name, v in options.items()})
    incoming = torch.ones_like(value) if grad_output is None else as_tensor(np.asarray(grad_output))
    (grad,) = torch.autograd.grad(value, first, incoming)
    return value.detach().numpy(), grad.numpy()


def check(loss, arrays, axis, out=None, grad_output=None, **options):
    """Compare the function, and the gradient of its twin, with torch; returns what may be `out`."""
    if loss.with_grad is None:
        dtype = arrays[-1].dtype.newbyteorder("=")
        expected = loss.oracle(*map(as_tensor, arrays), axis=axis).detach().numpy()
        got = loss.function(*arrays, axis=axis, **({} if out is None else {"out": out}))
        assert_same(got, expected, LOSS_DTYPE[dtype] if loss.reduces else dtype)
        return got
    dtype = arrays[0].dtype.newbyteorder("=")
    expected, expected_grad = torch_value_and_grad(loss, arrays, axis, grad_output, **options)
    value = loss.function(*arrays, **loss.at(axis), **options)
    value_again, grad = loss.with_grad(*arrays, **loss.at(axis), out=out, grad_output=grad_output, **options)
    assert_same(value, expected, LOSS_DTYPE[dtype])
    # Where the softmax is the target, one of two equal products is rounded less: compilers choose which one they fuse.
    assert_same(grad, expected_grad, dtype, least=1 / max(1, grad.size))
    np.testing.assert_array_equal(value_again, value)
    return grad


def assert_same(got, expected, dtype, least=0):
    assert got.dtype.newbyteorder("=") == dtype
    assert got.shape == expected.shape
    assert_close(got, expected, least=least)


@every_loss
@every_layout
def test_any_layout(loss, layout):
    for dtype in DTYPES.values():
        arrays = loss.make(SHAPE, 1, dtype, layout)
        before = [exact(a) for a in arrays]
        check(loss, arrays, 1)
        for array, old in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(exact(array), old)


@every_loss
@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
def test_any_shape(loss, shape, axis):
    for dtype in DTYPES.values():
        check(loss, loss.make(shape, axis, dtype), axis)


@every_loss
@every_layout
def test_any_axis_of_any_layout(loss, layout):
    for axis in (0, 2, -1):
        check(loss, loss.make((2, 3, 4, 5), axis, np.float32, layout), axis)


@every_loss
def test_default_axis(loss):
    for shape in ((3,), (3, 4), (3, 4, 2)):
        axis = loss.default_axis(len(shape))
        arrays = loss.make(shape, axis)
        np.testing.assert_array_equal(loss.function(*arrays), loss.function(*arrays, **loss.at(axis)))
        if loss.with_grad is not None:
            np.testing.assert_array_equal(loss.with_grad(*arrays)[1], loss.with_grad(*arrays, **loss.at(axis))[1])


@every_option
@every_reduction
def test_options(loss, reduction, which):
    shape, axis = (7, 4, 3), 1
    incoming = np.array(-1.7)
    if reduction == "none":
        incoming = np.random.default_rng(2).standard_normal(loss.loss_shape(shape, axis))
    for dtype in DTYPES.values():
        arrays = loss.make(shape, axis, dtype)
        options = make_options(loss, shape, axis, which, dtype)
        check(loss, arrays, axis, reduction=reduction, **options)
        check(loss, arrays, axis, reduction=reduction, grad_output=incoming.astype(dtype), **options)


@every_loss_with_grad
@every_reduction
def test_options_of_an_unbatched_sample(loss, reduction):
    options = make_options(loss, (5,), 0, "all")
    incoming = np.full(loss.loss_shape((5,), 0) if reduction == "none" else (), 0.5)
    check(loss, loss.make((5,), 0), 0, reduction=reduction, grad_output=incoming, **options)


@every_loss_with_grad
@every_layout
def test_weights_in_any_layout(loss, layout):
    shape, axis = (6, 3, 2), 1
    options = make_options(loss, shape, axis, "all")
    options |= {k: layout(v) for k, v in options.items() if isinstance(v, np.ndarray)}
    incoming = layout(np.random.default_rng(2).standard_normal(loss.loss_shape(shape, axis)))
    check(loss, loss.make(shape, axis), axis, reduction="none", grad_output=incoming, **options)


@every_weighted_loss
@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 1), (3, 4)])
def test_sample_weight_broadcasts(loss, shape):
    arrays = loss.make((3, 5, 4), 1)
    weights = np.random.default_rng(3).uniform(0.5, 2, shape)
    full = np.broadcast_to(weights, (3, 4))
    check(loss, arrays, 1, sample_weight=full)
    value, grad = loss.with_grad(*arrays, sample_weight=weights, axis=1)
    expected, expected_grad = loss.with_grad(*arrays, sample_weight=full, axis=1)
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-15)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.takes_labels])
@pytest.mark.parametrize("integer", INTEGERS, ids=str)
def test_labels_of_any_integer_type(name, integer):
    for layout in LAYOUTS.values():
        x, target = LOSSES[name].make((4, 3, 5), 1, np.float32)
        target = layout(target.astype(integer))
        check(LOSSES[name], (x, target), 1)
        check(LOSSES[name], (x, target), 1, ignore_index=2)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["cross_entropy of probabilities", "nll_loss of probabilities"])
def test_probabilities_of_any_type(name, dtype):
    x, target = LOSSES[name].make((4, 3, 5), 1)
    for target_dtype in DTYPES.values():
        check(LOSSES[name], (x.astype(dtype), target.astype(target_dtype)), 1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["softmax_vjp", "log_softmax_vjp", "logsumexp_vjp"])
def test_incoming_gradient_of_any_type(name, dtype):
    grad_output, value = LOSSES[name].make((4, 3), 1)
    for grad_dtype in DTYPES.values():
        check(LOSSES[name], (grad_output.astype(grad_dtype), value.astype(dtype)), 1)


@every_loss_with_out
@every_writeable_layout
def test_out(loss, layout):
    for dtype in DTYPES.values():
        if loss.function is fx.logsumexp:
            out = layout(np.full((3, 2, 2), np.nan, LOSS_DTYPE[dtype]))
        else:
            out = layout(np.full(SHAPE, np.nan, dtype))
        for seed in (0, 1):  # fresh, then reused
            assert check(loss, loss.make(SHAPE, 1, dtype, seed=seed), 1, out=out) is out


def replaceable(loss, arrays):
    """Which of the arrays may be `out` as well."""
    places = [] if loss.function is fx.logsumexp else [len(arrays) - 1] if loss.with_grad is None else [0]
    return [0, 1] if loss.function in (fx.softmax_vjp, fx.log_softmax_vjp) else places


def check_in_place(loss, make):
    """`make` makes the arguments anew, since one of them is overwritten."""
    for place in replaceable(loss, make()):
        arrays = make()
        function = loss.with_grad or (lambda *a, **k: (None, loss.function(*a, **k)))
        expected_value, expected = function(*[a.copy() for a in arrays], **loss.at(1))
        value, result = function(*arrays, **loss.at(1), out=arrays[place])
        assert result is arrays[place]
        if value is not None:
            assert_close(value, expected_value)  # in another layout, sums may be in another order
        np.testing.assert_array_equal(exact(result), exact(expected))


@every_loss_with_out
@every_writeable_layout
def test_in_place(loss, layout):
    for dtype in DTYPES.values():
        check_in_place(loss, lambda dtype=dtype: loss.make(SHAPE, 1, dtype, layout))


@every_loss_with_out
@pytest.mark.parametrize("classes", [65, 4097, 8193])
def test_in_place_across_blocks(loss, classes):
    for dtype in DTYPES.values():
        check_in_place(loss, lambda dtype=dtype: loss.make((3, classes), 1, dtype))


@pytest.mark.parametrize("axis", [None, (), (0,), (1,), (-1, 0), (0, 1), (2, 0), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp_over_several_axes(axis, keepdims):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    dims = tuple(range(3)) if axis is None else axis
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    expected = torch.logsumexp(tensor, dims, keepdims) if dims else tensor * 1  # torch takes () for all axes
    incoming = np.random.default_rng(1).standard_normal(expected.shape)
    (expected_grad,) = torch.autograd.grad(expected, tensor, torch.from_numpy(incoming))
    out = np.empty(expected.shape)
    assert fx.logsumexp(x, axis, keepdims=keepdims, out=out) is out
    for got in (out, fx.logsumexp(x, axis, keepdims=keepdims)):
        assert_same(got, expected.detach().numpy(), np.float64)
    assert_close(fx.logsumexp_vjp(incoming, x, axis), expected_grad.numpy())
    assert fx.logsumexp_vjp(incoming, x, axis, out=x) is x
    assert_close(x, expected_grad.numpy())


@every_loss
@pytest.mark.parametrize("convert", [np.ndarray.tolist, torch.from_numpy], ids=["lists", "tensors"])
def test_array_likes(loss, convert):
    arrays = loss.make((2, 3), 1)
    np.testing.assert_array_equal(loss.function(*map(convert, arrays)), loss.function(*arrays))
    if loss.with_grad is not None:
        np.testing.assert_array_equal(loss.with_grad(*map(convert, arrays))[1], loss.with_grad(*arrays)[1])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_integers_are_computed_in_float64(loss):
    for integer in INTEGERS:
        arrays = [np.arange(a.size).reshape(a.shape) % 3 for a in loss.make((2, 3), 1)]
        floats = [a if a.ndim == 1 and loss.takes_labels else a.astype(np.float64) for a in arrays]
        if loss.with_grad is not None and not loss.takes_labels:
            arrays[1] = floats[1]  # integers would be labels
        got = loss.function(*[a if a is f else a.astype(integer) for a, f in zip(arrays, floats, strict=True)])
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, loss.function(*floats))
