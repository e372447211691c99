"""Convolutional networks as scikit-learn estimators."""

from . import layers
from ._backbones import Backbone
from ._classifier import ConvNetClassifier
from ._feature_extractor import ConvFeatureExtractor
from ._network import TorchModule

__version__ = "0.1.0.dev0"

__all__ = ["Backbone", "ConvFeatureExtractor", "ConvNetClassifier", "TorchModule", "layers"]
