"""More than 2**31 elements, without the memory for them: a sample repeated, or pages that nobody has written to."""

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
