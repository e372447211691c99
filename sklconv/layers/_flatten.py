"""Feature maps to vectors."""

from torch import nn

from ._base import Layer, check_maps


class FlattenModule(nn.Module):
    """Feature maps to vectors."""

    def forward(self, x):  # (N, C, H, W) -> (N, C*H*W)
        return x.flatten(1)


class Flatten(Layer):
    """Feature maps to one vector, map by map and row by row.

    Inserted automatically before a `Dense` that follows feature maps.

    Examples
    --------
    >>> from sklconv.layers import Flatten
    >>> Flatten()
    Flatten()
    """

    torch_classes = (FlattenModule,)

    def _build(self, shape, n_classes, generator):
        channels, height, width = check_maps(shape)
        return FlattenModule(), (channels * height * width,)
