"""Receptive fields, as changing one pixel after another shows them."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv._activations.tracing import trace_layers
from sklconv._networks.building import build_layers
from sklconv._networks.receptive_fields import receptive_fields
from sklconv.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Layer,
    MaxPool,
    SpatialDropout,
)
from sklconv.layers._conv import ConvActivation
from sklconv.layers._stack import LayerStack

# Large enough to be the maximum of any window, and to be seen behind any mean. Other values
# change by less than rounding to float64.
LARGE, CHANGE = 1e9, 1.0


def changed(stack, image_shape):
    """Yield each layer's name and which of its values each pixel changes: (H, W, n_values)."""
    channels, height, width = image_shape
    x = torch.ones(height * width + 1, channels, height, width, dtype=torch.float64)
    for pixel in range(height * width):
        x[pixel].flatten(1)[:, pixel] = LARGE
    for name, layer in stack.named_children():
        x = layer(x)
        difference = (x[:-1] - x[-1:]).abs() > CHANGE
        yield name, difference.reshape(height, width, -1)


def extent(seen):
    """How many places from the first to the last that is True, at most: (n_places, n_values)."""
    places = torch.arange(len(seen))[:, None]
    first = torch.where(seen, places, len(seen)).min(0).values
    last = torch.where(seen, places, -1).max(0).values
    return max(0, int((last - first).max()) + 1)


def measured(stack, image_shape):
    """The receptive fields of increasing layers, by name."""
    stack = stack.double().eval()
    for name, parameter in stack.named_parameters():
        with torch.no_grad():
            # Above zero, so that nothing cancels.
            parameter.zero_() if name.endswith("bias") else parameter.abs_().add_(0.5)
    return {
        name: (extent(seen.any(1)), extent(seen.any(0)))
        for name, seen in changed(stack, image_shape)
    }


def computed(stack, image_shape):
    stack = stack.float().eval()
    return receptive_fields(trace_layers(stack, lambda: stack(torch.ones(2, *image_shape))).calls)


def compare(steps, image_shape):
    stack = build_layers(steps, image_shape, 3, torch.Generator().manual_seed(0))
    found = computed(stack, image_shape)
    assert found == measured(stack, image_shape)
    return found


@pytest.fixture
def images():
    return np.random.default_rng(0).random((8, 1, 8, 8)), [0, 1] * 4


INCREASING = st.sampled_from([None, "relu", "leaky_relu", "elu", "softplus"])


def extents(highest):
    sizes = st.integers(1, highest)
    return sizes | st.tuples(sizes, sizes)


@st.composite
def networks(draw):
    """Steps, and the shape of an image."""
    convolutions = st.builds(
        Conv,
        st.integers(1, 2),
        extents(4),
        stride=extents(3),
        padding=st.sampled_from(["valid", "same", "full"]) | st.integers(0, 3),
        activation=INCREASING,
    )
    pools = st.sampled_from([MaxPool, AvgPool]).flatmap(
        lambda pool: st.builds(
            pool, extents(3), stride=st.none() | extents(3), ceil_mode=st.booleans()
        )
    )
    others = st.sampled_from(
        [BatchNorm(), Activation("relu"), Dropout(0.5), SpatialDropout(0.5), MaxPool("auto")]
    )
    layers = draw(st.lists(convolutions | pools | others, max_size=6))
    vectors = st.sampled_from([Flatten(), GlobalAvgPool(), Dense(2, activation="softplus")])
    layers += [draw(vectors), *draw(st.lists(st.just(BatchNorm()) | st.just(Dense(3))))][:3]
    image_shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 10), st.integers(1, 10)))
    return [(f"layer{i}", layer) for i, layer in enumerate(layers)], image_shape


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_a_receptive_field_holds_the_pixels_that_change_a_value(network):
    steps, image_shape = network
    try:
        build_layers(steps, image_shape, 3, torch.Generator())
    except ValueError:  # a window that is larger than its input
        reject()
    compare(steps, image_shape)


def test_a_network_of_a_textbook():
    """By size += (window - 1) * step, step *= stride, where no edge cuts anything off."""
    steps = [
        ("conv1", Conv(2, 5)),
        ("pool1", MaxPool(2)),
        ("conv2", Conv(2, (5, 3), stride=(1, 2))),
        ("norm", BatchNorm()),
        ("pool2", MaxPool(3, stride=1)),
        ("conv3", Conv(2, 1)),
        ("drop", Dropout(0.5)),
        ("flatten", Flatten()),
        ("dense", Dense(5)),
    ]
    found = compare(steps, (1, 30, 40))
    assert found == {
        "conv1": (5, 5),
        "pool1": (6, 6),
        "conv2": (14, 10),
        "norm": (14, 10),
        "pool2": (18, 18),
        "conv3": (18, 18),
        "drop": (18, 18),
        "flatten": (18, 18),
        "dense": (30, 38),  # the last two columns are behind the last step of conv2
        "output": (30, 38),
    }


def test_dilation():
    image_shape, stack = (1, 12, 15), LayerStack()
    for name, dilation in [("conv1", (1, 2)), ("conv2", (3, 2))]:
        layer = ConvActivation(1, 1, 3, padding=1, dilation=dilation, activation="relu")
        layer.initialize("default", torch.Generator().manual_seed(0))
        stack.add_module(name, layer)
    found = computed(stack, image_shape)
    assert found == measured(stack, image_shape) == {"conv1": (3, 5), "conv2": (9, 9)}


def test_a_window_within_the_padding_sees_nothing():
    steps = [("edge", Conv(1, 1, padding=2, stride=4)), ("all", Conv(1, 2))]
    assert compare(steps, (1, 2, 2))["edge"] == (0, 0)


class Mirror(Layer):
    """A layer of a user's own."""

    def _build(self, shape, n_classes, generator):
        return MirrorModule(), shape


class MirrorModule(nn.Module):
    def forward(self, x):
        return x.flip(-1)


def test_behind_a_layer_of_an_unknown_kind_nothing_is_claimed(images):
    X, y = images
    steps = [("conv", Conv(2, 3)), ("mirror", Mirror()), ("dense", Dense(4))]
    table = ConvNetClassifier(steps, max_epochs=1, random_state=0).fit(X, y).layer_table_
    assert list(table["receptive_field"]) == [(3, 3), None, None, None, None]


def test_networks_of_other_modules_have_none(images):
    X, y = images
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    for fitted in (
        ConvNetClassifier(module, max_epochs=1).fit(X, y),
        ConvFeatureExtractor(module).fit(X),
    ):
        assert list(fitted.layer_table_["receptive_field"]) == [None] * 3
