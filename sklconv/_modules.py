"""Torch modules that networks of declarative layers are made of."""

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ._devices import autocast
from ._layouts import OUTPUT, RightLayouts, as_channels_last, convolve
from ._passes import state_without_hooks

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


# Below, to cut bytes in halves takes longer than to draw as many bytes as there are values.
MIN_VALUES_BY_HALVES = 2**18


class PreparePixels(nn.Module):
    """Pixels as they come, uint8 or float, to the float32 that a network wants.

    With ``mean`` and ``std`` (one value a channel) pixels are standardised; without, uint8
    is divided by 255 and other numbers are left unchanged. ``largest`` is the largest absolute
    value that they had at fit, where that is known.
    """

    def __init__(self, mean=None, std=None, largest=None):
        super().__init__()
        self.largest = largest
        self.standardize = mean is not None
        if self.standardize:
            self.register_buffer("scale", _per_channel([1 / s for s in std]))
            self.register_buffer(
                "shift", _per_channel([-m / s for m, s in zip(mean, std, strict=True)])
            )

    def unpack_bytes(self, x):
        """Return uint8 pixels as floats that mean the same to `forward`."""
        return x.float() if self.standardize else x.float().div_(255)

    def forward(self, x):  # (N, C, H, W), any real dtype -> float32
        # A copy: neither this nor what comes behind may write into X. Its strides are those of one
        # of two layouts: X's own, of axes of length one, would choose between kernels.
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        pixels = x.to(torch.float32, copy=True, memory_format=layout)
        if self.standardize:
            pixels.mul_(self.scale).add_(self.shift)
        elif x.dtype == torch.uint8:
            pixels.div_(255)
        return pixels


class ImageNetwork(nn.Module):
    """A network with the preparation of its pixels in front: raw images to outputs."""

    def __init__(self, prepare, body, head=None):
        super().__init__()
        self.prepare = prepare
        self.body = body
        self.head = head  # names of the layers that are new in a pretrained body
        self.precision = "float32"
        self.risks = set()  # of its convolutions in channels-last layout
        self._frozen = []
        # What whoever made the body froze stays so.
        self._fixed = {name for name, p in body.named_parameters() if not p.requires_grad}
        # Walking through the modules and parameters of a small network takes as long as a
        # layer of it: they are noted once.
        self._parts = list(body.modules())
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    def __getstate__(self):
        return state_without_hooks(self)

    @property
    def device(self):
        """Where the network's weights lie."""
        return self._anchor.device

    def freeze(self, layers):
        """Have ``layers``, modules of the body, stay as they are while training."""
        if layers or self._frozen:
            for name, parameter in self.body.named_parameters():
                parameter.requires_grad_(name not in self._fixed)
        self._frozen = layers
        self._set_parts(lambda part, learns: part.requires_grad_(learns))

    def _set_parts(self, set_part):
        """Call ``set_part`` for what is frozen, with False, and for the head, with True.

        The head learns also where what is frozen stands around it, but not what is frozen in it.
        """
        heads = [head for head in self.head_layers() if head not in self._frozen]
        within = {part for head in heads for part in head.modules()}
        for layer in self._frozen:
            set_part(layer, False)
        for head in heads:
            set_part(head, True)
        for layer in within.intersection(self._frozen):
            set_part(layer, False)

    def head_layers(self):
        """Return the modules that are new in a pretrained body."""
        return [self.body.get_submodule(name) for name in self.head or ()]

    def settings(self):
        """Return what `restore` needs: all that is set here but weights."""
        learnable = [parameter.requires_grad for parameter in self.parameters()]
        return self.precision, self._frozen, learnable

    def restore(self, settings):
        """Go back to earlier `settings`."""
        self.precision, self._frozen, learnable = settings
        for parameter, learns in zip(self.parameters(), learnable, strict=True):
            parameter.requires_grad_(learns)

    def train(self, mode=True):
        """Set training mode; what is frozen stays in eval mode, its statistics fixed."""
        super().train(mode)
        if mode:
            self._set_parts(lambda part, learns: part.train(learns))
        return self

    def has_training_parts(self):
        """Whether any part is in training mode."""
        return any([part.training for part in self._parts])  # noqa: C419  (a list is faster)

    def forward(self, x):  # (N, C, H, W) -> the body's output, float32
        x = self.prepared(x)
        if self.precision == "float32" and not self.risks:
            return self.body(x)
        with autocast(x.device, self.precision), self.right_layouts():
            return self.body(x).float()

    def right_layouts(self):
        """Return a context in which convolutions of the body are computed rightly."""
        if self.chooses_layout or self.device.type != "cpu":
            return nullcontext()
        trains = torch.is_grad_enabled()
        if OUTPUT in self.risks or (trains and (self.risks or self.precision != "float32")):
            return RightLayouts()
        return nullcontext()

    @property
    def chooses_layout(self):
        """Whether the body takes images in any layout and decides itself."""
        return getattr(self.body, "chooses_layout", False)

    def prepared(self, x):
        """Return ``x`` as the body wants it."""
        x = self.prepare(x)
        return x if self.chooses_layout else as_channels_last(x)


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
            if self.stride == (1, 1):  # which is always right, and asked in no time
                return nn.Conv2d.forward(self, x)
            return convolve(x, self.weight, self.bias, self.stride, self.padding)
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
    """Feature maps to vectors: map behind map, row behind row."""

    def forward(self, x):  # (N, C, H, W) -> (N, C*H*W)
        return x.flatten(1)


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
    generator : numpy.random.BitGenerator, torch.Generator on a GPU, or None
        Set while training; None draws from torch's global generator.
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.generator = None

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        kept = round(256 * (1 - self.rate))
        if x.device.type == "cpu" and 0 < kept < 256:
            return x * random_mask(x, kept, self.generator).mul_(256 / kept)
        return x * self._bernoulli_mask(x)

    def _bernoulli_mask(self, x):
        share = 1 - self.rate
        if x.device.type == "cpu" and self.generator is not None:
            # Rates that are no multiples of 1/256.
            draws = torch.from_numpy(np.random.Generator(self.generator).random(x.shape))
            return (draws < share).to(x.dtype).div_(share)
        return torch.empty_like(x).bernoulli_(share, generator=self.generator).div_(share)

    def extra_repr(self):
        return f"rate={self.rate}"


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
