"""layer_probe: accuracies against scikit-learn's, one pass, its bounds, what it refuses."""

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import GridSearchCV, LeaveOneOut, ShuffleSplit, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier
from sklconv._networks import layer_choice
from sklconv.inspection import layer_probe

IMAGES, DIGITS = load_digits(n_class=4, return_X_y=True)
IMAGES = IMAGES.reshape(-1, 8, 8).astype(np.uint8)
X, y = IMAGES[:90], np.array(["zero", "one", "two", "three"])[DIGITS[:90]]


class Stages(nn.Module):
    """Maps of two sizes and a hidden layer; counts the images that are not blank."""

    n_seen = 0

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU())
        self.hidden, self.dense = nn.Linear(6, 9), nn.ReLU()
        self.output = nn.Linear(9, 4)

    def forward(self, x):
        self.n_seen += int((x.flatten(1).abs().sum(1) > 0).sum())
        return self.output(self.dense(self.hidden(self.stage(self.stem(x)).mean((2, 3)))))


def extractor(**params):
    return ConvFeatureExtractor(Stages(), **params).fit(X)


def ways(probe):
    return list(zip(probe.layers, probe.pools, strict=True))


def naive_accuracies(features, labels, folds):
    """Of scikit-learn's ridge classifier, with the strength that does best, leave one out."""
    strengths = layer_choice.STRENGTHS * features.shape[1]
    head = make_pipeline(StandardScaler(), RidgeClassifierCV(strengths))
    features = features.astype(np.float64)
    return [
        head.fit(features[train], labels[train]).score(features[test], labels[test])
        for train, test in folds
    ]


# What is found ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [4, StratifiedKFold(3, shuffle=True, random_state=0), "splits"])
def test_accuracies_are_those_of_a_ridge_classifier_on_each_layer(cv):
    if cv == "splits":
        cv = list(ShuffleSplit(3, test_size=30, random_state=0).split(X))
    probe = layer_probe(extractor(), X, y, cv=cv)
    splits = cv if isinstance(cv, list) else None
    if splits is None:
        splitter = StratifiedKFold(cv) if isinstance(cv, int) else cv
        splits = list(splitter.split(X, y))
    assert probe.accuracies.shape == (len(probe.layers), len(splits))
    for i, (layer, pool) in enumerate(ways(probe)):
        features = extractor(layer=layer, pool=pool).transform(X)
        assert probe.n_features[i] == features.shape[1]
        # Rounding may turn over one image of a fold whose scores are nearly equal.
        one_image = 1 / min(len(test) for _, test in splits)
        expected = naive_accuracies(features, y, splits)
        assert_allclose(probe.accuracies[i], expected, atol=one_image * 1.01)
        assert np.mean(probe.accuracies[i] != expected) < 0.5
    assert_array_equal(probe.accuracies_mean, probe.accuracies.mean(1))
    assert_array_equal(probe.accuracies_std, probe.accuracies.std(1))
    assert probe.n_samples == 90


def test_a_ridge_of_one_fold_is_scikit_learns():
    rng = np.random.default_rng(0)
    for n_features in (5, 60):  # fewer and more than rows
        targets = np.eye(3)[rng.integers(0, 3, 40)]
        features = rng.normal(size=(40, n_features)) + targets @ rng.normal(size=(3, n_features))
        new = rng.normal(size=(7, n_features))
        strengths = layer_choice.STRENGTHS * n_features
        head = make_pipeline(StandardScaler(), RidgeClassifierCV(strengths))
        head.fit(features, targets.argmax(1))
        ridge = layer_choice.LeaveOneOutRidge(features, targets, np.ones(40))
        # scikit-learn's targets are -1 and 1.
        assert_allclose(2 * ridge.predict(new) - 1, head.decision_function(new), atol=1e-8)


class Products(nn.Module):
    """Products of the pixels of the left half with those of the right."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        left, right = x.flatten(1).chunk(2, dim=1)
        return self.scale * left * right


class Blur(nn.Linear):
    """Forgets the first value."""

    def forward(self, x):
        return super().forward(torch.cat([0 * x[:, :1], x[:, 1:]], dim=1))


def test_the_layer_that_alone_tells_the_classes_apart_is_found():
    images = np.random.default_rng(0).normal(size=(300, 8, 2)).astype(np.float32)
    pixels = images.reshape(300, 16)
    labels = np.where(pixels[:, 0] * pixels[:, 8] > 0, "same", "other")
    body = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), Products(), Blur(8, 6), nn.Tanh(), nn.Linear(6, 5)
    )
    probe = layer_probe(ConvFeatureExtractor(body).fit(images), images, labels)
    best = int(probe.accuracies_mean.argmax())
    assert probe.layers[best] == "1"
    assert probe.accuracies_mean[best] > 0.85
    assert np.delete(probe.accuracies_mean, best).max() < 0.65
    assert [name for name, own in zip(probe.layers, probe.own, strict=True) if own] == ["3"]


def test_each_image_passes_once():
    fitted = extractor()
    fitted.module_.body.n_seen = 0
    layer_probe(fitted, X, y, pool=["avg", "max", "flatten"])
    assert fitted.module_.body.n_seen == len(X)


# Layers and poolings ----------------------------------------------------------------------------


def test_what_is_probed():
    probe = layer_probe(extractor(), X, y)
    assert ways(probe) == [
        *(("stem", "flatten"), ("stem", "avg"), ("stage", "flatten"), ("stage", "avg")),
        ("dense", "auto"),
    ]
    assert list(probe.own) == [False] * 4 + [True]


def test_what_an_extractor_takes_is_probed_as_well():
    probe = layer_probe(extractor(layer=["stem.0", "stage"], pool="max"), X, y)
    own = [way for way, is_own in zip(ways(probe), probe.own, strict=True) if is_own]
    assert own == [("stem.0", "max"), ("stage", "max")]
    assert ways(probe)[0] == ("stem.0", "max")  # in the order in which they run
    probe = layer_probe(extractor(layer="stage"), X, y)
    own = [way for way, is_own in zip(ways(probe), probe.own, strict=True) if is_own]
    assert own == [("stage", "avg")]
    assert len(set(ways(probe))) == len(ways(probe)) == 5


def first_maps(activation):
    return activation.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("layer", "pool", "expected"),
    [
        ("stage", "max", [("stage", "max")]),
        (["stage", "stem"], "auto", None),
        ("st*", ["avg", "max"], None),
        (-1, "auto", [("output", "auto")]),
        ("penultimate", ["avg", "max"], [("dense", "auto")]),  # a vector, which stays as it is
        ("stem", ["avg", first_maps], [("stem", "avg"), ("stem", first_maps)]),
    ],
)
def test_layers_and_poolings_can_be_named(layer, pool, expected):
    probe = layer_probe(extractor(), X, y, layer=layer, pool=pool)
    if expected is not None:
        assert ways(probe) == expected
    else:
        positions = [name.partition(".")[0] for name in probe.layers]
        assert positions == sorted(positions, key=["stem", "stage"].index)
        assert len(set(ways(probe))) == len(ways(probe))
    for i, (name, way) in enumerate(ways(probe)):
        assert probe.n_features[i] == extractor(layer=name, pool=way).transform(X[:1]).shape[1]


# Models -----------------------------------------------------------------------------------------


def halved(X):
    return X / 2


def test_the_model_around_the_network_does_not_matter():
    net = ConvNetClassifier(max_epochs=1, random_state=0).fit(X, y)
    expected = layer_probe(net, X, y)
    assert [name for name, own in zip(expected.layers, expected.own, strict=True) if own] == [
        "dense"
    ]
    frozen = ConvFeatureExtractor(FrozenEstimator(net))
    pipeline = make_pipeline(frozen, SVC()).fit(X, y)
    search = GridSearchCV(pipeline, {"svc__C": [1.0]}, cv=2).fit(X, y)
    for model in (frozen.fit(X), pipeline, search):
        probe = layer_probe(model, X, y)
        assert probe.keys() == expected.keys()
        for name in expected:
            assert_array_equal(probe[name], expected[name])


def test_steps_in_front_are_applied():
    plain = layer_probe(extractor(), halved(X.astype(float)), y)
    step = FunctionTransformer(halved)
    model = make_pipeline(step, ConvFeatureExtractor(Stages()), SVC())
    assert_array_equal(
        layer_probe(model.fit(X.astype(float), y), X.astype(float), y).accuracies,
        plain.accuracies,
    )


def test_a_backbone_in_a_pipeline():
    backbone = Backbone(Stages(), mean=[0.5], std=[0.5], image_size=8)
    model = make_pipeline(ConvFeatureExtractor(backbone, layer="stage"), SVC()).fit(X, y)
    probe = layer_probe(model, X, y, cv=2)
    assert sum(probe.own) == 1
    assert probe.accuracies_mean.max() > 0.7


# Bounds -----------------------------------------------------------------------------------------


def test_of_many_images_a_part_passes_in_the_same_folds(monkeypatch):
    monkeypatch.setattr(layer_choice, "MAX_ROWS", 40)
    fitted = extractor()
    fitted.module_.body.n_seen = 0
    probe = layer_probe(fitted, X, y, cv=3)
    assert probe.n_samples == fitted.module_.body.n_seen == 40
    assert probe.accuracies.shape[1] == 3
    rows = layer_choice.sample_rows(
        np.unique(y, return_inverse=True)[1], np.ones(90), fitted._taps
    )
    features = fitted.transform(X)
    folds = [
        (np.intersect1d(train, rows), np.intersect1d(test, rows))
        for train, test in StratifiedKFold(3).split(X, y)
    ]
    expected = naive_accuracies(features, y, folds)
    assert_allclose(probe.accuracies[-1], expected, atol=1.01 / min(len(t) for _, t in folds))


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(layer_choice, "MAX_BYTES", 2**24)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 1, 32, 32), dtype=np.uint8)
    body = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 1024, 3))
    fitted = ConvFeatureExtractor(body).fit(images)
    labels = np.arange(1000) % 3
    tracemalloc.start()
    try:
        probe = layer_probe(fitted, images, labels, cv=3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert probe.n_samples < 100
    assert peak < 2**24


def test_the_same_call_gives_the_same_bits():
    one, other = (layer_probe(extractor(), X, y) for _ in range(2))
    assert_array_equal(one.accuracies, other.accuracies)


@pytest.mark.parametrize("pool", ["avg", "flatten"])
@pytest.mark.parametrize("layer", ["stem.1", ["stage", "stem.1"], "penultimate"])
def test_the_models_own_layers_have_one_name(layer, pool):
    fitted = ConvFeatureExtractor(Stages(), layer=layer, pool=pool).fit(X)
    probe = layer_probe(fitted, X, y, cv=2)
    assert ways(probe) == ways(layer_probe(extractor(), X, y, cv=2))
    own = [way for way, is_own in zip(ways(probe), probe.own, strict=True) if is_own]
    names = {"stem.1": ["stem"], "penultimate": ["dense"]}.get(str(layer), ["stem", "stage"])
    assert [name for name, _ in own] == names


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.linspace(0, 1, 90), "Unknown label type: continuous"),
        (None, r"layer_probe asks how well .*: pass y"),
        (np.zeros(90, int), r"layer_probe needs two classes or more, not \[0\] alone"),
        (np.repeat(["a", "b"], [87, 3]), "cv: 5 folds need as many images .* of 'b' there are 3"),
        (y[:-1], "inconsistent numbers of samples"),
        (np.stack([y, y], axis=1), "1d array"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(ValueError, match=message):
        layer_probe(extractor(), X, labels)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"layer": "stgae"}, ValueError, "layer='stgae' is not a layer .* Did you mean 'stage'"),
        ({"layer": 1.5}, TypeError, "layer=1.5 is neither a name nor a negative index"),
        ({"pool": "mean"}, ValueError, "The 'pool' parameter of layer_probe .* mean 'avg'"),
        ({"pool": "cls", "layer": "stem"}, ValueError, "takes the class token"),
        ({"cv": 1}, ValueError, "at least one train/test split"),
        ({"cv": [([0, 1], [2])]}, ValueError, "a fold trains on 2, of 2 classes|a fold trains on"),
        ({"cv": [(range(60), [])]}, ValueError, "tests on 0; it needs two classes and a test"),
    ],
)
def test_parameters_that_are_none(params, error, message):
    labels = np.repeat(["a", "b"], 45)
    with pytest.raises(error, match=message):
        layer_probe(extractor(), X, labels, **params)


def test_features_too_large_for_enough_images(monkeypatch):
    monkeypatch.setattr(layer_choice, "MAX_BYTES", 2**14)
    with pytest.raises(ValueError, match=r"cv: of \d+ images that are .*name fewer layers"):
        layer_probe(extractor(), X, y)


class Overflow(nn.Module):
    def forward(self, x):
        return x / 0


def test_layers_that_overflow_have_no_accuracy():
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), Overflow(), nn.Linear(72, 2))
    probe = layer_probe(ConvFeatureExtractor(body).fit(X), X, y, cv=2)
    overflows = [name == "3" for name in probe.layers]
    assert sum(overflows) == 1
    assert_array_equal(np.isnan(probe.accuracies_mean), overflows)
    with pytest.raises(ValueError, match="infinite or NaN"):
        layer_probe(ConvFeatureExtractor(body).fit(X), X, y, layer="3")


def test_every_row_may_be_a_fold():
    few = np.concatenate([np.flatnonzero(y == label)[:4] for label in ("zero", "one")])
    probe = layer_probe(extractor(), X[few], y[few], layer="dense", cv=LeaveOneOut())
    assert probe.accuracies.shape == (1, 8)
    assert set(np.unique(probe.accuracies)) <= {0.0, 1.0}
