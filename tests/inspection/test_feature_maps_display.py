"""Feature maps as they are drawn, against hooks on the network."""

import numpy as np
import pytest
import torch
from drawn_grids import images_of
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier, layers
from sklconv.inspection import FeatureMapsDisplay

plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:100], y[:100]


@pytest.fixture(scope="module")
def net(digits):
    return ConvNetClassifier(max_epochs=1, random_state=0).fit(*digits)


def hooked(network, name, image):
    """What the layer puts out for one image (C, H, W)."""
    seen = []
    module = network.body.get_submodule(name)
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output[0].clone()))
    with torch.no_grad():
        network.eval()(torch.from_numpy(image[None]))
    handle.remove()
    return seen[-1].numpy()


@pytest.mark.parametrize(("layer", "name"), [(None, "conv2"), ("pool2", "pool2"), (-6, "pool1")])
def test_maps_of_a_layer(net, digits, layer, name):
    display = FeatureMapsDisplay.from_estimator(net, digits[0][0], layer=layer)
    expected = hooked(net.module_, name, digits[0][0].reshape(1, 8, 8))
    np.testing.assert_allclose(display.feature_maps, expected, rtol=1e-4, atol=1e-5)
    assert display.layer == name
    size = expected.shape[1:]
    np.testing.assert_array_equal(images_of(display.im_, size), display.feature_maps)
    assert display.im_.get_clim() == pytest.approx((0, display.feature_maps.max()))
    assert display.colorbar_.mappable is display.im_
    title = f"{name}: {len(expected)} maps of {size[0]}×{size[1]}"
    assert display.ax_.get_title() == title


def test_the_steps_in_front_are_applied(digits):
    X, y = digits
    pipeline = make_pipeline(MinMaxScaler(), ConvNetClassifier(max_epochs=1, random_state=0))
    pipeline.fit(X, y)
    display = FeatureMapsDisplay.from_estimator(pipeline, X[:1], layer="conv2")
    image = pipeline[0].transform(X[:1]).reshape(1, 8, 8)
    expected = hooked(pipeline[1].module_, "conv2", image)
    np.testing.assert_allclose(display.feature_maps, expected, rtol=1e-4, atol=1e-5)


def test_negative_maps_have_a_symmetric_scale(digits):
    X, y = digits
    steps = [("conv", layers.Conv(4, 3, activation="tanh")), ("mean", layers.GlobalAvgPool())]
    net = ConvNetClassifier(steps, max_epochs=1, random_state=0).fit(X, y)
    display = FeatureMapsDisplay.from_estimator(net, X[0])
    assert display.layer == "conv"
    assert display.feature_maps.min() < 0
    largest = abs(display.feature_maps).max()
    assert display.im_.get_clim() == pytest.approx((-largest, largest))


class ChannelsLast(nn.Module):
    """Maps with their channels on the last axis, then of one pixel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)
        self.last = nn.Linear(5, 5)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.last(self.conv(x).movedim(1, 3)).movedim(3, 1)
        return self.head(self.mean(x).flatten(1))


def test_channels_come_first_wherever_the_layer_has_them():
    image = np.random.default_rng(0).random((1, 7, 7)).astype(np.float32)
    model = ConvFeatureExtractor(ChannelsLast()).fit(image[None])
    display = FeatureMapsDisplay.from_estimator(model, image)
    assert display.layer == "last"  # what is pooled to one pixel shows nothing
    expected = hooked(model.module_, "last", image).transpose(2, 0, 1)
    np.testing.assert_allclose(display.feature_maps, expected, rtol=1e-5, atol=1e-6)
    pixel = FeatureMapsDisplay.from_estimator(model, image, layer="mean")
    assert pixel.feature_maps.shape == (5, 1, 1)


@pytest.mark.parametrize(
    ("side", "name"), [(16, "pool2"), (8, "conv2"), (3, "conv2"), (1, "conv")]
)
def test_small_maps_are_shown_only_where_there_are_no_larger_ones(side, name):
    X = np.random.default_rng(0).random((20, side, side))
    steps = [("conv", layers.Conv(2, 1))]
    if side > 3:
        steps += [("pool1", layers.MaxPool(2))]
    if side > 1:
        steps += [("conv2", layers.Conv(2, 2, padding="same"))]
    steps += [("pool2", layers.MaxPool(2))] if side > 3 else [("mean", layers.GlobalAvgPool())]
    net = ConvNetClassifier(steps, max_epochs=1, random_state=0).fit(X, np.arange(20) % 2)
    assert FeatureMapsDisplay.from_estimator(net, X[0]).layer == name


@pytest.mark.parametrize("layer", ["dense", "penultimate", "conv*"])
def test_layers_without_maps_name_those_that_have_them(net, digits, layer):
    with pytest.raises(ValueError, match=r"these are: conv1, pool1, conv2, pool2$"):
        FeatureMapsDisplay.from_estimator(net, digits[0][0], layer=layer)


def test_a_network_without_maps(digits):
    dense = ConvNetClassifier([("dense", layers.Dense(3))], max_epochs=1).fit(*digits)
    with pytest.raises(ValueError, match="no layer that puts out feature maps"):
        FeatureMapsDisplay.from_estimator(dense, digits[0][0])
