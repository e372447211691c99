"""Kernels as they are drawn."""

import numpy as np
import pytest
import torch
from drawn_grids import images_of
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier, layers
from sklconv.inspection import FiltersDisplay

plt = pytest.importorskip("matplotlib.pyplot")


class Branching(nn.Module):
    """Convolutions that run in another order than they are defined in."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(4, 6, 3)
        self.up = nn.ConvTranspose2d(6, 5, 2)
        self.first = nn.Conv2d(3, 4, (5, 3))
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.up(self.second(self.first(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def extractor():
    return ConvFeatureExtractor(Branching(), layer="second").fit(np.zeros((4, 3, 12, 12)))


def weights(model, name):
    return model.module_.body.get_submodule(name).weight.detach().numpy()


def test_kernels_of_grey_images_on_a_symmetric_scale():
    X = np.random.default_rng(0).random((20, 8, 8))
    steps = [("conv", layers.Conv(7, (3, 5))), ("more", layers.Conv(4, 3))]
    net = ConvNetClassifier(steps, max_epochs=1, random_state=0).fit(X, np.arange(20) % 2)
    display = FiltersDisplay.from_estimator(net)
    kernels = weights(net, "conv")
    np.testing.assert_array_equal(display.filters, kernels)
    np.testing.assert_array_equal(images_of(display.im_, (3, 5)), kernels[:, 0])
    assert display.im_.get_clim() == pytest.approx((-abs(kernels).max(), abs(kernels).max()))
    assert display.colorbar_.mappable is display.im_
    assert display.ax_.get_title() == "conv: 7 filters of 3×5"

    deeper = FiltersDisplay.from_estimator(net, layer=-3, channel=3, n_columns=2, cmap="gray")
    shown = weights(net, "more")[:, 3]
    np.testing.assert_array_equal(images_of(deeper.im_, (3, 3)), shown)
    assert deeper.im_.get_clim()[1] == pytest.approx(abs(shown).max())
    assert deeper.im_.get_cmap().name == "gray"
    assert deeper.ax_.get_title() == "more: 4 filters of 3×3, input map 3"
    with pytest.raises(ValueError, match="channel=7: the kernels have the input maps 0 to 6"):
        deeper.plot(channel=7)


def test_three_input_maps_are_colours_and_zero_is_grey(extractor):
    display = FiltersDisplay.from_estimator(extractor)
    kernels = weights(extractor, "first")
    expected = (kernels / (2 * abs(kernels).max()) + 0.5).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(images_of(display.im_, (5, 3)), expected, rtol=1e-6)
    assert display.layer == "first"  # by the order in which they run
    assert display.colorbar_ is None
    blue = FiltersDisplay.from_estimator(extractor, channel=2)
    np.testing.assert_array_equal(images_of(blue.im_, (5, 3)), kernels[:, 2])
    assert blue.colorbar_ is not None
    nothing = FiltersDisplay(np.zeros((1, 3, 2, 2))).plot()
    assert (images_of(nothing.im_, (2, 2)) == 0.5).all()


def test_kernels_of_a_transposed_convolution_are_one_per_output(extractor):
    display = FiltersDisplay.from_estimator(extractor, layer="up")
    np.testing.assert_array_equal(display.filters, weights(extractor, "up").swapaxes(0, 1))
    assert display.filters.shape == (5, 6, 2, 2)


@pytest.mark.parametrize("layer", ["head", -1, "*"])
def test_layers_without_kernels_name_those_that_have_them(extractor, layer):
    with pytest.raises(
        ValueError, match="not one layer with kernels; these are: first, second, up"
    ):
        FiltersDisplay.from_estimator(extractor, layer=layer)


def test_a_name_of_no_layer(extractor):
    with pytest.raises(ValueError, match=r"layer='secnd' is not a layer .* Did you mean 'second'"):
        FiltersDisplay.from_estimator(extractor, layer="secnd")


def test_a_network_without_kernels():
    X = np.zeros((10, 4, 4))
    dense = ConvNetClassifier([("dense", layers.Dense(3))], max_epochs=1).fit(X, [0, 1] * 5)
    with pytest.raises(ValueError, match="no layer with kernels"):
        FiltersDisplay.from_estimator(dense)


def test_weights_of_another_precision_are_drawn(extractor):
    half = ConvFeatureExtractor(Branching().to(torch.float16).float(), layer=-1)
    display = FiltersDisplay.from_estimator(half.fit(np.zeros((4, 3, 12, 12))))
    assert display.filters.dtype == np.float32
