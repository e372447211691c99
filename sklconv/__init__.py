"""Convolutional networks as scikit-learn estimators."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import datasets, layers
    from ._backbones import Backbone
    from ._classifier import ConvNetClassifier
    from ._feature_extractor import ConvFeatureExtractor
    from ._network import TorchModule

__version__ = "0.1.0.dev0"

__all__ = [
    "Backbone",
    "ConvFeatureExtractor",
    "ConvNetClassifier",
    "TorchModule",
    "datasets",
    "layers",
]

_CLASSES = {
    "Backbone": "_backbones",
    "ConvFeatureExtractor": "_feature_extractor",
    "ConvNetClassifier": "_classifier",
    "TorchModule": "_network",
}

if not TYPE_CHECKING:  # else type checkers would take any name for one of this package

    def __getattr__(name):
        # torch and scikit-learn take seconds to import: not before a name is used.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f".{_CLASSES.get(name, name)}", __name__)
        value = getattr(module, name) if name in _CLASSES else module
        globals()[name] = value
        return value

    def __dir__():
        return [*__all__, "__version__"]
