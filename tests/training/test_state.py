"""Training that goes on from a state is training that was never interrupted."""

import io

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklconv import ConvNetClassifier, TorchModule
from sklconv._estimators.targets import encode_labels
from sklconv._training.recipe import Recipe
from sklconv._training.state import TrainingState
from sklconv._training.training import train
from sklconv.layers import BatchNorm, Conv, Dense, Dropout

LAYERS = [("conv", Conv(4, 3)), ("norm", BatchNorm()), ("drop", Dropout(0.3)), ("dense", Dense(8))]


class Small(nn.Sequential):
    def __init__(self, image_shape, n_classes):
        super().__init__(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10)
        )


def flip_some(x):
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)


MODELS = {
    "layers": {"module": LAYERS, "early_stopping": True, "n_iter_no_change": 2, "lr": 0.02},
    "schedule": {"module": LAYERS, "lr_schedule": "onecycle", "optimizer": "sgd"},
    "augmented": {"module": LAYERS, "augment": flip_some},
    "module": {"module": TorchModule(Small), "lr_schedule": "cosine", "optimizer": "adagrad"},
    "criterion": {"module": LAYERS, "net_params": {"optimizer__amsgrad": True}},
}


def run(name, epochs=6, **options):
    """Train on digits; return the state that came of it."""
    X, y = load_digits(return_X_y=True)
    model = ConvNetClassifier(random_state=3, device="cpu", **MODELS[name])
    images, y = model._read_training_data(X[:400], y[:400], reset=True)
    model.classes_ = np.unique(y)
    data = images, encode_labels(y, model.classes_, "y"), None
    valid = None
    if model.early_stopping:
        data, valid = model._hold_out(data)
    state = TrainingState()
    train(Recipe.of(model, epochs, partial=False), data, valid, state, **options)
    return state


def same(one, other):
    """Whether two networks are equal to the bit."""
    return (
        all(torch.equal(value, other[key]) for key, value in one.items())
        and one.keys() == other.keys()
    )


def without_durations(net):
    return [{k: v for k, v in row.items() if k not in ("duration", "dur")} for row in net.history]


@pytest.mark.parametrize("name", MODELS)
def test_going_on_from_a_saved_state_gives_the_same_network(name):
    saved = []

    def save(state):
        file = io.BytesIO()
        torch.save(state.state_dict(), file)
        saved.append(file)

    whole = run(name, after_epoch=save)
    assert len(saved) >= whole.n_epochs - 1  # none where training stopped early
    for epoch, file in enumerate(saved, start=1):
        file.seek(0)
        start = torch.load(file, weights_only=True)
        assert start["n_epochs"] == epoch
        resumed = run(name, start=start)
        assert resumed.n_epochs == whole.n_epochs
        assert resumed.n_batches == whole.n_batches
        assert same(resumed.net.module_.state_dict(), whole.net.module_.state_dict())
        assert without_durations(resumed.net) == without_durations(whole.net)


def test_a_state_is_left_alone_by_what_follows():
    states = []
    run("layers", after_epoch=lambda state: states.append(state.state_dict()))
    first = states[0]["values"][0][0]
    assert not same(first, states[-1]["values"][0][0])
    assert [row["epoch"] for row in states[0]["history"]] == [1]


def test_global_draws_of_the_caller_are_unmoved_by_resuming():
    starts = []
    run("augmented", after_epoch=lambda state: starts.append(state.state_dict()))
    torch.manual_seed(0)
    np.random.seed(0)
    expected = float(torch.rand(1)), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    run("augmented", start=starts[2])
    assert (float(torch.rand(1)), np.random.rand()) == expected
