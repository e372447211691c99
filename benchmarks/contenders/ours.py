"""sklconv as its users meet it: whole fits from uint8 arrays, checks and bookkeeping included."""

import numpy as np
from sklearn.frozen import FrozenEstimator

from sklconv import ConvFeatureExtractor, ConvNetClassifier

from ..race import data, networks


def prepare_fit(task):
    """Return a function that fits a classifier."""
    X, y = data.read(task)
    classifier = _classifier(task)
    return lambda: classifier.fit(X, y)


def prepare_predict(task):
    """Return a function that computes all class probabilities."""
    X, _ = data.read(task)
    classifier = _fitted(task)
    return lambda: classifier.predict_proba(X)


def prepare_predict_onnxruntime(task):
    """Return a function that computes all class probabilities in ONNX Runtime."""
    X, _ = data.read(task)
    classifier = _fitted(task).set_params(engine="onnxruntime")
    return lambda: classifier.predict_proba(X)


def prepare_transform(task):
    """Return a function that computes the features in front of the last layer."""
    X, _ = data.read(task)
    extractor = frozen_extractor(task, X)
    return lambda: extractor.transform(X)


def prepare_one_image(task):
    """Return the call for one uint8 image through ``predict_proba``."""
    X, _ = data.read(task | {"n_images": 1})
    classifier = _fitted(task)
    return lambda: classifier.predict_proba(X)


def prepare_one_image_float32(task):
    """Return the call for one float32 image through ``predict_proba``."""
    X, _ = data.read(task | {"n_images": 1})
    classifier, X = _fitted(task), X.astype(np.float32)
    return lambda: classifier.predict_proba(X)


def prepare_one_image_transform(task):
    """Return the call for one uint8 image through ``transform``."""
    X, _ = data.read(task | {"n_images": 1})
    extractor = frozen_extractor(task, X)
    return lambda: extractor.transform(X)


def _classifier(task):
    # No schedule, as in the loops it is compared with; all else is as it comes.
    return ConvNetClassifier(
        module=networks.declarative(task["network"]),
        max_epochs=task["epochs"],
        batch_size=task["batch_size"],
        lr_schedule=None,
        random_state=0,
    )


def _fitted(task):
    X, y = data.read(task | {"n_images": 1000})
    return _classifier(task | {"epochs": 1}).fit(X, y)


def frozen_extractor(task, X):
    """Return an extractor of the features in front of the last layer, fitted."""
    extractor = ConvFeatureExtractor(
        FrozenEstimator(_fitted(task)),
        layer=networks.FEATURE_LAYERS[task["network"]],
        pool="flatten",
    )
    return extractor.fit(X[:1])
