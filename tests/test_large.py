"""More than 2**31 elements, without the memory for them: a sample repeated, or pages that nobody has written to."""

import os

import numpy as np
import pytest

import fastxent as fx

MANY = (1 << 31) + 5
FAR = 50_000.0  # in the last place: what sums of so many numbers show even in float32


@pytest.fixture(params=["cython", "numba"], autouse=True)
def _backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with fx.config_context(backend=request.param):
        yield


def test_samples_beyond_an_int_of_c():
    row = np.sin(np.arange(65536, dtype=np.float32))
    samples = MANY // row.size + 1
    labels = np.arange(samples)
    losses = fx.cross_entropy(np.broadcast_to(row, (samples, row.size)), labels, reduction="none")
    first = losses[0]
    np.testing.assert_allclose(losses, first + row[0] - row[labels], rtol=1e-6)
    assert first == fx.cross_entropy(row, 0)


def test_classes_beyond_an_int_of_c():
    x = np.zeros(MANY, np.float16)
    x[-1] = 10
    total = np.log(MANY - 1 + np.exp(10))
    assert fx.logsumexp(x) == pytest.approx(total, rel=1e-6)
    assert fx.cross_entropy(x, MANY - 1) == pytest.approx(total - 10, rel=1e-6)
    assert fx.cross_entropy(x, MANY - 2) == pytest.approx(total, rel=1e-6)


def test_entries_beyond_an_int_of_c():
    if fx.get_config()["backend"] == "numba":
        pytest.skip("indexes as for samples, and pages through as many gigabytes")
    x = np.zeros(MANY, np.float16)
    x[-1] = FAR
    total = fx.binary_cross_entropy_with_logits(x, np.broadcast_to(np.float16(0), x.shape), reduction="sum")
    assert total == pytest.approx((MANY - 1) * np.log(2) + FAR, rel=1e-6)


large = pytest.mark.skipif(not os.environ.get("FASTXENT_LARGE"), reason="needs 5 GB: make test-large")


@large
def test_gradients_beyond_an_int_of_c():
    x = np.zeros((1, MANY), np.float16)
    x[0, -1] = 20
    _, grad = fx.cross_entropy_with_grad(x, [MANY - 2], out=x)
    assert grad[0, -2] == -1
    assert grad[0, -1] == np.float16(1 / (1 + (MANY - 1) * np.exp(-20)))
    assert np.count_nonzero(grad) == 2  # 2**-31 is less than what float16 holds


@large
def test_a_memory_map_larger_than_any_cache(tmp_path):
    x = np.memmap(tmp_path / "x", np.float16, "w+", shape=(MANY // 4096, 4096))  # a file with a hole
    x[-1] = np.arange(4096) % 7
    losses = fx.cross_entropy(x, np.zeros(len(x), int), reduction="none")
    np.testing.assert_array_equal(losses[[0, -1]], fx.cross_entropy(np.array(x[[0, -1]]), [0, 0], reduction="none"))
    assert (losses[:-1] == losses[0]).all()
