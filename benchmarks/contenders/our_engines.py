"""sklconv's features of frozen networks, from uint8 arrays of their size, by either engine."""

import numpy as np

from sklconv import Backbone, ConvFeatureExtractor

from ..race import data, photo_networks

BATCH = 32


def prepare_onnxruntime(task):
    """Return a function that computes all features in ONNX Runtime."""
    return _prepare(task, "onnxruntime")


def prepare_torch(task):
    """Return a function that computes all features in torch."""
    return _prepare(task, "torch")


def _prepare(task, engine):
    X, _ = data.read(task)
    X = np.repeat(X[:, None], 3, axis=1)
    backbone = Backbone(photo_networks.complete(task["network"]), mean=[0.5] * 3, std=[0.5] * 3)
    extractor = ConvFeatureExtractor(backbone, engine=engine, batch_size=BATCH).fit(X)
    return lambda: extractor.transform(X)
