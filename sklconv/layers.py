"""Declarative layers: what a network is made of, with parameters that can be searched.

A list of ``(name, layer)`` pairs is a network, as the steps of a
:class:`~sklearn.pipeline.Pipeline` are: see the ``module`` parameter of
:class:`~sklconv.ConvNetClassifier`. Input channels and sizes are inferred.
"""

from numbers import Integral, Real

from torch import nn

from . import _modules
from ._sklearn import (
    Interval,
    StrOptions,
    SuggestingEstimator,
    validate_parameter_constraints,
)

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
]

_KERNEL_INITS = {"default", "glorot_uniform", "glorot_normal", "he_uniform", "he_normal"}
_CONSTRAINTS = {
    "activation": [StrOptions(set(_modules.ACTIVATIONS)), None],
    "bias": ["boolean"],
    "kernel_init": [StrOptions(_KERNEL_INITS), tuple],
    "extent": [Interval(Integral, 1, None, closed="left"), tuple],
}


class Layer(SuggestingEstimator):
    """What all layers have in common: they check their parameters and become torch modules."""

    _parameter_constraints: dict = {}

    def build(self, shape, n_classes, generator):
        """Return the torch module and its output shape.

        Parameters
        ----------
        shape : tuple of int
            Of the input, without the batch: ``(C, H, W)`` or ``(n_features,)``.
        n_classes : int
            What ``"n_classes"`` stands for.
        generator : torch.Generator
            From which the weights are drawn.

        Returns
        -------
        module : torch.nn.Module
        output_shape : tuple of int
        """
        validate_parameter_constraints(
            self._parameter_constraints, self.get_params(deep=False), type(self).__name__
        )
        return self._build(shape, n_classes, generator)


class Conv(Layer):
    """Convolution over feature maps, and the activation behind it.

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
        ``("normal", std)`` draw the weights so and set the biases to 0.

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

    _parameter_constraints = {
        "filters": [Interval(Integral, 1, None, closed="left")],
        "kernel_size": _CONSTRAINTS["extent"],
        "stride": _CONSTRAINTS["extent"],
        "padding": [
            StrOptions({"valid", "same", "full"}),
            Interval(Integral, 0, None, closed="left"),
            tuple,
        ],
        "activation": _CONSTRAINTS["activation"],
        "bias": _CONSTRAINTS["bias"],
        "kernel_init": _CONSTRAINTS["kernel_init"],
    }

    def __init__(
        self,
        filters,
        kernel_size,
        *,
        stride=1,
        padding="valid",
        activation="relu",
        bias=True,
        kernel_init="default",
    ):
        self.filters = filters
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.activation = activation
        self.bias = bias
        self.kernel_init = kernel_init

    def _build(self, shape, n_classes, generator):
        channels, height, width = _maps(shape)
        kernel = _pair(self.kernel_size, "kernel_size")
        stride = _pair(self.stride, "stride")
        padding = self._padding(kernel, stride)
        if padding == "same":
            padded = (height + kernel[0] - 1, width + kernel[1] - 1)
        else:
            padded = (height + 2 * padding[0], width + 2 * padding[1])
        if kernel[0] > padded[0] or kernel[1] > padded[1]:
            raise ValueError(
                f"a kernel of {_by(kernel)} is larger than its input of {_by((height, width))}"
                f"{' pixels' if padded == (height, width) else f', padded to {_by(padded)}'}; "
                'take a smaller kernel_size, or padding="same"'
            )
        module = _modules.ConvActivation(
            channels,
            self.filters,
            kernel,
            stride=stride,
            padding=padding,
            bias=self.bias,
            activation=self.activation,
        )
        module.initialize(_kernel_init(self.kernel_init), generator)
        size = [(p - k) // s + 1 for p, k, s in zip(padded, kernel, stride, strict=True)]
        return module, (self.filters, *size)

    def _padding(self, kernel, stride):
        if self.padding == "valid":
            return (0, 0)
        if self.padding == "full":
            return (kernel[0] - 1, kernel[1] - 1)
        if self.padding != "same":
            return _pair(self.padding, "padding", least=0)
        if kernel[0] % 2 and kernel[1] % 2:
            return ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        if stride == (1, 1):
            return "same"
        raise ValueError(
            f'padding="same" with a kernel of {_by(kernel)} and a stride of {_by(stride)}: '
            "an even kernel_size needs stride=1 or a number as padding"
        )


class _Pool(Layer):
    _parameter_constraints = {
        "size": _CONSTRAINTS["extent"],
        "stride": [*_CONSTRAINTS["extent"], None],
        "ceil_mode": ["boolean"],
    }

    def __init__(self, size, *, stride=None, ceil_mode=False):
        self.size = size
        self.stride = stride
        self.ceil_mode = ceil_mode

    def _build(self, shape, n_classes, generator):
        channels, *image = _maps(shape)
        size = self._window(image)
        stride = size if self.stride is None else _pair(self.stride, "stride")
        if not self.ceil_mode and (size[0] > image[0] or size[1] > image[1]):
            raise ValueError(
                f"a window of {_by(size)} is larger than its input of {_by(image)} pixels; "
                "take a smaller size, or leave the layer out"
            )
        output = [
            _pooled(n, k, s, self.ceil_mode) for n, k, s in zip(image, size, stride, strict=True)
        ]
        if min(output) < 1:
            raise ValueError(
                f"a window of {_by(size)} and a stride of {_by(stride)} fit nowhere on its input "
                f"of {_by(image)} pixels; take a smaller size, or leave the layer out"
            )
        module = self._torch_class(size, stride=stride, ceil_mode=self.ceil_mode)
        return module, (channels, *output)

    def _window(self, image):
        return _pair(self.size, "size")


class MaxPool(_Pool):
    """Maximum over windows of each feature map.

    Parameters
    ----------
    size : int, (int, int) or "auto"
        Height and width of the window, in pixels. ``"auto"`` halves each axis, takes it down
        to at most 16 where it is longer than 32, and leaves an axis of one pixel alone.
    stride : int, (int, int) or None, default=None
        Step of the window, in pixels; None: as wide as the window.
    ceil_mode : bool, default=False
        Whether a window that reaches over the edge counts.

    Examples
    --------
    >>> from sklconv.layers import MaxPool
    >>> MaxPool(2)
    MaxPool(size=2)
    """

    _parameter_constraints = {
        **_Pool._parameter_constraints,
        "size": [*_CONSTRAINTS["extent"], StrOptions({"auto"})],
    }
    _torch_class = nn.MaxPool2d

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
        Step of the window, in pixels; None: as wide as the window.
    ceil_mode : bool, default=False
        Whether a window that reaches over the edge counts; the mean is then over the pixels
        that are there.

    Examples
    --------
    >>> from sklconv.layers import AvgPool
    >>> AvgPool(2, stride=1)
    AvgPool(size=2, stride=1)
    """

    _torch_class = nn.AvgPool2d


class GlobalAvgPool(Layer):
    """Mean of each feature map: maps become one vector.

    References
    ----------
    M. Lin, Q. Chen and S. Yan, "Network in network", ICLR 2014.

    Examples
    --------
    >>> from sklconv.layers import GlobalAvgPool
    >>> GlobalAvgPool()
    GlobalAvgPool()
    """

    def _build(self, shape, n_classes, generator):
        return _modules.GlobalAvgPool(), (_maps(shape)[0],)


class BatchNorm(Layer):
    """Batch normalisation of feature maps or of vectors.

    Parameters
    ----------
    momentum : float, default=0.1
        Weight of the newest batch in the running statistics (torch's sense; Keras and
        TensorFlow count the other way round: theirs is ``1 - momentum``).
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

    _parameter_constraints = {
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "eps": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, *, momentum=0.1, eps=1e-5):
        self.momentum = momentum
        self.eps = eps

    def _build(self, shape, n_classes, generator):
        torch_class = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
        return torch_class(shape[0], momentum=self.momentum, eps=self.eps), shape


class Activation(Layer):
    """An activation function as a layer of its own.

    `Conv` and `Dense` bring theirs; this one stands behind a `BatchNorm`, say.

    Parameters
    ----------
    name : str
        One of those that `Conv` takes.
    negative_slope : float, default=0.01
        Of ``"leaky_relu"``.

    Examples
    --------
    >>> from sklconv.layers import Activation
    >>> Activation("leaky_relu", negative_slope=0.2)
    Activation(name='leaky_relu', negative_slope=0.2)
    """

    _parameter_constraints = {
        "name": [StrOptions(set(_modules.ACTIVATIONS))],
        "negative_slope": [Interval(Real, None, None, closed="neither")],
    }

    def __init__(self, name, *, negative_slope=0.01):
        self.name = name
        self.negative_slope = negative_slope

    def _build(self, shape, n_classes, generator):
        return _modules.Activation(self.name, self.negative_slope), shape


class Dropout(Layer):
    """Dropout: while training, values are set to 0 at random and the others scaled up.

    Parameters
    ----------
    rate : float in [0, 1)
        Share that is dropped. On a CPU it is rounded to a multiple of 1/256.

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

    _parameter_constraints = {"rate": [Interval(Real, 0, 1, closed="left")]}

    def __init__(self, rate):
        self.rate = rate

    def _build(self, shape, n_classes, generator):
        return _modules.Dropout(self.rate), shape


class Flatten(Layer):
    """Feature maps to one vector: map behind map, row behind row.

    Put in by itself where a `Dense` stands behind feature maps.

    Examples
    --------
    >>> from sklconv.layers import Flatten
    >>> Flatten()
    Flatten()
    """

    def _build(self, shape, n_classes, generator):
        channels, height, width = _maps(shape)
        return _modules.Flatten(), (channels * height * width,)


class Dense(Layer):
    """Fully connected layer, and the activation behind it.

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

    _parameter_constraints = {
        "units": [Interval(Integral, 1, None, closed="left"), StrOptions({"n_classes"})],
        "activation": _CONSTRAINTS["activation"],
        "bias": _CONSTRAINTS["bias"],
        "kernel_init": _CONSTRAINTS["kernel_init"],
    }

    def __init__(self, units, *, activation="relu", bias=True, kernel_init="default"):
        self.units = units
        self.activation = activation
        self.bias = bias
        self.kernel_init = kernel_init

    def _build(self, shape, n_classes, generator):
        if len(shape) != 1:
            raise ValueError(f"needs vectors, not feature maps of {_by(shape)}")
        units = n_classes if self.units == "n_classes" else self.units
        module = _modules.LinearActivation(
            shape[0], units, bias=self.bias, activation=self.activation
        )
        module.initialize(_kernel_init(self.kernel_init), generator)
        return module, (units,)


def _maps(shape):
    if len(shape) != 3:
        raise ValueError(
            f"needs feature maps (C, H, W), but what comes in is a vector of {shape[0]}; "
            "layers on feature maps stand before Flatten, GlobalAvgPool and Dense"
        )
    return shape


def _pair(value, name, least=1):
    if isinstance(value, Integral):
        return (int(value), int(value))
    if len(value) == 2 and all(isinstance(v, Integral) and v >= least for v in value):
        return (int(value[0]), int(value[1]))
    raise ValueError(f"{name}={value!r} is neither an integer nor a pair of them, from {least} up")


def _pooled(length, window, stride, ceil_mode):
    if not ceil_mode:
        return (length - window) // stride + 1
    windows = -(-(length - window) // stride) + 1
    # As torch has it: a window that would start behind the edge is dropped.
    return windows - 1 if (windows - 1) * stride >= length else windows


def _kernel_init(value):
    if isinstance(value, str):
        return value
    if value[:1] == ("normal",) and len(value) == 2 and isinstance(value[1], Real):
        if float(value[1]) >= 0:
            return value
        raise ValueError(f"kernel_init={value!r} has a negative standard deviation")
    raise ValueError(
        f"kernel_init={value!r} is none of {', '.join(sorted(_KERNEL_INITS))} or ('normal', std)"
    )


def _by(sizes):
    return "×".join(str(size) for size in sizes)
