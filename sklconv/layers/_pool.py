"""Pooling."""

from contextlib import suppress
from typing import Literal

import torch
from torch import nn

from .._platform.sklearn import StrOptions
from .._platform.words import by
from ._activation import ActivationModule
from ._base import EXTENT, Layer, as_pair, check_maps
from ._stage import Stage, as_dense


class _Pool(Layer):
    _parameter_constraints = {
        "size": EXTENT,
        "stride": [*EXTENT, None],
        "ceil_mode": ["boolean"],
    }

    size: int | tuple[int, int] | Literal["auto"]

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        ceil_mode: bool = False,
    ) -> None:
        self.size = size
        self.stride = stride
        self.ceil_mode = ceil_mode

    def _build(self, shape, n_classes, generator):
        _, *image = check_maps(shape)
        size = self._window(image)
        stride = size if self.stride is None else as_pair(self.stride, "stride")
        if not self.ceil_mode and (size[0] > image[0] or size[1] > image[1]):
            raise ValueError(
                f"a window of {by(size)} is larger than its input of {by(image)} pixels; "
                "take a smaller size, or leave the layer out"
            )
        try:
            module, output = self._pool(shape, size, stride, self.ceil_mode)
        except RuntimeError:
            raise ValueError(
                f"a window of {by(size)} and a stride of {by(stride)} fit nowhere on its input "
                f"of {by(image)} pixels; take a smaller size, or leave the layer out"
            ) from None
        if self.ceil_mode:
            # Where that changes nothing, ONNX could still count a window behind the edge.
            with suppress(RuntimeError):
                plain, plain_output = self._pool(shape, size, stride, False)
                module = plain if plain_output == output else module
        return module, output

    def _pool(self, shape, size, stride, ceil_mode):
        module = self.torch_classes[0](size, stride=stride, ceil_mode=ceil_mode)
        return module, tuple(module(torch.empty(shape, device="meta")).shape)

    def _window(self, image):
        return as_pair(self.size, "size")


class MaxPool(_Pool):
    """Maximum over windows of each feature map.

    Parameters
    ----------
    size : int, (int, int) or "auto"
        Height and width of the window, in pixels. ``"auto"`` halves each axis, reduces it to
        at most 16 where it is longer than 32, and leaves an axis of one pixel as it is.
    stride : int, (int, int) or None, default=None
        Step of the window, in pixels; None: the size of the window.
    ceil_mode : bool, default=False
        Whether windows that extend beyond the edge count.

    Examples
    --------
    >>> from sklconv.layers import MaxPool
    >>> MaxPool(2)
    MaxPool(size=2)
    """

    _parameter_constraints = {
        **_Pool._parameter_constraints,
        "size": [*EXTENT, StrOptions({"auto"})],
    }
    torch_classes = (nn.MaxPool2d,)

    def __init__(
        self,
        size: int | tuple[int, int] | Literal["auto"],
        *,
        stride: int | tuple[int, int] | None = None,
        ceil_mode: bool = False,
    ) -> None:
        self.size = size
        self.stride = stride
        self.ceil_mode = ceil_mode

    def _window(self, image):
        if self.size == "auto":
            return tuple(min(n, max(2, -(-n // 16))) for n in image)
        return super()._window(image)


class AvgPool(_Pool):
    """Mean over windows of each feature map.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of the window, in pixels.
    stride : int, (int, int) or None, default=None
        Step of the window, in pixels; None: the size of the window.
    ceil_mode : bool, default=False
        Whether windows that extend beyond the edge count; the mean is then over the pixels
        inside.

    Examples
    --------
    >>> from sklconv.layers import AvgPool
    >>> AvgPool(2, stride=1)
    AvgPool(size=2, stride=1)
    """

    torch_classes = (nn.AvgPool2d,)


class GlobalAvgPoolModule(nn.Module):
    """The mean of each feature map."""

    def forward(self, x):  # (N, C, H, W) -> (N, C)
        return x.mean((2, 3))


class GlobalAvgPool(Layer):
    """Mean of each feature map: the maps become one vector.

    References
    ----------
    M. Lin, Q. Chen and S. Yan, "Network in network", ICLR 2014.

    Examples
    --------
    >>> from sklconv.layers import GlobalAvgPool
    >>> GlobalAvgPool()
    GlobalAvgPool()
    """

    torch_classes = (GlobalAvgPoolModule,)

    def _build(self, shape, n_classes, generator):
        return GlobalAvgPoolModule(), (check_maps(shape)[0],)


class PoolStage(Stage):
    """An activation, and max-pooling behind it that changes places with it."""

    @classmethod
    def of(cls, named):
        activation, *behind = (module for _, module in named[:2])
        if not isinstance(activation, ActivationModule) or not activation.is_monotone:
            return None
        return cls(named[:2]) if behind and isinstance(behind[0], nn.MaxPool2d) else None

    def __call__(self, x, joined=False):
        (_, activation), (_, pool) = self.layers
        return activation.activate(pool(as_dense(x)))
