"""EmbeddingDisplay."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection import EmbeddingDisplay
from sklconv.layers import Conv, Dense, GlobalAvgPool

plt = pytest.importorskip("matplotlib.pyplot")

LAYERS = [("conv", Conv(8, 3)), ("pool", GlobalAvgPool()), ("dense", Dense(16))]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:200], y[:200]


@pytest.fixture(scope="module")
def net(digits):
    return ConvNetClassifier(LAYERS, max_epochs=2, random_state=0).fit(*digits)


@pytest.fixture(scope="module")
def model(digits):
    net = ConvNetClassifier(LAYERS, max_epochs=2, random_state=0)
    return make_pipeline(ConvFeatureExtractor(net, layer="pool"), SVC()).fit(*digits)


def same_up_to_signs(one, other):
    for a, b in zip(one.T, other.T, strict=True):
        np.testing.assert_allclose(a * np.sign(a @ b), b, atol=1e-4 * np.abs(b).max())


def test_features_are_the_extractors_reduced_by_pca(model, digits):
    X, y = digits
    display = EmbeddingDisplay.from_estimator(model, X, y)
    same_up_to_signs(display.embedding, PCA(2).fit_transform(model[0].transform(X)))
    assert display.layer == "pool"
    assert display.ax_.get_title() == "pool"


def test_any_layer_and_any_reducer(net, digits):
    X, y = digits
    features = ConvFeatureExtractor(net, layer="conv").fit(X, y)
    svd = TruncatedSVD(2, random_state=0)
    display = EmbeddingDisplay.from_estimator(net, X, y, layer="conv", reducer=svd)
    assert not hasattr(svd, "components_")  # a clone was fitted
    assert display.layer == "conv"
    assert features.transform(X).shape[1] == 8
    tsne = TSNE(perplexity=5, max_iter=250, init="random", random_state=0)
    assert EmbeddingDisplay.from_estimator(net, X[:50], reducer=tsne).embedding.shape == (50, 2)
    lda = LinearDiscriminantAnalysis(n_components=2)
    assert EmbeddingDisplay.from_estimator(net, X, y, reducer=lda).embedding.shape == (200, 2)
    with pytest.raises(ValueError, match=r"reducer PCA returned .*\(200, 3\).*n_components=2"):
        EmbeddingDisplay.from_estimator(net, X, y, reducer=PCA(3))
    with pytest.raises(ValueError, match="X holds 200 images, but y 2 labels"):
        EmbeddingDisplay.from_estimator(net, X, y[:2])


def colour_by_place(display):
    """What is drawn at each place: colour and marker."""
    found = {}
    for points in display.points_:
        (marker,) = points.get_paths()
        for place, colour in zip(points.get_offsets(), points.get_facecolors(), strict=True):
            found[tuple(place)] = (to_hex(colour), marker.vertices.tobytes())
    return found


@pytest.mark.parametrize("n_classes", [3, 10, 35])
def test_each_class_has_its_colour_and_marker(n_classes):
    embedding = np.random.default_rng(0).normal(size=(400, 2))
    y = np.array([f"class {i % n_classes}" for i in range(400)])
    display = EmbeddingDisplay(embedding, y).plot()
    drawn = colour_by_place(display)
    assert len(drawn) == 400
    looks = {}
    for place, label in zip(embedding, y, strict=True):
        looks.setdefault(label, set()).add(drawn[tuple(place)])
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == n_classes
    assert len(display.points_) == -(-n_classes // 10)
    if n_classes <= 20:
        texts = [text.get_text() for text in display.legend_.get_texts()]
    else:
        assert display.legend_ is None
        texts = [text.get_text() for text in display.ax_.texts]
        assert texts
        assert set(texts) < looks.keys()  # all lie about the middle, where few have room
        return
    assert texts == sorted(looks)


def names_at_places(display):
    """Boxes of the names that are drawn, by name."""
    display.figure_.canvas.draw()
    return {text.get_text(): text.get_window_extent() for text in display.ax_.texts}


@pytest.mark.parametrize("where", ["alone", "in a grid", "in a constrained grid"])
def test_of_many_names_none_covers_another(where):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 100, size=3000)
    centres = rng.normal(size=(100, 2))
    embedding = centres[y] + 0.2 * rng.normal(size=(3000, 2))
    layout = "constrained" if "constrained" in where else None
    ax = None if where == "alone" else plt.subplots(2, 2, layout=layout)[1][1, 0]
    display = EmbeddingDisplay(embedding, [f"class_{label:03d}" for label in y]).plot(ax)
    boxes = names_at_places(display)
    assert len(boxes) > (25 if ax is None else 5)
    for one, other in combinations([box.padded(-0.5) for box in boxes.values()], 2):
        assert not one.overlaps(other)
    largest = np.bincount(y).argmax()
    assert f"class_{largest:03d}" in boxes
    for name, box in boxes.items():
        place = display.ax_.transData.transform(np.median(embedding[y == int(name[-3:])], axis=0))
        middle = (box.p0 + box.p1) / 2
        np.testing.assert_allclose(middle, place, atol=2)  # pixels


def test_names_that_have_room_are_all_there():
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=2).reshape(-1, 2)
    names = [f"n{i:02d}" for i in range(25)]
    display = EmbeddingDisplay(grid, names).plot()
    assert sorted(names_at_places(display)) == names


def test_long_names_leave_the_plot_its_room():
    rng = np.random.default_rng(0)
    names = [f"a class with a rather long name, no. {i}" for i in range(10)]
    display = EmbeddingDisplay(rng.normal(size=(50, 2)), names * 5).plot()
    display.figure_.canvas.draw()
    assert display.ax_.get_window_extent().width > 0.6 * display.figure_.bbox.width
    texts = [text.get_text() for text in display.legend_.get_texts()]
    assert [len(text) for text in texts] == [20] * 10
    assert [text[-1] for text in texts] == [*"0123456789"]


def test_a_legend_that_has_no_room_gives_way_to_names_at_places():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, size=500)
    embedding = 20 * rng.normal(size=(10, 2))[y] + rng.normal(size=(500, 2))
    axes = plt.subplots(2, 2)[1]
    for ax in axes[0, 0], axes[1, 1]:
        display = EmbeddingDisplay(embedding, y).plot(ax)
        assert display.legend_ is None
        assert ax.get_legend() is None
        assert names_at_places(display).keys() <= {*"0123456789"}
        assert len(ax.texts) > 5
    axes = plt.subplots(2, 2, layout="constrained", figsize=(9, 7))[1]
    assert EmbeddingDisplay(embedding, y).plot(axes[0, 0]).legend_ is not None


def test_labels_of_some_images_only():
    embedding = np.random.default_rng(0).normal(size=(6, 2))
    y = np.array([None, "cat", "dog", "cat", None, "dog"], dtype=object)
    display = EmbeddingDisplay(embedding, y).plot()
    assert [text.get_text() for text in display.legend_.get_texts()] == ["None", "cat", "dog"]
    drawn = colour_by_place(display)
    looks = [drawn[tuple(place)] for place in embedding]
    assert (looks[0], looks[1], looks[2]) == (looks[4], looks[3], looks[5])
    assert len(set(looks)) == 3


def test_without_labels_there_is_one_colour(net, digits):
    display = EmbeddingDisplay.from_estimator(net, digits[0])
    assert display.y is None
    assert len(set(colour_by_place(display).values())) == 1
    assert display.legend_ is None


def overlap(one, other):
    (l1, r1, b1, t1), (l2, r2, b2, t2) = one, other
    return l1 < r2 and l2 < r1 and b1 < t2 and b2 < t1


@pytest.mark.parametrize("n_images", [0, 1, 12, 200])
def test_images_lie_at_their_places_and_cover_none_other(net, digits, n_images):
    X, y = digits
    display = EmbeddingDisplay.from_estimator(net, X, y, n_images=n_images)
    assert len(display.images_) == len(display.rows) <= n_images
    assert len(display.rows) == n_images or n_images > 5
    extents = [image.get_extent() for image in display.images_]
    for row, image, extent in zip(display.rows, display.images_, extents, strict=True):
        left, right, bottom, top = extent
        centre = [(left + right) / 2, (bottom + top) / 2]
        np.testing.assert_allclose(centre, display.embedding[row], atol=1e-6)
        shown = np.asarray(image.get_array())
        np.testing.assert_allclose(shown / shown.max(), X[row].reshape(8, 8) / X[row].max())
        assert np.isclose(right - left, top - bottom)
    assert not any(overlap(*pair) for pair in combinations(extents, 2))
    # All points and images are within the axes, whose units are equally long.
    display.figure_.canvas.draw()
    (left, right), (bottom, top) = display.ax_.get_xlim(), display.ax_.get_ylim()
    corners = [
        *display.embedding,
        *((e[i], e[j]) for e in extents for i in (0, 1) for j in (2, 3)),
    ]
    for x, y_ in corners:
        assert left <= x <= right
        assert bottom <= y_ <= top
    box = display.ax_.get_window_extent()
    assert np.isclose(box.width / (right - left), box.height / (top - bottom))
    assert display.ax_.axison


def test_ten_thousand_points_are_small_and_pixels():
    rng = np.random.default_rng(0)
    few = EmbeddingDisplay(rng.normal(size=(50, 2))).plot().points_[0]
    many = EmbeddingDisplay(rng.normal(size=(10_000, 2))).plot().points_[0]
    assert many.get_sizes()[0] < few.get_sizes()[0] / 5
    assert many.get_alpha() < few.get_alpha()
    assert many.get_rasterized()
    assert len(many.get_offsets()) == 10_000


def test_wide_images_keep_their_proportions():
    X = np.random.default_rng(0).integers(0, 256, (40, 6, 12, 3), dtype=np.uint8)
    net = ConvNetClassifier(LAYERS, max_epochs=1, random_state=0).fit(X, np.arange(40) % 2)
    display = EmbeddingDisplay.from_estimator(net, X)
    left, right, bottom, top = display.images_[0].get_extent()
    assert np.isclose((right - left) / (top - bottom), 2)
    shown = np.asarray(display.images_[0].get_array())
    np.testing.assert_allclose(shown, X[display.rows[0]] / 255)
