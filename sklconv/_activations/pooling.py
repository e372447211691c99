"""How an activation is read, as maps, tokens or a vector, and how it becomes one row an image."""

import math
import re
from dataclasses import dataclass
from numbers import Integral

import torch

POOLINGS = {"auto", "avg", "max", "flatten", "cls"}

# Of parameters that hold class tokens: "class_token" in torchvision, "cls_token" nearly
# everywhere else, with a number where there are several branches.
CLASS_TOKEN = re.compile(r"(class|cls)_token")


@dataclass(frozen=True)
class Reading:
    """What the axes of a tap's activations are.

    Maps are (N, C, H, W) once `axis` is moved to the front; tokens (N, T, C), and what
    one-dimensional convolutions put out (N, C, L), stay as they are.
    """

    name: str  # of the layer
    shape: tuple[int, ...]  # without the images, maps channels first
    axis: int = 1  # of the channels, as the layer puts them out
    n_prefix: int = 0  # so many tokens stand in front of those of the patches
    has_class_token: bool = False  # and the first of them is the class token

    @property
    def is_tokens(self):
        return len(self.shape) == 2 and self.axis == 2


def read_activation(tap, activation, axis, pool, trace, body):
    """Return the `Reading` of ``tap``, whose activation in the pass ``trace`` is this one.

    Parameters
    ----------
    tap : Tap
    activation : torch.Tensor
    axis : int or None
        Where its channels were seen to be.
    pool : str or callable
        As `sklconv.ConvFeatureExtractor` takes it; a callable reads the activation itself.
    trace : Trace
    body : torch.nn.Module
    """
    parents = _parents(body, tap.module)
    shape = tuple(activation.shape[1:])
    if callable(pool):
        return Reading(tap.name, shape)
    if len(shape) == 3:
        axis = _maps_axis(tap, axis, parents)
        return Reading(tap.name, _moved_to_front(shape, axis - 1), axis)
    if len(shape) == 2:
        axis = axis or 2
        if axis == 2:
            return Reading(tap.name, shape, axis, *_prefix(shape[0], trace, parents))
        return Reading(tap.name, shape, axis)
    return Reading(tap.name, shape)


def _parents(body, name):
    """Return the modules that hold the module ``name``, outermost first, and itself."""
    parts = name.split(".") if name else []
    return [body.get_submodule(".".join(parts[:n])) for n in range(len(parts) + 1)]


def _moved_to_front(shape, i):
    return (shape[i], *shape[:i], *shape[i + 1 :])


def _maps_axis(tap, seen, parents):
    """The axis of the channels of four: as seen, else as the nearest module says, else 1."""
    said = [_said_axis(module) for module in parents]
    own = None if tap.of_input else said[-1]
    if seen and own and seen != own:
        words = {1: "second", 2: "third", 3: "last"}
        raise ValueError(
            f"layer {tap.name!r}: its output_fmt says that channels are the {words[own]} axis of "
            f"what it puts out, but what it computes has them on the {words[seen]}. Give a "
            "callable as pool: it gets the activation as it is"
        )
    return seen or next((axis for axis in reversed(said) if axis), 1)


def _said_axis(module):
    """The axis that the module's ``output_fmt``, an enum or a str, as timm has it, names."""
    said = getattr(module, "output_fmt", None)
    return {"NCHW": 1, "NHWC": 3}.get(str(getattr(said, "value", said)))


def _prefix(n_tokens, trace, parents):
    """How many of the tokens are no patches, and whether the first of them is a class token."""
    says = next((module for module in parents if _declared_prefix(module)), None)
    if says is None:
        return 0, False
    n = _declared_prefix(says)
    if not _holds_prefix(n_tokens, n, *_numbers_of_places(trace)):
        return 0, False
    return n, _has_class_token(says)


def _holds_prefix(n_tokens, n, grids, sequences):
    """Whether ``n`` of the tokens are none of the places of maps, nor of shorter sequences."""
    if n_tokens == n:  # in front of its head, CaiT has the class token alone
        return True
    if n_tokens in grids or n_tokens - n in grids:
        return n_tokens not in grids
    return n_tokens - n in sequences or n_tokens + n not in sequences


def _declared_prefix(module):
    """How many tokens in front of its patches a network says that it has."""
    n = getattr(module, "num_prefix_tokens", None)
    if isinstance(n, Integral) and not isinstance(n, bool):
        return int(n)
    tokens = [
        parameter.shape[1]
        for name, parameter in module.named_parameters(recurse=False)
        if CLASS_TOKEN.match(name) and parameter.ndim == 3
    ]
    return tokens[0] if tokens else 0


def _has_class_token(module):
    says = getattr(module, "has_class_token", None)
    if isinstance(says, bool):
        return says
    # In networks with registers only it is there, but None.
    return getattr(module, "cls_token", module) is not None


def _numbers_of_places(trace):
    """Return how many places the maps of a pass have, and how many tokens its sequences."""
    grids, sequences = set(), set()
    for call in trace.calls:
        shape, axis = list(call.output.shape), call.output_axis
        if len(shape) == 4 and axis:
            del shape[axis]
            grids.add(math.prod(shape[1:]))
        elif len(shape) == 3 and axis != 1:
            sequences.add(shape[1])
    return grids, sequences


def pooled(activation, reading, pool, n):
    """Return one vector for each of ``n`` images; ``pool`` as `ConvFeatureExtractor` has it."""
    if callable(pool):
        return _pooled_by(pool, activation, reading.name, n)
    _check_is_one_row_an_image(activation, reading.name, n)
    if activation.ndim == 2:
        return activation
    if pool == "cls":
        return _class_token(activation, reading)
    if activation.ndim == 4:
        activation = activation.movedim(reading.axis, 1)
    if pool == "flatten":
        return activation.flatten(1)
    if reading.is_tokens:
        patches = activation[:, reading.n_prefix :]
        activation = (patches if patches.shape[1] else activation).transpose(1, 2)
    places = tuple(range(2, activation.ndim))
    return activation.amax(places) if pool == "max" else activation.mean(places)


def _pooled_by(pool, activation, name, n):
    features = pool(activation)
    if not isinstance(features, torch.Tensor) or features.shape[:-1] != (n,):
        came = getattr(features, "shape", type(features).__name__)
        raise ValueError(
            f"pool returned {came} for the activation {tuple(activation.shape)} of layer "
            f"{name!r}; it must return a tensor of shape ({n}, n_features)"
        )
    return features


def _check_is_one_row_an_image(activation, name, n):
    came = tuple(activation.shape)
    if came[:1] != (n,):
        raise ValueError(
            f"layer {name!r} puts out {came} for {n} images, which is not one row an image. Tap "
            "another layer, or give a callable as pool: it gets the activation whole and returns "
            f"a tensor of shape ({n}, n_features)"
        )
    if activation.ndim not in (2, 3, 4):
        raise ValueError(
            f"layer {name!r} puts out {came} for {n} images, neither vectors nor tokens nor "
            "feature maps; give a callable as pool"
        )


def _class_token(activation, reading):
    if not reading.has_class_token:
        raise ValueError(
            f"pool='cls' takes the class token, but layer {reading.name!r} has none: it puts out "
            f"{tuple(activation.shape)}. A network says how many tokens stand in front of its "
            "patches, the class token first, by its attribute num_prefix_tokens"
        )
    return activation[:, 0]


def feature_names(reading, pool, width):
    """Name the features of one layer."""
    layer, shape = reading.name, reading.shape
    if pool != "flatten" or len(shape) == 1:
        return [f"{layer}_{i}" for i in range(width)]
    if reading.is_tokens:
        tokens, channels = shape
        return [f"{layer}_{c}_t{t}" for t in range(tokens) for c in range(channels)]
    if len(shape) == 2:
        channels, length = shape
        return [f"{layer}_{c}_x{x}" for c in range(channels) for x in range(length)]
    channels, height, width = shape
    return [
        f"{layer}_{c}_y{y}_x{x}"
        for c in range(channels)
        for y in range(height)
        for x in range(width)
    ]
