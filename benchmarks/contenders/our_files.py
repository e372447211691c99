"""sklconv's features of photographs in JPEG files: decoding, the network, and both."""

import numpy as np

from sklconv import Backbone, ConvFeatureExtractor
from sklconv.datasets import load_images

from ..race import photo_networks

BATCH = 128
SHAPE = (3, 224, 224)


def prepare_decoding(task):
    """Return a function that decodes all files."""
    return lambda: load_images(task["files"], SHAPE)


def prepare_network(task):
    """Return a function that computes the features of all photographs, decoded before."""
    extractor, X = _extractor(task), load_images(task["files"], SHAPE)
    return lambda: extractor.transform(X)


def prepare_in_turns(task):
    """Return a function that decodes a batch and computes its features, one after the other."""
    extractor, files = _extractor(task), task["files"]
    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]

    def run():
        return np.concatenate([extractor.transform(load_images(b, SHAPE)) for b in batches])

    return run


def prepare_transform(task):
    """Return a function that computes the features of all files."""
    extractor = _extractor(task)
    return lambda: extractor.transform(task["files"])


def _extractor(task):
    # Resized whole, as `load_images` does it: files and arrays are the same pixels.
    network = photo_networks.complete("EfficientNet-Lite0")
    backbone = Backbone(network, mean=[0.5] * 3, std=[0.5] * 3)
    extractor = ConvFeatureExtractor(
        backbone, image_shape=SHAPE, engine=task["engine"], batch_size=BATCH
    )
    return extractor.fit(task["files"][:1])
