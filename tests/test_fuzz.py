"""Any call of any public function, on every build of the kernels; `make fuzz` has more of them."""

import ml_dtypes
import numpy as np
import pytest
from cases import ALL
from conftest import BACKENDS, kernels_of
from differential import assert_agree, check
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Call, calls

KERNELS = {name: kernels_of(name) for name in BACKENDS if name != "cuda"}
COMPILED = {name: kernels for name, kernels in KERNELS.items() if name != "numba"}
LARGEST = np.finfo(np.float64).max


def is_quick(call):
    """Whether Numba has compiled what this takes for other tests, too."""
    dtypes = {value.dtype for value in call.arguments.values() if isinstance(value, np.ndarray)}
    return all(dtype == np.float32 or dtype.kind in "iu" for dtype in dtypes)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
@settings(max_examples=25)
@given(st.data())
def test_any_call(loss, data):
    call = data.draw(calls(loss))
    check(call, KERNELS if is_quick(call) else COMPILED)


# --- what is expected of them ------------------------------------------------------------------------------------

# Calls that were right, and were found to be wrong.
FOUND = {
    "an exponential beyond float32 of an integer": (
        "kl_div", {"log_probs": np.zeros(9, ml_dtypes.bfloat16), "target": np.full(9, 90), "log_target": True},
    ),
    "a gradient that overflows before it is divided": (
        "multilabel_soft_margin_loss", {"logits": np.full(4, 1.08), "target": np.array([LARGEST, 0, 0, 0])},
    ),
    "a loss whose terms overflow": (
        "multilabel_soft_margin_loss", {"logits": np.full(4, -0.7), "target": np.array([LARGEST, 0, 0, 0])},
    ),
    "a difference of equal numbers": (
        "cross_entropy of probabilities",
        {"logits": np.zeros(3, np.float32), "target": np.zeros(3, np.float32), "label_smoothing": 0.1},
    ),
    "a difference of equal numbers of integers": (
        "cross_entropy of probabilities",
        {"logits": np.zeros(3, np.uint8), "target": np.zeros(3), "label_smoothing": 1.0},
    ),
    "a difference of equal numbers beside a small one": (
        "cross_entropy of probabilities",
        {"logits": np.zeros((2, 2), np.float32), "target": np.full((2, 2), 0.14723454, np.float32), "z_loss": 1e-4},
    ),
    "a mean over weights whose inverse overflows": (
        "cross_entropy of probabilities",
        {"logits": np.zeros(1), "target": np.ones(1), "sample_weight": np.array(5e-324)},
    ),
    "the same of classes": (
        "nll_loss",
        {"log_probs": np.zeros((9, 300), np.float32), "target": np.zeros(9, int), "weight": np.full(300, 1e-40)},
    ),
    "a sum that overflows in one order": (
        "softmax_vjp",
        {
            "grad_output": np.isin(np.arange(200), (0, 8)) - 1.0 * (np.arange(200) == 128),
            "probs": np.where(np.isin(np.arange(200), (0, 8, 128)), 1.5e308, 1e-5),
        },
    ),
    "a logit that is nothing beside 1": (
        "multilabel_soft_margin_loss",
        {"logits": np.full(1, 9e-19, np.float32), "target": np.full(1, 1e30, np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_what_was_right(found):
    name, arguments = found
    check(Call(ALL[name], ALL[name].with_grad or ALL[name].function, arguments, [np.zeros(0, np.uint8)], ""), COMPILED)


@pytest.mark.parametrize(
    ("got", "expected", "dtype", "lenient"),
    [
        (LARGEST / 5, np.inf, np.float64, True),  # too small for a mean over 2
        (-LARGEST / 2, np.inf, np.float64, True),
        (LARGEST / 2, np.inf, np.float64, False),
        (1e38, np.inf, np.float32, True),  # which the reference would know to be finite
        (LARGEST, LARGEST / 2, np.float64, True),
    ],
)
def test_a_finite_number_is_not_any_number(got, expected, dtype, lenient):
    assert_agree(np.array(LARGEST / 4), np.array(np.inf), "allowed", lenient=True, divisor=2)
    with pytest.raises(AssertionError, match="wrong"):
        assert_agree(np.array(got, dtype), np.array(expected), "wrong", lenient=lenient, divisor=2)
