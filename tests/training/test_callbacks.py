"""skorch's callbacks in ConvNetClassifier, interrupts, and the training loop against skorch's."""

import copy
import pickle
import signal
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from skorch import NeuralNetClassifier, callbacks
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn

from sklconv import ConvNetClassifier
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, MaxPool

IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = IMAGES.reshape(-1, 1, 8, 8).astype(np.float32) / 16
X, y = IMAGES[:100], DIGITS[:100]
X_val, y_val = IMAGES[1000:1050], DIGITS[1000:1050]
VALIDATION = {"X_val": X_val, "y_val": y_val}


def small(**params):
    """A classifier with a small network of declarative layers, four batches an epoch."""
    layers = [("conv1", Conv(4, 3)), ("pool1", MaxPool(2)), ("dense", Dense(16))]
    defaults = {"module": layers, "max_epochs": 3, "batch_size": 25, "random_state": 0}
    return ConvNetClassifier(**{**defaults, **params})


def untrained(**params):
    """The network that `small` begins with."""
    frozen = {"optimizer": "sgd", "lr": 1e-30, "weight_decay": 0.0, "max_epochs": 1}
    return copy.deepcopy(small(**{**params, **frozen}).fit(X, y).module_)


def weights_of(classifier):
    return torch.cat([p.detach().flatten() for p in classifier.module_.parameters()]).numpy()


def callback_of(classifier, name):
    return dict(classifier.net_.callbacks_)[name]


def validation_loss(classifier):
    probabilities = classifier.predict_proba(X_val)
    return -np.log(probabilities[np.arange(len(y_val)), y_val]).mean()


class Recorder(callbacks.Callback):
    """Keeps every event, what came with it and how far the history was."""

    def initialize(self):
        self.events_, self.batches_ = [], []
        return self

    def _note(self, event, net, **kwargs):
        entry = [event, sorted(kwargs), len(net.history)]
        if event.startswith("on_batch"):
            entry += [kwargs["training"], tuple(kwargs["batch"][0].shape)]
            entry.append(len(net.history[-1]["batches"]))
        if event in ("on_grad_computed", "on_batch_end"):
            entry.append(net.module_.training)
        if event == "on_batch_end":
            entry += [tuple(kwargs["y_pred"].shape), kwargs["loss"].ndim]
            entry.append(sorted(net.history[-1]["batches"][-1]))
        if event == "on_grad_computed":
            entry += [name.removeprefix("body.") for name, _ in kwargs["named_parameters"]]
        if event.startswith("on_epoch"):
            sets = (kwargs["dataset_train"], kwargs["dataset_valid"])
            entry += [None if data is None else len(data) for data in sets]
        if event.startswith("on_train"):
            entry += [len(kwargs["X"]), len(kwargs["y"])]
        self.events_.append(entry)


for _event in (
    "on_train_begin",
    "on_epoch_begin",
    "on_batch_begin",
    "on_grad_computed",
    "on_batch_end",
    "on_epoch_end",
    "on_train_end",
):

    def _notify(self, net, *, _event=_event, **kwargs):
        self._note(_event, net, **kwargs)
        if _event == "on_batch_begin" and kwargs["training"]:
            self.batches_.append(tuple(part.clone() for part in kwargs["batch"]))

    setattr(Recorder, _event, _notify)


# The loop against skorch's own ----------------------------------------------------------------


class Replay:
    """A skorch iterator that yields recorded batches, one epoch after the other."""

    def __init__(self, dataset, batches, n_epochs, batch_size=None):
        self.epochs = iter(np.array_split(np.arange(len(batches)), n_epochs))
        self.batches = batches

    def __iter__(self):
        return (self.batches[i] for i in next(self.epochs))


def torch_module():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "adamw": (torch.optim.AdamW, {}),
    # Evaluates a batch several times a step.
    "lbfgs": (torch.optim.LBFGS, {"max_iter": 3}),
}


def train_both(module, optimizer, validated):
    """Train a classifier and a skorch net on the same batches; return both."""
    torch_class, params = OPTIMIZERS[optimizer]
    # LBFGS can't bear changing batches, and learns from differences of gradients: between steps
    # that are too short these are rounding alone.
    batch_size, lr = (100, 1.0) if optimizer == "lbfgs" else (25, 0.01)
    decay = {} if optimizer == "lbfgs" else {"weight_decay": 0.1}
    reference_module = untrained() if module is None else copy.deepcopy(module)
    clf = small(
        **({} if module is None else {"module": module}),
        optimizer=optimizer,
        optimizer_params=params,
        weight_decay=0.1,
        lr=lr,
        lr_schedule=None,
        batch_size=batch_size,
        callbacks=[Recorder()],
    ).fit(X, y, **(VALIDATION if validated else {}))
    net = NeuralNetClassifier(
        reference_module,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch_class,
        lr=lr,
        **{f"optimizer__{name}": value for name, value in (params | decay).items()},
        max_epochs=3,
        batch_size=batch_size,
        iterator_train=Replay,
        iterator_train__batches=callback_of(clf, "Recorder").batches_,
        iterator_train__n_epochs=3,
        train_split=predefined_split(Dataset(X_val, y_val)) if validated else None,
        callbacks=[Recorder()],
        callbacks__print_log=None,
        verbose=0,
    ).fit(X, y)
    return clf, net


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("module", ["declarative", "module"])
def test_the_loop_trains_as_skorchs_own(module, optimizer, validated):
    module = None if module == "declarative" else torch_module()
    clf, net = train_both(module, optimizer, validated)
    for key in ("train_loss", "valid_loss") if validated else ("train_loss",):
        ours = [row[key] for row in clf.history_]
        assert_allclose(ours, net.history[:, key], rtol=1e-5)
    assert_allclose(clf.predict_proba(X_val), net.predict_proba(X_val), rtol=0, atol=1e-4)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_callbacks_get_every_event_that_they_get_in_skorch(optimizer, validated):
    clf, net = train_both(torch_module(), optimizer, validated)
    ours = callback_of(clf, "Recorder").events_
    theirs = dict(net.callbacks_)["Recorder"].events_
    assert len(ours) > 3 * 3
    for one, other in zip(ours, theirs, strict=True):
        assert one == other


@pytest.mark.parametrize("validated", [False, True])
def test_the_history_holds_what_skorchs_holds(validated):
    clf, net = train_both(torch_module(), "sgd", validated)
    for ours, theirs in zip(clf.net_.history, net.history, strict=True):
        assert set(theirs) <= set(ours)
        for key in set(theirs) - {"dur", "batches"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
        for one, other in zip(ours["batches"], theirs["batches"], strict=True):
            assert one == pytest.approx(other, rel=1e-5)


# skorch's callbacks ---------------------------------------------------------------------------


def test_without_callbacks_there_are_no_records_of_batches():
    clf = small().fit(X, y)
    assert [row["batches"] for row in clf.net_.history] == [[], [], []]


def test_skorchs_early_stopping():
    stop = callbacks.EarlyStopping(
        patience=2, threshold=100, threshold_mode="abs", load_best=True, sink=lambda text: None
    )
    clf = small(max_epochs=10, callbacks=[stop]).fit(X, y, **VALIDATION)
    assert clf.n_iter_ == 3
    # A threshold that no loss gets under: the first epoch is the best.
    assert validation_loss(clf) == pytest.approx(clf.history_[0]["valid_loss"], rel=1e-5)


def test_skorchs_early_stopping_beside_our_own():
    stop = callbacks.EarlyStopping(
        monitor="train_loss", patience=1, threshold=100, threshold_mode="abs", sink=lambda text: 0
    )
    clf = small(lr=0.01, early_stopping=True, callbacks=[stop]).fit(X, y, **VALIDATION)
    losses = [row["valid_loss"] for row in clf.history_]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    # The epoch at whose end the callback stopped is the best, and counts.
    assert validation_loss(clf) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("monitor", ["valid_loss_best", "valid_acc_best", "train_loss_best"])
def test_checkpoint(tmp_path, monitor):
    keep = callbacks.Checkpoint(monitor=monitor, dirname=str(tmp_path))
    clf = small(max_epochs=6, lr=0.05, lr_schedule=None, callbacks=[keep])
    clf.fit(X, y, **VALIDATION)
    marked = [row["epoch"] for row in clf.net_.history if row[monitor]]
    key = monitor.removesuffix("_best").replace("acc", "accuracy")
    values = [row[key] for row in clf.history_]
    best = values.index(max(values) if "acc" in monitor else min(values)) + 1
    assert marked[-1] == best
    state = torch.load(tmp_path / "params.pt", weights_only=True)
    clf.module_.load_state_dict(state)
    assert validation_loss(clf) == pytest.approx(clf.history_[best - 1]["valid_loss"], rel=1e-5)


def test_checkpoint_loads_the_best(tmp_path):
    keep = callbacks.Checkpoint(dirname=str(tmp_path), load_best=True)
    clf = small(max_epochs=8, lr=0.05, lr_schedule=None, callbacks=[keep])
    clf.fit(X, y, **VALIDATION)
    losses = [row["valid_loss"] for row in clf.net_.history]
    assert validation_loss(clf) == pytest.approx(min(losses), rel=1e-5)


def test_train_end_checkpoint_and_load_init_state(tmp_path):
    class Watch(callbacks.Callback):
        def on_epoch_begin(self, net, **kwargs):
            if not hasattr(self, "start_"):
                self.start_ = copy.deepcopy(net.module_.state_dict())

    keep = callbacks.TrainEndCheckpoint(dirname=str(tmp_path))
    # The two know each other: copied together, they still do.
    clf = small(callbacks=[keep, callbacks.LoadInitState(keep), Watch()]).fit(X, y)
    end = copy.deepcopy(clf.module_.state_dict())
    clf.fit(X, y)
    start = callback_of(clf, "Watch").start_
    for name, values in end.items():
        assert_array_equal(start[name], values, err_msg=name)
    assert clf.n_iter_ == 3
    assert len(clf.history_) == 6  # the history was loaded, too


@pytest.mark.parametrize("step_every", ["epoch", "batch"])
@pytest.mark.parametrize("name", [None, "schedule"])
@pytest.mark.parametrize("lr_schedule", ["auto", None])
def test_lr_scheduler(lr_schedule, name, step_every):
    schedule = callbacks.LRScheduler(
        torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5, step_every=step_every
    )
    given = [schedule if name is None else (name, schedule)]
    clf = small(lr=0.08, lr_schedule=lr_schedule, max_epochs=3, callbacks=given).fit(X, y)
    rates = [row["lr"] for row in clf.history_]
    if step_every == "epoch":
        assert_allclose(rates, [0.08, 0.04, 0.02])
        assert_allclose(clf.net_.history[:, "event_lr"], rates)
    else:
        assert_allclose(rates, [0.08 / 2**4, 0.08 / 2**8, 0.08 / 2**12])


def test_lr_scheduler_that_watches_the_loss():
    schedule = callbacks.LRScheduler(
        torch.optim.lr_scheduler.ReduceLROnPlateau,
        monitor="valid_loss",
        patience=0,
        threshold=100,
        threshold_mode="abs",
        factor=0.1,
    )
    clf = small(lr=0.01, lr_schedule=None, callbacks=[schedule]).fit(X, y, **VALIDATION)
    assert_allclose([row["lr"] for row in clf.history_], [0.01, 0.01, 0.001])


class HalvedRates(callbacks.Callback):
    """A schedule of a user's own: it halves the learning rates at one of the events."""

    def __init__(self, event):
        self.event = event

    def initialize(self):
        setattr(self, self.event, self._halve)
        return self

    def _halve(self, net, **kwargs):
        for group in net.optimizer_.param_groups:
            group["lr"] /= 2


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_batch_end", "on_epoch_end"])
@pytest.mark.parametrize("lr_schedule", ["auto", "cosine"])
def test_rates_of_a_callback_beside_those_of_a_schedule(lr_schedule, event):
    params = {"lr": 0.08, "callbacks": [HalvedRates(event)]}
    with pytest.warns(UserWarning, match=r"no effect.* Set lr_schedule=None"):
        clf = small(lr_schedule=lr_schedule, **params).fit(X, y)
    plain = small(lr_schedule=lr_schedule, lr=0.08).fit(X, y)
    assert_allclose(weights_of(clf), weights_of(plain), rtol=1e-4, atol=1e-6)
    alone = small(lr_schedule=None, **params).fit(X, y)
    assert alone.history_[-1]["lr"] <= 0.02


def test_lr_scheduler_beside_a_schedule_that_was_asked_for():
    schedule = callbacks.LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1)
    with pytest.warns(UserWarning, match=r"no effect.* Set lr_schedule=None"):
        small(lr_schedule="onecycle", callbacks=[schedule]).fit(X, y)


@pytest.mark.parametrize("use_caching", [False, True])
@pytest.mark.parametrize("on_train", [False, True])
def test_epoch_scoring(on_train, use_caching):
    scores = [
        callbacks.EpochScoring(
            scoring, name=name, lower_is_better=False, on_train=on_train, use_caching=use_caching
        )
        for name, scoring in (("first", "accuracy"), ("second", "balanced_accuracy"))
    ]
    clf = small(lr=0.01, callbacks=scores).fit(X, y, **VALIDATION)
    history = clf.net_.history
    if not on_train:
        expected = [row["valid_accuracy"] for row in clf.history_]
        last = balanced_accuracy_score(y_val, clf.predict(X_val))
    elif use_caching:  # of what was put out while training
        expected = [row["train_accuracy"] for row in clf.history_]
        last = None
    else:
        expected = [*history[:-1, "first"], clf.score(X, y)]
        last = balanced_accuracy_score(y, clf.predict(X))
    assert_allclose(history[:, "first"], expected)
    assert [row["first_best"] for row in history] == [
        value > max(expected[:i], default=-1) for i, value in enumerate(expected)
    ]
    if last is not None:
        assert history[-1, "second"] == pytest.approx(last)
    # Scoring does not change the training.
    assert_array_equal(weights_of(clf), weights_of(small(lr=0.01).fit(X, y)))


@pytest.mark.parametrize("use_caching", [False, True])
@pytest.mark.parametrize("on_train", [False, True])
def test_batch_scoring(on_train, use_caching):
    score = callbacks.BatchScoring(
        "accuracy", name="mine", lower_is_better=False, on_train=on_train, use_caching=use_caching
    )
    clf = small(callbacks=[score]).fit(X, y, **VALIDATION)
    mine = clf.net_.history[:, "mine"]
    if not on_train:
        assert_allclose(mine, [row["valid_accuracy"] for row in clf.history_])
    elif use_caching:
        assert_allclose(mine, [row["train_accuracy"] for row in clf.history_])
    assert_array_equal(weights_of(clf), weights_of(small().fit(X, y)))


def test_a_callback_that_predicts_between_batches_leaves_the_training_in_train_mode():
    class Predict(callbacks.Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training:
                net.predict(X_val)

    module = [("conv1", Conv(4, 3)), ("bn", BatchNorm()), ("drop", Dropout(0.5))]
    clf = small(module=module, callbacks=[Predict()]).fit(X, y)
    assert clf.module_.body.bn.num_batches_tracked == 3 * 4
    assert_array_equal(weights_of(clf), weights_of(small(module=module).fit(X, y)))


class Predictor(callbacks.Callback):
    """Predicts, or does nothing, once the gradients are there."""

    def __init__(self, predicts):
        self.predicts = predicts

    def on_grad_computed(self, net, **kwargs):
        if self.predicts:
            net.predict_proba(X[:30])


TWO_CONVOLUTIONS = [
    ("conv1", Conv(4, 3)),
    ("conv2", Conv(5, 3)),
    ("drop", Dropout(0.5)),
    ("dense", Dense(16)),
]


def test_a_callback_that_predicts_between_gradient_and_step_changes_nothing():
    """The step takes weights, gradients and state as they lie in memory."""
    both = [
        small(module=TWO_CONVOLUTIONS, callbacks=[("predictor", Predictor(predicts))]).fit(X, y)
        for predicts in (False, True)
    ]
    assert_array_equal(weights_of(both[0]), weights_of(both[1]))


def test_a_callback_that_does_nothing_changes_nothing():
    plain, watched = (
        small(module=TWO_CONVOLUTIONS, batch_size=30, callbacks=given).fit(X, y)
        for given in (None, [("idle", Predictor(False))])
    )
    assert_array_equal(weights_of(plain), weights_of(watched))
    losses = [[epoch["train_loss"] for epoch in clf.history_] for clf in (plain, watched)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_the_optimizers_state_lies_in_memory_as_the_weights_do(optimizer):
    clf = small(module=TWO_CONVOLUTIONS, optimizer=optimizer, lr=1e-3).fit(X, y)
    for _ in range(2):
        for parameter, state in clf.net_.optimizer_.state.items():
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    assert value.stride() == parameter.stride()
        clf.partial_fit(X, y)


def test_state_that_lies_otherwise_trains_alike():
    """As where a network was trained on a GPU, or by an earlier version."""
    clf = small(module=TWO_CONVOLUTIONS).fit(X, y)
    other = copy.deepcopy(clf)
    for state in other.net_.optimizer_.state.values():
        for key, value in state.items():
            if value.ndim == 4:
                state[key] = value.contiguous()
    assert_array_equal(weights_of(clf.partial_fit(X, y)), weights_of(other.partial_fit(X, y)))


class StateLoader(callbacks.Callback):
    """Loads the optimizer's state, as it lay after training, when training begins."""

    def __init__(self, state):
        self.state = state

    def on_train_begin(self, net, **kwargs):
        net.optimizer_.load_state_dict(self.state)


def test_state_that_a_callback_loads_trains_on_as_if_it_had_stayed():
    clf = small(module=TWO_CONVOLUTIONS, lr=3e-3).fit(X, y)
    loaded = copy.deepcopy(clf)
    state = copy.deepcopy(clf.net_.optimizer_.state_dict())
    loaded.net_.callbacks_ = [("loader", StateLoader(state))]
    assert_array_equal(weights_of(clf.partial_fit(X, y)), weights_of(loaded.partial_fit(X, y)))


def test_hooks_of_the_optimizer_are_called_for_each_batch():
    clf, called = small().fit(X, y), []
    clf.net_.optimizer_.register_step_pre_hook(lambda *_: called.append(1))
    clf.partial_fit(X, y)
    assert len(called) == 4


def test_the_net_predicts_from_arrays_and_tensors():
    net = small().fit(X, y).net_
    expected = net.predict_proba(X_val)
    assert_array_equal(net.predict_proba(torch.from_numpy(X_val)), expected)
    assert_array_equal(net.predict(X_val), expected.argmax(1))


def test_gradient_norm_clipping():
    module = torch_module()
    clip = callbacks.GradientNormClipping(gradient_clip_value=0.01)
    plain = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "lr_schedule": None}
    clf = small(module=module, batch_size=100, max_epochs=1, callbacks=[clip], **plain).fit(X, y)
    before = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert np.linalg.norm(weights_of(clf) - before.numpy()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("pattern", ["body.0.*", ["body.0.weight", "body.0.bias"]])
def test_freezer(pattern):
    module = torch_module()
    clf = small(module=module, callbacks=[callbacks.Freezer(pattern)]).fit(X, y)
    trained = clf.module_.body
    assert_array_equal(trained[0].weight.detach(), module[0].weight.detach())
    assert_array_equal(trained[0].bias.detach(), module[0].bias.detach())
    assert not np.array_equal(trained[3].weight.detach(), module[3].weight.detach())


def test_freezer_and_unfreezer():
    module = torch_module()
    parts = [callbacks.Freezer("body.0.*"), callbacks.Unfreezer("body.0.*", at=3)]
    seen = []

    class Watch(callbacks.Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(bool((net.module_.body[0].weight == module[0].weight).all()))

    small(module=module, callbacks=[*parts, Watch()]).fit(X, y)
    assert seen == [True, True, False]


def test_initializer():
    start = callbacks.Initializer("body.3.bias", fn=partial(nn.init.constant_, val=7.0))
    clf = small(
        module=torch_module(), optimizer="sgd", lr=1e-30, weight_decay=0.0, callbacks=[start]
    ).fit(X, y)
    assert_array_equal(clf.module_.body[3].bias.detach(), 7)


def test_epoch_timer():
    clf = small(callbacks=[callbacks.EpochTimer()]).fit(X, y)
    assert all(duration > 0 for duration in clf.net_.history[:, "dur"])


def test_print_log(capsys):
    clf = small(verbose=1, callbacks=[callbacks.PrintLog()]).fit(X, y, **VALIDATION)
    printed = capsys.readouterr().out.splitlines()
    header = next(line for line in printed if "train_loss" in line)
    names = header.split()
    for name in ("epoch", "train_loss", "valid_loss", "valid_acc", "dur"):
        assert name in names
    rows = [line for line in printed if f"{clf.history_[0]['train_loss']:.4f}" in line]
    assert len(rows) == 2  # our own line and skorch's
    assert any(row.split()[0] == "1" and "s" not in row.split() for row in rows)


def test_print_log_into_a_sink():
    class Sink:
        def __call__(self, text):
            lines.append(text)

        def __deepcopy__(self, memo):
            return self

    lines = []
    small(callbacks=[callbacks.PrintLog(sink=Sink())]).fit(X, y)
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "3"]


@pytest.mark.parametrize("batches_per_epoch", ["auto", "count", 6])
def test_progress_bar(capsys, batches_per_epoch):
    bar = callbacks.ProgressBar(batches_per_epoch=batches_per_epoch)
    small(callbacks=[bar]).fit(X, y, **VALIDATION)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "0/6" in captured.err


def test_passthrough_scoring():
    class Note(callbacks.Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training:
                net.history.record_batch("rows", float(len(kwargs["batch"][0])))

    parts = [Note(), callbacks.PassthroughScoring("rows", on_train=True)]
    clf = small(batch_size=40, callbacks=parts).fit(X, y)
    assert clf.net_.history[-1, "rows"] == pytest.approx((40 * 40 + 40 * 40 + 20 * 20) / 100)


def test_names_classes_and_parameters_of_callbacks():
    class Parted(Recorder):
        def __init__(self, depth=1):
            self.depth = depth

    clf = small(
        callbacks=[("mine", Parted(depth=2)), Recorder, ("other", Parted)],
        net_params={"callbacks__mine__depth": 3, "callbacks__other__depth": 4},
    ).fit(X, y)
    assert [name for name, _ in clf.net_.callbacks_] == ["mine", "Recorder", "other"]
    assert callback_of(clf, "mine").depth == 3
    assert callback_of(clf, "other").depth == 4
    assert callback_of(clf, "Recorder").events_


def test_callbacks_see_the_training_as_skorch_shows_it():
    class Look(callbacks.Callback):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            self.X_, self.y_, self.classes_ = X, y, net.classes_

        def on_epoch_end(self, net, dataset_train=None, **kwargs):
            self.row_ = dataset_train[3]

    clf = small(callbacks=[Look()]).fit(X, y + 100)
    seen = callback_of(clf, "Look")
    assert_array_equal(seen.X_, X)
    assert_array_equal(seen.y_, y)
    assert_array_equal(seen.classes_, np.arange(10))
    assert_array_equal(seen.row_[0], X[3])
    assert seen.row_[1] == y[3]


# Copies ---------------------------------------------------------------------------------------


class Counter(callbacks.Callback):
    """Keeps state in an attribute that is no parameter, which `sklearn.clone` refuses."""

    def __init__(self, step=1):
        self.step = step
        self.count = 0

    def on_epoch_end(self, net, **kwargs):
        self.count += self.step


def test_callbacks_are_copied_at_fit():
    counter = Counter()
    clf = small(callbacks=[counter]).fit(X, y)
    assert counter.count == 0
    assert callback_of(clf, "Counter").count == 3
    clf.fit(X, y)
    assert callback_of(clf, "Counter").count == 3  # a new copy, not the used one
    assert clf.callbacks == [counter]


@pytest.mark.parametrize("nested", [False, True])
def test_callbacks_are_copied_at_clone(nested):
    counter, stop = Counter(step=2), callbacks.EarlyStopping(patience=7)
    clf = small(callbacks=[("counter", counter), stop])
    copied = clone(make_pipeline(clf))[0] if nested else clone(clf)
    assert [name for name, _ in copied.callbacks[:1]] == ["counter"]
    assert copied.callbacks[0][1] is not counter
    assert copied.callbacks[0][1].step == 2
    assert copied.callbacks[1] is not stop
    assert copied.callbacks[1].patience == 7
    assert not hasattr(clone(clf.fit(X, y, **VALIDATION)), "net_")
    copied.fit(X, y, **VALIDATION)
    assert counter.count == 0


def test_a_fitted_estimator_with_callbacks_can_be_pickled():
    parts = [Counter(), callbacks.EpochScoring("accuracy"), callbacks.ProgressBar()]
    clf = small(callbacks=parts, verbose=2).fit(X, y, **VALIDATION)
    loaded = pickle.loads(pickle.dumps(clf))
    assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert callback_of(loaded, "Counter").count == 3
    assert loaded.history_ == clf.history_


# Interrupts -----------------------------------------------------------------------------------


def wish_to_stop():
    raise KeyboardInterrupt


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


class Interrupter(callbacks.Callback):
    """Interrupts at the n-th time that an event comes."""

    def __init__(self, event, number, interrupt):
        self.event = event
        self.number = number
        self.interrupt = interrupt

    def initialize(self):
        self.seen_ = 0
        return self

    def _maybe(self, event):
        if event == self.event:
            self.seen_ += 1
            if self.seen_ == self.number:
                self.interrupt()

    def on_train_begin(self, net, **kwargs):
        self._maybe("on_train_begin")

    def on_epoch_begin(self, net, **kwargs):
        self._maybe("on_epoch_begin")

    def on_batch_begin(self, net, **kwargs):
        self._maybe("on_batch_begin")

    def on_grad_computed(self, net, **kwargs):
        self._maybe("on_grad_computed")

    def on_batch_end(self, net, **kwargs):
        self._maybe("on_batch_end")

    def on_epoch_end(self, net, **kwargs):
        self._maybe("on_epoch_end")

    def on_train_end(self, net, **kwargs):
        self._maybe("on_train_end")


@pytest.mark.parametrize(
    "handler",
    [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL],
    ids=["Python's", "ignored", "the system's"],
)
def test_a_wish_to_stop_at_the_end_of_an_epoch_ends_the_training(handler):
    signal.signal(signal.SIGINT, handler)
    clf = small(callbacks=[Interrupter("on_epoch_end", 2, wish_to_stop), Recorder()]).fit(X, y)
    assert clf.n_iter_ == len(clf.history_) == 2
    assert callback_of(clf, "Recorder").events_[-1][0] == "on_train_end"
    assert not clf.module_.training


INTERRUPTS = [
    ("on_epoch_end", 2, press_ctrl_c),
    ("on_epoch_begin", 2, press_ctrl_c),
    ("on_epoch_begin", 2, wish_to_stop),
    ("on_batch_begin", 3, press_ctrl_c),
    ("on_grad_computed", 6, press_ctrl_c),
    ("on_batch_end", 3, press_ctrl_c),
    ("on_batch_end", 3, wish_to_stop),
    ("on_train_end", 1, press_ctrl_c),
]


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(("event", "number", "interrupt"), INTERRUPTS)
def test_ctrl_c_is_raised_on_and_leaves_the_weights_of_that_moment(
    event, number, interrupt, fitted, warm_start
):
    clf = small(warm_start=warm_start)
    if fitted:
        clf.fit(X, y)
        before = weights_of(clf)
    clf.set_params(callbacks=[Interrupter(event, number, interrupt), Recorder()])
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    # It is fitted, consistent, and can go on.
    assert not clf.module_.training
    assert not np.array_equal(weights_of(clf), weights_of(small(lr=1e-30).fit(X, y)))
    if fitted and (warm_start or event != "on_train_end"):  # else the same training, whole
        assert not np.array_equal(weights_of(clf), before)
    n_before = 3 if fitted and warm_start else 0
    assert len(clf.history_) == n_before + clf.n_iter_
    assert clf.predict(X).shape == (100,)
    events = [entry[0] for entry in callback_of(clf, "Recorder").events_]
    if event != "on_train_end":
        assert events[-1] == "on_train_end"
    clf.set_params(callbacks=None)
    pickle.loads(pickle.dumps(clf)).predict(X)
    clf.fit(X, y)
    assert clf.n_iter_ == 3


def test_the_rate_of_partial_fit_after_an_interrupt_is_lr():
    clf = small(callbacks=[Interrupter("on_batch_end", 2, press_ctrl_c)])
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    clf.partial_fit(X, y)
    assert clf.history_[-1]["lr"] == 3e-3


@pytest.mark.parametrize("interrupt", [press_ctrl_c, wish_to_stop])
@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin", "on_batch_begin"])
def test_ctrl_c_before_the_first_batch_leaves_the_estimator_as_it_was(event, interrupt):
    clf = small(callbacks=[Interrupter(event, 1, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert set(vars(clf)) == set(vars(small()))

    clf = small().fit(X, y)
    expected, state = clf.predict_proba(X), set(vars(clf))
    clf.set_params(callbacks=[Interrupter(event, 1, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X[:50, :, 2:], y[:50] + 5)
    assert set(vars(clf)) == state
    assert_array_equal(clf.predict_proba(X), expected)


@pytest.mark.parametrize("event", ["on_batch_end", "on_epoch_end"])
def test_ctrl_c_in_partial_fit(event):
    clf = small(callbacks=[Interrupter(event, 6 if event == "on_batch_end" else 2, press_ctrl_c)])
    clf.partial_fit(X, y, classes=np.arange(10))
    before = weights_of(clf)
    with pytest.raises(KeyboardInterrupt):
        clf.partial_fit(X, y)
    assert not np.array_equal(weights_of(clf), before)
    assert not clf.module_.training
    clf.set_params(callbacks=None).partial_fit(X, y)
    assert clf.predict(X).shape == (100,)


def test_a_handler_of_the_users_own_is_not_taken_for_a_wish():
    def handler(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handler)
    clf = small(callbacks=[Interrupter("on_epoch_end", 2, press_ctrl_c)])
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert clf.n_iter_ == 2


class Broken(callbacks.Callback):
    def on_batch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise ZeroDivisionError


@pytest.mark.parametrize("train", ["fit", "warm fit", "partial_fit"])
def test_a_callback_that_fails_leaves_the_estimator_as_it_was(train):
    clf = small(warm_start=train == "warm fit").fit(X, y)
    clf.net_.callbacks_ = [("broken", Broken())]  # what partial_fit goes on with
    expected, history = clf.predict_proba(X), clf.history_
    clf.set_params(callbacks=[Broken()])
    if train == "partial_fit":
        clf.net_.callbacks_[0][1].on_batch_end = lambda net, **kwargs: 1 / 0
        with pytest.raises(ZeroDivisionError):
            clf.partial_fit(X, y)
    elif train == "fit":
        with pytest.raises(ZeroDivisionError):
            clf.fit(X, y)
    else:
        clf.callbacks[0].on_batch_end = lambda net, **kwargs: 1 / 0
        with pytest.raises(ZeroDivisionError):
            clf.fit(X, y)
    assert_array_equal(clf.predict_proba(X), expected)
    assert clf.history_ == history
