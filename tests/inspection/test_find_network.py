"""The network found in a model, and what it sees of X."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.inspection._find_network import find_network


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:150], y[:150]


@pytest.fixture(scope="module")
def net(digits):
    return ConvNetClassifier(max_epochs=3, random_state=0).fit(*digits)


@pytest.fixture(scope="module")
def pipeline(net, digits):
    extractor = ConvFeatureExtractor(FrozenEstimator(net), layer=["conv2", "dense"])
    steps = [
        ("scale", StandardScaler(with_std=False)),
        ("nothing", "passthrough"),
        ("net", Pipeline([("none", "passthrough"), ("inner", extractor), ("pca", PCA(20))])),
        ("head", LogisticRegression(max_iter=1000)),
    ]
    return Pipeline(steps).fit(*digits)


@contextmanager
def counted_images(net):
    """A list of how many images are in each batch whose pixels the network prepares."""
    counts: list = []
    hook = net.module_.prepare.register_forward_hook(lambda _, x, __: counts.append(len(x[0])))
    try:
        yield counts
    finally:
        hook.remove()


def test_a_pipeline_is_taken_apart_at_any_depth(pipeline, digits):
    search = GridSearchCV(make_pipeline(FrozenEstimator(pipeline)), {}, cv=2).fit(*digits)
    for model in (pipeline, FrozenEstimator(pipeline), search):
        found = find_network(model)
        assert found.estimator is pipeline["net"]["inner"]
        assert [type(step) for step in found.before] == [StandardScaler]
        assert [type(step) for step in found.behind] == [PCA, LogisticRegression]
        assert found.is_extractor
        assert found.network is pipeline["net"]["inner"].module_


def test_the_steps_in_front_are_applied_to_images_but_not_to_pictures(pipeline, digits):
    X, _ = digits
    found = find_network(pipeline)
    scaled = pipeline["scale"].transform(X[:5])
    np.testing.assert_array_equal(found.images(X[:5])[:], scaled.reshape(5, 1, 8, 8))
    np.testing.assert_array_equal(found.pictures(X[:5])[:], X[:5].reshape(5, 1, 8, 8))


def test_pictures_of_what_only_the_steps_make_images(net, digits):
    X, y = digits
    wide = np.hstack([X, X])
    chosen = make_pipeline(PCA(64, random_state=0), net).fit(wide, y)
    found = find_network(chosen)
    images = chosen[0].transform(wide[:3]).reshape(3, 1, 8, 8)
    np.testing.assert_array_equal(found.pictures(wide[:3])[:], images)


def test_predictions_from_one_pass_are_the_models_own(pipeline, net, digits):
    X, y = digits
    for model in (pipeline, net):
        found, expected = find_network(model), (model.predict(X), model.predict_proba(X))
        with counted_images(net) as n_images:
            labels, probabilities = found.predict(X)
        assert sum(n_images) == len(X)
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_array_equal(probabilities, expected[1])
        np.testing.assert_array_equal(found.classes, model.classes_)
    svm = make_pipeline(ConvFeatureExtractor(FrozenEstimator(net)), SVC()).fit(X, y)
    labels, probabilities = find_network(svm).predict(X)
    np.testing.assert_array_equal(labels, svm.predict(X))
    assert probabilities is None


def test_features_of_layers_are_the_extractors(pipeline, net, digits):
    X, _ = digits
    found = find_network(pipeline)
    images = found.images(X)
    own = pipeline["net"]["inner"].transform(pipeline["scale"].transform(X))
    np.testing.assert_array_equal(found.features(images, found.taps()), own)
    for layer, pool in [("conv1", "max"), (["pool2", "dense"], "auto"), ("conv*", "flatten")]:
        frozen = ConvFeatureExtractor(FrozenEstimator(net), layer=layer, pool=pool).fit(X)
        found = find_network(net)
        features = found.features(found.images(X), found.taps(layer, pool))
        np.testing.assert_array_equal(features, frozen.transform(X))
    assert find_network(net).taps().layers == ["dense"]


def test_one_image_is_found_in_every_form(net, digits, tmp_path):
    image = pytest.importorskip("PIL.Image")
    X, _ = digits
    found, first = find_network(net), X[0]
    frame = pd.DataFrame(X)
    forms = [
        *(first, first[None], first.reshape(8, 8), first.reshape(1, 8, 8)),
        *(first.reshape(8, 8, 1), first.reshape(1, 8, 8, 1), first.reshape(1, 1, 8, 8)),
        *(torch.from_numpy(first), torch.from_numpy(first).reshape(8, 8)),
        *(frame.iloc[0], frame.iloc[:1], first.tolist()),
    ]
    for form in forms:
        images = found.images(found.one_image(form))
        np.testing.assert_array_equal(np.asarray(images[:]), first.reshape(1, 1, 8, 8))
    pixels = first.astype(np.uint8).reshape(8, 8)
    photo = image.fromarray(pixels)
    photo.save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    for form in (photo, tmp_path / "one.png", str(tmp_path / "one.png"), content, [photo]):
        np.testing.assert_array_equal(found.images(found.one_image(form))[0:1], pixels[None, None])
    with pytest.raises(ValueError, match="one image is shown, but X holds 3"):
        found.one_image([photo] * 3)


def test_photos_that_can_not_be_read_are_refused(digits, tmp_path):
    image = pytest.importorskip("PIL.Image")
    photos = [image.fromarray(one.astype(np.uint8).reshape(8, 8)) for one in digits[0][:20]]
    estimator = ConvNetClassifier(max_epochs=1, image_shape=(8, 8))
    model = ConvFeatureExtractor(estimator, on_bad_image="nan").fit(photos, digits[1][:20])
    (tmp_path / "bad.png").write_bytes(b"nothing")
    found = find_network(model)
    images = found.images([photos[0], tmp_path / "bad.png"])
    with pytest.raises(ValueError, match=r"bad\.png can't be read"):
        found.features(images, found.taps())


def test_names_of_columns_stay_known(digits):
    X, y = digits
    frame = pd.DataFrame(X, columns=[f"pixel{i}" for i in range(64)])
    net = ConvNetClassifier(max_epochs=1, random_state=0).fit(frame, y)
    found = find_network(net)  # else scikit-learn warns, which is an error here
    np.testing.assert_array_equal(found.images(found.one_image(frame.iloc[3]))[0].ravel(), X[3])


def test_what_stands_in_front_says_what_it_can_not_take(pipeline):
    with pytest.raises(ValueError, match=r"\(8, 8\) holds no images .* StandardScaler"):
        find_network(pipeline).one_image(np.zeros((8, 8)))


def test_an_extractor_alone_predicts_nothing(net, digits):
    extractor = ConvFeatureExtractor(FrozenEstimator(net)).fit(digits[0])
    for model in (extractor, make_pipeline(extractor, PCA(2)).fit(digits[0])):
        with pytest.raises(TypeError, match="predicts no classes: pass a ConvNetClassifier, or"):
            find_network(model).predict(digits[0])
