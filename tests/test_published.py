"""Numbers that others have published, to the places that they printed."""

import numpy as np
import pytest

import fastxent as fx

pytestmark = pytest.mark.usefixtures("backend")


def test_one_sample_of_five_classes():
    assert round(float(fx.cross_entropy([[0.15, -0.34, 0.12, 0.67, 0.55]], [2])), 4) == 1.7804


def test_three_classes():
    x = np.random.RandomState(1024).dirichlet(np.ones(3), size=3)
    assert round(float(fx.cross_entropy(x, [0, 1, 2])), 4) == 1.1484
    assert round(float(fx.nll_loss(fx.log_softmax(x), [0, 1, 2])), 4) == 1.1484


def test_segmentation():
    logits = [
        [
            [[-0.2493, -0.9333], [0.0676, 1.2035]],
            [[0.2987, -0.6044], [-0.1341, 0.0938]],
            [[-1.3529, -0.2693], [-0.3259, -0.7915]],
        ]
    ]
    assert round(float(fx.cross_entropy(logits, [[[0, 1], [2, 0]]])), 4) == 0.9862


def test_softmax_of_one_two_three():
    np.testing.assert_array_equal(np.round(fx.log_softmax([1.0, 2.0, 3.0]), 4), [-2.4076, -1.4076, -0.4076])
    np.testing.assert_array_equal(np.round(fx.softmax([1.0, 2.0, 3.0]), 4), [0.0900, 0.2447, 0.6652])
    assert round(float(fx.logsumexp([1.0, 2.0, 3.0])), 4) == 3.4076


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    for classes in (2, 10, 1000, 50257):
        assert float(fx.cross_entropy(np.zeros((1, classes)), [0])) == pytest.approx(np.log(classes), rel=1e-15)


def test_confident_predictions():
    # What PyTorch #113708 and SciPy #18295 ask for, and float32 code that subtracts logarithms gives as 0.
    x = np.array([[20, 0]], np.float32)
    loss, grad = fx.cross_entropy_with_grad(x, [0])
    assert loss == np.float32(2.0611536181902037e-09)
    np.testing.assert_array_equal(grad, np.array([[-2.0611536e-09, 2.0611536e-09]], np.float32))
    x = np.array([0, -40], np.float32)
    assert fx.logsumexp(x) == np.float32(4.248354255291589e-18)
    assert fx.cross_entropy(x, 0) == np.float32(4.248354255291589e-18)
    assert fx.log_softmax(x)[0] == -np.float32(4.248354255291589e-18)


def test_the_same_sample_as_five_questions():
    x, y = [[0.15, -0.34, 0.12, 0.67, 0.55]], [[0, 1, 0, 1, 0]]
    assert round(float(fx.binary_cross_entropy_with_logits(x, y)), 4) == 0.7644
    assert round(float(fx.multilabel_soft_margin_loss(x, y)), 4) == 0.7644
    assert round(float(fx.binary_cross_entropy(1 / (1 + np.exp(-np.array(x))), y)), 4) == 0.7644


def test_two_distributions():
    p, q = [1.0, 0.0, 0.0], [0.7, 0.2, 0.1]
    assert fx.entropy(p) == 0
    assert round(float(fx.categorical_cross_entropy(p, q)), 4) == 0.3567
    assert round(float(fx.kl_divergence(p, q)), 4) == 0.3567
    assert round(float(fx.entropy(q)), 4) == 0.8018
