"""The layers that an extractor taps, and the features that come of them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from .candidates import candidate_taps
from .pooling import Reading, feature_names, pooled, read_activation
from .taps import (
    NETWORK_OUTPUT,
    Tap,
    find_deepest,
    multiply_adds,
    resolve_taps,
    tapped_activation,
)
from .tracing import trace_layers

# As many values of an image "auto" takes as they are, where they serve better than their means.
MAX_FLATTENED = 2**14

OTHER_POOLING: dict[str | Callable, str] = {"avg": "max", "max": "avg"}


@dataclass(frozen=True)
class TappedLayer:
    """A tap, how its activation is read and pooled, and the number of its features."""

    tap: Tap
    reading: Reading
    pool: str | Callable
    n_features: int

    def pooled(self, activation, n):
        """Return one vector for each of ``n`` images."""
        return pooled(activation, self.reading, self.pool, n)


@dataclass(frozen=True)
class TapSet:
    """Taps of one pass, in the order of their features."""

    tapped: tuple[TappedLayer, ...]
    deepest: Tap
    multiply_adds: int = 0  # of convolutions and linear layers up to there, an image

    def __hash__(self):  # of all fields it would take as long as a small network's pass
        return hash(self.deepest)

    @property
    def taps(self):
        return [layer.tap for layer in self.tapped]

    @property
    def layers(self):
        """The names of the layers."""
        return [layer.tap.name for layer in self.tapped]

    @property
    def pools(self):
        """How each of them is pooled."""
        return [layer.pool for layer in self.tapped]

    @property
    def n_features(self):
        return sum(layer.n_features for layer in self.tapped)

    def with_other_pooling(self):
        """Return a `TapSet` that goes on with the maxima of what is averaged, and vice versa."""
        others = dict.fromkeys(
            replace(layer, pool=OTHER_POOLING[layer.pool])
            for layer in self.tapped
            if len(layer.reading.shape) > 1 and layer.pool in ("avg", "max")
        )
        new = [layer for layer in others if layer not in self.tapped]
        return replace(self, tapped=(*self.tapped, *new))

    def names(self):
        """Return the names of all features."""
        return [
            name
            for layer in self.tapped
            for name in feature_names(layer.reading, layer.pool, layer.n_features)
        ]

    def split(self, features):
        """Return the features of each layer, as views."""
        ends = np.cumsum([layer.n_features for layer in self.tapped])[:-1]
        return np.split(features, ends, axis=1)

    def compute(self, network, x, precision):  # (N, C, H, W) -> (N, n_features)
        taps = list(dict.fromkeys(self.taps))  # candidates are one layer pooled in two ways
        found = dict(zip(taps, network.activations(taps, self.deepest, x, precision), strict=True))
        return self.features(found, len(x))

    def features(self, found, n):
        """Return the features of ``n`` images whose activations are ``found``, by taps."""
        columns = [layer.pooled(found[layer.tap], n) for layer in self.tapped]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


def place_taps(layer, pool, network, trace, images, penultimate):
    """Return the `TapSet` that ``layer`` and ``pool`` of an extractor describe.

    Parameters
    ----------
    layer, pool
        As `sklconv.ConvFeatureExtractor` takes them.
    network : ImageNetwork
    trace : Trace
        Of its pass for ``images``.
    images : torch.Tensor of shape (N, C, H, W)
    penultimate : Tap or None
        As `penultimate_tap` returns it.
    """
    taps = resolve_taps(layer, trace, penultimate)
    return tap_set([_tapped_layer(tap, pool, network, trace, images) for tap in taps], trace)


def place_candidates(pool, network, trace, images, penultimate):
    """Return the `TapSet` that ``layer="auto"`` chooses from; parameters as of `place_taps`.

    With ``pool="auto"`` a layer may be in it twice, first with all values of its maps, then with
    their means. What can't be pooled, or has not one row an image, is left out.
    """
    taps, reason = candidate_taps(trace, penultimate), ""
    tapped: list[TappedLayer] = []
    more = torch.cat([images, images[:1]])
    for tap, activation in zip(taps, _activations(taps, network, trace, more), strict=True):
        try:
            layer = _tapped_layer(tap, pool, network, trace, images)
            layer.pooled(activation, len(more))
        except Exception as error:  # also of a callable, which may be for some layers only
            reason = f": {error}"
        else:
            tapped += both_ways(layer) if pool == "auto" else [layer]
    if not tapped:
        raise ValueError(f"layer='auto' finds no layer in front of the output to tap{reason}")
    return tap_set(tapped, trace)


def _activations(taps, network, trace, images):
    if not taps:
        return []
    with torch.no_grad():
        return network.activations(taps, find_deepest(taps, trace.calls), images)


def both_ways(layer):
    """Return a `TappedLayer` that is pooled by "auto", or else with all values and with means."""
    shape, n_values = layer.reading.shape, prod(layer.reading.shape)
    if len(shape) == 1:
        return [layer]
    means = replace(layer, pool="avg")
    if not layer.n_features < n_values <= MAX_FLATTENED:
        return [means]
    return [replace(layer, pool="flatten", n_features=n_values), means]


def tap_set(tapped, trace):
    """Return the `TapSet` of these layers of the network that was traced."""
    deepest = find_deepest([layer.tap for layer in tapped], trace.calls)
    return TapSet(tuple(tapped), deepest, multiply_adds(trace.calls, deepest))


@functools.cache
def output_taps(n_outputs):
    """Return the `TapSet` of a network's output, a row of ``n_outputs`` an image."""
    reading = Reading(NETWORK_OUTPUT.name, (n_outputs,))
    return TapSet((TappedLayer(NETWORK_OUTPUT, reading, "auto", n_outputs),), NETWORK_OUTPUT)


def _tapped_layer(tap, pool, network, trace, images):
    activation, axis = _activation(tap, network, trace, images)
    reading = read_activation(tap, activation, axis, pool, trace, network.body)
    n_features = pooled(activation, reading, pool, len(images)).shape[1]
    return TappedLayer(tap, reading, pool, n_features)


def _activation(tap, network, trace, images):
    """Return what ``tap`` gets of the images, and the axis of its channels or None."""
    if not tap.of_pre_logits:
        return tapped_activation(tap, trace)
    trace = trace_layers(network.body, lambda: network.activations([tap], tap, images)[0])
    return trace.output, trace.output_axis
