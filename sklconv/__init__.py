"""Convolutional networks as scikit-learn estimators."""

from . import layers
from ._classifier import ConvNetClassifier
from ._feature_extractor import ConvFeatureExtractor
from ._network import TorchModule

__version__ = "0.1.0.dev0"

__all__ = ["ConvFeatureExtractor", "ConvNetClassifier", "TorchModule", "layers"]
