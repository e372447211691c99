"""Activations and probabilities as bars."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection import ActivationsDisplay

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:100], np.array([*"abcdefghi", "a long name"])[y[:100]]


@pytest.fixture(scope="module")
def net(digits):
    return ConvNetClassifier(max_epochs=1, random_state=0).fit(*digits)


def heights(display):
    return [bar.get_height() for bar in display.bars_]


def test_probabilities_of_a_classifier(net, digits):
    X, _ = digits
    display = ActivationsDisplay.from_estimator(net, X[7])
    np.testing.assert_array_equal(display.activations, net.predict_proba(X[7:8])[0])
    np.testing.assert_allclose(heights(display), display.activations)
    image, bars = display.axes_
    drawn = X[7].reshape(8, 8)
    np.testing.assert_allclose(display.im_.get_array(), drawn / drawn.max())
    assert display.im_.axes is image
    assert [text.get_text() for text in bars.get_xticklabels()] == list(net.classes_)
    assert (bars.get_xlabel(), bars.get_ylabel()) == ("Class", "Probability")
    assert bars.get_ylim() == (0, 1)


def test_features_of_an_extractor_and_the_image_before_the_steps_in_front(digits):
    X, y = digits
    extractor = ConvFeatureExtractor(ConvNetClassifier(max_epochs=1), layer=["conv1", "dense"])
    model = make_pipeline(StandardScaler(with_std=False), extractor, SVC()).fit(X, y)
    display = ActivationsDisplay.from_estimator(model, X[3])
    np.testing.assert_array_equal(display.activations, model[:2].transform(X[3:4])[0])
    np.testing.assert_allclose(heights(display), display.activations)
    np.testing.assert_array_equal(display.image, X[3].reshape(1, 8, 8))
    bars = display.axes_[1]
    assert bars.get_title() == "conv1, dense"
    assert (bars.get_xlabel(), bars.get_ylabel()) == ("Unit", "Activation")
    assert display.classes is None


def test_activations_of_a_named_layer(net, digits):
    X, _ = digits
    display = ActivationsDisplay.from_estimator(net, X[0], layer="conv2", color="black")
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="conv2").fit(X)
    np.testing.assert_array_equal(display.activations, extractor.transform(X[:1])[0])
    assert display.layer == "conv2"
    assert display.bars_[0].get_facecolor() == (0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"layer='dens' is not a layer .* Did you mean 'dense'"):
        ActivationsDisplay.from_estimator(net, X[0], layer="dens")


def test_bars_alone():
    _, ax = plt.subplots()
    display = ActivationsDisplay(np.array([1.0, -2.0]), image=np.zeros((1, 3, 3))).plot(ax)
    assert display.axes_.tolist() == [ax]
    assert display.im_ is None
    assert heights(display) == [1, -2]
    assert ActivationsDisplay(np.ones(2)).plot().axes_.shape == (1,)
    with pytest.raises(ValueError, match="ax must be 2 axes here, not 3"):
        display.plot(plt.figure().subplots(1, 3))


def test_more_classes_than_have_room_are_not_named():
    display = ActivationsDisplay(np.full(100, 0.01), classes=np.arange(100)).plot()
    assert len(display.axes_[0].get_xticks()) < 20
