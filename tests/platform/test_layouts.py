"""Convolutions are computed rightly, whatever their geometry."""

import copy

import numpy as np
import pytest
import torch
from search_convolutions import able_precisions, search
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._platform.layouts import as_channels_first, as_channels_last, risks_of
from sklconv.layers import Conv, Dropout, GlobalAvgPool, MaxPool


def test_random_convolutions_agree_with_float64():
    assert search(60, seed=1, precisions=able_precisions()) == []


def is_channels_first(x):
    _, c, h, w = x.shape
    return x.stride() == (c * h * w, h * w, w, 1)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 1, 1)])
def test_layouts_are_said_by_the_strides(shape):
    x = torch.randn(shape)
    for y in (as_channels_last(x), x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)):
        assert torch.equal(as_channels_first(y), x)
        assert is_channels_first(as_channels_first(y))


@pytest.mark.parametrize(
    ("weight", "stride", "padding", "risks"),
    [
        ((4, 3, 1, 1), 2, 0, {"gradients"}),
        ((4, 3, 1, 1), (1, 3), (0, 0), {"gradients"}),
        ((4, 3, 1, 1), 2, 1, {"output", "gradients"}),
        ((4, 3, 1, 1), 1, 0, set()),
        ((4, 3, 3, 3), 2, 1, set()),
        ((4, 1, 4, 4), (1, 2), 0, {"output"}),
        ((4, 1, 4, 4), (2, 1), 0, {"output"}),
        ((4, 1, 1, 3), 3, 0, {"output"}),
        ((4, 1, 3, 3), 2, 1, set()),
        ((4, 2, 4, 4), (1, 2), 0, set()),
        ((4, 2, 4, 4), 4, 0, set()),
        ((4, 2, 2, 1), (3, 1), 0, {"output"}),
        ((4, 2, 1, 3), 3, 0, {"output"}),
        ((4, 2, 3, 3), (1, 4), 1, {"output"}),
    ],
)
def test_geometries_at_risk(weight, stride, padding, risks):
    assert risks_of(weight, stride, padding) == risks


class _SeenConvolutions(torch.overrides.TorchFunctionMode):
    """Records whether what `F.conv2d` gets lies channels first."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d:
            self.seen.append(is_channels_first(args[0]) and is_channels_first(args[1]))
        return func(*args, **(kwargs or {}))


class Standardized(nn.Conv2d):
    """A subclass that calls the function itself, as many of timm's do."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Functional(nn.Module):
    """A convolution that is no module."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        plain = nn.Conv2d(*args, **kwargs)
        self.weight, self.stride = plain.weight, plain.stride

    def forward(self, x):
        return F.conv2d(x, self.weight, stride=self.stride)


class Checkpointed(nn.Conv2d):
    """A convolution that is computed anew in the backward pass."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def make_network(kind, in_channels=3, kernel_size=1, stride=2, num_classes=2):
    return nn.Sequential(
        kind(in_channels, 4, kernel_size, stride=stride),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


@pytest.mark.parametrize("kind", [nn.Conv2d, Standardized, Functional, Checkpointed])
@pytest.mark.skipif(torch.get_default_device().type != "cpu", reason="the rule is for CPUs")
def test_users_convolutions_at_risk_are_trained_channels_first(kind):
    X = np.random.default_rng(0).integers(0, 256, (12, 3, 9, 9), dtype=np.uint8)
    y = np.arange(12) % 2
    module = TorchModule(make_network, kind=kind)
    with _SeenConvolutions() as recorded:
        clf = ConvNetClassifier(module, max_epochs=2, random_state=0, device="cpu").fit(X, y)
        n_training = len(recorded.seen)
        assert all(recorded.seen[1:])  # the first is the trace's, which has no gradients
        clf.predict(X)
    assert n_training >= 5
    assert not any(recorded.seen[n_training:]), "inference is right in channels last, and faster"


def test_the_output_at_risk_is_computed_channels_first():
    X = np.random.default_rng(0).normal(size=(20, 30, 5)).astype(np.float32)
    net = make_network(nn.Conv2d, in_channels=1, kernel_size=4, stride=(1, 2))
    with _SeenConvolutions() as recorded:
        whole = ConvFeatureExtractor(Backbone(net), layer="0", device="cpu").fit(X).transform(X)
    assert recorded.seen
    assert all(recorded.seen)
    expected = copy.deepcopy(net)[0].double()(torch.from_numpy(X[:, None]).double()).mean((2, 3))
    np.testing.assert_allclose(whole, expected.detach(), atol=1e-5)


def test_one_channel_and_a_wider_stride_by_batches():
    X = np.random.default_rng(0).normal(size=(200, 70, 5)).astype(np.float32)
    layers = [("conv", Conv(7, 4, stride=(1, 2))), ("mean", GlobalAvgPool())]
    clf = ConvNetClassifier(layers, max_epochs=1, random_state=0).fit(X, np.arange(200) % 2)
    by_batches = [clf.predict_proba(X[i : i + 8]) for i in range(0, 200, 8)]
    np.testing.assert_allclose(clf.predict_proba(X), np.concatenate(by_batches), atol=1e-6)


def test_a_strided_convolution_of_one_pixel_trains():
    X = np.random.default_rng(0).integers(0, 256, (80, 3, 70, 70), dtype=np.uint8)
    clf = ConvNetClassifier([("l0", Conv(4, 1, stride=2))], max_epochs=4, random_state=0)
    assert clf.fit(X, np.arange(80) % 2).n_iter_ == 4


def test_networks_without_such_convolutions_are_left_alone():
    X = np.random.default_rng(0).integers(0, 256, (12, 3, 9, 9), dtype=np.uint8)
    module = TorchModule(make_network, kind=nn.Conv2d, kernel_size=3)
    clf = ConvNetClassifier(module, max_epochs=1, random_state=0).fit(X, np.arange(12) % 2)
    assert clf.module_.risks == set()


class _NamesItsArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 2, 2))

    def forward(self, x):
        x = F.conv_transpose2d(input=x, weight=self.weight, stride=2)
        return F.conv2d(input=x, weight=self.weight[:, :, :1, :1])


class _WithoutWeight(nn.Conv2d):
    """A convolution that makes its weights itself, from what goes by another name."""

    def __init__(self):
        super().__init__(3, 4, 3)
        self.kernel, self.weight = self.weight, None

    def forward(self, x):
        return F.conv2d(x, self.kernel.tanh())


@pytest.mark.parametrize("kind", [_NamesItsArguments, _WithoutWeight])
def test_convolutions_may_be_called_in_any_way(kind):
    X = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    net = nn.Sequential(kind(), nn.Flatten()).eval()
    features = ConvFeatureExtractor(net, layer="1").fit_transform(X)
    with torch.no_grad():
        np.testing.assert_allclose(features, net(torch.from_numpy(X)), rtol=1e-4, atol=1e-5)


class _SeenFunctions(TorchDispatchMode):
    """Records which functions were called."""

    def __init__(self):
        super().__init__()
        self.functions = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.functions.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_training_is_the_same_in_either_layout(channels, monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(64, channels, 12, 11)).astype(np.float32), np.arange(64) % 3
    layers = [
        ("conv1", Conv(6, 3)),
        ("pool1", MaxPool(2)),
        ("conv2", Conv(8, 3, padding="same")),
        ("pool2", MaxPool(2)),
        ("drop", Dropout(0.25)),
    ]
    losses, probabilities, took_onednn = [], [], []
    for favours in (True, False):
        name = "sklconv.layers._conv.favours_onednn"
        monkeypatch.setattr(name, lambda favours=favours: favours)
        with _SeenFunctions() as seen:
            clf = ConvNetClassifier(layers, max_epochs=3, lr=0.01, random_state=0).fit(X, y)
            probabilities.append(clf.predict_proba(X))
        losses.append([epoch["train_loss"] for epoch in clf.history_])
        took_onednn.append(torch.ops.aten.to_mkldnn.default in seen.functions)
    assert took_onednn == [torch.backends.mkldnn.is_available(), False]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    np.testing.assert_allclose(probabilities[0], probabilities[1], atol=1e-4)
