"""Activation functions."""

from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

from .._platform.sklearn import Interval, StrOptions
from ._base import Layer
from ._initialization import initialize_weights

ACTIVATIONS = {
    "relu": F.relu_,
    "leaky_relu": F.leaky_relu_,
    "elu": F.elu_,
    "selu": F.selu_,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}

# Monotone functions change places with max-pooling and give the same numbers: the piecewise
# linear ones to the bit, the others to rounding.
MONOTONE = frozenset({None, "relu", "leaky_relu", "elu", "selu", "sigmoid", "tanh", "softplus"})


class ActivationModule(nn.Module):
    """An activation function as a layer of its own."""

    def __init__(self, activation, negative_slope):
        super().__init__()
        self.activation = activation
        self.negative_slope = negative_slope

    @property
    def is_monotone(self):
        falls = self.activation == "leaky_relu" and self.negative_slope < 0
        return self.activation in MONOTONE and not falls

    def forward(self, x):
        if self.activation == "leaky_relu":
            return F.leaky_relu(x, self.negative_slope)
        # Not in place, as the functions of the table: not on what another layer put out.
        return getattr(F, self.activation)(x)

    def activate(self, x):
        """The same, in place where the table's function is."""
        if self.activation == "leaky_relu":
            # Torch can't differentiate it in place where it falls.
            leaky_relu = F.leaky_relu_ if self.is_monotone else F.leaky_relu
            return leaky_relu(x, self.negative_slope)
        return ACTIVATIONS[self.activation](x)

    def extra_repr(self):
        return self.activation


class Activation(Layer):
    """An activation function as a layer of its own.

    `Conv` and `Dense` have an activation of their own; use this one after a `BatchNorm`, for
    example.

    Parameters
    ----------
    name : str
        One of those that `Conv` takes.
    negative_slope : float, default=0.01
        Slope for negative inputs, used by ``"leaky_relu"`` only.

    Examples
    --------
    >>> from sklconv.layers import Activation
    >>> Activation("leaky_relu", negative_slope=0.2)
    Activation(name='leaky_relu', negative_slope=0.2)
    """

    torch_classes = (ActivationModule,)
    _parameter_constraints = {
        "name": [StrOptions(set(ACTIVATIONS))],
        "negative_slope": [Interval(Real, None, None, closed="neither")],
    }

    def __init__(self, name: str, *, negative_slope: float = 0.01) -> None:
        self.name = name
        self.negative_slope = negative_slope

    def _build(self, shape, n_classes, generator):
        return ActivationModule(self.name, self.negative_slope), shape


class Activated:
    """Mixin for linear maps: applies the activation to what they compute."""

    def __init__(self, *args, activation, **kwargs):
        # Whatever the caller's default is: weights are drawn alike.
        super().__init__(*args, dtype=torch.float32, **kwargs)  # type: ignore[call-arg]
        self.activation = activation

    def reset_parameters(self):
        """Leave the weights to `initialize`, which has a generator of its own."""

    @property
    def is_monotone(self):
        return self.activation in MONOTONE

    def activate(self, x):
        return x if self.activation is None else ACTIVATIONS[self.activation](x)

    def forward(self, x):
        return self.activate(super().forward(x))  # type: ignore[misc]

    def initialize(self, kernel_init, generator):
        """Draw the weights from ``generator``."""
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        initialize_weights(weight, bias, kernel_init, generator)
