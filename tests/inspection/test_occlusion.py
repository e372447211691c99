"""OcclusionDisplay against a naive loop over patches."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection import OcclusionDisplay
from sklconv.layers import Conv, GlobalAvgPool

plt = pytest.importorskip("matplotlib.pyplot")

LAYERS = [("conv", Conv(8, 3)), ("pool", GlobalAvgPool())]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:200].reshape(-1, 8, 8), y[:200]


@pytest.fixture(scope="module")
def model(digits):
    net = ConvNetClassifier(max_epochs=3, random_state=0)
    return make_pipeline(ConvFeatureExtractor(net, layer="dense"), SVC()).fit(*digits)


def naive_drops(score, image, patch, stride, fill):
    """Drops of ``score``, of images (n, H, W), one patch at a time."""
    height, width = image.shape
    whole = score(image[None])[0]
    drops = []
    for top in range(0, height - patch + 1, stride):
        drops.append([])
        for left in range(0, width - patch + 1, stride):
            hidden = image.copy()
            hidden[top : top + patch, left : left + patch] = fill
            drops[-1].append(whole - score(hidden[None])[0])
    return np.array(drops)


def naive_heatmap(drops, shape, patch, tops, lefts):
    """The mean of all positions that hide a pixel."""
    heatmap = np.full(shape, np.nan)
    for y in range(shape[0]):
        for x in range(shape[1]):
            hiding = [
                drops[i, j]
                for i, top in enumerate(tops)
                for j, left in enumerate(lefts)
                if 0 <= y - top < patch[0] and 0 <= x - left < patch[1]
            ]
            heatmap[y, x] = np.mean(hiding)
    return heatmap


@pytest.mark.parametrize("target", [None, 3])
def test_drops_are_those_of_a_naive_loop_through_the_whole_pipeline(model, digits, target):
    X, _ = digits
    display = OcclusionDisplay.from_estimator(model, X[1], patch_size=2, stride=2, target=target)
    expected_target = model.predict(X[1:2])[0] if target is None else target
    assert display.target == expected_target
    assert display.response_method == "decision_function"
    column = list(model.classes_).index(expected_target)
    expected = naive_drops(
        lambda images: model.decision_function(images)[:, column], X[1], 2, 2, X[1].mean()
    )
    np.testing.assert_allclose(display.drops, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-4


def test_probabilities_where_there_are_any(digits):
    X, y = digits
    net = ConvNetClassifier(LAYERS, max_epochs=2, random_state=0).fit(X, y)
    display = OcclusionDisplay.from_estimator(net, X[0], patch_size=3, stride=1, target=4, fill=5)
    assert display.response_method == "predict_proba"
    expected = naive_drops(lambda images: net.predict_proba(images)[:, 4], X[0], 3, 1, 5)
    np.testing.assert_allclose(display.drops, expected, atol=1e-5)
    display = OcclusionDisplay.from_estimator(
        net, X[0], patch_size=3, stride=1, target=4, fill=5, response_method="decision_function"
    )
    expected = naive_drops(lambda images: net.decision_function(images)[:, 4], X[0], 3, 1, 5)
    np.testing.assert_allclose(display.drops, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["no", "yes"])
def test_of_two_classes_the_first_has_the_negated_score(digits, target):
    X, y = digits
    net = ConvNetClassifier(LAYERS, max_epochs=2, random_state=0)
    model = make_pipeline(ConvFeatureExtractor(net), LinearSVC())
    model.fit(X, np.where(y > 4, "yes", "no"))
    display = OcclusionDisplay.from_estimator(model, X[0], patch_size=4, stride=2, target=target)
    sign = 1 if target == "yes" else -1
    expected = naive_drops(
        lambda images: sign * model.decision_function(images), X[0], 4, 2, X[0].mean()
    )
    np.testing.assert_allclose(display.drops, expected, atol=1e-5)


def test_each_pixel_is_hidden_and_has_the_mean_of_what_hides_it():
    rng = np.random.default_rng(0)
    drops = rng.normal(size=(4, 3))
    display = OcclusionDisplay(
        np.zeros((1, 10, 9)),
        drops,
        patch_size=(3, 4),
        stride=(3, 3),
        target=0,
        response_method="predict_proba",
    )
    # The last patch is flush with the edge.
    expected = naive_heatmap(drops, (10, 9), (3, 4), tops=[0, 3, 6, 7], lefts=[0, 3, 5])
    np.testing.assert_allclose(display.heatmap, expected)


def test_what_is_drawn(model, digits):
    X, _ = digits
    figure, axes = plt.subplots(1, 2)
    display = OcclusionDisplay.from_estimator(model, X[0], ax=axes[1])
    assert display.patch_size == display.stride == (1, 1)  # a seventh of 8 pixels, half of one
    assert display.ax_ is axes[1]
    assert display.figure_ is figure
    np.testing.assert_allclose(display.im_.get_array(), display.heatmap)
    low, high = display.im_.get_clim()
    assert high == -low == np.abs(display.heatmap).max()
    opacity = display.im_.get_alpha()
    assert opacity.max() == 0.7  # the image stays visible
    assert opacity.argmax() == np.abs(display.heatmap).argmax()
    assert list(display.im_.get_extent()) == list(display.image_.get_extent())
    assert list(display.im_.get_extent()) == [-0.5, 7.5, 7.5, -0.5]
    greys = np.asarray(display.image_.get_array())
    np.testing.assert_allclose(greys, 0.4 + 0.6 * X[0] / X[0].max())
    assert display.ax_.get_title() == "class 0"
    assert "drop of the decision function" in display.colorbar_.ax.get_ylabel()
    assert display.plot(cmap="PuOr").im_.get_cmap().name == "PuOr"


@pytest.fixture(scope="module")
def colours():
    X = np.random.default_rng(0).integers(0, 256, (60, 6, 9, 3), dtype=np.uint8)
    y = np.arange(60) % 3
    return X, ConvNetClassifier(LAYERS, max_epochs=2, random_state=0).fit(X, y)


def test_every_form_of_a_colour_image(colours):
    X, net = colours
    image = X[0]
    params = {"patch_size": (2, 3), "stride": (2, 3), "target": 0}
    drops = [
        OcclusionDisplay.from_estimator(net, form, **params).drops
        for form in (
            *(image, image[None], image.transpose(2, 0, 1), image.transpose(2, 0, 1)[None]),
            *(image.ravel(), image.tolist(), Image.fromarray(image), [Image.fromarray(image)]),
        )
    ]
    fill = np.rint(image.mean((0, 1))).astype(np.uint8)
    expected = np.empty((3, 3))
    for i, j in np.ndindex(3, 3):
        hidden = image.copy()
        hidden[2 * i : 2 * i + 2, 3 * j : 3 * j + 3] = fill
        pair = net.predict_proba(np.stack([image, hidden]))[:, 0]
        expected[i, j] = pair[0] - pair[1]
    for came in drops:
        np.testing.assert_allclose(came, expected, atol=1e-6)


def test_one_value_a_channel_is_filled_in(colours):
    X, net = colours
    params = {"patch_size": (6, 9), "target": 1}
    display = OcclusionDisplay.from_estimator(net, X[0], fill=[1, 2, 255], **params)
    black = np.broadcast_to(np.array([1, 2, 255], np.uint8), X[0].shape)
    pair = net.predict_proba(np.stack([X[0], black]))[:, 1]
    np.testing.assert_allclose(display.drops, [[pair[0] - pair[1]]], atol=1e-6)
    with pytest.raises(ValueError, match=r"fill=0\.5 is no pixel of an image of uint8"):
        OcclusionDisplay.from_estimator(net, X[0], fill=0.5, **params)
    with pytest.raises(ValueError, match=r"neither one number nor one for each channel"):
        OcclusionDisplay.from_estimator(net, X[0], fill=[1, 2], **params)


@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 4, 4)])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_images_whose_axes_could_be_either(shape, data_format):
    X = np.random.default_rng(0).normal(size=(30, *shape))
    net = ConvNetClassifier([("conv", Conv(4, 1))], data_format=data_format, max_epochs=1)
    net.fit(X, np.arange(30) % 2)
    display = OcclusionDisplay.from_estimator(net, X[:1], patch_size=1, fill=0, target=1)
    hidden = X[:1].copy()
    hidden[(0, slice(None), 0, 0) if data_format == "channels_first" else (0, 0, 0)] = 0
    expected = net.predict_proba(X[:1])[0, 1] - net.predict_proba(hidden)[0, 1]
    np.testing.assert_allclose(display.drops[0, 0], expected, atol=1e-6)


def test_steps_in_front_are_applied_before_anything_is_hidden(digits):
    X, y = digits
    seen = []

    def halved(X):
        seen.append(len(X))
        return X / 2

    net = ConvNetClassifier(LAYERS, max_epochs=1, random_state=0)
    model = make_pipeline(FunctionTransformer(halved), net).fit(X, y)
    display = OcclusionDisplay.from_estimator(model, X[0], patch_size=4, stride=4, target=0)
    assert max(seen[1:]) == 1
    expected = naive_drops(
        lambda images: model[-1].predict_proba(images)[:, 0], X[0] / 2, 4, 4, X[0].mean() / 2
    )
    np.testing.assert_allclose(display.drops, expected, atol=1e-6)
    np.testing.assert_array_equal(display.image[0], X[0])


FILL_STEPS = {
    "scaled": lambda: FunctionTransformer(lambda X: X / 16.0),
    "each pixel its own way": lambda: StandardScaler(),
    "not linear": lambda: FunctionTransformer(lambda X: (X / 16.0) ** 2),
}


@pytest.mark.parametrize("step", FILL_STEPS)
@pytest.mark.parametrize("form", ["rows", "frame", "tensor"])
def test_fill_is_on_the_scale_of_x_in_front_of_the_steps(digits, step, form):
    X, y = digits[0].reshape(-1, 64), digits[1]
    net = ConvNetClassifier(LAYERS, max_epochs=1, random_state=0)
    model = make_pipeline(FILL_STEPS[step](), net).fit(X, y)
    score = model.predict_proba
    given = X[:1]
    if form == "frame":
        pd = pytest.importorskip("pandas")
        X = pd.DataFrame(X).rename(columns="p{}".format)
        model.fit(X, y)
        given = X.iloc[:1]

        def score(rows):
            return model.predict_proba(pd.DataFrame(rows, columns=X.columns))

    elif form == "tensor":
        given = torch.from_numpy(given)
    display = OcclusionDisplay.from_estimator(
        model, given, patch_size=2, stride=2, fill=8, target=0
    )
    expected = naive_drops(
        lambda images: score(images.reshape(-1, 64))[:, 0], digits[0][0], 2, 2, 8
    )
    assert np.ptp(expected) > 1e-4
    np.testing.assert_allclose(display.drops, expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["last", "first"])
def test_one_value_a_channel_goes_through_the_steps_in_front(colours, layout):
    X, y = colours[0], np.arange(60) % 3
    if layout == "first":
        X = X.transpose(0, 3, 1, 2)
    net = ConvNetClassifier(LAYERS, max_epochs=2, random_state=0)
    model = make_pipeline(FunctionTransformer(lambda X: X / 255.0), net).fit(X, y)
    fill = np.array([1, 2, 255], np.uint8)
    full = np.zeros_like(X[0]) + (fill if layout == "last" else fill[:, None, None])
    display = OcclusionDisplay.from_estimator(
        model, X[0], fill=fill.tolist(), patch_size=(6, 9), target=1
    )
    pair = model.predict_proba(np.stack([X[0], full]))[:, 1]
    assert abs(pair[0] - pair[1]) > 1e-4
    np.testing.assert_allclose(display.drops, [[pair[0] - pair[1]]], atol=1e-6)
    with pytest.raises(ValueError, match=r"fill=0\.5 is no pixel of an image of uint8"):
        OcclusionDisplay.from_estimator(model, X[0], fill=0.5)


def test_a_probability_that_hardly_changes_gives_way_to_the_decision_function(digits):
    X, y = digits
    net = ConvNetClassifier(LAYERS, max_epochs=2, random_state=0).fit(X, y)
    with torch.no_grad():  # sure that all are threes
        list(net.module_.parameters())[-1][3] += 30
    params = {"patch_size": 2, "stride": 2, "fill": 0}
    display = OcclusionDisplay.from_estimator(net, X[0], **params)
    asked = OcclusionDisplay.from_estimator(
        net, X[0], response_method="decision_function", **params
    )
    assert display.response_method == "decision_function"
    assert "decision function" in display.colorbar_.ax.get_ylabel()
    np.testing.assert_array_equal(display.drops, asked.drops)
    assert display.target == 3
    assert np.abs(display.drops).max() > 1e-2
    as_asked = OcclusionDisplay.from_estimator(
        net, X[0], response_method="predict_proba", **params
    )
    assert as_asked.response_method == "predict_proba"
    assert np.abs(as_asked.drops).max() < 1e-3
    # A head that has probabilities alone keeps them.
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer="pool")
    model = make_pipeline(extractor, GaussianNB(var_smoothing=1e9)).fit(X, y)
    kept = OcclusionDisplay.from_estimator(model, X[0], patch_size=4)
    assert kept.response_method == "predict_proba"
    assert np.abs(kept.drops).max() < 1e-3


@pytest.mark.parametrize("output", ["default", "pandas"])
def test_names_of_columns_cause_no_warning(digits, output):
    pd = pytest.importorskip("pandas")
    X, y = digits
    X = pd.DataFrame(X.reshape(len(X), -1)).rename(columns="p{}".format)
    net = ConvNetClassifier(LAYERS, max_epochs=1, random_state=0)
    model = make_pipeline(ConvFeatureExtractor(net), SVC()).set_output(transform=output).fit(X, y)
    display = OcclusionDisplay.from_estimator(model, X.iloc[:1], patch_size=8)
    assert display.drops.shape == (1, 1)


def test_memory_is_bounded(model, digits, monkeypatch):
    X, _ = digits
    whole = OcclusionDisplay.from_estimator(model, X[0])
    sizes = []
    transform = ConvFeatureExtractor.transform

    def noted(self, X):
        sizes.append(len(X))
        return transform(self, X)

    monkeypatch.setattr(ConvFeatureExtractor, "transform", noted)
    monkeypatch.setattr("sklconv.inspection._occlusion.CHUNK_BYTES", 7 * X[0].nbytes)
    in_batches = OcclusionDisplay.from_estimator(model, X[0])
    assert max(sizes) == 7
    np.testing.assert_allclose(in_batches.drops, whole.drops, atol=1e-5)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"patch_size": 9}, r"patch_size=9 is larger than the image of 8×8 pixels"),
        ({"patch_size": (2, 9)}, r"patch_size=\(2, 9\) is larger than the image of 8×8"),
        ({"patch_size": 0}, r"patch_size=0 is neither an integer from 1 up nor a pair"),
        ({"patch_size": 2.5}, r"patch_size=2.5 is neither an integer"),
        ({"patch_size": 2, "stride": 3}, r"stride=3 is larger than the patch of 2×2 pixels"),
        ({"fill": "mean"}, r"fill='mean' is neither one number nor .*; None is the mean of each"),
        ({"target": 11}, r"target=11 is none of the classes: \[0, 1, 2"),
        ({"response_method": "predict_proba"}, r"SVC has no predict_proba; response_method='de"),
        ({"response_method": "decision"}, r"is none of 'auto'.*Did you mean 'decision_function'"),
    ],
)
def test_what_can_not_be_is_an_error(model, digits, params, words):
    with pytest.raises(ValueError, match=words):
        OcclusionDisplay.from_estimator(model, digits[0][0], **params)
    assert not plt.get_fignums()


def test_heads_that_score_no_class_are_an_error(digits):
    X, y = digits
    extractor = ConvFeatureExtractor(ConvNetClassifier(LAYERS, max_epochs=1))
    extractor.fit(X, y)
    with pytest.raises(TypeError, match="ConvFeatureExtractor at the end predicts no classes"):
        OcclusionDisplay.from_estimator(extractor, X[0])
    frozen = ConvFeatureExtractor(extractor.module_.body, image_shape=(8, 8), layer="conv")
    with pytest.raises(TypeError, match="Ridge at the end predicts no classes"):
        OcclusionDisplay.from_estimator(make_pipeline(frozen, Ridge()).fit(X, y), X[0])
    pairs = make_pipeline(frozen, SVC(decision_function_shape="ovo")).fit(X, y)
    search = GridSearchCV(SVC(decision_function_shape="ovo"), {"C": [1.0]}, cv=2)
    for model in pairs, make_pipeline(frozen, make_pipeline(search)).fit(X, y):
        with pytest.raises(ValueError, match="'ovo' scores pairs of classes"):
            OcclusionDisplay.from_estimator(model, X[0])
    logistic = make_pipeline(frozen, LogisticRegression(max_iter=1000)).fit(X, y)
    assert OcclusionDisplay.from_estimator(logistic, X[0]).response_method == "predict_proba"
