"""Fully connected layers."""

import math
from numbers import Integral
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .._platform.sklearn import Interval, StrOptions
from .._platform.words import by
from ._activation import ACTIVATIONS, Activated
from ._base import Layer
from ._dropout import DropoutModule, random_mask
from ._flatten import FlattenModule
from ._initialization import CONSTRAINTS, check_kernel_init
from ._stage import Stage, as_dense

# A matrix product takes half the time with these few columns as rows.
FEW_OUTPUTS, MANY_INPUTS, MANY_IMAGES = 16, 1024, 16


class LinearActivation(Activated, nn.Linear):
    """A fully connected layer and its activation."""


class Dense(Layer):
    """Fully connected layer, followed by an activation.

    Parameters
    ----------
    units : int or "n_classes"
        Number of outputs; ``"n_classes"``: one for each class of the target.
    activation : str or None, default="relu"
        One of those that `Conv` takes.
    bias : bool, default=True
        Whether each unit has a bias.
    kernel_init : str or tuple, default="default"
        As for `Conv`.

    Examples
    --------
    >>> from sklconv.layers import Dense
    >>> Dense(256)
    Dense(units=256)
    """

    torch_classes = (LinearActivation,)
    _parameter_constraints = {
        "units": [Interval(Integral, 1, None, closed="left"), StrOptions({"n_classes"})],
        "activation": [StrOptions(set(ACTIVATIONS)), None],
        "bias": ["boolean"],
        "kernel_init": CONSTRAINTS,
    }

    def __init__(
        self,
        units: int | Literal["n_classes"],
        *,
        activation: str | None = "relu",
        bias: bool = True,
        kernel_init: str | tuple[str, float] = "default",
    ) -> None:
        self.units = units
        self.activation = activation
        self.bias = bias
        self.kernel_init = kernel_init

    def _build(self, shape, n_classes, generator):
        if len(shape) != 1:
            raise ValueError(f"needs vectors, not feature maps of {by(shape)}")
        units = n_classes if self.units == "n_classes" else self.units
        module = LinearActivation(shape[0], units, bias=self.bias, activation=self.activation)
        module.initialize(check_kernel_init(self.kernel_init), generator)
        return module, (units,)


class DenseStage(Stage):
    """A fully connected layer, and dropouts and flattening in front of it."""

    def __init__(self, layers):
        super().__init__(layers)
        self.linear = layers[-1][1]
        self.activation = self.linear.activation
        self.dropouts = [module for _, module in layers if isinstance(module, DropoutModule)]

    @classmethod
    def of(cls, named):
        leads = (DropoutModule, FlattenModule)  # not what derives from them
        length = next(
            (i for i, (_, module) in enumerate(named) if type(module) not in leads),
            len(named) - 1,
        )
        if isinstance(named[length][1], LinearActivation):
            return cls(named[: length + 1])
        return None

    def __call__(self, x, joined=False):
        x, weight, bias = as_dense(x), self.linear.weight, self.linear.bias
        relu_waits = joined and self.takes_relu
        if self._drops_together(x):
            mask = _ReLUMask.apply if relu_waits else torch.mul
            x = mask(x, self.dropouts[0].draw(x, self._zeros_and_ones))
            x, scale = _linear(x.flatten(1), weight), 256 / self.kept
            # The few outputs are scaled up in place of the many values that are kept.
            x = x * scale if bias is None else torch.add(bias.to(x.dtype), x, alpha=scale)
        else:
            x = F.relu_(x) if relu_waits else x
            for dropout in self.dropouts:
                x = dropout(x)
            x = _linear(x.flatten(1), weight, bias)
        return x if joined and self.leaves_relu else self.linear.activate(x)

    @property
    def kept(self):
        """Of 256 values, how many all dropouts together keep."""
        return round(256 * math.prod([1 - dropout.rate for dropout in self.dropouts]))

    def _zeros_and_ones(self, x):
        return random_mask(x, self.kept, self.dropouts[0].generator)

    def _drops_together(self, x):
        if x.device.type != "cpu" or not self.dropouts or self.kept in (0, 256):
            return False
        return all(dropout.training for dropout in self.dropouts)


def _linear(x, weight, bias=None):
    """`F.linear`, on a CPU by way of its transpose where that is faster."""
    n_outputs, n_inputs = weight.shape
    transposed = n_outputs <= FEW_OUTPUTS and n_inputs >= MANY_INPUTS and len(x) >= MANY_IMAGES
    if not transposed or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    x = (weight @ x.t()).t().contiguous()
    return x if bias is None else x + bias


class _ReLUMask(torch.autograd.Function):
    """``relu(x) * mask`` in place; its gradient needs only the result."""

    @staticmethod
    def forward(ctx, x, mask):
        x.relu_().mul_(mask)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        # Above zero is what neither ReLU nor the mask has held back.
        return torch.ops.aten.threshold_backward(gradient, x, 0), None
