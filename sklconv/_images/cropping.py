"""Which part of an image becomes a network's input: the arithmetic of timm and torchvision."""

import math
from typing import NamedTuple

# Pixels that an interpolation's kernel reaches to either side, at the scale of the smaller image.
SUPPORT = {"bilinear": 1, "bicubic": 2}


class Span(NamedTuple):
    """One axis of an image that is resized, then cut or padded to its target's length."""

    source: int  # pixels that the image has
    resized: int  # pixels that these become
    start: int  # those that are kept of them
    stop: int
    before: int  # pixels of padding in front of what is kept
    target: int

    @property
    def length(self):
        return self.stop - self.start

    @property
    def box(self):
        """Where in the source what is kept begins and ends, in fractions of a pixel."""
        return self.start * self.source / self.resized, self.stop * self.source / self.resized

    @property
    def kept(self):
        """Where in the target what is kept stands."""
        return slice(self.before, self.before + self.length)

    @property
    def is_padded(self):
        return self.length < self.target

    def reach(self, interpolation):
        """Return the pixels of the source that count for what is kept, as a slice."""
        first, last = self.box
        return reach(first, last, self.length, self.source, interpolation)


def reach(first, last, kept, source, interpolation):
    """Return which of ``source`` pixels count where those from ``first`` to ``last`` are resized.

    Antialiased, to as many as are ``kept``: also pixels beyond the edges do.
    """
    if last - first == kept and float(first).is_integer():
        return slice(int(first), int(last))
    support = SUPPORT[interpolation] * max((last - first) / kept, 1)
    return slice(max(math.floor(first - support), 0), min(math.ceil(last + support), source))


def rows_come_first(size, resized):
    """Whether Pillow resizes an image's height before its width: from version 13 on.

    The order shows where sums are rounded to bytes, and cut off, in between. Both arguments are
    (height, width).
    """
    rows_less, columns_less = (n - m for n, m in zip(size, resized, strict=True))
    return rows_less > 0 and rows_less > 2 * columns_less


class Fitting(NamedTuple):
    """How an image is brought to its size. The default resizes the whole of it."""

    crop_pct: float = 1.0
    crop_mode: str = "squash"
    interpolation: str = "bilinear"
    fill: tuple[float, ...] = (0.0,)  # of each channel, in [0, 1]
    value_range: tuple[float, float] = (0, 1)  # what pixels span that are not uint8

    def spans(self, size, target):
        """Return the rows and the columns of an image of ``size`` that becomes ``target``."""
        resized = resized_size(size, target, self.crop_pct, self.crop_mode)
        rows, columns = map(_span, size, resized, target)
        return rows, columns

    def fill_values(self, is_bytes):
        """Return what each channel is padded with; one value stands for all channels."""
        low, high = (0, 255) if is_bytes else self.value_range
        return [low + value * (high - low) for value in self.fill]


WHOLE = Fitting()


def border_fill(mean):
    """Return what "border" pads with where the pixels' mean is ``mean``: it, made bytes."""
    return tuple(min(max(round(255 * float(value)), 0), 255) / 255 for value in mean)


def resized_size(size, target, crop_pct, crop_mode):
    """Return the height and width to which an image is resized before the target is cut out.

    Parameters
    ----------
    size, target : (int, int)
        Height and width.
    crop_pct : float
        The target's share of what "center" and "border" resize one side to, "squash" both.
    crop_mode : {"center", "squash", "border"}

    References
    ----------
    ``timm.data.transforms_factory.transforms_imagenet_eval``, ``timm.data.ResizeKeepRatio`` and
    ``torchvision.transforms.Resize``, whose roundings these are.
    """
    goal = [math.floor(n / crop_pct) for n in target]
    if crop_mode == "squash":
        resized = goal
    elif crop_mode == "center" and goal[0] == goal[1]:
        resized = [int(goal[0] * n / min(size)) for n in size]
    else:
        choose = max if crop_mode == "border" else min
        ratio = choose(n / wanted for n, wanted in zip(size, goal, strict=True))
        resized = [round(n / ratio) for n in size]
    return max(resized[0], 1), max(resized[1], 1)


def _span(source, resized, target):
    missing = target - resized
    if missing > 0:
        return Span(source, resized, 0, resized, missing // 2, target)
    start = round(-missing / 2)  # to the even of two neighbours, as torchvision cuts
    return Span(source, resized, start, start + target, 0, target)
