"""Declarative layers: what a network is made of, with parameters that can be searched.

A list of ``(name, layer)`` pairs is a network, as the steps of a
:class:`~sklearn.pipeline.Pipeline` are: see the ``module`` parameter of
:class:`~sklconv.ConvNetClassifier`. Input channels and sizes are inferred.
"""

from ._activation import Activation
from ._base import Layer
from ._conv import Conv
from ._dense import Dense
from ._dropout import Dropout, SpatialDropout
from ._flatten import Flatten
from ._norm import BatchNorm
from ._pool import AvgPool, GlobalAvgPool, MaxPool

__all__ = [
    "Activation",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "MaxPool",
    "SpatialDropout",
]

# Where users import them from is what pickles say, and the documentation.
for _name in ("Layer", *__all__):
    globals()[_name].__module__ = __name__
