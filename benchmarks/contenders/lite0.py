"""EfficientNet-Lite0 with the ImageNet weights that a package carries, as users would have it."""

import numpy as np

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier

from ..race import data
from ..race.photo_networks import make_lite0

# The weights were trained on (pixel - 127) / 128: for the scripts that sklconv is compared with.
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3


def backbone(image_size):
    """Return the network with its preprocessing, for square images that are resized whole."""
    return Backbone("efficientnet_lite/efficientnet-lite0", image_size=image_size, crop_pct=1)


def prepare_fit(task):
    """Return a function that fine-tunes the whole network for an epoch, in batches of 32."""
    X, y = _colours(task)
    backbone = Backbone(make_lite0, mean=MEAN, std=STD)
    classifier = ConvNetClassifier(
        backbone, max_epochs=1, batch_size=32, lr=1e-4, lr_schedule=None, random_state=0
    )
    return lambda: classifier.fit(X, y)


def prepare_transform(task):
    """Return a function that computes the penultimate features."""
    X, _ = _colours(task)
    backbone = Backbone(make_lite0, mean=MEAN, std=STD)
    extractor = ConvFeatureExtractor(backbone, batch_size=32).fit(X)
    return lambda: extractor.transform(X)


def prepare_transform_photos(task):
    """Return a function that computes the penultimate features of photographs, cropped.

    They are files, or arrays of one of ``task["kind"]``.
    """
    X = task["files"] if "files" in task else _colours(task)[0]
    if task.get("kind") == "float32":
        X = X.astype(np.float32) / 255
    backbone = Backbone(make_lite0, mean=MEAN, std=STD, image_size=224, crop_pct=0.875)
    extractor = ConvFeatureExtractor(backbone, batch_size=32).fit(X)
    return lambda: extractor.transform(X)


def _colours(task):
    X, y = data.read(task)
    return np.repeat(X[:, None], 3, axis=1), y % task["n_classes"]
