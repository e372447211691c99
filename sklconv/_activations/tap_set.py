"""The layers that an extractor taps, and the features that come of them."""

import functools
from dataclasses import dataclass

import torch

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


@dataclass(frozen=True)
class TappedLayer:
    """A tap, how its activation is read, and the number of its features."""

    tap: Tap
    reading: Reading
    n_features: int


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
    def n_features(self):
        return sum(layer.n_features for layer in self.tapped)

    def names(self, pool):
        """Return the names of all features, pooled so."""
        return [
            name
            for layer in self.tapped
            for name in feature_names(layer.reading, pool, layer.n_features)
        ]

    def compute(self, network, x, precision, pool):  # (N, C, H, W) -> (N, n_features)
        activations = network.activations(self.taps, self.deepest, x, precision)
        columns = [
            pooled(activation, layer.reading, pool, len(x))
            for activation, layer in zip(activations, self.tapped, strict=True)
        ]
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
    tapped = tuple(_tapped_layer(tap, pool, network, trace, images) for tap in taps)
    deepest = find_deepest(taps, trace.calls)
    return TapSet(tapped, deepest, multiply_adds(trace.calls, deepest))


@functools.cache
def output_taps(n_outputs):
    """Return the `TapSet` of a network's output, a row of ``n_outputs`` an image."""
    reading = Reading(NETWORK_OUTPUT.name, (n_outputs,))
    return TapSet((TappedLayer(NETWORK_OUTPUT, reading, n_outputs),), NETWORK_OUTPUT)


def _tapped_layer(tap, pool, network, trace, images):
    activation, axis = _activation(tap, network, trace, images)
    reading = read_activation(tap, activation, axis, pool, trace, network.body)
    return TappedLayer(tap, reading, pooled(activation, reading, pool, len(images)).shape[1])


def _activation(tap, network, trace, images):
    """Return what ``tap`` gets of the images, and the axis of its channels or None."""
    if not tap.of_pre_logits:
        return tapped_activation(tap, trace)
    trace = trace_layers(network.body, lambda: network.activations([tap], tap, images)[0])
    return trace.output, trace.output_axis
