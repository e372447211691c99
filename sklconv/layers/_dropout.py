"""Dropout."""

import math
from numbers import Real

import numpy as np
import torch
from torch import nn

from .._platform.sklearn import Interval
from ._base import Layer, check_maps

# Below, to cut bytes in halves takes longer than to draw as many bytes as there are values.
MIN_VALUES_BY_HALVES = 2**18


class DropoutModule(nn.Module):
    """Dropout that draws from a generator of its own.

    On a CPU the mask is cut from random bytes, eight of a 64-bit draw, which is several times
    as fast as one draw an element; the rate is thereby rounded to a multiple of 1/256, and
    what is kept is scaled by the exact share kept, so the expectation is exact.

    Attributes
    ----------
    generator : numpy.random.BitGenerator, torch.Generator on a GPU, or None
        Set while training; None draws from torch's global generator.
    pieces : Pieces or None
        Set while a batch comes piece by piece.
    """

    pieces = None

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.generator = None

    def forward(self, x):
        return x * self.mask(x) if self.training and self.rate > 0 else x

    def mask(self, x):
        """Return a factor for each value of ``x``: 0, or what scales up those that are kept."""
        kept = round(256 * (1 - self.rate))
        if x.device.type == "cpu" and 0 < kept < 256:
            return self.draw(x, lambda x: random_mask(x, kept, self.generator).mul_(256 / kept))
        return self.draw(x, self._bernoulli_mask)

    def draw(self, x, draw):
        """Return ``draw(x)``; if ``x`` is a piece of a batch, its rows of what that draws."""
        return draw(x) if self.pieces is None else self.pieces.draw(self, x, draw)

    def _bernoulli_mask(self, x):
        share = 1 - self.rate
        if x.device.type == "cpu" and self.generator is not None:
            # Rates that are no multiples of 1/256.
            draws = torch.from_numpy(np.random.Generator(self.generator).random(x.shape))
            return (draws < share).to(x.dtype).div_(share)
        return torch.empty_like(x).bernoulli_(share, generator=self.generator).div_(share)

    def extra_repr(self):
        return f"rate={self.rate}"


class SpatialDropoutModule(DropoutModule):
    """Dropout of whole feature maps."""

    def forward(self, x):  # (N, C, H, W)
        if not self.training or self.rate == 0:
            return x
        return x * self.mask(x.new_empty(*x.shape[:2], 1, 1))


class Dropout(Layer):
    """Dropout: while training, values are set to 0 at random and the others scaled up.

    Parameters
    ----------
    rate : float in [0, 1)
        Fraction that is dropped. On a CPU it is rounded to a multiple of 1/256.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
    overfitting", JMLR 15, 2014.

    Examples
    --------
    >>> from sklconv.layers import Dropout
    >>> Dropout(0.5)
    Dropout(rate=0.5)
    """

    torch_classes = (DropoutModule,)
    _parameter_constraints = {"rate": [Interval(Real, 0, 1, closed="left")]}

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def _build(self, shape, n_classes, generator):
        return DropoutModule(self.rate), shape


class SpatialDropout(Layer):
    """Dropout of whole feature maps, as neighbouring pixels are too similar for `Dropout`.

    Parameters
    ----------
    rate : float in [0, 1)
        Fraction of the maps that is dropped. On a CPU it is rounded to a multiple of 1/256.

    References
    ----------
    J. Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.

    Examples
    --------
    >>> from sklconv.layers import SpatialDropout
    >>> SpatialDropout(0.2)
    SpatialDropout(rate=0.2)
    """

    torch_classes = (SpatialDropoutModule,)
    _parameter_constraints = {"rate": [Interval(Real, 0, 1, closed="left")]}

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def _build(self, shape, n_classes, generator):
        return SpatialDropoutModule(self.rate), check_maps(shape)


def random_mask(x, kept, generator):
    """Zeros and ones in the shape and layout of ``x``; a share of ``kept`` / 256 are ones."""
    mask = torch.empty_like(x, requires_grad=False)
    n = mask.numel()
    in_memory = mask.as_strided((n,), (1,))
    if n < MIN_VALUES_BY_HALVES or kept % 16:
        torch.lt(_random_bytes(n, generator), kept, out=in_memory)
        return mask
    # Half a byte decides: it takes longer to draw the bytes than to compare them.
    half = math.ceil(n / 2)
    drawn = _random_bytes(half, generator)
    torch.lt(drawn, kept, out=in_memory[:half])
    torch.lt(drawn[: n - half] & 15, kept // 16, out=in_memory[half:])
    return mask


def _random_bytes(n, generator):
    n_words = math.ceil(n / 8)
    if generator is None:
        # From the lowest to the highest: all 64 bits are random, not 63.
        words = torch.empty(n_words, dtype=torch.int64)
        words.random_(torch.iinfo(torch.int64).min, None)
    else:
        words = torch.from_numpy(generator.random_raw(n_words))
    return words.view(torch.uint8)[:n]
