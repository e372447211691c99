"""What all declarative layers have in common."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import nn

from .._platform.sklearn import Interval, SuggestingEstimator

# Constraints of a kernel, a window or a step: one number of pixels, or one an axis.
EXTENT = [Interval(Integral, 1, None, closed="left"), tuple]


class Layer(SuggestingEstimator):
    """What all layers have in common: they check their parameters and become torch modules."""

    _parameter_constraints: dict = {}

    # What `build` returns: a layer table calls modules of these classes by the layer's name.
    torch_classes: tuple[type[nn.Module], ...] = ()

    def build(
        self, shape: tuple[int, ...], n_classes: int, generator: torch.Generator
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """Return the torch module and its output shape.

        Parameters
        ----------
        shape : tuple of int
            Of the input, without the batch: ``(C, H, W)`` or ``(n_features,)``.
        n_classes : int
            The value of ``"n_classes"``.
        generator : torch.Generator
            Draws the weights.

        Returns
        -------
        module : torch.nn.Module
        output_shape : tuple of int
        """
        self._validate_params()
        return self._build(shape, n_classes, generator)


def check_maps(shape):
    """Return ``shape``, (C, H, W); raise if it is that of vectors."""
    if len(shape) != 3:
        raise ValueError(
            f"needs feature maps (C, H, W), but its input is a vector of {shape[0]} values; put "
            "it before Flatten, GlobalAvgPool and Dense"
        )
    return shape


def as_pair(value, name, least=1):
    """Return the height and width that ``value``, an integer or a pair, stands for."""
    if isinstance(value, Integral):
        return (int(value), int(value))
    if len(value) == 2 and all(isinstance(v, Integral) and v >= least for v in value):
        return (int(value[0]), int(value[1]))
    raise ValueError(
        f"{name}={value!r} must be an integer, or a pair of integers, of at least {least}"
    )
