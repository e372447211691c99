"""What callers have set in torch and numpy changes nothing but rounding."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier
from sklconv._platform.devices import autocast
from sklconv.layers import Conv, Dense, Dropout, MaxPool


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).integers(0, 256, (48, 3, 9, 9), dtype=np.uint8)
    return X, np.arange(48) % 2


def declarative():
    layers = [("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("drop", Dropout(0.5))]
    return [*layers, ("dense", Dense(5))]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2))


def backbone():
    return Backbone(network())


@contextmanager
def doubles():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def without_onednn():
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


@pytest.mark.parametrize("make", [declarative, network, backbone])
@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        without_onednn,
        lambda: np.errstate(all="raise"),
    ],
    ids=["no_grad", "inference", "autocast", "without oneDNN", "errstate"],
)
def test_a_callers_mode_changes_nothing(data, make, mode):
    def life(module):
        clf = ConvNetClassifier(module, max_epochs=2, random_state=0).fit(*data)
        seen = [clf.predict_proba(data[0])]
        clf.partial_fit(*data)  # predictions before and after are other ones
        layer = "pool" if make is declarative else "1"
        extractor = ConvFeatureExtractor(clf, layer=layer).fit(*data)
        return [*seen, clf.predict_proba(data[0]), extractor.transform(data[0])]

    expected, module = life(make()), make()
    with mode():
        seen = life(module)
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("make", [declarative, backbone])
def test_torchs_default_dtype_may_be_another(data, make):
    module = make()
    with doubles():
        clf = ConvNetClassifier(module, max_epochs=1, random_state=0).fit(*data)
        assert clf.predict_proba(data[0]).dtype == np.float32


def test_sixteen_bits_follow_the_weights_within_another_autocast():
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16), autocast(x.device, "bfloat16"):
        before = linear(x)
        with torch.no_grad():
            linear.weight.add_(1.0)
        assert not torch.equal(linear(x), before)
