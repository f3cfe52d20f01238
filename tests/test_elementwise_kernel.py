"""The kernel of losses of single entries as it is called: every term, type of number, stride and way to sum."""

import itertools
import math

import numpy as np
import pytest

SIXTEEN = {"float16": np.int16, "bfloat16": np.uint16}
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}
TYPES = ("float32", "float64", *SIXTEEN)
MODES = {"each": (), "columns": (1,), "rows": (2,), "everything": (0, 1, 2)}
SHAPES = [(1, 1, 1), (3, 5, 37), (2, 3, 1100), (4, 7, 1), (1, 1, 2048), (1, 34, 32)]


def sigmoid(x):
    return 0.5 + 0.5 * np.tanh(x / 2)


def times(p, x):
    return np.where(p != 0, p * x, 0)


# Each term and its derivative.
TERMS = {
    "bce_with_logits": lambda x, y, p: (
        (1 - y) * np.logaddexp(0, x) + p * y * np.logaddexp(0, -x),
        (1 - y) * sigmoid(x) - p * y * sigmoid(-x),
    ),
    "bce": lambda x, y, p: (
        -y * np.maximum(np.log(x), -100) - (1 - y) * np.maximum(np.log1p(-x), -100),
        (x - y) / np.maximum(x * (1 - x), 1e-12),
    ),
    "kl_div": lambda x, y, p: (times(y, np.log(y) - x), -y),
    "kl_div_log": lambda x, y, p: (times(np.exp(y), y - x), -np.exp(y)),
    "entropy": lambda x, y, p: (-times(x, np.log(x)), None),
    "probs_cross_entropy": lambda x, y, p: (-times(x, np.log(y)), None),
    "kl_divergence": lambda x, y, p: (times(x, np.log(x / y)), None),
    "outside": lambda x, y, p: (1.0 - ((x >= 0) & (x <= 1)), None),
}
WITH_GRAD = list(TERMS)[:4]
every_type = pytest.mark.parametrize("dtype", TYPES)


def computing(dtype):
    return np.dtype("float64" if dtype == "float64" else "float32")


def stored(values, dtype):
    """Numbers of any type as kernels take them."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype).view(SIXTEEN.get(dtype, dtype))


def number(array):
    """What was stored, in float64."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(float)
    return array.view(np.float16).astype(float) if array.dtype == np.int16 else array.astype(float)


def constant(dtype, shape):
    return np.broadcast_to(np.ones((), computing(dtype)), shape)


def arguments(name, shape, dtype, y_dtype=None, seed=0):
    """x, y, weight, pos_weight and scale."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0.01, 0.99, (2, *shape))
    if name in ("bce_with_logits", "kl_div", "kl_div_log"):
        x = rng.standard_normal(shape) * 4
    elif name != "bce":
        x[..., -1], x[..., 0] = 1, 0
    if name in ("bce_with_logits", "bce", "kl_div"):
        y[..., -1], y[..., 0] = 1, 0
    if name == "outside":
        x += rng.integers(-1, 2, shape)
    weight, pos_weight, scale = rng.uniform(0.5, 2, (3, *shape)).astype(computing(dtype))
    if name == "outside":  # the only one that is not weighted
        weight = constant(dtype, shape)
    return [stored(x, dtype), stored(y, y_dtype or dtype), weight, pos_weight, scale]


def expected(name, arrays, factor):
    x, y, weight, pos_weight, scale = map(number, arrays)
    with np.errstate(all="ignore"):
        f, slope = TERMS[name](x, y, pos_weight)
        return weight * f, None if slope is None else factor * scale * weight * slope


def summed(shape, mode, dtype):
    """Losses with stride 0 along what is summed, of which there are none if that is everything."""
    if mode == "everything":
        return None
    losses = np.full([1 if k in MODES[mode] else n for k, n in enumerate(shape)], 7.0, computing(dtype))
    strides = [0 if k in MODES[mode] else step for k, step in enumerate(losses.strides)]
    return np.ndarray(shape, losses.dtype, losses, 0, strides)


def assert_near(got, wanted, like, dtype, rounding=0.0):
    """Within a few errors of the computing type, relative to the largest, and of rounding to storage."""
    error = 16 * np.finfo(computing(dtype)).eps
    np.testing.assert_allclose(got, wanted, rtol=error + rounding, atol=error * np.abs(like).max())


def check(kernels, name, arrays, dtype, grad=None, losses=None):
    """Every way to sum; with a gradient if there is where to write it."""
    each, slopes = expected(name, arrays, 0.75)
    for mode, axes in MODES.items():
        loss = losses if mode == "each" and losses is not None else summed(each.shape, mode, dtype)
        total = kernels.elementwise(name, *arrays, 0.75, 1, loss, grad)
        wanted = np.broadcast_to(each.sum(axes, keepdims=True), each.shape)
        assert_near(total if loss is None else loss, wanted, each, dtype)
        if grad is not None:
            assert_near(number(grad), slopes, slopes, dtype, ROUNDING.get(dtype, 0))
            grad[...] = 0


@every_type
@pytest.mark.parametrize("name", TERMS)
def test_terms(backend, name, dtype):
    for seed, shape in enumerate(SHAPES):
        arrays = arguments(name, shape, dtype, seed=seed)
        check(backend, name, arrays, dtype, np.zeros_like(arrays[0]) if name in WITH_GRAD else None)


@pytest.mark.parametrize("name", WITH_GRAD)
def test_without_gradients(backend, name):
    check(backend, name, arguments(name, (2, 3, 70), "float32"), "float32")


@pytest.mark.parametrize(("dtype", "y_dtype"), [(a, b) for a in TYPES for b in TYPES if a != b])
def test_targets_of_another_type(backend, dtype, y_dtype):
    arrays = arguments("kl_divergence", (2, 3, 70), dtype, y_dtype)
    check(backend, "kl_divergence", arrays, dtype)


@pytest.mark.parametrize("place", range(5), ids=["x", "y", "weight", "pos_weight", "scale"])
@pytest.mark.parametrize("axes", [k for n in (1, 2, 3) for k in itertools.combinations(range(3), n)], ids=str)
def test_what_is_broadcast(backend, place, axes):
    for dtype in ("float32", "float64"):
        for shape in ((3, 5, 37), (2, 3, 1100)):
            arrays = arguments("bce_with_logits", shape, dtype)
            few = arrays[place][tuple(slice(1) if k in axes else slice(None) for k in range(3))]
            arrays[place] = np.broadcast_to(few, shape)
            check(backend, "bce_with_logits", arrays, dtype, np.zeros(shape, dtype))


LAYOUTS = {
    "plain": np.copy,
    "gaps between numbers": lambda a: np.repeat(a, 3, 2)[..., 1::3],
    "gaps between rows": lambda a: np.repeat(a, 2, 1)[:, ::2],
    "backwards": lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "rows side by side": lambda a: a.transpose(0, 2, 1).copy().transpose(0, 2, 1),
    "all axes turned": lambda a: a.T.copy().T,
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@every_layout
@pytest.mark.parametrize("place", range(7), ids=["x", "y", "weight", "pos_weight", "scale", "loss", "grad"])
def test_where_numbers_lie(backend, place, layout):
    for dtype in TYPES:
        for shape in SHAPES:
            arrays = arguments("bce_with_logits", shape, dtype)
            arrays += [np.zeros(shape, computing(dtype)), np.zeros_like(arrays[0])]
            arrays[place] = layout(arrays[place])
            *arrays, loss, grad = arrays
            check(backend, "bce_with_logits", arrays, dtype, grad, loss)


@every_layout
def test_nothing_else_is_written(backend, layout):
    for shape in SHAPES:
        arrays = arguments("kl_div", shape, "float32")
        for place in range(2):
            results = [np.zeros(shape, np.float32), np.zeros(shape, np.float32)]
            view = memory = layout(np.full((shape[0] + 2, *shape[1:]), 7, np.float32))
            while memory.base is not None:
                memory = memory.base
            results[place] = view[1:-1]
            backend.elementwise("kl_div", *arrays, 1.0, 1, *results)
            assert not (view[1:-1] == 7).any()
            view[1:-1] = 7
            assert (memory == 7).all()


@every_type
@every_layout
def test_in_place(backend, dtype, layout):
    for name in WITH_GRAD:
        for shape in SHAPES:
            arrays = arguments(name, shape, dtype)
            grad, x = np.zeros_like(arrays[0]), layout(arrays[0])
            for mode in MODES:
                loss, again = summed(shape, mode, dtype), summed(shape, mode, dtype)
                total = backend.elementwise(name, *arrays, 0.5, 1, loss, grad)
                x[...] = arrays[0]
                assert backend.elementwise(name, x, *arrays[1:], 0.5, 1, again, x) == total
                np.testing.assert_array_equal(x, grad)
                np.testing.assert_array_equal(again, loss)


# --- sums --------------------------------------------------------------------------------------------------------

LARGE = [(1, 1, 500_001), (1, 70_001, 7), (3, 501, 301), (40, 5, 2501), (2, 3, 100_003)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("name", ["bce_with_logits", "entropy"])
def test_any_number_of_threads(backend, name, shape):
    for dtype in ("float32", "float64"):
        arrays = arguments(name, shape, dtype)
        for mode in MODES:
            bits = set()
            for threads in (1, 2, 3):
                loss, grad = summed(shape, mode, dtype), np.zeros(shape, dtype) if name in WITH_GRAD else None
                total = backend.elementwise(name, *arrays, 0.5, threads, loss, grad)
                bits.add((total, loss if loss is None else loss.tobytes(), grad if grad is None else grad.tobytes()))
            assert len(bits) == 1


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_sums_are_exact_but_for_a_last_rounding(backend, shape):
    for dtype in ("float32", "float64"):
        arrays = arguments("entropy", shape, dtype)
        each, rows = summed(shape, "each", dtype), summed(shape, "rows", dtype)
        backend.elementwise("entropy", *arrays, 1.0, 1, each, None)
        backend.elementwise("entropy", *arrays, 1.0, 1, rows, None)
        total = backend.elementwise("entropy", *arrays, 1.0, 1, None, None)
        np.testing.assert_allclose(total, math.fsum(each.ravel().tolist()), rtol=1e-15 if dtype == "float64" else 1e-12)
        sums = [math.fsum(row.tolist()) for row in each.reshape(-1, shape[2])[:50]]
        rounding = np.finfo(dtype).eps
        np.testing.assert_allclose(rows[..., 0].ravel()[:50], sums, rtol=rounding)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinite_sums(backend, value, dtype):
    shape = (2, 3, 2049)
    x, y, *others = arguments("bce_with_logits", shape, dtype)
    x[1, 2, 700], y[1, 2, 700] = value, 0
    for mode, axes in MODES.items():
        loss = summed(shape, mode, dtype)
        total = backend.elementwise("bce_with_logits", x, y, *others, 1.0, 1, loss, None)
        got = np.asarray(total if loss is None else loss)
        assert np.count_nonzero(~np.isfinite(got)) == math.prod(shape[k] for k in axes if mode != "everything")
        assert np.array_equal(got[~np.isfinite(got)][:1], [value], equal_nan=True)
