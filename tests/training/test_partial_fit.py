"""Training that goes on: learning rates, and what a failure leaves behind."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sklconv import Backbone, ConvNetClassifier
from sklconv.layers import Conv, Dense

LAYERS = [("conv", Conv(3, 3)), ("dense", Dense(4))]


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    return X, np.arange(40) % 2


def rates(clf):
    return [group["lr"] for group in clf.net_.optimizer_.param_groups]


def test_rates_that_users_give_to_groups_stay(data):
    groups = [("body.conv.*", {"lr": 0.0})]
    clf = ConvNetClassifier(LAYERS, lr=0.01, net_params={"optimizer__param_groups": groups})
    clf.partial_fit(*data, classes=[0, 1])
    weights = clf.module_.body.conv.weight.detach().clone()
    clf.partial_fit(*data)
    assert rates(clf) == [0.0, 0.01]
    assert clf.set_params(lr=0.5).partial_fit(*data) is clf
    assert rates(clf) == [0.0, 0.5]
    assert (clf.module_.body.conv.weight == weights).all()


def test_rates_of_a_backbone_and_its_head_follow_the_parameters():
    X = np.random.default_rng(0).integers(0, 256, (12, 3, 6, 6), dtype=np.uint8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    clf = ConvNetClassifier(Backbone(net), lr=0.01, backbone_lr_scale=0.1)
    clf.partial_fit(X, np.arange(12) % 2, classes=[0, 1])
    assert rates(clf) == pytest.approx([0.01, 0.001])
    clf.set_params(lr=0.1, backbone_lr_scale=1.0).partial_fit(X, np.arange(12) % 2)
    assert rates(clf) == pytest.approx([0.1, 0.1])


def test_groups_of_rates_cant_change_while_training_goes_on(data):
    clf = ConvNetClassifier(LAYERS).partial_fit(*data, classes=[0, 1])
    clf.set_params(net_params={"optimizer__param_groups": [("body.conv.*", {"lr": 0.0})]})
    with pytest.raises(ValueError, match="param_groups can't change while partial_fit goes on"):
        clf.partial_fit(*data)
    clf.set_params(net_params=None).partial_fit(*data)


def test_rates_follow_what_is_taken_out_of_net_params(data):
    clf = ConvNetClassifier(LAYERS, lr=0.01, net_params={"optimizer__lr": 0.5})
    clf.partial_fit(*data, classes=[0, 1])
    clf.set_params(net_params=None).partial_fit(*data)
    assert [row["lr"] for row in clf.history_] == [0.5, 0.01]


class Counting(nn.Module):
    """A network that counts its training batches in a buffer that it does not save."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(36, 2)
        self.register_buffer("n", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.n += self.training
        return self.linear(x.flatten(1)) * self.n


class Scaled(nn.Module):
    """A criterion that learns."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, y):
        return nn.functional.cross_entropy(logits * self.scale, y)


class FailsInTheSecondEpoch(Callback):
    def on_epoch_end(self, net, **data):
        if len(net.history) > 1:
            raise RuntimeError("enough")


def test_a_failure_leaves_all_buffers_and_the_criterion_as_they_were(data):
    clf = ConvNetClassifier(
        Counting(), callbacks=[FailsInTheSecondEpoch()], net_params={"criterion": Scaled}
    ).partial_fit(*data, classes=[0, 1])
    before = clf.decision_function(data[0]), clf.net_.criterion_.scale.item()
    with pytest.raises(RuntimeError, match="enough"):
        clf.partial_fit(*data)
    np.testing.assert_array_equal(clf.decision_function(data[0]), before[0])
    assert clf.net_.criterion_.scale.item() == before[1]


def test_the_best_epoch_comes_back_with_all_its_buffers(data):
    clf = ConvNetClassifier(Counting(), early_stopping=True, n_iter_no_change=2, tol=10.0)
    clf.fit(*data, X_val=data[0], y_val=data[1])
    logits = torch.from_numpy(clf.decision_function(data[0]))
    losses = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(data[1]).float())
    best = min(row["valid_loss"] for row in clf.history_)
    assert losses.item() == pytest.approx(best, rel=1e-5)


def fail(images):
    raise RuntimeError("no more images")


FAILURES = {
    "a layer that is not there": {"freeze": "nothing"},
    "augment, with layers frozen": {"freeze": "conv", "augment": fail},
    "augment, at another rate": {"lr": 0.5, "augment": fail},
    "a rate that is too high": {"lr": 1e38, "optimizer": "sgd"},
}


@pytest.mark.parametrize("params", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("warm", [False, True])
def test_a_failure_leaves_everything_as_it_was(data, params, warm):
    clf = ConvNetClassifier(LAYERS, lr=0.01, max_epochs=1, warm_start=warm, random_state=0)
    go_on = clf.fit if warm else clf.partial_fit
    clf.fit(*data) if warm else clf.partial_fit(*data, classes=[0, 1])
    before = clf.predict_proba(data[0]), rates(clf), clf.history_, clf.net_.lr
    attributes = dict(vars(clf))
    clf.set_params(**params)
    with pytest.raises((RuntimeError, ValueError)):
        go_on(*data)
    after = clf.predict_proba(data[0]), rates(clf), clf.history_, clf.net_.lr
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1:] == before[1:]
    assert all(parameter.requires_grad for parameter in clf.module_.parameters())
    assert {name for name in vars(clf) if name.endswith("_")} == {
        name for name in attributes if name.endswith("_")
    }


def test_precision_is_undone_as_well(data):
    clf = ConvNetClassifier(LAYERS, random_state=0).partial_fit(*data, classes=[0, 1])
    try:
        clf.set_params(precision="bfloat16", augment=fail).partial_fit(*data)
    except (RuntimeError, ValueError):  # the latter on CPUs without instructions for it
        pass
    assert clf.module_.precision == "float32"


@pytest.mark.parametrize(
    "params", [{"lr": -1.0}, {"batch_size": 0}, {"freeze": 3}, {"optimizer": "adamant"}]
)
def test_parameters_are_checked_at_each_call(params, data):
    clf = ConvNetClassifier(LAYERS, random_state=0).partial_fit(*data, classes=[0, 1])
    expected = clf.predict_proba(data[0])
    with pytest.raises(ValueError, match=f"The '{next(iter(params))}' parameter of"):
        clf.set_params(**params).partial_fit(*data)
    np.testing.assert_array_equal(clf.predict_proba(data[0]), expected)


@pytest.mark.parametrize("first", [True, False])
def test_groups_that_are_added_or_taken_away_are_an_error_each_time(first, data):
    groups = {"optimizer__param_groups": [("body.conv.*", {"lr": 0.0})]}
    given, changed = (groups, None) if first else (None, groups)
    clf = ConvNetClassifier(LAYERS, net_params=given).partial_fit(*data, classes=[0, 1])
    expected = rates(clf)
    for _ in range(2):
        with pytest.raises(ValueError, match="param_groups can't change while partial_fit"):
            clf.set_params(net_params=changed).partial_fit(*data)
    # As the error has left it, it goes on.
    clf.set_params(net_params=given).partial_fit(*data)
    assert rates(clf) == expected


@pytest.mark.parametrize("failure", [None, ZeroDivisionError])
def test_weights_of_one_fit_leave_the_criterion_as_it_was(failure, data):
    clf = ConvNetClassifier(LAYERS, random_state=0).partial_fit(*data, classes=[0, 1])
    weights = np.linspace(1, 2, 40)
    if failure is None:
        clf.partial_fit(*data, sample_weight=weights)
    else:
        clf.augment = lambda batch: 1 / 0
        with pytest.raises(failure):
            clf.partial_fit(*data, sample_weight=weights)
    assert clf.net_.criterion_.reduction == "mean"
