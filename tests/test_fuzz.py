"""Any call of any public function, on every build of the kernels; `make fuzz` has more of them."""

import numpy as np
import pytest
from cases import ALL
from conftest import BACKENDS, kernels_of
from differential import check
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import calls

KERNELS = {name: kernels_of(name) for name in BACKENDS if name != "cuda"}
COMPILED = {name: kernels for name, kernels in KERNELS.items() if name != "numba"}


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
