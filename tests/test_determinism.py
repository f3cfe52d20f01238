"""The same bits for any number of threads, however often and from wherever it is called.

The kernels are called directly: the public functions never use more threads than there are processors.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
from cases import DTYPES

import fastxent as fx
from fastxent import _config, reference

THREADS = (2, 3, 8)  # against 1
BITS = {"float16": np.int16, "bfloat16": np.uint16, "float32": np.float32, "float64": np.float64}

# (outer, classes, inner) -> why: all have several tasks of 32768 elements or several sums of 8192 samples
PROBLEMS = {
    "two classes": (20_003, 2, 1),
    "ten classes": (20_001, 10, 1),
    "a thousand classes": (301, 1000, 1),
    "few rows of many classes": (3, 50_003, 1),
    "one row": (1, 150_001, 1),
    "strided": (3, 21, 4001),
    "strided, many classes": (2, 5000, 9),
}
OF_EVERY_TYPE = ("a thousand classes", "one row", "strided")
KERNELS = (
    "logsumexp", "softmax", "log_softmax", "softmax_vjp", "log_softmax_vjp", "cross_entropy", "smoothed cross_entropy",
    "cross_entropy of probabilities", "nll", "nll of probabilities", "check_target", "weighted_sum",
)  # fmt: skip
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


@lru_cache(maxsize=3)  # the types of a problem
def arguments(shape, dtype):
    """What the kernels take, for one problem; nobody writes to it."""
    rng = np.random.default_rng(0)
    samples, compute = shape[0] * shape[2], np.float64 if dtype == "float64" else np.float32
    x = 4 * rng.standard_normal(shape, np.float32)
    p = reference.softmax(x[:1], 1).astype(np.float32)
    p = np.broadcast_to(p, shape)

    def stored(a):
        return np.ascontiguousarray(a).astype(DTYPES[dtype]).view(BITS[dtype])

    return {
        "x": stored(x),
        "probs": stored(p),
        "log_probs": stored(np.log(p)),
        "grad_output": rng.standard_normal(shape).astype(compute),
        "labels": rng.integers(shape[1], size=samples),
        "weight": rng.uniform(0.5, 2, shape[1]).astype(compute),
        "scale": rng.uniform(0.5, 2, samples).astype(compute),
        "losses": rng.standard_normal(samples).astype(compute),
        "out": stored(np.full(shape, 77)),
        "loss": np.full(samples, 77, compute),
    }


def run(module, kernel, a, threads, out=None):
    """Bytes of everything that the kernel gives."""
    out, loss, returned = a["out"].copy() if out is None else out, a["loss"].copy(), None
    target = a["probs"] if kernel.endswith("probabilities") else a["labels"]
    match kernel.split(" ")[0], kernel:
        case "logsumexp", _:
            module.logsumexp(a["x"], threads, loss)
        case "softmax", _:
            module.softmax(a["x"], a["scale"], threads, out)
        case "log_softmax", _:
            module.log_softmax(a["x"], threads, out)
        case "softmax_vjp", _:
            module.softmax_vjp(a["grad_output"], a["probs"], threads, out)
        case "log_softmax_vjp", _:
            module.log_softmax_vjp(a["grad_output"], a["log_probs"], threads, out)
        case "cross_entropy", _:
            options = a["x"], target, a["weight"], a["scale"], 0.0, 0.1, 1, 0.5, threads
            returned = module.cross_entropy(*options, None, None)
            module.cross_entropy(*options, loss, out)
        case "smoothed", _:
            module.cross_entropy(a["x"], target, a["weight"], a["scale"], 0.1, 0.0, -100, 1.0, threads, loss, out)
        case "nll", _:
            returned = module.nll(a["log_probs"], target, a["weight"], a["scale"], 1, 0.5, threads, None, None)
            module.nll(a["log_probs"], target, a["weight"], a["scale"], 1, 0.5, threads, loss, out)
        case "check_target", _:
            returned = module.check_target(a["labels"], a["weight"], a["scale"], len(a["weight"]), 1, threads)
        case "weighted_sum", _:
            returned = module.weighted_sum(a["losses"], a["scale"], threads)
    return out.tobytes(), loss.tobytes(), returned


@every_kernel
@pytest.mark.parametrize("problem", PROBLEMS)
def test_any_number_of_threads(backend, kernel, problem):
    for dtype in ("float32", "float64", "float16") if problem in OF_EVERY_TYPE else ("float32",):
        a = arguments(PROBLEMS[problem], dtype)
        expected = run(backend, kernel, a, 1)
        assert expected != (a["out"].tobytes(), a["loss"].tobytes(), None)  # something is computed at all
        for threads in THREADS:
            assert run(backend, kernel, a, threads) == expected, f"{threads} threads, {dtype}"


@pytest.mark.parametrize(
    ("kernel", "replaced"),
    [
        ("softmax", "x"),
        ("log_softmax", "x"),
        ("softmax_vjp", "probs"),
        ("softmax_vjp", "grad_output"),
        ("log_softmax_vjp", "log_probs"),
        ("log_softmax_vjp", "grad_output"),
        ("smoothed cross_entropy", "x"),
        ("cross_entropy of probabilities", "x"),
        ("nll", "log_probs"),
        ("nll of probabilities", "log_probs"),
    ],
)
def test_any_number_of_threads_in_place(backend, kernel, replaced):
    for problem in PROBLEMS.values():
        a = arguments(problem, "float32")
        expected = run(backend, kernel, a, 1)
        for threads in THREADS:
            buffer = a[replaced].copy()
            assert run(backend, kernel, a | {replaced: buffer}, threads, buffer) == expected


def test_repeated_runs(backend):
    a = arguments((301, 1000, 1), "float32")
    expected = {kernel: run(backend, kernel, a, 2) for kernel in KERNELS}
    for _ in range(5):
        assert {kernel: run(backend, kernel, a, 2) for kernel in KERNELS} == expected


def public_results(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20_000, 10)).astype(np.float32)
    target = rng.integers(10, size=20_000)
    weight = rng.uniform(0.5, 2, 10)
    loss, grad = fx.cross_entropy_with_grad(x, target, weight=weight, label_smoothing=0.1)
    return loss.tobytes(), grad.tobytes(), fx.log_softmax(x).tobytes(), fx.logsumexp(x, 0).tobytes()


def test_num_threads_of_the_configuration(backend, monkeypatch):
    monkeypatch.setattr(_config, "_processors", 8)
    with fx.config_context(num_threads=1):
        expected = public_results(0)
    for threads in (2, 3, None):
        with fx.config_context(num_threads=threads):
            assert public_results(0) == expected


def test_concurrent_calls(backend):
    # Each Python thread starts from its own defaults, so the backend is chosen again inside.
    config = fx.get_config()
    expected = [public_results(seed) for seed in range(8)]
    barrier = threading.Barrier(4)

    def work(seed):
        barrier.wait()
        with fx.config_context(**config):
            return public_results(seed)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == expected


@pytest.mark.parametrize("function", [fx.cross_entropy, fx.nll_loss])
def test_position_of_a_bad_label_does_not_depend_on_threads(backend, function, monkeypatch):
    monkeypatch.setattr(_config, "_processors", 8)
    target = np.zeros(50_000, np.int64)
    target[[9000, 20_000, 49_999]] = 7, 8, 9
    for threads in THREADS:
        with fx.config_context(num_threads=threads), pytest.raises(IndexError, match=r"target\[9000\] is 7,"):
            function(np.zeros((50_000, 5), np.float32), target)


@pytest.mark.parametrize("gap", [0, 3], ids=["side by side", "apart"])
@pytest.mark.parametrize("classes", [21, 201, 1000, 1001, 4099, 5003])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_large_results(backend, dtype, classes, gap):
    # From 8 MiB on the gradient is stored past the cache, in lines of 64 bytes whose place in a row varies, and during
    # the pass over the next row that is not ignored.
    rng = np.random.default_rng(0)
    samples = (9 << 20) // (classes * dtype.itemsize)
    x = rng.standard_normal((samples, classes), np.float32).astype(dtype)
    target = rng.integers(classes, size=samples)
    target[[1, 5, 6, -1]] = -100
    buffer = np.full((samples, classes + gap) if gap else x.size + 2, 7, dtype)
    out = buffer[:, gap - 1 : -1] if gap else buffer[1:-1].reshape(x.shape)
    out = out[:, :classes]
    loss, grad = fx.cross_entropy_with_grad(x, target, out=out, reduction="sum", z_loss=0.1)
    assert grad is out
    assert ((buffer[:, [0, 1, -1]] if gap else buffer[[0, -1]]) == 7).all()
    for few in range(0, samples, 99):
        rows = slice(few, few + 99)
        expected = fx.cross_entropy_with_grad(x[rows], target[rows], reduction="sum", z_loss=0.1)[1]
        np.testing.assert_array_equal(expected, out[rows])
    assert loss == fx.cross_entropy(x, target, reduction="sum", z_loss=0.1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_large_images(backend, dtype):
    # Their gradient too is stored in whole lines, whose place in memory must not matter to any result.
    rng = np.random.default_rng(0)
    shape = 2, 21, (5 << 20) // (21 * dtype.itemsize) // 512, 512
    x = rng.standard_normal(shape, np.float32).astype(dtype)
    target = rng.integers(21, size=(2, *shape[2:]))
    target[:, 1, :70] = -100
    pieces = [slice(i, i + 9) for i in range(0, shape[2], 9)]
    expected = [fx.cross_entropy_with_grad(x[:, :, i], target[:, i], reduction="sum")[1] for i in pieces]
    losses = set()
    for offset in (0, 1, 9, 15):
        buffer = np.full(x.size + 64, 7, dtype)
        begin = -buffer.ctypes.data % 64 // dtype.itemsize + offset
        out = buffer[begin : begin + x.size].reshape(shape)
        losses.add(fx.cross_entropy_with_grad(x, target, reduction="sum", out=out)[0])
        np.testing.assert_array_equal(out, np.concatenate(expected, 2))
        assert (buffer[:begin] == 7).all()
        assert (buffer[begin + x.size :] == 7).all()
    assert losses == {fx.cross_entropy(x, target, reduction="sum")}


def test_a_sum_does_not_depend_on_where_the_gradient_is_stored(backend):
    # To one of 64 partial sums the small losses are nothing beside the large one, and only they are there.
    x, labels, one = np.zeros((1, 21, 120_000), np.float32), np.full(120_000, -100), np.ones(1, np.float32)
    labels[::64], x[:, 0], x[0, 0, 0] = 0, 13, -(2.0**40)
    buffer = np.empty(x.size + 64, np.float32)
    outs = [None, *(buffer[i : i + x.size].reshape(x.shape) for i in (0, 1))]
    assert len({backend.cross_entropy(x, labels, one, one, 0.0, 0.0, -100, 1.0, 1, None, out) for out in outs}) == 1


@pytest.mark.parametrize("classes", [100, 1000])
def test_large_softmax(backend, classes):
    x = np.random.default_rng(0).standard_normal((2_500_000 // classes, classes), np.float32)
    pieces = [x[i : i + 999] for i in range(0, len(x), 999)]
    np.testing.assert_array_equal(fx.softmax(x), np.concatenate([fx.softmax(piece) for piece in pieces]))
