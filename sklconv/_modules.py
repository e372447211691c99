"""Torch modules that networks of declarative layers are made of."""

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

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


class PreparePixels(nn.Module):
    """Pixels as they come, uint8 or float, to the float32 that a network wants.

    With ``mean`` and ``std`` (one value a channel) pixels are standardised; without, uint8
    is divided by 255 and other numbers are left unchanged.
    """

    def __init__(self, mean=None, std=None):
        super().__init__()
        self.standardize = mean is not None
        if self.standardize:
            self.register_buffer("scale", _per_channel([1 / s for s in std]))
            self.register_buffer(
                "shift", _per_channel([-m / s for m, s in zip(mean, std, strict=True)])
            )

    def forward(self, x):  # (N, C, H, W), any real dtype -> float32
        # A copy: neither this nor what comes behind may write into X.
        pixels = x.to(torch.float32, copy=True)
        if self.standardize:
            pixels.mul_(self.scale).add_(self.shift)
        elif x.dtype == torch.uint8:
            pixels.div_(255)
        return as_channels_last(pixels)


class ImageNetwork(nn.Module):
    """A network with the preparation of its pixels in front: raw images to outputs."""

    def __init__(self, prepare, body):
        super().__init__()
        self.prepare = prepare
        self.body = body
        # Walking through the modules and parameters of a small network takes as long as a
        # layer of it: they are noted once.
        self._parts = list(body.modules())
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @property
    def device(self):
        """Where the network's weights lie."""
        return self._anchor.device

    def has_training_parts(self):
        """Whether any part is in training mode."""
        return any([part.training for part in self._parts])  # noqa: C419  (a list is faster)

    def forward(self, x):  # (N, C, H, W) -> the body's output
        return self.body(self.prepare(x))


class Activation(nn.Module):
    """An activation function as a layer of its own."""

    def __init__(self, name, negative_slope):
        super().__init__()
        self.name = name
        self.negative_slope = negative_slope

    def forward(self, x):
        if self.name == "leaky_relu":
            return F.leaky_relu(x, self.negative_slope)
        # The functions of the table may work in place: not on what another layer put out.
        return ACTIVATIONS[self.name](x.clone())

    def extra_repr(self):
        return self.name


class _Activated:
    """A linear map and the activation behind it."""

    activation: str | None

    def reset_parameters(self):
        """Leave the weights to `initialize`, which has a generator of its own."""

    def activate(self, x):
        return x if self.activation is None else ACTIVATIONS[self.activation](x)

    def forward(self, x):
        return self.activate(super().forward(x))  # type: ignore[misc]

    def initialize(self, kernel_init, generator):
        """Draw the weights from ``generator``."""
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        initialize_weights(weight, bias, kernel_init, generator)


class ConvActivation(_Activated, nn.Conv2d):
    """A convolution and its activation."""

    def __init__(self, *args, activation, **kwargs):
        super().__init__(*args, **kwargs)
        self.activation = activation

    def linear(self, x):
        if self.padding != "same":
            return nn.Conv2d.forward(self, x)
        # An even kernel, the odd zero behind: torch does the same, but warns that it copies.
        rows, columns = (size - 1 for size in self.kernel_size)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias)

    def forward(self, x):
        return self.activate(self.linear(x))


class LinearActivation(_Activated, nn.Linear):
    """A fully connected layer and its activation."""

    def __init__(self, *args, activation, **kwargs):
        super().__init__(*args, **kwargs)
        self.activation = activation


class Flatten(nn.Module):
    """Feature maps to vectors, pixel by pixel, the channels of a pixel side by side.

    This is the order in which channels-last maps lie in memory: nothing is copied.
    """

    def forward(self, x):  # (N, C, H, W) -> (N, H*W*C)
        return x.permute(0, 2, 3, 1).flatten(1)


class GlobalAvgPool(nn.Module):
    """The mean of each feature map."""

    def forward(self, x):  # (N, C, H, W) -> (N, C)
        return x.mean((2, 3))


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own.

    On a CPU the mask is cut from random bytes, eight of a 64-bit draw, which is several times
    as fast as one draw an element; the rate is thereby rounded to a multiple of 1/256, and
    what is kept is scaled by the exact share kept, so the expectation is exact.

    Attributes
    ----------
    generator : torch.Generator or None
        Set while training; None draws from torch's global generator.
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.generator = None

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        return x * self.scaled_mask(x)

    def scaled_mask(self, x):
        """0 where a value is dropped, 1 / (share kept) elsewhere, in ``x``'s memory layout."""
        kept = round(256 * (1 - self.rate))
        if x.device.type != "cpu" or kept in (0, 256):
            mask = torch.empty_like(x).bernoulli_(1 - self.rate, generator=self.generator)
            return mask.div_(1 - self.rate)
        mask = random_bytes_like(x, self.generator) < kept
        return mask.to(x.dtype).mul_(256 / kept)

    def extra_repr(self):
        return f"rate={self.rate}"


class LayerStack(nn.Sequential):
    """Declarative layers one behind another.

    Max-pooling and a monotone activation in front of it change places where nobody observes
    what lies between: the same numbers from a quarter of the work.
    """

    def arrange(self):
        """Note which layers change places with the one behind them; call when all are in."""
        named = list(self.named_children())
        self._stages = []
        while named:
            name, module = named.pop(0)
            pool_name, pool = None, None
            if named and _commute(module, named[0][1]):
                pool_name, pool = named.pop(0)
            self._stages.append((name, module, pool_name, pool))

    def use_generator(self, generator):
        """Draw dropout masks from ``generator``; None: from torch's own."""
        for module in self:
            if isinstance(module, Dropout):
                module.generator = generator

    def forward(self, x):
        for _, step in self._steps(_is_observed):
            x = step(x)
        return x

    def activations(self, x, names):
        """Return a dict of what the layers ``names`` put out; those behind them do not run.

        The name ``""`` stands for the output of all.
        """
        wanted = {self._modules[name] for name in names if name}
        found = {}
        for name, step in self._steps(wanted.__contains__):
            x = step(x)
            if name in names:
                found[name] = x
                if len(found) == len(names):
                    return found
        return {**found, "": x}

    def _steps(self, is_observed):
        """Yield name and function of each layer; layers that change places are one step."""
        for name, module, pool_name, pool in self._stages:
            if pool is None:
                yield name, module
            elif is_observed(module) or is_observed(pool):
                yield name, module
                yield pool_name, pool
            else:
                yield pool_name, partial(_pool_first, module, pool)


def _pool_first(module, pool, x):
    return module.activate(pool(module.linear(x)))


def _commute(module, following):
    return (
        isinstance(module, ConvActivation)
        and isinstance(following, nn.MaxPool2d)
        and module.activation in MONOTONE
    )


def _is_observed(module):
    return module._forward_hooks or module._forward_pre_hooks


def random_bytes_like(x, generator):
    """Uniform random bytes in the shape and memory layout of ``x``."""
    words = torch.empty(math.ceil(x.numel() / 8), dtype=torch.int64)
    # From the lowest to the highest: all 64 bits are random, not 63.
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    flat = words.view(torch.uint8)[: x.numel()]
    strides = torch.empty_like(x, device="meta").stride()
    return flat.as_strided(x.shape, strides)


def as_channels_last(x):
    """``x`` in channels-last memory layout, which CPU and GPU kernels prefer."""
    n, c, h, w = x.shape
    if c == 1 and x.is_contiguous():
        # Both layouts are one in memory; only the strides tell torch which is meant.
        return x.as_strided((n, c, h, w), (h * w, 1, w, 1))
    return x.contiguous(memory_format=torch.channels_last)


def initialize_weights(weight, bias, kernel_init, generator):
    """Draw ``weight`` and ``bias`` as ``kernel_init`` says; see `sklconv.layers.Conv`."""
    init = nn.init
    with torch.no_grad():
        if kernel_init == "default":
            init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                init.uniform_(bias, -bound, bound, generator=generator)
            return
        if kernel_init == "glorot_uniform":
            init.xavier_uniform_(weight, generator=generator)
        elif kernel_init == "glorot_normal":
            init.xavier_normal_(weight, generator=generator)
        elif kernel_init == "he_uniform":
            init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
        elif kernel_init == "he_normal":
            init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        else:
            init.normal_(weight, std=kernel_init[1], generator=generator)
        if bias is not None:
            init.zeros_(bias)


def _per_channel(values):
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
