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


def names_of(ax):
    """The names at the bars by their places, and their boxes."""
    ax.figure.canvas.draw()
    labels = ax.get_xticklabels()
    names = dict(zip(ax.get_xticks().tolist(), [one.get_text() for one in labels], strict=True))
    return names, [label.get_window_extent() for label in labels]


@pytest.mark.parametrize("prefix", ["", "class_", "a class with a rather long name, no. "])
def test_of_many_classes_the_highest_are_named(prefix):
    heights = np.full(100, 0.001)
    # The second highest stands beside the highest, where there is no room for its name.
    heights[[50, 51, 5, 95, 30, 70, 15]] = [0.4, 0.2, 0.1, 0.08, 0.07, 0.06, 0.05]
    classes = [f"{prefix}{i}" for i in range(100)]
    ax = ActivationsDisplay(heights, classes=classes, image=np.ones((1, 8, 8))).plot().axes_[1]
    names, boxes = names_of(ax)
    assert list(names) == [5, 30, 50, 70, 95]
    for place, name in names.items():
        assert name == classes[place] or (name.endswith(str(place)) and "…" in name)
    for one in boxes:
        assert ax.figure.bbox.x0 <= one.x0 < one.x1 <= ax.figure.bbox.x1
        assert ax.figure.bbox.y0 <= one.y0


def test_where_one_bar_is_high_only_that_is_named():
    heights = np.full(30, 0.001)
    heights[7] = 0.97
    ax = ActivationsDisplay(heights, classes=[f"class {i}" for i in range(30)]).plot().axes_[0]
    assert names_of(ax)[0] == {7: "class 7"}


@pytest.mark.parametrize("layout", [None, "constrained"])
@pytest.mark.parametrize("n", [3, 10, 20])
def test_long_names_are_shortened(n, layout):
    classes = [f"a class with a rather long name, no. {i}" for i in range(n)]
    display = ActivationsDisplay(np.ones(n) / n, classes=classes, image=np.ones((1, 8, 8)))
    for ax in None, plt.subplots(2, 2, layout=layout)[1][1, 1]:
        bars = display.plot(ax).axes_[-1]
        names, boxes = names_of(bars)
        assert list(names) == list(range(n))
        for place, name in names.items():
            assert 8 <= len(name) <= 25
            assert name.endswith(f" {place}")
        assert min(label.get_size() for label in bars.get_xticklabels()) >= 5
        assert bars.get_window_extent().height > 70  # pixels
        # Lines at 45°: as far apart as they are high.
        across = [(box.x1 - box.y1) * np.sqrt(0.5) for box in boxes]
        size = bars.get_xticklabels()[0].get_size() * bars.figure.dpi / 72
        assert (np.diff(across) >= size).all()
