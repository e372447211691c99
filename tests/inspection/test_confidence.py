"""ConfidenceDisplay."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection import ConfidenceDisplay
from sklconv.layers import Conv, GlobalAvgPool

plt = pytest.importorskip("matplotlib.pyplot")

LAYERS = [("conv", Conv(8, 3)), ("pool", GlobalAvgPool())]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300], np.array([f"n{label}" for label in y[:300]])


def test_right_against_wrong(digits):
    X, y = digits
    net = ConvNetClassifier(LAYERS, max_epochs=3, random_state=0).fit(X, y)
    display = ConfidenceDisplay.from_estimator(net, X, list(y), bins=9)
    probabilities = net.predict_proba(X)
    is_right = net.classes_[probabilities.argmax(1)] == y
    assert 0 < is_right.sum() < len(y)
    np.testing.assert_allclose(display.confidences, probabilities.max(1), atol=1e-6)
    np.testing.assert_array_equal(display.is_right, is_right)
    edges = np.linspace(0.1, 1, 10)
    for drawn, rows in ((display.right_, is_right), (display.wrong_, ~is_right)):
        values, drawn_edges, _ = drawn.get_data()
        np.testing.assert_allclose(drawn_edges, edges)
        np.testing.assert_array_equal(values, np.histogram(probabilities.max(1)[rows], edges)[0])
        assert values.sum() == rows.sum()
    assert display.ax_.get_yscale() == "log"
    assert display.ax_.get_xlim() == (0.1, 1)
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == [f"right ({is_right.sum()})", f"wrong ({(~is_right).sum()})"]
    assert display.right_.get_facecolor() != display.wrong_.get_facecolor()


def test_all_are_counted_where_sums_go_beyond_1():
    confidences = np.array([np.nextafter(np.float32(1), np.float32(2)), 0.5, 0.49999997, 0.75])
    display = ConfidenceDisplay(confidences, np.array([True, True, True, False])).plot(bins=2)
    np.testing.assert_array_equal(display.right_.get_data().values, [2, 1])
    np.testing.assert_array_equal(display.wrong_.get_data().values, [0, 1])


def test_all_right_is_drawn_as_well():
    display = ConfidenceDisplay(np.array([0.9, 1.0]), np.array([True, True])).plot(bins=5)
    assert display.wrong_.get_data().values.sum() == 0
    low, high = display.ax_.get_ylim()
    assert low < 1 < 2 < high


@pytest.mark.parametrize("n_classes", [2, 10, 100])
@pytest.mark.parametrize("where", ["alone", "in a grid", "in a constrained grid"])
def test_the_legend_covers_no_histogram(n_classes, where):
    rng = np.random.default_rng(0)
    confidences = rng.uniform(1 / n_classes, 0.5 + 0.5 / n_classes, size=5000)
    layout = "constrained" if "constrained" in where else None
    ax = None if where == "alone" else plt.subplots(2, 2, layout=layout)[1][1, 0]
    display = ConfidenceDisplay(confidences, rng.random(5000) < 0.5, n_classes=n_classes)
    ax = display.plot(ax, bins=30).ax_
    display.figure_.canvas.draw()
    legend, whole = ax.get_legend().get_window_extent(), display.figure_.bbox
    for drawn in display.right_, display.wrong_:
        assert drawn.get_path().get_extents(drawn.get_transform()).y1 <= legend.y0
    assert whole.x0 <= legend.x0 < legend.x1 <= whole.x1
    assert legend.y1 <= whole.y1
    if where != "alone":
        assert legend.y1 <= ax.get_window_extent().y1


def test_heads_without_probabilities_are_told_what_would_do(digits):
    X, y = digits
    net = ConvNetClassifier(LAYERS, max_epochs=1, random_state=0)
    extractor = ConvFeatureExtractor(net)
    model = make_pipeline(extractor, LinearSVC()).fit(X, y)
    with pytest.raises(ValueError, match=r"LinearSVC has no predict_proba: .*CalibratedClassif"):
        ConfidenceDisplay.from_estimator(model, X, y)
    calibrated = make_pipeline(extractor, CalibratedClassifierCV(LinearSVC(), ensemble=False))
    display = ConfidenceDisplay.from_estimator(calibrated.fit(X, y), X, y)
    assert len(display.confidences) == len(X)
    with pytest.raises(ValueError, match="compares with labels: pass y"):
        ConfidenceDisplay.from_estimator(calibrated, X, None)
    with pytest.raises(ValueError, match="X holds 300 images, but y 2 labels"):
        ConfidenceDisplay.from_estimator(calibrated, X, y[:2])
