"""Inputs that look wrong but mean something, one line for each: they give what `reference.py` gives for them."""

import ctypes
import math
import mmap
import sys
from inspect import signature

import numpy as np
import pytest
from cases import ALL, ALL_WITH_GRAD, ELEMENTWISE, LAYOUTS, MAPS, assert_close, good_call, matrix

import fastxent as fx
from fastxent import _problem, reference

pytestmark = pytest.mark.usefixtures("backend")

INT64, INF, NAN = np.iinfo(np.int64), math.inf, math.nan
X = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -1.0]])
P = np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]])


class Subclass(np.ndarray):
    pass


class Wrapped:
    """What says by itself how to become an array."""

    def __array__(self, dtype=None, copy=None):
        return np.array(P, dtype)


# What is odd, arguments that differ from a good call
LABELS = [
    ("ignored label -1", {"target": [0, -1], "ignore_index": -1}),
    ("ignored label at C", {"target": [0, 3], "ignore_index": 3}),
    ("ignored label -2^63", {"target": [0, INT64.min], "ignore_index": INT64.min}),
    ("ignored label 2^63 - 1", {"target": [0, INT64.max], "ignore_index": INT64.max}),
    ("ignored label in uint64", {"target": np.array([0, INT64.max], "u8"), "ignore_index": INT64.max}),
    ("ignored label in int8", {"target": np.array([-100, 1], "i1")}),
    ("ignored label that is a class", {"target": [1, 2], "ignore_index": 1}),
    ("ignore_index as a number of NumPy", {"target": [0, -1], "ignore_index": np.int8(-1)}),
    ("ignored row of nan", {"x": [[1.0, 2.0, 3.0], [NAN, INF, -INF]], "target": [0, -100]}),
    ("ignored row that weighs 0", {"target": [0, -100], "sample_weight": [1.0, 0.0]}),
    ("all ignored", {"target": [-100, -100]}),
    ("all ignored, summed", {"target": [-100, -100], "reduction": "sum"}),
    ("all ignored, one by one", {"target": [-100, -100], "reduction": "none"}),
    ("negative weights", {"weight": [-2.0, 1.0, 0.5], "target": [0, 2]}),
    ("some weights 0", {"weight": [0.0, 0.0, 1.0], "target": [0, 2]}),
    ("integers as weights", {"weight": [1, 2, 3]}),
    ("one sample_weight for all", {"sample_weight": [2.0]}),
    ("negative sample_weight", {"sample_weight": [-1.0, 3.0]}),
    ("labels from a range", {"target": range(2)}),
    ("labels of a subclass", {"target": np.array([0, 1]).view(Subclass)}),
    ("labels from memory", {"target": memoryview(np.array([0, 1]))}),
    ("a label without a batch", {"x": X[0], "target": 1}),
    ("axis as a number of NumPy", {"axis": np.int8(-1)}),
    ("axis as an array", {"axis": np.array(1)}),
    ("reduction as a string of NumPy", {"reduction": np.str_("sum")}),
    ("no sample", {"x": X[:0], "target": np.zeros(0, int)}),
    ("no sample, summed", {"x": X[:0], "target": np.zeros(0, int), "reduction": "sum"}),
    ("no inner axis", {"x": np.zeros((2, 3, 0)), "target": np.zeros((2, 0), int), "reduction": "none"}),
    ("no batch axis", {"x": np.zeros((0, 3, 2)), "target": np.zeros((0, 2), int), "reduction": "none"}),
    ("everything smoothed away", {"label_smoothing": 1}),
    ("smoothing in float16", {"label_smoothing": np.float16(0.375)}),
    ("smoothing -0.0", {"label_smoothing": -0.0}),
    ("a z_loss of 1", {"z_loss": 1}),
]  # fmt: skip
NAN_EVERYWHERE = [  # but in the gradient of nll_loss, which is 0 wherever the label is not, as in PyTorch
    ("weights of nan", {"weight": [NAN] * 3}),
    ("all weights that count 0", {"weight": [1.0, 0.0, 0.0], "target": [1, 2]}),
    ("every sample weighs 0", {"sample_weight": 0}),
    ("sample_weight nan", {"sample_weight": [NAN, 1.0], "reduction": "none"}),
]
ANY = [
    ("x as a list", {"x": P.tolist()}),
    ("x as a matrix", {"x": matrix(P)}),
    ("x of a subclass", {"x": P.view(Subclass)}),
    ("x from memory", {"x": P.data}),
    ("x that wraps an array", {"x": Wrapped()}),
    ("x of integers", {"x": [[1, 0, 1], [0, 1, 0]]}),
    ("x of unsigned bytes", {"x": np.eye(3, dtype="u1")[:2]}),
]  # fmt: skip
ENTRIES = [
    ("y of booleans", {"y": P > 0.3}),
    ("y of integers", {"y": [[1, 0, 1], [0, 1, 0]]}),
    ("y as a matrix", {"y": matrix(P)}),
    ("y that is x", {"x": P, "y": P}),
    ("y of nan", {"y": P * NAN}),
    ("weight nan", {"weight": NAN}),
    ("weight 0", {"weight": 0}),
    ("negative weights", {"weight": [-2.0, 1.0, 0.5]}),
    ("pos_weight 0", {"pos_weight": [0, 1, 2]}),
    ("negative pos_weight", {"pos_weight": -1.0}),
    ("log_target as a number", {"log_target": 0}),
    ("nothing along the first axis", {"x": P[:0], "y": P[:0]}),
    ("nothing along an inner axis", {"x": np.zeros((2, 0, 3)), "y": np.zeros((2, 0, 3))}),
]  # fmt: skip
RESULTS = [
    (name, row)
    for names, rows in [
        (("cross_entropy", "nll_loss"), LABELS),
        (["cross_entropy"], NAN_EVERYWHERE),
        ([name for name in ALL if name != "logsumexp_vjp"], ANY),
        (ELEMENTWISE, ENTRIES),
    ]
    for name in names
    for row in rows
    if good_call(ALL[name], row[1]).keys() <= signature(ALL[name].function).parameters.keys()
]


@pytest.mark.parametrize(("name", "row"), RESULTS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_result(name, row):
    loss, given = ALL[name], good_call(ALL[name], row[1])
    with np.errstate(all="ignore"):
        expected = loss.reference(**given)
    if loss.with_grad is None:
        assert_close(loss.function(**given), expected)
    else:
        assert_close(loss.function(**given), expected[0])
        for got, wanted in zip(loss.with_grad(**given), expected, strict=True):
            assert_close(got, wanted)


@pytest.mark.parametrize("make", [matrix, lambda a: a.view(Subclass), LAYOUTS["memory-mapped"]])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ALL_WITH_GRAD | MAPS)
def test_out_of_a_subclass(name, axis, make):
    """A matrix, which stays 2-D whatever shape it is asked for, holds the result all the same."""
    loss = ALL[name]
    function = loss.with_grad or loss.function
    arrays, options = loss.make((4, 5), axis), loss.at(axis) | ({"keepdims": True} if name == "logsumexp" else {})
    expected = function(*arrays, **options)
    expected = expected[1] if loss.with_grad else expected
    out = make(np.zeros(expected.shape))
    got = function(*arrays, **options, out=out)
    assert (got[1] if loss.with_grad else got) is out
    np.testing.assert_array_equal(np.asarray(out), expected)


@pytest.mark.parametrize("shape", [(0, 2**50), (2**40, 0), (2**30, 0, 2**29)])
@pytest.mark.parametrize("function", [fx.softmax, fx.log_softmax])
def test_very_much_of_nothing(function, shape):
    assert function(np.zeros(shape, np.float16), 1).shape == shape


@pytest.mark.skipif(sys.platform != "linux", reason="memory is guarded as Linux does it")
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 66])
@pytest.mark.parametrize("layout", ["backwards", "repeated", "apart"])
def test_nothing_behind_an_array_is_read(layout, classes):
    """Its last page is followed by one whose reading ends the process, as the last sample of each batch is by that."""
    memory, pages = mmap.mmap(-1, 48 * mmap.PAGESIZE), 47 * mmap.PAGESIZE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0) == 0
    gap = 2 if layout == "apart" else 0
    rows = np.frombuffer(memory, np.float32, pages // 4)[-64 * 2 * (classes + gap) :].reshape(2, 64, classes + gap)
    rows[:] = np.random.default_rng(0).standard_normal(rows.shape)
    rows = rows[:, :, gap:]
    batches = {"backwards": rows[::-1], "repeated": np.broadcast_to(rows[1], rows.shape), "apart": rows}
    x = batches[layout].swapaxes(1, 2)
    np.testing.assert_allclose(fx.logsumexp(x, 1), reference.logsumexp(x, 1), rtol=1e-5, atol=1e-6)


def test_labels_come_to_kernels_aligned():
    """As compiled code may take for granted; on most processors it gets away without."""
    labels = LAYOUTS["misaligned"](np.array([0, 2]))
    assert not labels.flags.aligned
    taken = _problem.as_target(labels, "logits", _problem.make_layout((2, 3), None), np.dtype("f8"), -100)
    assert taken.flags.aligned
    assert taken.tolist() == [0, 2]
