"""Fine-tuning: new heads of networks that do not simply end in one linear layer."""

import collections
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule

HALVES = {"mean": [0.5] * 3, "std": [0.25] * 3}


def colours(n=24, side=16, seed=0):
    """Reddish and bluish noise, and which of the two."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 156, (n, side, side, 3), dtype=np.uint8)
    y = np.arange(n) % 2
    X[y == 0, ..., 0] += 100
    X[y == 1, ..., 2] += 100
    return X, y


def fine_tuned(network, X, y, **params):
    params = {"max_epochs": 2, "batch_size": 8, "random_state": 0, "lr": 0.01, **params}
    return ConvNetClassifier(Backbone(network, **HALVES), **params).fit(X, y)


def changed(clf, network):
    """Names of the parameters that are not those of ``network``."""
    before = network.state_dict()
    return {
        name
        for name, value in clf.module_.body.named_parameters()
        if name not in before or not torch.equal(before[name], value)
    }


class Body(nn.Module):
    """What the networks here have in common."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def features(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3))


passes = []  # how many images went into each pass of a Distilled


class Distilled(Body):
    """Two heads whose mean is the output; timm's way to exchange them."""

    def __init__(self, n=10):
        super().__init__()
        self.head, self.head_dist = nn.Linear(8, n), nn.Linear(8, n)

    def reset_classifier(self, num_classes, global_pool=None):
        self.head, self.head_dist = nn.Linear(8, num_classes), nn.Linear(8, num_classes)

    def forward(self, x):
        passes.append(len(x))
        x = self.features(x)
        return (self.head(x) + self.head_dist(x)) / 2


class Headless(Distilled):
    """Puts out features until it gets a head of several layers."""

    def __init__(self):
        super().__init__()
        self.head, self.head_dist = nn.Identity(), None

    def reset_classifier(self, num_classes):
        self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, num_classes))

    def forward(self, x):
        passes.append(len(x))
        return self.head(self.features(x))


HEADS = {
    Distilled: ("head", "head_dist"),
    Headless: ("head",),
}


@pytest.mark.parametrize("network_class", HEADS)
def test_the_networks_own_way_to_a_new_head(network_class):
    network, heads = network_class(), HEADS[network_class]
    clf = fine_tuned(network, *colours())
    assert clf.module_.head == heads
    assert clf.module_(torch.zeros(2, 3, 16, 16)).shape == (2, 2)
    assert {name for name in network.state_dict() if "conv" in name} < changed(clf, network)


@pytest.mark.parametrize("augment", [None, torch.clone])
@pytest.mark.parametrize("network_class", HEADS)
def test_all_layers_of_a_head_learn_and_nothing_else(network_class, augment):
    network, X, y = network_class(), *colours()
    first = fine_tuned(network, X, y, freeze="backbone", augment=augment, max_epochs=1)
    state = {name: p.detach().clone() for name, p in first.module_.body.named_parameters()}
    clf = fine_tuned(network, X, y, freeze="backbone", augment=augment, max_epochs=2)
    inside = {
        name for name in state if name.startswith(tuple(f"{head}." for head in clf.module_.head))
    }
    learnt = {
        name
        for name, value in clf.module_.body.named_parameters()
        if not torch.equal(state[name], value)
    }
    assert learnt == inside
    assert {n for n, p in clf.module_.body.named_parameters() if p.requires_grad} == inside
    norm = clf.module_.body.norm
    assert norm.num_batches_tracked == 0  # in eval mode while the head learns


def test_a_head_of_several_layers_learns_from_features_that_are_computed_once():
    X, y = colours(40)
    for network_class, n_images in ((Headless, 40), (Distilled, 3 * 40)):
        passes.clear()
        fine_tuned(network_class(), X, y, freeze="backbone", max_epochs=3)
        assert sum(n for n in passes if n != 2) == n_images


def test_a_head_trained_on_features_is_the_one_trained_through_the_network():
    X, y = colours(40)
    network, params = Headless(), {"freeze": "backbone", "optimizer": "sgd"}
    once = fine_tuned(network, X, y, **params)
    through = fine_tuned(network, X, y, augment=torch.clone, **params)
    assert_allclose(once.predict_proba(X), through.predict_proba(X), rtol=1e-3, atol=1e-5)


def test_a_layer_in_a_head_can_be_frozen():
    network, X, y = Headless(), *colours()
    torch.manual_seed(0)
    clf = fine_tuned(network, X, y, freeze=["conv", "head.0", "head.1"], max_epochs=1)
    body = clf.module_.body
    assert [n for n, p in body.named_parameters() if p.requires_grad] == [
        "norm.weight",
        "norm.bias",
        "head.2.weight",
        "head.2.bias",
    ]
    assert body.head[1].num_batches_tracked == 0
    assert body.norm.num_batches_tracked > 0


def test_all_layers_of_a_head_have_the_heads_learning_rate():
    clf = fine_tuned(Distilled(), *colours(), backbone_lr_scale=0.1, lr_schedule=None)
    rates = {
        name: group["lr"]
        for group in clf.net_.optimizer_.param_groups
        for name, p in clf.module_.body.named_parameters()
        if any(p is one for one in group["params"])
    }
    assert rates.keys() == dict(clf.module_.body.named_parameters()).keys()
    for name, rate in rates.items():
        assert rate == pytest.approx(0.01 if name.startswith("head") else 0.001), name
    assert clf.history_[-1]["lr"] == 0.01


def test_the_head_is_drawn_alike_whatever_was_drawn_before():
    X, y = colours()
    first = fine_tuned(Distilled(), X, y)
    torch.rand(7)
    second = clone(first).fit(X, y)
    third = clone(first).set_params(random_state=1).fit(X, y)
    weights = [clf.module_.body.head_dist.weight for clf in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_warm_starts_pickles_and_partial_fit_keep_the_head():
    X, y = colours()
    clf = fine_tuned(Distilled(), X, y, freeze="backbone", warm_start=True)
    clf = pickle.loads(pickle.dumps(clf)).set_params(freeze=None).fit(X, y).partial_fit(X, y)
    assert clf.module_.head == ("head", "head_dist")
    assert len(clf.history_) == 5
    assert all(p.requires_grad for p in clf.module_.parameters())


# Other ends


class ConvolutionHead(Body):
    """Ends as SqueezeNet does."""

    def __init__(self, n=10):
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, n, 1), nn.ReLU())

    def forward(self, x):
        return self.classifier(self.norm(self.conv(x)).relu()).mean((2, 3))


def test_a_head_that_is_a_convolution():
    X, y = colours(48)
    clf = fine_tuned(ConvolutionHead(), X, y, freeze="backbone", max_epochs=8, lr=0.05)
    assert clf.module_.head == ("classifier.1",)
    assert clf.module_.body.classifier[1].weight.shape == (2, 8, 1, 1)
    assert clf.score(X, y) > 0.9


class Squashed(Body):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.features(x)).softmax(1)


class SquashedConvolution(ConvolutionHead):
    def forward(self, x):
        return super().forward(x).softmax(1)


@pytest.mark.parametrize("network_class", [Squashed, SquashedConvolution])
def test_what_is_not_the_output_is_no_head(network_class):
    with pytest.raises(ValueError, match=f"backbone {network_class.__name__} does not end in"):
        fine_tuned(network_class(), *colours())


def test_errors_name_a_large_network_by_its_class():
    network = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(200)))
    with pytest.raises(ValueError) as error:
        fine_tuned(network, *colours())
    assert "the backbone Sequential does not end" in str(error.value)
    assert len(str(error.value)) < 400


Outputs = collections.namedtuple("Outputs", ["logits", "aux_logits"])


class Auxiliary(Body):
    """Has a second output while training, as torchvision's inception_v3 has."""

    def __init__(self):
        super().__init__()
        self.aux_logits = True
        self.AuxLogits = nn.Linear(8, 10)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.features(x)
        auxiliary = self.AuxLogits(x) if self.AuxLogits is not None and self.training else None
        return Outputs(self.fc(x), auxiliary) if self.training and self.aux_logits else self.fc(x)


def test_auxiliary_outputs_are_left_out():
    network = Auxiliary()
    clf = fine_tuned(network, *colours())
    assert clf.module_.head == ("fc",)
    assert clf.module_.body.AuxLogits is None
    assert network.aux_logits is True
    assert network.AuxLogits is not None


@pytest.mark.parametrize("module", [Auxiliary(), TorchModule(Auxiliary)])
def test_auxiliary_outputs_of_whole_networks_are_left_out(module):
    X, _ = colours(20)
    clf = ConvNetClassifier(module, max_epochs=1, random_state=0).fit(X, np.arange(20) % 10)
    assert clf.module_.body.AuxLogits is None
    assert clf.predict_proba(X).shape == (20, 10)


@pytest.mark.parametrize(
    ("name", "side"), [("inception_v3", 75), ("googlenet", 32), ("squeezenet1_1", 32)]
)
def test_torchvisions_networks_with_other_ends(torchvision, name, side):
    X, y = colours(8, side)
    backbone = Backbone(f"torchvision/{name}", weights=None, image_size=side)
    clf = ConvNetClassifier(backbone, max_epochs=1, batch_size=4, random_state=0).fit(X, y)
    assert clf.module_.head == ({"squeezenet1_1": "classifier.1"}.get(name, "fc"),)
    assert clf.predict_proba(X).shape == (8, 2)
    assert np.isfinite(clf.history_[-1]["train_loss"])


# What a user froze


@pytest.mark.parametrize("kind", ["module", "function"])
def test_what_a_user_froze_stays_frozen(kind):
    def make():
        torch.manual_seed(0)
        network = Distilled()
        network.conv.requires_grad_(False)
        return network

    network = make()
    X, y = colours()
    clf = fine_tuned(network if kind == "module" else make, X, y)
    learnt = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    learnt |= {"head_dist.weight", "head_dist.bias"}
    assert changed(clf, network) == learnt
    clf.set_params(freeze="norm", warm_start=True).fit(X, y)
    clf.set_params(freeze=None).fit(X, y)
    assert {n for n, p in clf.module_.body.named_parameters() if p.requires_grad} == learnt
    assert torch.equal(clf.module_.body.conv.weight, network.conv.weight)


def test_what_a_user_freezes_later_is_noticed():
    network, X, y = Distilled(), *colours()
    assert "conv.weight" in changed(fine_tuned(network, X, y), network)
    network.conv.requires_grad_(False)
    assert "conv.weight" not in changed(fine_tuned(network, X, y), network)
    network.conv.requires_grad_(True)
    assert "conv.weight" in changed(fine_tuned(network, X, y), network)


def test_a_network_that_is_frozen_whole_gets_a_head_that_learns():
    network, X, y = Distilled().requires_grad_(False), *colours()
    assert all("head" in name for name in changed(fine_tuned(network, X, y), network))


# Weights of five dimensions


class Volumes(Body):
    """Has a convolution over three axes, as lambda networks have."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Conv3d(1, 1, (3, 3, 3), padding=1)
        self.register_buffer("grid", torch.zeros(1, 2, 3, 4, 5))
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.fc(self.deep(x[:, None])[:, 0].mean((2, 3)))


def test_weights_of_five_dimensions():
    X, y = colours()
    network = Volumes()
    with torch.no_grad():
        pixels = torch.from_numpy(X).permute(0, 3, 1, 2) / 255
        expected = network.eval()(pixels)
    for estimator in (network, Backbone(network)):
        features = ConvFeatureExtractor(estimator, layer=-1).fit_transform(X)
        assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
        clf = ConvNetClassifier(estimator, max_epochs=1, random_state=0).fit(X, y)
        state = clf.module_.body.state_dict()
        assert state["deep.weight"].shape == (1, 1, 3, 3, 3)
        assert state["conv.weight"].is_contiguous(memory_format=torch.channels_last)
