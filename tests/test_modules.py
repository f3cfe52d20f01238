"""Losses as objects: the same numbers as the functions, and what an object has to be good for."""

import copy
import inspect
import pickle

import joblib
import numpy as np
import pytest
from cases import ALL_WITH_GRAD, make_options

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")

LOSSES = {
    fx.CrossEntropyLoss: "cross_entropy",
    fx.NLLLoss: "nll_loss",
    fx.BCELoss: "binary_cross_entropy",
    fx.BCEWithLogitsLoss: "binary_cross_entropy_with_logits",
    fx.MultiLabelSoftMarginLoss: "multilabel_soft_margin_loss",
    fx.KLDivLoss: "kl_div",
}
MAPS = {fx.Softmax: fx.softmax, fx.LogSoftmax: fx.log_softmax}
every_loss = pytest.mark.parametrize("module", LOSSES, ids=lambda cls: cls.__name__)
every_map = pytest.mark.parametrize("module", MAPS, ids=lambda cls: cls.__name__)
every_module = pytest.mark.parametrize("module", [*LOSSES, *MAPS], ids=lambda cls: cls.__name__)
W = np.array([1.0, 2.0, 3.0])


def problem(module):
    loss = ALL_WITH_GRAD[LOSSES[module]]
    return loss, loss.make((4, 3), 1), make_options(loss, (4, 3), 1, "all")


def criteria():
    """One object of each class, with all of its options set."""
    return [*(module(**problem(module)[2]) for module in LOSSES), *(module(0) for module in MAPS)]


every_criterion = pytest.mark.parametrize("criterion", criteria(), ids=lambda c: type(c).__name__)


# --- the same numbers --------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_are_those_of_the_function(module, reduction):
    loss, arrays, options = problem(module)
    options["reduction"] = reduction
    for chosen in ({"reduction": reduction}, options):
        criterion = module(**chosen)
        np.testing.assert_array_equal(criterion(*arrays), loss.function(*arrays, **chosen))
        expected = loss.with_grad(*arrays, grad_output=2.0, **chosen)
        out = np.empty_like(arrays[0])
        value, grad = criterion.with_grad(*arrays, grad_output=2.0, out=out)
        assert grad is out
        np.testing.assert_array_equal(value, expected[0])
        np.testing.assert_array_equal(grad, expected[1])
        np.testing.assert_array_equal(criterion.with_grad(*arrays)[1], loss.with_grad(*arrays, **chosen)[1])


@every_map
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_maps_are_those_of_the_function(module, axis):
    x = np.random.default_rng(0).standard_normal((3, 4))
    np.testing.assert_array_equal(module(axis)(x), MAPS[module](x, axis))
    np.testing.assert_array_equal(module(axis=axis)(x), MAPS[module](x, axis))
    assert module(axis)(x, out=x) is x
    np.testing.assert_array_equal(module()(x), MAPS[module](x))


def test_batchmean_of_kl_div():
    x, y = np.log([[0.5, 0.5]]), [[0.25, 0.75]]
    assert fx.KLDivLoss(reduction="batchmean")(x, y) == fx.kl_div(x, y, reduction="batchmean")


# --- options -----------------------------------------------------------------------------------------------------


@every_loss
def test_options_are_those_of_the_function_by_keyword(module):
    parameters = inspect.signature(getattr(fx, LOSSES[module])).parameters.values()
    expected = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert list(inspect.signature(module).parameters.values()) == expected
    assert {p.name: getattr(module(), p.name) for p in expected} == {p.name: p.default for p in expected}
    with pytest.raises(TypeError):
        module(W)


@every_module
def test_unknown_options(module):
    for name in ("size_average", "dim", "out", "grad_output", "_function"):
        with pytest.raises(TypeError, match=name):
            module(**{name: None})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fx.CrossEntropyLoss(reduction="median"), ValueError, "reduction is 'median', expected one of 'none'"),
        (lambda: fx.BCELoss(reduction="batchmean"), ValueError, "reduction is 'batchmean', expected one of 'none'"),
        (lambda: fx.CrossEntropyLoss(label_smoothing=1.5), ValueError, r"label_smoothing is 1\.5, expected"),
        (lambda: fx.CrossEntropyLoss(z_loss="a"), TypeError, "z_loss is 'a', expected a number"),
        (lambda: fx.NLLLoss(ignore_index=0.5), TypeError, r"ignore_index is 0\.5, expected an integer"),
        (lambda: fx.NLLLoss(weight=["a"]), TypeError, "weight has dtype <U1, expected float16"),
        (lambda: fx.NLLLoss(sample_weight=np.ma.ones(3)), TypeError, "sample_weight is a masked array"),
        (lambda: fx.BCEWithLogitsLoss(pos_weight=[1j]), TypeError, "pos_weight has dtype complex128"),
        (lambda: fx.MultiLabelSoftMarginLoss(axis=1.0), TypeError, r"axis is 1\.0, expected an integer"),
        (lambda: fx.Softmax(None), TypeError, "axis is None, expected an integer"),
        (lambda: fx.LogSoftmax((0, 1)), TypeError, r"axis is \(0, 1\), expected an integer"),
    ],
)
def test_wrong_values_raise_early(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_options_stay_what_they_were():
    weight = W.copy()
    criterion = fx.CrossEntropyLoss(weight=weight)
    weight[:] = 0
    np.testing.assert_array_equal(criterion.weight, W)
    with pytest.raises(ValueError, match="read-only"):
        criterion.weight[0] = 7


@every_criterion
def test_frozen(criterion):
    for name in (*vars(criterion), "another"):
        with pytest.raises(AttributeError, match=f"{type(criterion).__name__} is frozen"):
            setattr(criterion, name, 1)
    with pytest.raises(AttributeError, match="is frozen"):
        del criterion.axis


# --- objects -----------------------------------------------------------------------------------------------------


@every_criterion
@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda c, p=protocol: pickle.loads(pickle.dumps(c, p)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
)
def test_copies_are_equal(criterion, copied):
    other = copied(criterion)
    assert type(other) is type(criterion)
    assert other == criterion
    assert hash(other) == hash(criterion)
    assert repr(other) == repr(criterion)
    assert all(not v.flags.writeable for v in vars(other).values() if isinstance(v, np.ndarray))


def test_equality_is_that_of_classes_and_options():
    same = [fx.CrossEntropyLoss(weight=w, z_loss=0) for w in (W, W.tolist(), W.astype(int))]
    assert same[0] == same[1] == same[2]
    assert len({*same}) == 1
    others = [
        fx.CrossEntropyLoss(),
        fx.CrossEntropyLoss(weight=W + 1),
        fx.CrossEntropyLoss(weight=W[:2]),
        fx.CrossEntropyLoss(weight=W.astype(np.float32)),
        fx.CrossEntropyLoss(weight=W, z_loss=0.1),
        fx.CrossEntropyLoss(sample_weight=W),
        fx.NLLLoss(weight=W),
        None,
    ]
    assert all(other != same[0] for other in others)
    assert len({*others}) == len(others)
    assert fx.BCELoss() != fx.MultiLabelSoftMarginLoss()
    assert fx.Softmax() != fx.LogSoftmax()
    assert fx.Softmax(-1) == fx.Softmax() != fx.Softmax(1)


def test_repr_shows_what_was_chosen():
    assert repr(fx.CrossEntropyLoss()) == "CrossEntropyLoss()"
    assert repr(fx.KLDivLoss(log_target=True, reduction="sum")) == "KLDivLoss(log_target=True, reduction='sum')"
    assert repr(fx.Softmax(1)) == "Softmax(axis=1)"
    criterion = fx.CrossEntropyLoss(weight=W, label_smoothing=0.1)
    assert repr(criterion) == "CrossEntropyLoss(weight=array([1., 2., 3.]), label_smoothing=0.1)"
    assert eval(repr(criterion), {"array": np.array, **vars(fx)}) == criterion
    assert len(repr(fx.BCELoss(weight=np.ones((100, 100))))) < 200


def test_joblib():
    _, arrays, _ = problem(fx.BCEWithLogitsLoss)
    criterion = fx.BCEWithLogitsLoss(pos_weight=W)
    results = joblib.Parallel(n_jobs=2)(joblib.delayed(criterion)(*arrays) for _ in range(3))
    assert results == [criterion(*arrays)] * 3
    assert joblib.hash(criterion) == joblib.hash(pickle.loads(pickle.dumps(criterion)))
