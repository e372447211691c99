"""Passes that watch layers: what they take, what other threads see of them, what copies hold."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._platform.modules import pass_hooks


@pytest.fixture
def X():
    return np.random.default_rng(0).integers(0, 256, (200, 3, 8, 8), dtype=np.uint8)


class TokensFirst(nn.Module):
    """Patches as tokens (T, N, C) through a block, as `nn.TransformerEncoderLayer` has it."""

    def __init__(self, patch=2):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, patch, stride=patch)
        self.blk = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).permute(2, 0, 1)  # (T, N, C)
        return self.head(self.blk(tokens).mean(0))


@pytest.mark.parametrize("layer", ["blk", ["blk", "embed"], "blk*"])
@pytest.mark.parametrize("pool", ["auto", "avg", "max", "flatten"])
def test_tokens_first_are_an_error(X, layer, pool):
    message = r"layer 'blk.*' puts out \(16, 2, 16\) for 2 images, which is not one row an image"
    with pytest.raises(ValueError, match=message):
        ConvFeatureExtractor(TokensFirst(), layer=layer, pool=pool).fit(X)


def test_as_many_tokens_as_traced_images_are_an_error(X):
    net = TokensFirst(patch=(4, 8))  # two patches
    with pytest.raises(ValueError, match=r"'blk' puts out \(2, 3, 16\) for 3 images"):
        ConvFeatureExtractor(net, layer="blk").fit(X)


def test_a_callable_pool_gets_tokens_first_whole(X):
    net = TokensFirst()
    extractor = ConvFeatureExtractor(net, layer="blk", pool=lambda tokens: tokens.mean(0))
    with torch.no_grad():
        tokens = net.embed(torch.from_numpy(X) / 255).flatten(2).permute(2, 0, 1)
        expected = net.blk(tokens).mean(0)
    np.testing.assert_allclose(extractor.fit_transform(X), expected, atol=1e-6)


class Flipping(nn.Module):
    """Puts out one row an image for few images, and another number for many."""

    def __init__(self):
        super().__init__()
        self.odd = nn.Identity()

    def forward(self, x):
        x = x.mean((2, 3))
        return self.odd(x if len(x) < 5 else x.repeat(2, 1))[: len(x)]


def test_rows_are_counted_in_every_batch(X):
    extractor = ConvFeatureExtractor(Flipping(), layer="odd").fit(X)
    with pytest.raises(ValueError, match=r"'odd' puts out \(400, 3\) for 200 images"):
        extractor.transform(X)


def make_network(num_classes=2):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, num_classes))


def of_module(X):
    return ConvFeatureExtractor(make_network(), layer="1").fit(X)


def of_backbone(X):
    return ConvFeatureExtractor(Backbone(make_network()), layer="1").fit(X)


def of_classifier(X):
    net = ConvNetClassifier(TorchModule(make_network), max_epochs=1, random_state=0)
    return ConvFeatureExtractor(net, layer="1").fit(X, np.arange(len(X)) % 2)


@pytest.mark.parametrize("make", [of_module, of_backbone, of_classifier])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_while_another_thread_transforms(X, make, copied):
    extractor = make(X)
    expected, stopped = extractor.transform(X), threading.Event()

    def transform():
        while not stopped.is_set():
            extractor.transform(X[:20])

    thread = threading.Thread(target=transform)
    thread.start()
    try:
        twins = [copied(extractor) for _ in range(30)]
    finally:
        stopped.set()
        thread.join()
    for twin in twins:
        assert not hooks_of(twin.module_)
    np.testing.assert_array_equal(twins[-1].transform(X), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_within_a_pass(X, copied):
    extractor = of_module(X)
    registers = [module.register_forward_hook for module in extractor.module_.body]
    with pass_hooks([(register, lambda *seen: None) for register in registers]):
        assert hooks_of(extractor.module_)
        assert not hooks_of(copied(extractor).module_)


def hooks_of(network):
    return [
        hook
        for module in network.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]


def test_users_hooks_go_into_copies(X):
    net = make_network()
    net[1].register_forward_hook(double)
    extractor = ConvFeatureExtractor(net, layer="2").fit(X)
    twin = pickle.loads(pickle.dumps(extractor))
    assert hooks_of(twin.module_) == [double]
    np.testing.assert_array_equal(twin.transform(X), extractor.transform(X))


def double(module, inputs, output):
    return output * 2


class Keeping(nn.Module):
    """A network that takes a layer's activation from a hook of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.conv.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.kept = output

    def forward(self, x):
        self.conv(x)
        return self.head(self.kept.mean((2, 3)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_hooks_that_are_methods_are_those_of_the_copy(X, copied):
    clf = ConvNetClassifier(Keeping(), max_epochs=1).fit(X, np.arange(len(X)) % 2)
    expected = clf.predict_proba(X[::-1])
    clf.predict_proba(X)
    np.testing.assert_array_equal(copied(clf).predict_proba(X[::-1]), expected)


def change_a_layer(net):
    net[0] = nn.Conv2d(3, 4, 3)


def change_an_activation(net):
    net[1] = nn.Tanh()


def write_through_data(net):
    net[0].weight.data.zero_()


@pytest.mark.parametrize("change", [change_a_layer, change_an_activation, write_through_data])
def test_a_changed_network_is_taken_anew(X, change):
    net = make_network()
    extractor = ConvFeatureExtractor(Backbone(net), layer="1")
    before = extractor.fit_transform(X)
    change(net)
    after = extractor.fit_transform(X)
    with torch.no_grad():
        expected = net[:2](torch.from_numpy(X) / 255).mean((2, 3))
    np.testing.assert_allclose(after, expected, atol=1e-6)
    assert not np.allclose(after, before)


def test_an_unchanged_network_is_copied_once(X):
    net = make_network()
    networks = [ConvFeatureExtractor(Backbone(net)).fit(X).module_.body for _ in range(2)]
    assert networks[0] is networks[1]


def test_a_network_without_digest_is_copied_anew(X):
    net = make_network()
    net.held = (number for number in [1])
    with pytest.raises(TypeError, match="generator"):
        ConvFeatureExtractor(Backbone(net)).fit(X)
    net.held = Unknowable()
    networks = [ConvFeatureExtractor(Backbone(net)).fit(X).module_.body for _ in range(2)]
    assert networks[0] is not networks[1]


class Unknowable:
    """Can be copied, but has neither attributes nor a pickle."""

    __slots__ = ()

    def __reduce_ex__(self, protocol):
        raise TypeError("no pickle")

    def __deepcopy__(self, memo):
        return self


class Alternating(nn.Module):
    """A network that leaves out a layer in every other pass, as compiled ones do for hooks."""

    def __init__(self):
        super().__init__()
        self.conv, self.n = nn.Conv2d(3, 4, 3), 0

    def forward(self, x):
        self.n += 1
        return self.conv(x) if self.n % 2 else self.conv.forward(x)


def test_a_layer_that_is_not_called_again_is_an_error(X):
    with pytest.raises(ValueError, match="layer 'conv' was not called in this pass"):
        ConvFeatureExtractor(Alternating(), layer="conv").fit(X)
