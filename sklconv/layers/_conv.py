"""Convolutions."""

from numbers import Integral
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .._platform.layouts import as_channels_last, convolve, favours_onednn
from .._platform.sklearn import Interval, StrOptions
from .._platform.words import by
from ._activation import ACTIVATIONS, Activated, ActivationModule
from ._base import EXTENT, Layer, as_pair, check_maps
from ._initialization import CONSTRAINTS, check_kernel_init
from ._stage import Stage, as_dense

# Below, to enter and leave oneDNN's tensors costs more than it saves: in images a batch and in
# values an image. The bits of very small images would come to depend on the batch's size, too.
ONEDNN_IMAGES, ONEDNN_VALUES = 16, 64


class ConvActivation(Activated, nn.Conv2d):
    """A convolution and its activation."""

    def linear(self, x):
        if self.padding != "same":
            if self.stride == (1, 1):  # which is always right, and asked in no time
                return nn.Conv2d.forward(self, x)
            return convolve(x, self.weight, self.bias, self.stride, self.padding)
        # An even kernel, the odd zero behind: torch does the same, but warns that it copies.
        rows, columns = (size - 1 for size in self.kernel_size)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias)

    def forward(self, x):
        return self.activate(self.linear(x))


class Conv(Layer):
    """Convolution over feature maps, followed by an activation.

    Parameters
    ----------
    filters : int
        Number of output feature maps.
    kernel_size : int or (int, int)
        Height and width of the kernel, in pixels.
    stride : int or (int, int), default=1
        Step of the kernel, in pixels.
    padding : {"valid", "same", "full"}, int or (int, int), default="valid"
        Zeros around the input: none; as many as keep the size (divided by the stride,
        rounded up); ``kernel_size - 1`` on every side; or this many pixels on every side.
    activation : str or None, default="relu"
        ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"elu"``, ``"selu"``, ``"gelu"``,
        ``"silu"``, ``"sigmoid"``, ``"tanh"`` or ``"softplus"``.
    bias : bool, default=True
        Whether each filter has a bias.
    kernel_init : str or tuple, default="default"
        ``"default"`` is torch's own, uniform in ``1 / sqrt(fan_in)`` for weights and biases;
        ``"glorot_uniform"``, ``"glorot_normal"``, ``"he_uniform"``, ``"he_normal"`` and
        ``("normal", std)`` draw the weights accordingly and set the biases to 0.

    References
    ----------
    X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward
    neural networks", AISTATS 2010. K. He et al., "Delving deep into rectifiers", ICCV 2015.

    Examples
    --------
    >>> from sklconv.layers import Conv
    >>> Conv(32, 5, padding="same")
    Conv(filters=32, kernel_size=5, padding='same')
    """

    torch_classes = (ConvActivation,)
    _parameter_constraints = {
        "filters": [Interval(Integral, 1, None, closed="left")],
        "kernel_size": EXTENT,
        "stride": EXTENT,
        "padding": [
            StrOptions({"valid", "same", "full"}),
            Interval(Integral, 0, None, closed="left"),
            tuple,
        ],
        "activation": [StrOptions(set(ACTIVATIONS)), None],
        "bias": ["boolean"],
        "kernel_init": CONSTRAINTS,
    }

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: Literal["valid", "same", "full"] | int | tuple[int, int] = "valid",
        activation: str | None = "relu",
        bias: bool = True,
        kernel_init: str | tuple[str, float] = "default",
    ) -> None:
        self.filters = filters
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.activation = activation
        self.bias = bias
        self.kernel_init = kernel_init

    def _build(self, shape, n_classes, generator):
        channels, height, width = check_maps(shape)
        kernel = as_pair(self.kernel_size, "kernel_size")
        stride = as_pair(self.stride, "stride")
        padding = self._padding(kernel, stride)
        if padding == "same":
            padded = (height + kernel[0] - 1, width + kernel[1] - 1)
        else:
            padded = (height + 2 * padding[0], width + 2 * padding[1])
        if kernel[0] > padded[0] or kernel[1] > padded[1]:
            raise ValueError(
                f"a kernel of {by(kernel)} is larger than its input of {by((height, width))}"
                f"{' pixels' if padded == (height, width) else f', padded to {by(padded)}'}; "
                'take a smaller kernel_size, or padding="same"'
            )
        module = ConvActivation(
            channels,
            self.filters,
            kernel,
            stride=stride,
            padding=padding,
            bias=self.bias,
            activation=self.activation,
        )
        module.initialize(check_kernel_init(self.kernel_init), generator)
        size = [(p - k) // s + 1 for p, k, s in zip(padded, kernel, stride, strict=True)]
        return module, (self.filters, *size)

    def _padding(self, kernel, stride):
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "full":
            return (kernel[0] - 1, kernel[1] - 1)
        if self.padding != "same":
            return as_pair(self.padding, "padding", least=0)
        if kernel[0] % 2 and kernel[1] % 2:
            return ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        if stride == (1, 1):
            return "same"
        raise ValueError(
            f'padding="same" with a kernel of {by(kernel)} and a stride of {by(stride)}: '
            "an even kernel_size needs stride=1 or a number as padding"
        )


class ConvStage(Stage):
    """A convolution, its activation or one behind it, and max-pooling behind it, if there is one.

    Parameters
    ----------
    layers : list of (str, nn.Module)
    activated : nn.Module
        The one of these with the activation: the convolution itself, or the layer behind it.
    pool : nn.MaxPool2d or None
    """

    pieces = None  # set while a batch comes piece by piece

    def __init__(self, layers, activated, pool):
        super().__init__(layers)
        self.conv = layers[0][1]
        self.activated, self.pool = activated, pool
        self.activation = activated.activation
        self.gives_onednn = self.activation in ("relu", None) and self.conv.padding != "same"

    @classmethod
    def of(cls, named):
        conv, pool, length = named[0][1], None, 1
        if not isinstance(conv, ConvActivation):
            return None
        activated: ConvActivation | ActivationModule = conv
        for _, module in named[1:3]:
            if isinstance(module, nn.MaxPool2d) and pool is None and activated.is_monotone:
                pool = module
            elif isinstance(module, ActivationModule) and activated.activation is None:
                activated = module
            else:
                break
            length += 1
        return cls(named[:length], activated, pool)

    def __call__(self, x, joined=False):
        n_images = len(x) if self.pieces is None else self.pieces.n_images
        suits = x.is_mkldnn or _suits_onednn(x, n_images)
        if self.takes_onednn and self.gives_onednn and suits:
            x = self.conv.linear(x if x.is_mkldnn else x.to_mkldnn())
            if self.pool is not None:
                size, stride, ceil = self.pool.kernel_size, self.pool.stride, self.pool.ceil_mode
                x = F.max_pool2d(x, size, stride, ceil_mode=ceil)
            if self.activation is None or (joined and self.leaves_relu):
                return x
            # Pooling on oneDNN's tensors keeps its result for the backward pass.
            keeps = self.feeds_onednn and torch.is_grad_enabled()
            return F.relu(x) if keeps else F.relu_(x if self.feeds_onednn else as_dense(x))
        x = self.conv.linear(as_channels_last(as_dense(x)))
        x = x if self.pool is None else self.pool(x)
        return x if joined and self.leaves_relu else self.activated.activate(x)


def _suits_onednn(x, n_images):
    return (
        x.device.type == "cpu"
        and n_images >= ONEDNN_IMAGES
        and x[0].numel() > ONEDNN_VALUES
        and not torch.compiler.is_compiling()  # which knows no tensors of oneDNN's
        and favours_onednn()
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )
