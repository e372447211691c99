"""Images with their predictions."""

from itertools import combinations

import numpy as np
import pytest
import torch
from drawn_grids import images_of
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection import PredictionsDisplay

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def net(digits):
    X, y = digits
    return ConvNetClassifier(max_epochs=1, random_state=0).fit(X[:150], y[:150])


@pytest.fixture(scope="module")
def fitted(net, digits):
    X, y = digits
    rows, truth = X[150:350], y[150:350]
    return rows, truth, net.predict(rows), net.predict_proba(rows)


def texts(display):
    return [text.get_text() for text in display.texts_]


def test_the_first_images(net, fitted):
    X, y, labels, probabilities = fitted
    display = PredictionsDisplay.from_estimator(net, X, y, n_images=12)
    images = X[:12].reshape(12, 8, 8)
    np.testing.assert_allclose(images_of(display.im_, (8, 8)), images / images.max())
    np.testing.assert_array_equal(display.y_pred, labels[:12])
    np.testing.assert_array_equal(display.y_true, y[:12])
    np.testing.assert_allclose(display.probabilities, probabilities[:12].max(1), rtol=1e-5)
    right = labels[:12] == y[:12]
    for i, text in enumerate(texts(display)):
        label = f"{labels[i]}" if right[i] else f"{y[i]} → {labels[i]}"
        assert text == f"{label}  {display.probabilities[i]:.0%}"
    colours = np.array([text.get_color() for text in display.texts_])
    assert len(set(colours[right])) == len(set(colours[~right])) == 1
    assert set(colours[right]) != set(colours[~right])


def test_wrong_worst_random_and_named_rows(net, fitted):
    X, y, labels, probabilities = fitted
    wrong = np.flatnonzero(labels != y)
    assert len(wrong) > 5
    of_truth = probabilities[np.arange(len(y)), y]

    def drawn(which, **params):
        display = PredictionsDisplay.from_estimator(net, X, y, which=which, **params)
        return [int(np.flatnonzero((image.ravel() == X).all(1))[0]) for image in display.images]

    assert drawn("wrong", n_images=5) == wrong[:5].tolist()
    worst = drawn("worst", n_images=6)
    np.testing.assert_allclose(of_truth[worst], np.sort(of_truth)[:6], atol=1e-6)
    assert drawn([7, -1, 3]) == [7, len(X) - 1, 3]
    assert drawn(np.arange(len(X)) == 4) == [4]
    random = drawn("random", n_images=8, random_state=0)
    assert random == drawn("random", n_images=8, random_state=0)
    assert len(set(random)) == 8
    assert random != drawn("random", n_images=8, random_state=1)


def test_all_is_predicted_once_and_only_where_it_has_to_be(digits):
    X, y = digits[0][:200].reshape(-1, 8, 8), digits[1][:200]
    X = np.pad(X, [(0, 0), (1, 1), (1, 1)])  # batches of smaller images would be filled up
    net = ConvNetClassifier(max_epochs=1, random_state=0).fit(X[:50], y[:50])
    counts: list = []
    hook = net.module_.prepare.register_forward_hook(lambda _, x, __: counts.append(len(x[0])))
    try:
        for which, n in [("first", 9), ("random", 9), ([1, 2], 2), ("wrong", 200), ("worst", 200)]:
            counts.clear()
            PredictionsDisplay.from_estimator(net, X, y, which=which, n_images=9)
            assert sum(counts) == n
    finally:
        hook.remove()


def test_heads_with_and_without_probabilities(net, fitted):
    X, y, *_ = fitted
    pipeline = make_pipeline(ConvFeatureExtractor(ConvNetClassifier(max_epochs=1)), SVC())
    pipeline.fit(X, y)
    display = PredictionsDisplay.from_estimator(pipeline, X[:4])
    assert texts(display) == [str(label) for label in pipeline.predict(X[:4])]
    assert display.probabilities is None
    with pytest.raises(ValueError, match="which SVC has none of: take which='wrong', or a"):
        PredictionsDisplay.from_estimator(pipeline, X, y, which="worst")
    pipeline.set_params(svc=LogisticRegression(max_iter=1000)).fit(X, y)
    display = PredictionsDisplay.from_estimator(pipeline, X, y, which="worst", n_images=3)
    lowest = np.sort(pipeline.predict_proba(X)[np.arange(len(y)), y])[:3]
    shown = pipeline.predict_proba(display.images.reshape(3, 64))
    np.testing.assert_allclose(shown[np.arange(3), display.y_true], lowest, atol=1e-6)


@pytest.mark.parametrize("form", ["tensor", "frame", "photos", "paths", "one"])
def test_images_in_other_forms(form, digits, tmp_path):
    X, y = digits
    pixels = X[:40].astype(np.uint8).reshape(-1, 8, 8) * 15
    net = ConvNetClassifier(max_epochs=1, random_state=0).fit(pixels, y[:40])
    if form == "tensor":
        given = torch.from_numpy(pixels)
    elif form == "frame":
        given = pytest.importorskip("pandas").DataFrame(pixels.reshape(40, 64))
    elif form == "one":
        given = pixels[3]
    else:
        image = pytest.importorskip("PIL.Image")
        given = [image.fromarray(one) for one in pixels]
        if form == "paths":
            for i, photo in enumerate(given):
                photo.save(tmp_path / f"{i}.png")
            given = [str(tmp_path / f"{i}.png") for i in range(40)]
    if form == "one":
        display = PredictionsDisplay.from_estimator(net, given, y[3])
    else:
        display = PredictionsDisplay.from_estimator(net, given, y[:40], which=[3])
    np.testing.assert_array_equal(np.asarray(display.images), pixels[None, 3:4])
    assert display.y_true.tolist() == [y[3]]


def test_long_names_take_two_lines():
    names = np.array(["guinea pig", "hamster"])
    display = PredictionsDisplay(np.zeros((2, 1, 4, 4)), names, y_true=names[::-1]).plot()
    assert texts(display) == ["hamster →\nguinea pig", "guinea pig →\nhamster"]


BREEDS = np.array([f"{name} of some faraway hills, {name}" for name in ("cow", "sheep", "elk")])


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
@pytest.mark.parametrize("n", [1, 10, 25])
@pytest.mark.parametrize("where", ["alone", "in a grid", "in a constrained grid"])
@pytest.mark.parametrize("names", [np.array(["1", "2", "3"]), BREEDS], ids=["short", "long"])
def test_texts_neither_overlap_nor_leave_their_columns(names, where, n, shape):
    ax = None
    if where != "alone":
        layout = "constrained" if "constrained" in where else None
        ax = plt.subplots(2, 2, layout=layout)[1][0, 1]
    labels, truth = names[np.arange(n) % 3], names[np.arange(n) // 2 % 3]
    images, probabilities = np.zeros((n, 1, *shape)), np.full(n, 0.98)
    display = PredictionsDisplay(images, labels, y_true=truth, probabilities=probabilities)
    display.plot(ax)
    display.figure_.canvas.draw()
    boxes = [text.get_window_extent() for text in display.texts_]
    # Characters are rounded to whole pixels, which is much where they have two or three.
    rounding = 0.5 if display.texts_[0].get_size() >= 3 else 1.5
    for one, other in combinations([box.padded(-rounding) for box in boxes], 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert box.x0 >= display.figure_.bbox.x0
        assert box.x1 <= display.figure_.bbox.x1
    for text, name in zip(texts(display), labels, strict=True):
        assert text.endswith("98%")
        assert name[-1] in text
    if ax is None and names is BREEDS and shape == (8, 8):
        assert all("…" in text for text in texts(display))
        assert display.texts_[0].get_size() >= 6


def test_equal_labels_of_other_types_are_right():
    display = PredictionsDisplay(
        np.zeros((2, 1, 4, 4)), np.array([3, 5]), y_true=np.array([3.0, 4])
    )
    assert texts(display.plot()) == ["3", "4.0 → 5"]


def test_bad_input(net, fitted):
    X, y, labels, _ = fitted
    draw = PredictionsDisplay.from_estimator
    with pytest.raises(ValueError, match="which='wrong' compares with labels: pass y"):
        draw(net, X, which="wrong")
    with pytest.raises(ValueError, match="which='wrong': all of the 200 images are predicted"):
        draw(net, X, labels, which="wrong")
    with pytest.raises(ValueError, match="which='best' is none of 'first', 'random', 'worst'"):
        draw(net, X, y, which="best")
    with pytest.raises(ValueError, match="X holds 200 images, but y 3 labels"):
        draw(net, X, y[:3])
    for row in 200, -201:
        with pytest.raises(IndexError, match=f"X has no row {row}; its rows are 0 to 199"):
            draw(net, X, y, which=[3, row])
    with pytest.raises(IndexError, match="the mask has 3 entries, but X 200 images"):
        draw(net, X, y, which=[True, False, True])
    for which in (3, [], [0.5], np.zeros(200, bool)):
        with pytest.raises(
            ValueError, match=r"(?s)which=.* is none of 'first', .* and row numbers"
        ):
            draw(net, X, y, which=which)
