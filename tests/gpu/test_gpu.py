"""On a GPU, at real sizes: ``NUMBA_ENABLE_CUDASIM=0 python -m pytest tests/gpu``. Skipped where there is none."""

import os

import numpy as np
import pytest

if os.environ.get("NUMBA_ENABLE_CUDASIM") != "0":
    pytest.skip("the simulator is on: set NUMBA_ENABLE_CUDASIM=0", allow_module_level=True)

cuda = pytest.importorskip("numba.cuda", reason="needs numba-cuda")
if not cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from cases import ALL, ALL_WITH_GRAD, DTYPES, assert_close, exact, make_options  # noqa: E402

import fastxent as fx  # noqa: E402
from fastxent import reference  # noqa: E402

F32 = np.float32
SEED = 20260501


class Numba:
    """Numba's own arrays."""

    dtypes = ("float32", "float64", "float16")

    def to_gpu(self, array):
        return cuda.to_device(array)

    def to_host(self, array):
        assert cuda.is_cuda_array(array)
        return array.copy_to_host()


class Torch:
    """PyTorch's tensors, which have bfloat16."""

    dtypes = (*Numba.dtypes, "bfloat16")

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        if not self.torch.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")

    def to_gpu(self, array):
        dtype = getattr(self.torch, array.dtype.name)
        return self.torch.from_numpy(exact(array).copy()).to("cuda", dtype)

    def to_host(self, tensor):
        assert tensor.is_cuda
        return tensor.to(self.torch.float64).cpu().numpy().astype(DTYPES[str(tensor.dtype).removeprefix("torch.")])


class CuPy:
    """CuPy's arrays."""

    dtypes = Numba.dtypes

    def __init__(self):
        self.cupy = pytest.importorskip("cupy")

    def to_gpu(self, array):
        return self.cupy.asarray(array)

    def to_host(self, array):
        return self.cupy.asnumpy(array)


@pytest.fixture(params=[Numba, Torch, CuPy], ids=lambda library: library.__name__)
def library(request):
    return request.param()


def check(library, function, arrays, options, expected, factor=2):
    """Compare with what the reference says in float64."""

    def there(value):
        return library.to_gpu(value) if isinstance(value, np.ndarray) else value

    got = function(*map(there, arrays), **{name: there(value) for name, value in options.items()})
    for here, wanted in zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]:
        assert_close(library.to_host(here), wanted, factor)


# --- every function ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 37), (64, 21, 33)])
@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_every_function(library, loss, shape, dtype):
    if dtype not in library.dtypes:
        pytest.skip("this library has no such type")
    dtype = DTYPES[dtype]
    arrays, options = loss.make(shape, 1, dtype), make_options(loss, shape, 1, "all", dtype) | loss.at(1)
    with np.errstate(all="ignore"):
        check(library, loss.function, arrays, options, fx_on_host(loss.function, arrays, options))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", ALL_WITH_GRAD.values(), ids=ALL_WITH_GRAD)
def test_every_gradient(library, loss, reduction):
    arrays = loss.make((129, 65), 1, F32)
    options = make_options(loss, (129, 65), 1, "all", F32) | loss.at(1) | {"reduction": reduction}
    check(library, loss.with_grad, arrays, options, fx_on_host(loss.with_grad, arrays, options))


def fx_on_host(function, arrays, options):
    """The Cython backend, which tests of its own hold to the reference."""
    with fx.config_context(backend="cython"):
        result = function(*arrays, **options)
    return tuple(map(exact, result)) if isinstance(result, tuple) else exact(result)


# --- every size --------------------------------------------------------------------------------------------------

# Both sides of each limit between kernels, for 4 and for 2 bytes; odd ones, whose rows are not aligned.
SIZES = (
    1, 2, 3, 10, 64, 65, 127, 128, 255, 256, 257, 512, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 8192,
    8193, 16383, 16384, 16385, 32768, 32769, 50257, 65536, 65537, 128256, 131072, 131073, 262144, 262145,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", SIZES)
def test_cross_entropy_of_every_size(classes, dtype):
    library = Numba() if dtype in Numba.dtypes else Torch()
    rng, samples = np.random.default_rng(SEED), max(3, 4096 // classes)
    x = (3 * rng.standard_normal((samples, classes))).astype(DTYPES[dtype])
    y = rng.integers(classes, size=samples)
    expected = reference.cross_entropy(exact(x), y, reduction="sum")
    check(library, fx.cross_entropy_with_grad, [x, y], {"reduction": "sum"}, expected, 4)
    check(library, fx.logsumexp, [x], {}, reference.logsumexp(exact(x), 1), 4)


@pytest.mark.parametrize("classes", [65, 1025, 16385, 131073])
@pytest.mark.parametrize("target", ["labels, smoothed", "probabilities"])
def test_dense_targets(classes, target):
    rng = np.random.default_rng(SEED)
    x, y = rng.standard_normal((5, classes)).astype(F32), rng.integers(classes, size=5)
    probs = rng.random((5, classes)).astype(F32)
    arrays = [x, probs] if target == "probabilities" else [x, y]
    options = {"label_smoothing": 0.1, "weight": rng.random(classes).astype(F32), "reduction": "none"}
    expected = reference.cross_entropy(exact(x), exact(arrays[1]), **options)
    check(Numba(), fx.cross_entropy_with_grad, arrays, options, expected, 4)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_arrays_that_are_not_aligned(offset):
    rng = np.random.default_rng(SEED)
    x, y = rng.standard_normal((70, 1030)).astype(F32), rng.integers(1000, size=70)
    view = cuda.to_device(x)[:, offset : offset + 1000]
    loss, grad = fx.cross_entropy_with_grad(view, cuda.to_device(y), reduction="none")
    expected = reference.cross_entropy(exact(x[:, offset : offset + 1000]), y, reduction="none")
    assert_close(loss.copy_to_host(), expected[0], 2)
    assert_close(grad.copy_to_host(), expected[1], 2)


def test_more_than_2_to_the_31_numbers():
    torch = Torch().torch
    samples, classes = 17000, 131072
    x = torch.randn(samples, classes, device="cuda", dtype=torch.bfloat16)
    y = torch.randint(classes, (samples,), device="cuda")
    last = x[-2:].clone()
    loss, grad = fx.cross_entropy_with_grad(x, y, reduction="none", out=x)
    expected = torch.nn.functional.cross_entropy(last.double(), y[-2:], reduction="none")
    torch.testing.assert_close(loss[-2:].double(), expected, rtol=1e-5, atol=1e-5)
    probs = torch.softmax(last.double(), 1)
    probs[torch.arange(2), y[-2:]] -= 1
    torch.testing.assert_close(grad[-2:].double(), probs, rtol=1e-2, atol=1e-6)


# --- semantics ---------------------------------------------------------------------------------------------------


def test_a_bad_label_is_the_error_of_the_host():
    x, y = np.zeros((1000, 10), F32), np.zeros(1000, np.int64)
    y[[700, 900]] = 10, -7
    with pytest.raises(IndexError, match=r"target\[700\] is 10, expected a class index in \[0, 10\)"):
        fx.cross_entropy(cuda.to_device(x), cuda.to_device(y))
    with fx.config_context(check_targets=False):
        loss = fx.cross_entropy(cuda.to_device(x), cuda.to_device(y), reduction="none").copy_to_host()
    assert np.flatnonzero(np.isnan(loss)).tolist() == [700, 900]


@pytest.mark.parametrize("classes", [10, 1000, 32768, 131072])
def test_results_are_the_same_bit_for_bit(classes):
    rng = np.random.default_rng(SEED)
    x = cuda.to_device(rng.standard_normal((500, classes)).astype(F32))
    y = cuda.to_device(rng.integers(classes, size=500))
    runs = [fx.cross_entropy_with_grad(x, y) for _ in range(3)]
    assert len({loss.copy_to_host().tobytes() for loss, _ in runs}) == 1
    assert len({grad.copy_to_host().tobytes() for _, grad in runs}) == 1


def test_a_graph_replays_on_new_numbers():
    torch = Torch().torch
    x, y = torch.randn(512, 1000, device="cuda"), torch.randint(1000, (512,), device="cuda")
    out = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with fx.config_context(check_targets=False):  # the check waits for the device, which a capture cannot
        fx.cross_entropy_with_grad(x, y, out=out)  # compiles
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            loss, _ = fx.cross_entropy_with_grad(x, y, out=out)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(x, y))


def test_two_streams():
    torch = Torch().torch
    results = []
    with fx.config_context(check_targets=False):
        for _ in range(8):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                x, y = torch.randn(4096, 1000, device="cuda"), torch.randint(1000, (4096,), device="cuda")
                results.append((stream, x, y, fx.cross_entropy(x, y)))
    for stream, x, y, loss in results:
        stream.synchronize()
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(x, y))


def test_arrays_of_the_host_go_there_and_back():
    rng = np.random.default_rng(SEED)
    x, y = rng.standard_normal((100, 50)), rng.integers(50, size=100)
    with fx.config_context(backend="cuda"):
        loss, grad = fx.cross_entropy_with_grad(x, y)
    expected = fx.cross_entropy_with_grad(x, y)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-13)
    np.testing.assert_allclose(grad, expected[1], rtol=1e-12, atol=1e-16)
