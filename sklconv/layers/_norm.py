"""Normalisation."""

from numbers import Real

import torch
from torch import nn

from .._platform.sklearn import Interval
from ._base import Layer


class BatchNorm(Layer):
    """Batch normalisation of feature maps or of vectors.

    Parameters
    ----------
    momentum : float, default=0.1
        Weight of the newest batch in the running statistics, as in torch; Keras and
        TensorFlow have the opposite convention, ``1 - momentum``.
    eps : float, default=1e-5
        Added to the variance.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015.

    Examples
    --------
    >>> from sklconv.layers import BatchNorm
    >>> BatchNorm(momentum=0.01)
    BatchNorm(momentum=0.01)
    """

    torch_classes = (nn.BatchNorm2d, nn.BatchNorm1d)
    _parameter_constraints = {
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "eps": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        self.momentum = momentum
        self.eps = eps

    def _build(self, shape, n_classes, generator):
        torch_class = self.torch_classes[0 if len(shape) == 3 else 1]
        module = torch_class(shape[0], momentum=self.momentum, eps=self.eps, dtype=torch.float32)
        return module, shape
