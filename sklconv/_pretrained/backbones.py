"""Backbone: a pretrained network with the preprocessing that its weights expect."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._images.cropping import Fitting, border_fill
from .._images.files import FileOptions
from .._images.forms import holds_files
from .._images.resampling import as_bytes, part_needed, resample
from .._platform.digests import Undigestible, digest_of, remembered
from .._platform.layouts import ready_weights
from .._platform.modules import own_copy, pass_hooks, refuse_lazy_weights
from .._platform.randomness import seeded_global_states
from .._platform.sklearn import Interval, StrOptions, SuggestingEstimator
from .libraries import create_network, known_preprocessing, size_to_build
from .weights import load_weights

# For a first look at a network of which no size is known.
USUAL_SIZE = (224, 224)

PREPROCESSING = ("mean", "std", "image_size", "interpolation", "crop_pct", "crop_mode")


class Backbone(SuggestingEstimator):
    """A pretrained network, with the preprocessing that its weights expect.

    As the ``estimator`` of a `ConvFeatureExtractor` it is frozen; as the ``module`` of a
    `ConvNetClassifier` it gets a new head for the classes and is fine-tuned. Nothing is
    loaded before fit, and then once per process, however often an estimator is cloned. The
    two networks used last stay in memory.

    Parameters
    ----------
    network : str, torch.nn.Module or callable
        ``"timm/resnet18"``, ``"torchvision/resnet18"``,
        ``"efficientnet_lite/efficientnet-lite0"``, a module, or a function without arguments
        that returns one. A module is copied, never changed; those of its parameters that do
        not require gradients stay frozen in fine-tuning.
    weights : str, path-like or None, default="pretrained"
        "pretrained": those that the library downloads (tens to hundreds of MB, once), for
        EfficientNet-Lite those installed as a package, for a module its own. A path: a
        ``.safetensors`` file, or a ``.pth`` file that holds only tensors. None: random.
    mean, std : sequence of float or None, default=None
        Of each channel, for pixels in [0, 1]. None: as the weights' library says, or none.
    image_size : int, (int, int) or None, default=None
        Height and width of the network's input, in pixels; networks of timm and torchvision
        that take images of one size only, such as transformers, are built for it. **Images that
        already have this size are cropped as well**, as by the weights' own transform: with
        ``crop_pct=0.875``, 224 × 224 pixels are resized to 256 × 256, and the centre is kept.
        None: as the weights' library says (the size for testing, if it has one); else images
        are neither resized nor cropped.
    interpolation : {"bilinear", "bicubic"} or None, default=None
        How images are resized, antialiased. None: as the weights' library says, or "bilinear".
    crop_pct : float in (0, 2) or None, default=None
        Images are resized to ``image_size / crop_pct``, and the centre is kept. **Below 1 all
        four margins are cut off**; with 1 they are kept, as digits that fill the image need;
        above 1 a black border is added. None: as the weights' library says, or 1. Without an
        ``image_size``, this and ``crop_mode`` are errors.
    crop_mode : {"center", "squash", "border"} or None, default=None
        What is resized to that size: "center", the shorter side, and the longer one is cut to
        size; "squash", both sides, whatever their proportions; "border", the longer side, and a
        border of the colour ``mean`` is added. None: as the weights' library says, else
        "center" if there is a ``crop_pct`` and "squash" if not.
    value_range : (float, float) or None, default=None
        Range of pixels that are not uint8. None: [0, 1] if there are ``mean`` and ``std``, and
        values outside are an error; else they go in unchanged. uint8 ranges over [0, 255].

    See Also
    --------
    ConvFeatureExtractor : Features from a backbone.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_images
    >>> from torch import nn
    >>> from sklconv import Backbone, ConvFeatureExtractor
    >>> images = load_sample_images().images  # two photographs of 427×640 pixels
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> backbone = Backbone(net, mean=[0.5] * 3, std=[0.25] * 3, image_size=64)
    >>> ConvFeatureExtractor(backbone, layer="1").fit_transform(images).shape
    (2, 8)
    """

    __module__ = "sklconv"

    _parameter_constraints: dict = {
        "network": [str, nn.Module, callable],
        "weights": [str, os.PathLike, None],
        "mean": ["array-like", None],
        "std": ["array-like", None],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "interpolation": [StrOptions({"bilinear", "bicubic"}), None],
        "crop_pct": [Interval(Real, 0, 2, closed="neither"), None],
        "crop_mode": [StrOptions({"center", "squash", "border"}), None],
        "value_range": [tuple, list, None],
    }

    def __init__(
        self,
        network: str | nn.Module | Callable[[], nn.Module],
        *,
        weights: str | os.PathLike[str] | None = "pretrained",
        mean: Sequence[float] | NDArray[Any] | None = None,
        std: Sequence[float] | NDArray[Any] | None = None,
        image_size: int | tuple[int, int] | None = None,
        interpolation: Literal["bilinear", "bicubic"] | None = None,
        crop_pct: float | None = None,
        crop_mode: Literal["center", "squash", "border"] | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.network = network
        self.weights = weights
        self.mean = mean
        self.std = std
        self.image_size = image_size
        self.interpolation = interpolation
        self.crop_pct = crop_pct
        self.crop_mode = crop_mode
        self.value_range = value_range

    def __sklearn_clone__(self):
        # Clones share a module, which is never changed: its weights are there once.
        return Backbone(**self.get_params(deep=False))

    def resolve(self) -> Backbone:
        """Return a `Backbone` whose preprocessing is filled in from the weights' library."""
        self._validate_params()
        known = known_preprocessing(self.network) if isinstance(self.network, str) else {}
        filled = {
            name: known.get(name) if getattr(self, name) is None else getattr(self, name)
            for name in PREPROCESSING
        }
        if filled["image_size"] is None and (filled["crop_pct"] or filled["crop_mode"]):
            raise ValueError("Backbone: crop_pct and crop_mode have no effect without image_size")
        filled["interpolation"] = filled["interpolation"] or "bilinear"
        filled["crop_mode"] = filled["crop_mode"] or ("center" if filled["crop_pct"] else "squash")
        filled["crop_pct"] = filled["crop_pct"] or 1.0
        resolved = Backbone(**{**self.get_params(deep=False), **filled})
        resolved._check()
        return resolved

    def _check(self):
        if (self.mean is None) != (self.std is None):
            raise ValueError("Backbone: mean and std go together: one of them is missing")
        if self.mean is not None:
            mean, std = np.asarray(self.mean, float), np.asarray(self.std, float)
            if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
                raise ValueError(
                    f"Backbone: mean={self.mean!r} and std={self.std!r} must be finite, and std "
                    "above 0"
                )
            if (np.abs(mean) > 1).any():
                raise ValueError(
                    f"Backbone: mean={self.mean!r} and std={self.std!r} are for pixels in [0, 1]: "
                    "divide them by 255"
                )
        values = self.value_range
        if values is not None and not (len(values) == 2 and values[0] < values[1]):
            raise ValueError(f"Backbone: value_range={values} is not (low, high)")
        size = self.image_size
        if isinstance(size, (tuple, list)) and not (
            len(size) == 2 and all(isinstance(n, Integral) and int(n) > 0 for n in size)
        ):
            raise ValueError(f"Backbone: image_size={size} is neither an int nor (height, width)")

    @property
    def size(self) -> tuple[int, int] | None:
        """``image_size`` as (height, width), or None."""
        size = self.image_size
        if size is None:
            return None
        return (size[0], size[1]) if isinstance(size, (tuple, list)) else (size, size)

    @property
    def network_name(self) -> str:
        """``network`` for errors: its name, or that of its class."""
        if isinstance(self.network, nn.Module):
            return type(self.network).__name__
        return repr(self.network)

    @property
    def fitting(self) -> Fitting:
        """How a resolved backbone brings images to its size."""
        padded_with_mean = self.crop_mode == "border" and self.mean is not None
        low, high = self.value_range or (0, 1)
        return Fitting(
            **{name: getattr(self, name) for name in ("interpolation", "crop_pct", "crop_mode")},
            fill=border_fill(self.mean) if padded_with_mean else (0.0,),
            value_range=(low, high),
        )

    def load(self, device: str = "cpu") -> nn.Module:
        """Return the network with its weights, in eval mode: shared, not to be changed."""
        weights = None if self.weights is None else os.fspath(self.weights)
        stamp = None if weights in ("pretrained", None) else _stamp(weights)
        if isinstance(self.network, nn.Module):
            return _shared_copy(self.network, weights, stamp, device)
        size = None
        if isinstance(self.network, str):
            size = size_to_build(self.network, self.size, weights == "pretrained")
        load = _load if weights is None else _load_once  # random weights are drawn anew
        return load(self.network, weights, stamp, device, size)

    def preparation(self, network: nn.Module) -> PrepareForWeights:
        """Return the module that prepares pixels for ``network``; call it on a resolved one."""
        # The libraries' networks take colour.
        channels = 3 if isinstance(self.network, str) else input_channels(network, self.size)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and channels is not None and len(values) not in (1, channels):
                raise ValueError(
                    f"Backbone: {name} has {len(values)} values, but the network takes "
                    f"{channels} channels"
                )
        return PrepareForWeights(channels, self)


def file_options(module, X, reader=None, on_bad_image="raise"):
    """Return how ``X``, if it holds files, is read for ``module``: a `Backbone` may say how."""
    shape = fitting = None
    if isinstance(module, Backbone) and holds_files(X):
        backbone = module.resolve()
        if backbone.size is not None:
            shape, fitting = (_n_channels(backbone), *backbone.size), backbone.fitting
    return FileOptions(reader, on_bad_image, shape, fitting)


def input_channels(network, size):
    """Return how many channels the images have that ``network`` takes, or None if any number.

    The first convolution that runs tells: it stands behind what networks do to pixels before.
    """
    refuse_lazy_weights(network)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    if not convolutions:
        return None
    first = convolutions[0]
    listeners = [(convolution.register_forward_pre_hook, _stop) for convolution in convolutions]
    for channels in (first.in_channels, 3):
        images = first.weight.new_zeros(2, channels, *(size or USUAL_SIZE))
        try:
            with pass_hooks(listeners), torch.no_grad():
                network(images)
        except _Reached as reached:
            wanted, came = reached.args
            if channels * wanted % came == 0:
                return channels * wanted // came
        except Exception:  # of whatever kind: users' code, run with what it may not take
            continue
    return first.in_channels


class _Reached(Exception):
    """Ends a pass at its first convolution; says how many channels it takes, and how many came."""


def _stop(convolution, inputs, _):
    raise _Reached(convolution.in_channels, inputs[0].shape[-3])


def _n_channels(backbone):
    """Return how many channels a resolved backbone takes; 3 where that is not known."""
    network = backbone.network
    if callable(network) and not isinstance(network, nn.Module):
        with seeded_global_states(0):  # random weights are drawn anew when they are used
            network = backbone.load()
    return backbone.preparation(network).channels or 3


class PrepareForWeights(nn.Module):
    """Pixels as they come to what pretrained weights want: channels, size, range, scale."""

    mean: torch.Tensor
    std: torch.Tensor
    low: float
    high: float
    fitting: Any  # None: images are neither resized nor cropped
    largest = None  # nothing is learnt at fit

    def __init__(self, channels, backbone):
        super().__init__()
        self.channels, self.size = channels, backbone.size
        self.fitting = backbone.fitting if self.size else None
        self.value_range = backbone.value_range
        self.low, self.high = self.value_range or (0, 1)
        self.standardize = backbone.mean is not None
        # Else nobody knows what pixels span that are not uint8.
        self.has_range = self.standardize or self.value_range is not None
        if self.standardize:
            for name in ("mean", "std"):
                values = torch.tensor([*getattr(backbone, name)])
                self.register_buffer(name, values.float().view(1, -1, 1, 1))

    def leave_size(self):
        """Take images as they are: they were resized and cropped as they were read."""
        self.fitting = None

    def forward(self, x):  # (N, C, H, W), any real dtype -> (N, channels, *size), float32
        self.check(x)
        low, width = self._span(x.dtype)
        x = self._matched(self._resized(x, low, width) if self.fitting else _as_floats(x))
        # In place, of a copy, and in as few passes over the pixels as can be.
        if self.standardize:
            return x.sub_(low + width * self.mean).div_(width * self.std)
        return x if (low, width) == (0, 1) else x.sub_(low).div_(width)

    def unpack_bytes(self, x):
        """Return uint8 pixels as floats that mean the same to `forward`."""
        return x.to(torch.float32).mul_((self.high - self.low) / 255).add_(self.low)

    def check(self, x):
        """Raise if ``x`` goes beyond the range that is known of it."""
        if x.dtype == torch.uint8 or not self.has_range:
            return
        least, most = (float(v) for v in x.detach().aminmax())
        if not (self.low <= least and most <= self.high):
            raise ValueError(
                f"X has values from {least:.4g} to {most:.4g}, outside of the "
                + ("value_range=" if self.value_range else "range ")
                + f"({self.low}, {self.high}) that the backbone expects of pixels other than "
                "uint8; pass uint8, or say what they span: Backbone(..., value_range=(low, high))"
            )

    def _span(self, dtype):
        """Return which value is to become 0, and how far from it the one that is to become 1."""
        if dtype == torch.uint8:
            return 0, 255
        return (self.low, self.high - self.low) if self.has_range else (0, 1)

    def _matched(self, x):
        came = x.shape[1]
        if self.channels in (None, came):
            return x
        if came == 1:
            return x.repeat(1, self.channels, 1, 1)
        hint = ""
        if (came, self.channels) in ((4, 3), (2, 1)):
            hint = (
                f". If the last one is alpha, leave it out: X[..., :{self.channels}], or "
                f"X[:, :{self.channels}] where channels come first"
            )
        raise ValueError(
            f"X has images of {came} channels, but the backbone takes {self.channels}: of arrays "
            f"grey is repeated, anything else is for you to convert{hint}"
        )

    def _resized(self, x, low, width):
        size = [int(n) for n in x.shape[2:]]  # torch's exporter makes tensors of them
        spans = self.fitting.spans(size, self.size)
        interpolation = self.fitting.interpolation
        # First the cut: most of a photograph's pixels need not become floats.
        x = part_needed(x, spans, interpolation)
        finish = None
        if x.dtype == torch.uint8:  # which the weights' library and files resize as bytes
            finish = as_bytes
        elif self.has_range:  # beyond which "bicubic" overshoots at edges
            finish = functools.partial(torch.clamp_, min=low, max=low + width)
        x = resample(_as_floats(x, torch.contiguous_format), spans, interpolation, finish)
        return self._padded(x, spans, low, width)

    def _padded(self, x, spans, low, width):
        rows, columns = spans
        if not (rows.is_padded or columns.is_padded):
            return x
        fill = torch.tensor(self.fitting.fill, dtype=torch.float32, device=x.device)
        fill = fill.view(1, -1, 1, 1)
        fill = low + width * fill
        channels = max(x.shape[1], fill.shape[1])
        padded = fill.expand(x.shape[0], channels, rows.target, columns.target).contiguous()
        padded[:, :, rows.kept, columns.kept] = x
        return padded

    def extra_repr(self):
        statistics = "".join(f", {name}={v.flatten()}" for name, v in self.named_buffers())
        return f"channels={self.channels}, size={self.size}, fitting={self.fitting}{statistics}"


def _as_floats(x, memory_format=torch.preserve_format):
    """Return a copy, which may be written into."""
    return x.to(torch.float32, copy=True, memory_format=memory_format)


def _create(network, weights, size):
    """Return a new module; the library's own pretrained weights if ``weights`` says so."""
    if isinstance(network, str):
        return create_network(network, weights == "pretrained", size)
    module = network()
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"Backbone: network={network!r} returned {type(module).__name__}, not a "
            "torch.nn.Module"
        )
    return module


def _load(network, weights, stamp, device, size):
    return remembered(_prepared(_create(network, weights, size), weights, device))


_load_once = functools.lru_cache(maxsize=2)(_load)

_copies: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _shared_copy(module, weights, stamp, device):
    """Return a copy of ``module``, the same one as long as ``module`` stays the same."""
    try:
        learns = tuple(parameter.requires_grad for parameter in module.parameters())
        key = (weights, stamp, device, digest_of(module), learns)
    except Undigestible:
        return _prepared(own_copy(module), weights, device)
    known = _copies.get(module)
    if known is None or known[0] != key:
        _copies[module] = known = (
            key,
            remembered(_prepared(own_copy(module), weights, device)),
        )
    return known[1]


def _prepared(module, weights, device):
    if weights not in ("pretrained", None):
        load_weights(module, weights)
    return ready_weights(module.eval().to(device))


def _stamp(path):
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file or directory; weights is 'pretrained', None or the path of a "
            ".safetensors or .pth file"
        ) from None
    return (status.st_mtime_ns, status.st_size)
