"""What a user can get wrong: the errors, and that a failed call takes nothing away."""

import copy
import signal
import sys
import tempfile
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.svm import SVC
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, MaxPool

LAYERS = [
    ("conv", Conv(4, 3)),
    ("pool", MaxPool(2)),
    ("drop", Dropout(0.5)),
    ("dense", Dense(8)),
]
N = 24
X = np.random.default_rng(0).integers(0, 256, size=(N, 8, 8)).astype(np.float32)
y = np.array(["a", "b", "c"])[np.arange(N) % 3]


def classifier(**params):
    return ConvNetClassifier(LAYERS, **{"max_epochs": 1, "random_state": 0, **params})


def extractor(**params):
    return ConvFeatureExtractor(**{"estimator": classifier(), "layer": "dense", **params})


def outputs(estimator):
    if hasattr(estimator, "transform"):
        return estimator.transform(X)
    return estimator.decision_function(X)


def history(clf):
    return [{**row, "duration": None} for row in clf.history_]


@contextmanager
def nothing_lost(estimator):
    """Check that a fitted ``estimator`` is after the block what it was before."""
    attributes, expected = dict(vars(estimator)), outputs(estimator)
    trained = getattr(estimator, "estimator_", estimator)
    epochs = history(trained)
    yield
    assert vars(estimator).keys() == attributes.keys()
    assert all(vars(estimator)[name] is value for name, value in attributes.items())
    np.testing.assert_array_equal(outputs(estimator), expected)
    assert history(trained) == epochs


def check_raises(call, error, words):
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert all(word in message for word in words), message


def bad(name, *case, **kwargs):
    return pytest.param(*case, id=name, **kwargs)


@pytest.fixture
def fitted():
    return {"classifier": classifier().fit(X, y), "extractor": extractor().fit(X, y)}


# X


def with_words(frame):
    return frame.assign(**{"words": "white"}).rename(columns=str).drop(columns="0")


SOME = X > 200
BAD_X = [
    bad("a number", np.float64(3), TypeError, ["at least 1 dimension"]),
    bad("nothing", None, TypeError, ["at least 1 dimension"]),
    bad("a word", "digits", TypeError, ["single image", "list"]),
    bad("one flat image", X[0].ravel(), ValueError, ["2D array", "(64,)", "X[None]"]),
    bad("five axes", X[:, None, None], ValueError, ["5", "(24, 1, 1, 8, 8)", "(n, C, H, W)"]),
    bad("NaN", np.where(SOME, np.nan, X), ValueError, ["Input X contains NaN"]),
    bad("infinity", np.where(SOME, np.inf, X), ValueError, ["X contains infinity"]),
    bad("minus infinity", np.where(SOME, -np.inf, X), ValueError, ["X", "infinity"]),
    bad("too large", X.astype(float) * 1e300, ValueError, ["X", "too large for dtype('float32')"]),
    bad("None among numbers", np.where(X > 99, None, X), ValueError, ["Input X contains NaN"]),
    bad("complex", X + 1j, ValueError, ["Complex data not supported"]),
    bad("sparse", scipy.sparse.csr_matrix(X[:, 0]), TypeError, ["Sparse data", "X", "dense"]),
    bad("words", np.full((N, 64), "white"), ValueError, ["X", "numbers", "strings"]),
    bad("numeric strings", X.astype(str), ValueError, ["X", "numbers", "strings"]),
    bad("bytes", X.astype("S8"), ValueError, ["X", "numbers", "strings"]),
    bad("strings as objects", X.astype(str).astype(object), ValueError, ["X", "strings"]),
    bad(
        "a column of words",
        with_words(pd.DataFrame(X.reshape(N, 64))),
        ValueError,
        ["X", "strings"],
    ),
    bad("dates", X.astype("datetime64[s]"), ValueError, ["X", "numbers", "datetime64"]),
    bad("no images", X[:0], ValueError, ["0 sample(s)", "minimum of 1"]),
    bad("an empty list", [], ValueError, ["X is empty", "no photos"]),
    bad("an empty array", np.array([], dtype=str), ValueError, ["X is empty", "no photos"]),
    bad("an empty Series", pd.Series([], dtype=str), ValueError, ["X is empty", "no photos"]),
    bad("no pixels", X[:, :0], ValueError, ["0 feature(s)", "minimum of 1"]),
    bad(
        "images of two sizes",
        [X[0], X[1], X[2, :5]],
        ValueError,
        ["X[0] has (8, 8)", "X[2] has (5, 8)", "Resize", "files or PIL images"],
    ),
    bad(
        "a tuple of tensors of two sizes",
        (torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)),
        ValueError,
        ["(3, 8, 8)", "X[1] has (3, 8, 9)"],
    ),
    bad("a generator", (image for image in X), TypeError, ["X is a generator", "list(X)"]),
    bad("a set", {1.0, 2.0}, TypeError, ["X is a set", "list(X)"]),
    bad("a dict", {"images": X}, TypeError, ["X is a dict", "X[key]"]),
    bad("values of a dict", {"images": X}.values(), TypeError, ["X is a dict_values", "list(X)"]),
    bad("a folder", tempfile.gettempdir(), TypeError, ["X is a folder", "glob", "load_files"]),
    bad("rows of two lengths", [[1.0] * 64, [1.0] * 63], ValueError, ["(64,)", "(63,)"]),
]


def methods(clf, features):
    return {
        "fit": lambda X: clf.fit(X, y),
        "partial_fit": lambda X: clf.partial_fit(X, y),
        "predict": clf.predict,
        "predict_proba": clf.predict_proba,
        "decision_function": clf.decision_function,
        "score": lambda X: clf.score(X, y),
        "fit of the extractor": lambda X: features.fit(X, y),
        "transform": features.transform,
        "transform_batches": lambda X: list(features.transform_batches(X)),
    }


@pytest.mark.parametrize(("wrong", "error", "words"), BAD_X)
@pytest.mark.filterwarnings("ignore:X has feature names:UserWarning")  # of the DataFrame
@pytest.mark.filterwarnings("ignore:Feature names only support:FutureWarning")
def test_bad_images(wrong, error, words, fitted):
    clf, features = fitted["classifier"], fitted["extractor"]
    with nothing_lost(clf), nothing_lost(features):
        for call in methods(clf, features).values():
            check_raises(lambda call=call: call(wrong), error, words)
    for unfitted in (classifier(), extractor()):
        check_raises(lambda unfitted=unfitted: unfitted.fit(wrong, y), error, words)
        assert not [name for name in vars(unfitted) if name.endswith("_")]
    unfitted = classifier()
    check_raises(lambda: unfitted.partial_fit(wrong, y, classes=["a", "b", "c"]), error, words)
    assert not [name for name in vars(unfitted) if name.endswith("_")]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        bad("another height", X[:, :7], ValueError, ["(24, 7, 8)", "(1, 8, 8)"]),
        bad("three channels", np.stack([X] * 3, 1), ValueError, ["(24, 3, 8, 8)", "(1, 8, 8)"]),
        bad("fewer features", X.reshape(N, 64)[:, :60], ValueError, ["60 features", "64"]),
        bad("one image", X[0], ValueError, ["(8, 8)", "single image", "X[None]"]),
    ],
)
def test_images_unlike_those_fitted(wrong, error, words, fitted):
    clf, features = fitted["classifier"], fitted["extractor"]
    calls = methods(clf, features)
    with nothing_lost(clf), nothing_lost(features):
        for name in calls.keys() - {"fit", "fit of the extractor"}:
            check_raises(lambda name=name: calls[name](wrong), error, words)
        clf.warm_start = True
        check_raises(lambda: clf.fit(wrong, y), error, words)
        clf.warm_start = False


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        bad(
            "ambiguous channels", np.ones((N, 3, 8, 4)), ["(3, 8, 4)", "(4, 3, 8)", "data_format"]
        ),
        bad("no square", np.ones((N, 72)), ["72 features", "image_shape=(2, 6, 6)"]),
    ],
)
def test_images_whose_shape_is_a_riddle(wrong, words, fitted):
    for estimator in fitted.values():
        with nothing_lost(estimator):
            check_raises(lambda estimator=estimator: estimator.fit(wrong, y), ValueError, words)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "score"])
def test_a_classifier_that_is_not_fitted(method):
    args = (X, y) if method == "score" else (X,)
    with pytest.raises(NotFittedError, match="ConvNetClassifier instance is not fitted"):
        getattr(classifier(), method)(*args)


@pytest.mark.parametrize("method", ["transform", "transform_batches", "get_feature_names_out"])
def test_an_extractor_that_is_not_fitted(method):
    args = () if method == "get_feature_names_out" else (X,)
    with pytest.raises(NotFittedError, match="ConvFeatureExtractor instance is not fitted"):
        list(getattr(extractor(), method)(*args))


# y

NUMBERS = np.arange(N) % 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        bad("too few", y[:-1], ["inconsistent numbers of samples", "24", "23"]),
        bad("continuous", NUMBERS + 0.5, ["Unknown label type", "continuous"]),
        bad("NaN", np.where(NUMBERS == 0, np.nan, NUMBERS), ["Input y contains NaN"]),
        bad("NaN among objects", np.where(y == "a", np.nan, y.astype(object)), ["NaN"]),
        bad("infinity", np.where(NUMBERS == 0, np.inf, NUMBERS), ["Input y contains infinity"]),
        bad("one column a class", np.eye(3)[NUMBERS], ["1d array", "(24, 3)"]),
        bad("none", None, ["requires y", "y is None"]),
    ],
)
def test_bad_labels(wrong, words, fitted):
    clf, features = fitted["classifier"], fitted["extractor"]
    with nothing_lost(clf), nothing_lost(features):
        for call in (clf.fit, clf.partial_fit, features.fit):
            check_raises(lambda call=call: call(X, wrong), ValueError, words)
        clf.warm_start = True
        check_raises(lambda: clf.fit(X, wrong), ValueError, words)
        clf.warm_start = False


@pytest.mark.parametrize(
    ("images", "labels"), [bad("one class", X, np.full(N, "a")), bad("one sample", X[:1], y[:1])]
)
def test_one_class(images, labels, fitted):
    for estimator in fitted.values():
        with nothing_lost(estimator):
            check_raises(
                lambda estimator=estimator: estimator.fit(images, labels),
                ValueError,
                ["at least 2 classes", "y has 1 class", "a"],
            )


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        bad(
            "unknown label", np.where(y == "a", "d", y), None, ["y holds ['d']", "['a', 'b', 'c']"]
        ),
        bad(
            "other classes", y, ["a", "b"], ["classes=['a', 'b']", "first call", "['a', 'b', 'c']"]
        ),
    ],
)
def test_classes_of_a_later_partial_fit(labels, classes, words, fitted):
    clf = fitted["classifier"]
    with nothing_lost(clf):
        check_raises(lambda: clf.partial_fit(X, labels, classes), ValueError, words)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        bad("missing", None, ["classes must be passed on the first call to partial_fit"]),
        bad("one", ["a"], ["classes=['a']", "at least 2"]),
        bad("not all", ["a", "b"], ["y holds ['c']", "['a', 'b']"]),
    ],
)
def test_classes_of_the_first_partial_fit(classes, words):
    clf = classifier()
    check_raises(lambda: clf.partial_fit(X, y, classes), ValueError, words)
    assert not [name for name in vars(clf) if name.endswith("_")]


# Weights


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        bad("negative", np.where(y == "a", -1.0, 1.0), ["Negative values", "sample_weight"]),
        bad("all zero", np.zeros(N), ["ample", "weight", "zero"]),
        bad("NaN", np.full(N, np.nan), ["sample_weight contains NaN"]),
        bad("infinity", np.full(N, np.inf), ["sample_weight contains infinity"]),
        bad("too few", np.ones(N - 1), ["sample_weight.shape", "(23,)", "(24,)"]),
        bad("two axes", np.ones((N, 2)), ["ample weights", "1D"]),
    ],
)
def test_bad_sample_weights(weights, words, fitted):
    clf, features = fitted["classifier"], fitted["extractor"]
    with nothing_lost(clf), nothing_lost(features):
        for call in (clf.fit, clf.partial_fit, features.fit):
            check_raises(lambda call=call: call(X, y, sample_weight=weights), ValueError, words)
        check_raises(
            lambda: clf.fit(X, y, X_val=X, y_val=y, sample_weight_val=weights),
            ValueError,
            ["weight"],
        )


@pytest.mark.parametrize(
    ("class_weight", "words"),
    [
        bad("negative", {"a": -1}, ["class_weight", "negative"]),
        bad("all zero", {"a": 0, "b": 0, "c": 0}, ["class_weight", "zero"]),
        bad("NaN", {"a": np.nan}, ["class_weight", "finite"]),
        bad("infinity", {"a": np.inf}, ["class_weight", "finite"]),
        bad("no class", {"a": 2, "d": 2}, ["class_weight", "['d']", "['a', 'b', 'c']"]),
    ],
)
def test_bad_class_weights(class_weight, words, fitted):
    clf = fitted["classifier"].set_params(class_weight=class_weight)
    with nothing_lost(clf):
        check_raises(lambda: clf.fit(X, y), ValueError, words)
        check_raises(lambda: clf.partial_fit(X, y), ValueError, words)


def test_balanced_weights_need_all_of_y(fitted):
    clf = fitted["classifier"].set_params(class_weight="balanced")
    with nothing_lost(clf):
        words = ["class_weight='balanced'", "partial_fit", "dict"]
        check_raises(lambda: clf.partial_fit(X, y), ValueError, words)


# Validation data


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        bad("no labels", {"X_val": X}, ["X_val", "y_val"]),
        bad("no images", {"y_val": y}, ["X_val", "y_val"]),
        bad("weights alone", {"sample_weight_val": y}, ["sample_weight_val", "X_val", "y_val"]),
        bad("shape", {"X_val": X[:, :7], "y_val": y}, ["(24, 7, 8)", "(1, 8, 8)"]),
        bad("NaN", {"X_val": X * np.nan, "y_val": y}, ["contains NaN"]),
        bad("labels", {"X_val": X[:2], "y_val": ["a", "d"]}, ["y_val holds ['d']"]),
        bad("lengths", {"X_val": X[:2], "y_val": y}, ["inconsistent numbers", "2", "24"]),
        bad("empty", {"X_val": X[:0], "y_val": y[:0]}, ["0 sample(s)"]),
    ],
)
def test_bad_validation_data(arguments, words, fitted):
    for estimator in fitted.values():
        if "sample_weight_val" in arguments and estimator is fitted["extractor"]:
            continue
        with nothing_lost(estimator):
            check_raises(
                lambda estimator=estimator: estimator.fit(X, y, **arguments), ValueError, words
            )
    check_raises(lambda: classifier().fit(X, y, **arguments), ValueError, words)


# Parameters


def first_image(batch):
    return batch[:1]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        *[
            bad(f"{name}={value!r}", {name: value}, [f"'{name}' parameter", repr(value)])
            for name, values in {
                "batch_size": [0, -1, 2.5, "large", None],
                "max_epochs": [0, 1.5, None],
                "lr": [0, -1, np.nan, np.inf, "fast"],
                "weight_decay": [-1, None],
                "lr_schedule": ["step", 3],
                "optimizer": ["sgdd", None],
                "optimizer_params": [[("momentum", 0.9)]],
                "class_weight": ["even"],
                "augment": [3],
                "early_stopping": ["yes", None],
                "validation_fraction": [0, 1, 1.5],
                "n_iter_no_change": [0],
                "tol": [-1],
                "warm_start": ["yes"],
                "callbacks": ["print"],
                "net_params": [[1]],
                "device": [0, None],
                "random_state": ["zero", -1],
                "verbose": [-1, "much"],
                "data_format": ["NCHW", None],
                "standardize": [None, "yes"],
            }.items()
            for value in values
        ],
        bad("another device", {"device": "abacus"}, ["device='abacus'", "'auto'", "'cpu'"]),
        bad("image_shape", {"image_shape": (9, 9)}, ["image_shape=(1, 9, 9)", "(24, 8, 8)"]),
        bad("image_shape of text", {"image_shape": "8x8"}, ["image_shape='8x8'", "height"]),
        bad(
            "engine",
            {"net_params": {"iterator_train__shuffle": True}},
            ["net_params", "iterator_train__shuffle"],
        ),
        bad("own parameter", {"net_params": {"lr": 1}}, ["net_params", "'lr'"]),
        bad("unknown to skorch", {"net_params": {"foo": 1}}, ["foo"]),
        bad("rate", {"optimizer_params": {"lr": 0.1}}, ["optimizer_params", "'lr'"]),
        bad("decay in net_params", {"net_params": {"optimizer__weight_decay": 1}}, ["net_params"]),
        bad("decay", {"optimizer_params": {"weight_decay": 1}}, ["optimizer_p", "'weight_decay'"]),
        bad(
            "a callback that needs validation data",
            {"callbacks": [EarlyStopping()]},
            ["callbacks", "'valid_loss'", "X_val", "early_stopping=True"],
        ),
        bad(
            "a schedule that needs validation data",
            {"callbacks": [LRScheduler(ReduceLROnPlateau, monitor="valid_loss")]},
            ["callbacks", "'valid_loss'", "X_val", "early_stopping=True"],
        ),
        bad(
            "hold-out too small",
            {"early_stopping": True, "validation_fraction": 0.05},
            ["early_stopping", "validation_fraction=0.05", "3 classes", "X_val"],
        ),
        bad(
            "batch normalisation of single images",
            {"module": [("dense", Dense(8)), ("norm", BatchNorm())], "batch_size": 1},
            ["batch normalisation", "batch_size", "more than 1"],
        ),
        bad("augment loses images", {"augment": first_image}, ["augment returned (1, 1, 8, 8)"]),
        bad("augment returns none", {"augment": lambda x: None}, ["augment returned NoneType"]),
        bad(
            "augment returns an array",
            {"augment": lambda x: x.numpy()},
            ["augment returned ndarray", "tensor"],
        ),
        bad(
            "loss",
            {"lr": 1e30, "batch_size": 8},
            ["loss", "epoch 1, batch 2 of 3", "learning rate"],
        ),
    ],
)
def test_bad_parameters_of_the_classifier(params, words, fitted):
    for estimator in fitted.values():
        clf = estimator if hasattr(estimator, "predict") else estimator.estimator
        clf.set_params(**params)
        with nothing_lost(estimator):
            check_raises(lambda estimator=estimator: estimator.fit(X, y), ValueError, words)


@pytest.mark.parametrize("callback", [KeyError, ("bar", object())])
def test_callbacks_of_another_kind(callback, fitted):
    clf = fitted["classifier"].set_params(callbacks=[callback])
    with nothing_lost(clf):
        check_raises(
            lambda: clf.fit(X, y), TypeError, ["callbacks", "no callback", "set_callbacks"]
        )


@pytest.mark.parametrize(
    ("params", "meant"),
    [
        ({"optimizer": "sgdd"}, "'sgd'"),
        ({"optimizer": "Adam"}, "'adam'"),
        ({"lr_schedule": "one_cycle"}, "'onecycle'"),
        ({"data_format": "NCHW"}, "'channels_first'"),
        ({"precision": "bf16"}, "'bfloat16'"),
        ({"module": "atuo"}, "'auto'"),
        ({"module": [("conv", Conv(4, 3, activation="ReLU"))]}, "'relu'"),
    ],
    ids=str,
)
def test_a_word_that_is_meant_is_proposed(params, meant):
    with pytest.raises((ValueError, TypeError), match=f"Did you mean {meant}\\?$"):
        classifier().set_params(**params).fit(X, y)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("timm/resnet18", r" Did you mean Backbone\('timm/resnet18'\)\?"),
        ("efficientnet_lite/efficientnet-lite9", r" Did you mean Backbone\('effic.*lite.'\)\?"),
        ("xyzzy", ""),
    ],
)
def test_a_network_by_name_is_a_backbone(name, meant, timm):
    with pytest.raises(ValueError, match=rf"^estimator='{name}' is none of .* None\.{meant}$"):
        ConvFeatureExtractor(name).fit(X)


@pytest.mark.parametrize("named", ["resnet18", "timm/resnet18"])
@pytest.mark.parametrize("estimator", [ConvNetClassifier, ConvFeatureExtractor])
def test_a_network_of_a_library_that_is_not_installed(estimator, named, monkeypatch):
    for package in ("timm", "torchvision", "torchvision.models", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises((TypeError, ValueError), match=r"Backbone\('timm/resnet18'\)\??$"):
        estimator(named).fit(X, y)


@pytest.mark.parametrize("params", [{"optimizer": "xyz"}, {"class_weight": "even"}, {"lr": "a"}])
def test_nothing_is_proposed_for_words_unlike_any(params):
    with pytest.raises(ValueError, match=r"'(optimizer|class_weight|lr)' parameter") as raised:
        classifier(**params).fit(X, y)
    assert "Did you mean" not in str(raised.value)


@pytest.mark.parametrize(
    ("estimator", "name", "meant"),
    [
        (ConvNetClassifier(), "learning_rate", "lr"),
        (ConvNetClassifier(), "epochs", "max_epochs"),
        (ConvNetClassifier(), "optimiser", "optimizer"),
        (ConvNetClassifier(), "conv11__filters", "conv1"),
        (ConvNetClassifier(), "conv1__kernel", "kernel_size"),
        (ConvNetClassifier(LAYERS), "dens__units", "dense"),
        (ConvFeatureExtractor(), "layers", "layer"),
        (extractor(), "estimator__learning_rate", "lr"),
        (ConvFeatureExtractor(Backbone("timm/resnet18")), "estimator__img_size", "image_size"),
    ],
)
def test_a_parameter_that_is_meant_is_proposed(estimator, name, meant):
    message = rf"Invalid parameter .*Valid parameters are: .*Did you mean '{meant}'\?$"
    with pytest.raises(ValueError, match=message):
        clone(estimator).set_params(**{name: 3})


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        bad(
            "unknown layer",
            {"layer": "dens"},
            ValueError,
            ["layer='dens'", "conv, pool, drop, flatten, dense, output", "'dense'?"],
        ),
        bad("one unknown", {"layer": ["conv", "conv9"]}, ValueError, ["layer='conv9'", "'conv'?"]),
        bad("unlike any", {"layer": "xyz"}, ValueError, ["layer='xyz'", "conv, pool"]),
        bad("empty glob", {"layer": "block*"}, ValueError, ["layer='block*'", "conv, pool"]),
        bad("no layer", {"layer": []}, ValueError, ["layer=[]"]),
        bad("from the front", {"layer": 2}, ValueError, ["layer=2", "-1 to -6"]),
        bad("too far back", {"layer": -7}, ValueError, ["layer=-7", "-1 to -6"]),
        bad("neither", {"layer": 1.5}, ValueError, ["'layer' parameter", "1.5"]),
        bad("neither, in a list", {"layer": [None]}, TypeError, ["layer=None", "name", "index"]),
        bad("pool", {"pool": "mean"}, ValueError, ["'pool' parameter", "'mean'"]),
        bad(
            "pool keeps maps",
            {"layer": "conv", "pool": lambda maps: maps},
            ValueError,
            ["pool returned", "(2, 4, 6, 6)", "'conv'", "(2, n_features)"],
        ),
        bad("pool loses images", {"pool": first_image}, ValueError, ["pool returned", "1, 8"]),
        bad("pool returns none", {"pool": lambda x: None}, ValueError, ["pool returned NoneType"]),
        bad("batch_size", {"batch_size": 0}, ValueError, ["'batch_size' parameter", "0"]),
        bad("data_format", {"data_format": "NCHW"}, ValueError, ["'data_format' parameter"]),
        bad("device", {"device": "abacus"}, ValueError, ["device='abacus'", "'cpu'"]),
        bad("image_shape", {"image_shape": (9, 9)}, ValueError, ["image_shape=(1, 9, 9)"]),
        bad("estimator", {"estimator": SVC()}, ValueError, ["'estimator' parameter", "SVC()"]),
        bad(
            "estimator is a class",
            {"estimator": ConvNetClassifier},
            ValueError,
            ["'estimator' parameter", "ConvNetClassifier"],
        ),
        bad(
            "frozen SVC",
            {"estimator": FrozenEstimator(SVC())},
            TypeError,
            ["estimator", "ConvNetClassifier", "SVC"],
        ),
        bad(
            "frozen, not fitted",
            {"estimator": FrozenEstimator(ConvNetClassifier())},
            NotFittedError,
            ["ConvNetClassifier", "not fitted"],
        ),
        bad(
            "frozen, of another shape",
            {"estimator": FrozenEstimator(ConvNetClassifier(max_epochs=1).fit(X[:, :7], y))},
            ValueError,
            ["(24, 8, 8)", "(1, 7, 8)"],
        ),
        bad(
            "module for other images",
            {"estimator": nn.Conv2d(3, 2, 1), "layer": -1},
            ValueError,
            ["can't take images of shape (1, 8, 8)"],
        ),
    ],
)
def test_bad_parameters_of_the_extractor(params, error, words, fitted):
    features = fitted["extractor"]
    expected = outputs(features)
    pool = params.get("pool")
    features.set_params(**params)
    attributes = dict(vars(features))
    check_raises(lambda: features.fit(X, y), error, words)
    assert all(vars(features)[name] is value for name, value in attributes.items())
    assert vars(features).keys() == attributes.keys()
    if pool is None:
        features.batch_size = None
        np.testing.assert_array_equal(features.transform(X), expected)
    check_raises(lambda: extractor(**params).fit(X, y), error, words)


# What is read in silence, but for a warning


def probabilities():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1))


@pytest.mark.parametrize("module", [probabilities(), TorchModule(probabilities)])
def test_a_network_that_puts_out_probabilities(module):
    with pytest.warns(UserWarning, match="puts out probabilities.*logits.*Leave the softmax out"):
        classifier().set_params(module=module).fit(X, y)


@pytest.mark.parametrize(
    "params",
    [
        {"module": nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.LogSoftmax(1))},
        {"module": probabilities(), "net_params": {"criterion": nn.MultiMarginLoss}},
    ],
)
def test_no_warning_of_probabilities(params):
    classifier().set_params(**params).fit(X, y)


def test_no_warning_of_probabilities_that_are_features():
    ConvFeatureExtractor(probabilities(), layer="2").fit(X)


@pytest.mark.parametrize("shape", [(192,), (8, 8, 3)])
def test_image_shape_in_the_order_of_keras(shape):
    images = np.zeros((N, *shape))
    with pytest.warns(UserWarning, match=r"\(channels, height, width\).*image_shape=\(3, 8, 8\)"):
        clf = ConvNetClassifier(image_shape=(8, 8, 3), max_epochs=1).fit(images, y)
    clf.predict(images)
    assert clf.image_shape_ == (8, 8, 3)


@pytest.mark.parametrize(
    "params",
    [
        {"image_shape": (3, 8, 8)},
        {"image_shape": (8, 8, 3), "data_format": "channels_first"},
        {"image_shape": (4, 16, 3)},
        {"image_shape": (6, 16, 2)},
    ],
)
def test_no_warning_of_image_shape(params):
    ConvNetClassifier(max_epochs=1, **params).fit(np.zeros((N, 192)), y)


# Failures amid the training


class Stop(Exception):
    pass


class At:
    """An augmentation that does something at one of its calls."""

    def __init__(self, call, action):
        self.call, self.action, self.calls = call, action, 0

    def __call__(self, batch):
        self.calls += 1
        return self.action(batch) if self.calls == self.call else batch


def raise_stop(batch):
    raise Stop


def to_nan(batch):
    return batch * np.nan


def press_ctrl_c(batch):
    signal.raise_signal(signal.SIGINT)
    return batch


FAILURES = {
    "an error in augment": (raise_stop, Stop, None),
    "a loss of NaN": (
        to_nan,
        ValueError,
        r"loss of the first batch is nan|loss became nan in epoch \d, batch \d of 3",
    ),
}


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("way", ["fit", "warm fit", "fit of the extractor"])
def test_a_fit_that_fails_amid_the_training(way, failure, at, fitted):
    action, error, message = FAILURES[failure]
    estimator = fitted["extractor" if "extractor" in way else "classifier"]
    clf = estimator if way != "fit of the extractor" else estimator.estimator
    clf.set_params(
        augment=At(at, action), batch_size=8, max_epochs=2, warm_start=way == "warm fit"
    )
    twin = copy.deepcopy(estimator)
    with nothing_lost(estimator), pytest.raises(error, match=message):
        estimator.fit(X, y)
    if way == "warm fit":
        # It goes on from where it was.
        for each in (estimator, twin):
            each.set_params(augment=None).fit(X, y)
        np.testing.assert_array_equal(outputs(estimator), outputs(twin))
        assert history(estimator) == history(twin)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("n_before", [0, 2])
def test_a_partial_fit_that_fails_amid_the_training(n_before, failure, at):
    action, error, message = FAILURES[failure]
    clf = classifier(batch_size=8, optimizer_params={"betas": (0.5, 0.9)})
    for _ in range(n_before):
        clf.partial_fit(X, y, classes=["a", "b", "c"])
    twin = copy.deepcopy(clf)
    clf.augment = At(at, action)
    if n_before:
        with nothing_lost(clf), pytest.raises(error, match=message):
            clf.partial_fit(X, y)
    else:
        with pytest.raises(error, match=message):
            clf.partial_fit(X, y, classes=["a", "b", "c"])
        assert not hasattr(clf, "classes_")
        assert not hasattr(clf, "net_")
    for each in (clf, twin):
        each.set_params(augment=None).partial_fit(X, y, classes=["a", "b", "c"])
    np.testing.assert_array_equal(outputs(clf), outputs(twin))
    assert history(clf) == history(twin)


def test_a_first_partial_fit_whose_loss_is_not_finite():
    clf = classifier(lr=1e30, batch_size=8)
    with pytest.raises(ValueError, match=r"loss became .* learning rate of 1e\+30.* smaller lr"):
        clf.partial_fit(X, y, classes=["a", "b", "c"])
    assert not hasattr(clf, "classes_")


@pytest.mark.parametrize("way", ["fit", "partial_fit"])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("scale", [1e-42, 1e36])
def test_images_of_a_scale_that_no_learning_rate_mends(scale, standardize, way):
    layers = [("dense", Dense(8, kernel_init=("normal", 1.0)))]
    clf = classifier(standardize=standardize, lr=1e-6).set_params(module=layers)
    arguments = {"classes": ["a", "b", "c"]} if way == "partial_fit" else {}
    small = scale < 1
    if small != standardize:  # small numbers are as good as 0, large ones are standardised
        getattr(clf, way)(scale * X, y, **arguments)
        assert np.isfinite(clf.predict_proba(scale * X)).all()
        return
    message = "channel 0 of X has .* deviation of .*e-41" if small else "first batch.*scale of X"
    with pytest.raises(ValueError, match=message) as raised:
        getattr(clf, way)(scale * X, y, **arguments)
    assert "lr" not in str(raised.value)
    assert "learning rate" not in str(raised.value)


@pytest.mark.parametrize("value", [1e-40, 1e30])
def test_constant_images_of_any_scale_train(value):
    clf = classifier().fit(np.full_like(X, value), y)
    assert np.isfinite(clf.predict_proba(X * np.float32(value))).all()


# Ctrl-C

KEPT = []


class KeepWeights(Callback):
    """Notes the weights behind each batch."""

    def on_batch_end(self, net, **kwargs):
        KEPT.append(copy.deepcopy(net.module_.state_dict()))


@pytest.fixture
def kept():
    KEPT.clear()
    return KEPT


def interrupt(estimator, at, *args, **kwargs):
    """Fit, with Ctrl-C pressed in the batch ``at``."""
    clf = getattr(estimator, "estimator", estimator)
    clf.set_params(augment=At(at, press_ctrl_c), batch_size=8, max_epochs=2)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(*args, **kwargs)
    clf.set_params(augment=None)


def test_ctrl_c_in_the_first_batch_of_the_first_fit():
    for estimator in (classifier(), extractor()):
        interrupt(estimator, 1, X, y)
        assert not [name for name in vars(estimator) if name.endswith("_")]
        with pytest.raises(NotFittedError):
            outputs(estimator)


@pytest.mark.parametrize("way", ["fit", "warm fit", "fit of the extractor"])
def test_ctrl_c_in_the_first_batch_of_a_later_fit(way, fitted):
    estimator = fitted["extractor" if "extractor" in way else "classifier"]
    if way == "warm fit":
        estimator.warm_start = True
    clf = getattr(estimator, "estimator", estimator)
    clf.set_params(augment=At(1, press_ctrl_c))
    with nothing_lost(estimator), pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)


@pytest.mark.parametrize("at", [2, 3, 4, 6])
@pytest.mark.parametrize("way", ["first fit", "fit", "warm fit"])
def test_ctrl_c_keeps_the_weights_of_that_moment(way, at, kept):
    clf = classifier(warm_start=way == "warm fit")
    if way != "first fit":
        clf.fit(X[:, :, :7] if way == "fit" else X, y)
    clf.callbacks = [KeepWeights()]
    interrupt(clf, at, X, y)

    assert len(kept) == at - 1
    weights = clf.module_.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in kept[-1].items())
    assert clf.image_shape_ == (1, 8, 8)
    assert list(clf.classes_) == ["a", "b", "c"]
    assert list(clf.layer_table_["name"]) == [name for name, _ in LAYERS][:3] + [
        "flatten",
        "dense",
        "output",
    ]
    assert set(clf.predict(X)) <= {"a", "b", "c"}
    np.testing.assert_array_equal(clf.decision_function(X), clf.decision_function(X))
    assert clf.score(X, y) <= 1
    assert not any(module.training for module in clf.module_.modules())


@pytest.mark.parametrize("at", [2, 3])
def test_ctrl_c_in_a_partial_fit_keeps_the_weights_of_that_moment(at, kept):
    clf = classifier(batch_size=8, callbacks=[KeepWeights()])
    clf.partial_fit(X, y, classes=["a", "b", "c"])
    kept.clear()
    clf.set_params(augment=At(at, press_ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        clf.partial_fit(X, y)
    assert len(kept) == at - 1
    weights = clf.module_.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in kept[-1].items())
    assert set(clf.predict(X)) <= {"a", "b", "c"}


def test_ctrl_c_in_a_partial_fit_leaves_the_number_of_its_epochs():
    clf = classifier(max_epochs=2, batch_size=8).fit(X, y)
    clf.augment = At(2, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        clf.partial_fit(X, y)
    # Of the last fit, which ended no epoch; they were those of the fit before.
    assert clf.n_iter_ == 0
    assert len(clf.history_) == 2


def test_ctrl_c_in_the_first_batch_of_a_later_partial_fit(fitted):
    clf = fitted["classifier"].set_params(augment=At(1, press_ctrl_c))
    with nothing_lost(clf), pytest.raises(KeyboardInterrupt):
        clf.partial_fit(X, y)


def test_training_goes_on_after_ctrl_c_at_the_estimators_learning_rate():
    clf = classifier()
    interrupt(clf, 2, X, y)
    assert clf.partial_fit(X, y).history_[-1]["lr"] == 3e-3
    assert clf.set_params(warm_start=True).fit(X, y).n_iter_ == clf.max_epochs


class AtEpochEnd(Callback):
    def __init__(self, press):
        self.press = press

    def on_epoch_end(self, net, **kwargs):
        if self.press:
            signal.raise_signal(signal.SIGINT)
        raise KeyboardInterrupt


def test_ctrl_c_while_a_callback_runs_is_no_wish_of_the_callback():
    clf = classifier(callbacks=[AtEpochEnd(press=True)], max_epochs=3)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert clf.n_iter_ == 1
    # As skorch's EarlyStopping does it.
    clf = classifier(callbacks=[AtEpochEnd(press=False)], max_epochs=3).fit(X, y)
    assert clf.n_iter_ == 1
