"""Convolutional networks as scikit-learn estimators."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import datasets, inspection, layers
    from ._estimators.classifier import ConvNetClassifier
    from ._estimators.feature_extractor import ConvFeatureExtractor
    from ._networks.torch_module import TorchModule
    from ._pretrained.backbones import Backbone

__version__ = "0.1.0.dev0"

__all__ = [
    "Backbone",
    "ConvFeatureExtractor",
    "ConvNetClassifier",
    "TorchModule",
    "datasets",
    "inspection",
    "layers",
]

_CLASSES = {
    "Backbone": "_pretrained.backbones",
    "ConvFeatureExtractor": "_estimators.feature_extractor",
    "ConvNetClassifier": "_estimators.classifier",
    "TorchModule": "_networks.torch_module",
}

if not TYPE_CHECKING:  # else type checkers would take any name for one of this package

    def __getattr__(name):
        # torch and scikit-learn take seconds to import: not before a name is used.
        if name == "__test__":  # of doctest, which sees only what is loaded
            return {name: __getattr__(name) for name in _CLASSES}
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f".{_CLASSES.get(name, name)}", __name__)
        value = getattr(module, name) if name in _CLASSES else module
        globals()[name] = value
        return value

    def __dir__():
        return [*__all__, "__version__"]
