"""ConvNetClassifier: labels, weights, stopping, going on, schedules, optimizers, reports."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, softmax
from sklearn.datasets import load_digits
from sklearn.utils.class_weight import compute_class_weight
from skorch.callbacks import Callback
from torch import nn

from sklconv import Backbone, ConvNetClassifier
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, GlobalAvgPool, MaxPool

IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES, DIGITS = IMAGES.reshape(-1, 8, 8).astype(np.float32), DIGITS
X, y = IMAGES[:200], DIGITS[:200]
X_val, y_val = IMAGES[1000:1100], DIGITS[1000:1100]


def small(**params):
    """A classifier with a small network of declarative layers."""
    layers = [("conv1", Conv(6, 3)), ("pool1", MaxPool(2)), ("dense", Dense(16))]
    return ConvNetClassifier(**{"module": layers, "max_epochs": 2, "random_state": 0, **params})


def linear(n_outputs=10, n_inputs=64):
    """A linear network with fixed weights, to follow by hand."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, n_outputs))
    values = torch.linspace(-0.1, 0.1, n_outputs * n_inputs)
    with torch.no_grad():
        module[1].weight.copy_(values.view(n_outputs, n_inputs).sin())
        module[1].bias.zero_()
    return module


def full_batch(module=None, **params):
    """A classifier that trains ``module`` by plain gradient descent, one step an epoch."""
    defaults = {
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 0.0,
        "lr_schedule": None,
        "batch_size": 10_000,
        "max_epochs": 1,
        "random_state": 0,
    }
    return ConvNetClassifier(linear() if module is None else module, **{**defaults, **params})


def weights_of(classifier):
    return torch.cat([p.detach().flatten() for p in classifier.module_.parameters()]).numpy()


def cross_entropy(classifier, X, y, sample_weight=None):
    """Mean loss of ``classifier`` computed from its probabilities."""
    position = np.searchsorted(classifier.classes_, y)
    losses = -np.log(classifier.predict_proba(X)[np.arange(len(y)), position])
    return np.average(losses, weights=sample_weight)


class Recorder(Callback):
    """Keeps the data sets, and of each training batch the learning rate, rows and targets."""

    def initialize(self):
        self.rates_, self.batches_ = [], []
        return self

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.train_, self.valid_ = dataset_train, dataset_valid

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        if training:
            self.rates_.append(net.optimizer_.param_groups[0]["lr"])
            self.batches_.append(tuple(part.clone() for part in batch))


def recorder_of(classifier):
    return dict(classifier.net_.callbacks_)["Recorder"]


# Labels -------------------------------------------------------------------------------------

WORDS = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
LABELS = {
    "strings": WORDS[y],
    "objects": WORDS[y].astype(object),
    "list of strings": WORDS[y].tolist(),
    "negative integers": y - 5,
    "gaps": 10 * y**2 + 3,
    "uint8": y.astype(np.uint8),
    "whole floats": y.astype(np.float64),
    "column": y[:, None] + 100,
    "booleans": y % 2 == 1,
    "two strings": np.where(y < 5, "small", "large"),
    "minus one and one": np.where(y < 5, -1, 1),
    "two integers": np.where(y < 5, 7, 3),
}


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_all_kinds(kind):
    labels = LABELS[kind]
    classes, codes = np.unique(labels, return_inverse=True)
    clf = small().fit(X, labels)
    assert_array_equal(clf.classes_, classes)
    assert clf.classes_.dtype == classes.dtype
    # The names of the classes make no difference to the training.
    coded = small().fit(X, codes.reshape(-1))
    assert_array_equal(clf.predict_proba(X_val), coded.predict_proba(X_val))
    predicted = clf.predict(X_val)
    assert predicted.dtype == classes.dtype
    assert_array_equal(predicted, classes[coded.predict(X_val)])


def naive_logits(classifier, X):
    with torch.no_grad():
        return classifier.module_(torch.from_numpy(X[:, None])).numpy()


def test_decision_function_of_many_classes_is_the_logits():
    clf = small().fit(X, y)
    logits = clf.decision_function(X_val)
    assert logits.shape == (100, 10)
    assert logits.dtype == np.float32
    assert_allclose(logits, naive_logits(clf, X_val), rtol=1e-5, atol=1e-6)
    assert_allclose(clf.predict_proba(X_val), softmax(logits, axis=1), rtol=1e-5)
    assert_array_equal(clf.predict(X_val), logits.argmax(1))


def test_decision_function_of_two_classes_is_the_difference_of_the_logits():
    clf = small().fit(X, y % 2)
    decision = clf.decision_function(X_val)
    logits = naive_logits(clf, X_val)
    assert decision.shape == (100,)
    assert_allclose(decision, logits[:, 1] - logits[:, 0], rtol=1e-5, atol=1e-6)
    probabilities = clf.predict_proba(X_val)
    assert_allclose(probabilities[:, 1], expit(decision), rtol=1e-5)
    assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert_array_equal(clf.predict(X_val), decision > 0)


def test_all_outputs_are_the_same_of_one_row_as_of_many():
    clf = small().fit(X, y)
    for method in ("predict", "predict_proba", "decision_function"):
        run = getattr(clf, method)
        alone = np.concatenate([run(X_val[i : i + 1]) for i in range(10)])
        # Logits are sums that lose digits where they are near zero: atol goes by the largest.
        assert_allclose(alone, run(X_val)[:10], rtol=1e-5, atol=1e-5, err_msg=method)


# Weights ------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
WEIGHTS = {
    "none": None,
    "random": rng.uniform(0.1, 5, len(y)),
    "some zero": np.where(y < 3, 0.0, 1.0),
    "huge": 1e6 * rng.uniform(0.1, 5, len(y)),
    "all equal": np.full(len(y), 7.0),
    "whole": rng.integers(1, 4, len(y)),
}


def naive_step(module, X, y, weights, lr):
    """One step of gradient descent on the weighted mean of the losses."""
    losses = nn.functional.cross_entropy(
        module(torch.from_numpy(X[:, None])), torch.from_numpy(y), reduction="none"
    )
    if weights is not None:
        losses = losses * torch.from_numpy(weights / weights.mean()).float()
    losses.mean().backward()
    with torch.no_grad():
        for p in module.parameters():
            p -= lr * p.grad
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_one_step_with_sample_weight(kind):
    clf = full_batch().fit(X, y, sample_weight=WEIGHTS[kind])
    expected = naive_step(linear(), X, y, WEIGHTS[kind], lr=0.01)
    assert_allclose(weights_of(clf), expected, rtol=1e-4, atol=1e-5)


def test_sample_weights_are_divided_by_the_mean_over_the_training_set_not_the_batch():
    # A light batch must move the weights less than a heavy one. Pixel 0 numbers the rows.
    numbered = X / 16
    numbered[:, 0, 0] = np.arange(len(X))
    module = linear()
    with torch.no_grad():
        module[1].weight[:, 0] = 0
    weights = WEIGHTS["random"]

    class Gradients(Callback):
        def initialize(self):
            self.found_ = []
            return self

        def on_grad_computed(self, net, named_parameters, batch=None, **kwargs):
            parameters = dict(named_parameters)
            state = {k.removeprefix("body."): v.detach().clone() for k, v in parameters.items()}
            gradient = parameters["body.1.weight"].grad.clone()
            self.found_.append((state, gradient, batch[0][:, 0, 0, 0].long().numpy()))

    clf = full_batch(module, batch_size=64, lr=1e-4, callbacks=[("gradients", Gradients())])
    clf.fit(numbered, y, sample_weight=weights)
    found = dict(clf.net_.callbacks_)["gradients"].found_
    assert len(found) == 4
    for state, gradient, rows in found:
        module.load_state_dict(state)
        logits = module(torch.from_numpy(numbered[rows, None]))
        losses = nn.functional.cross_entropy(logits, torch.from_numpy(y[rows]), reduction="none")
        loss = (losses * torch.from_numpy(weights[rows]).float()).mean() / weights.mean()
        (expected,) = torch.autograd.grad(loss, module[1].weight)
        most = expected.abs().max().item()  # of pixel 0, which is up to 199
        assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6 * most)
    assert_array_equal(np.sort(np.concatenate([rows for *_, rows in found])), np.arange(len(X)))


def test_weights_of_a_later_partial_fit_count_although_the_first_had_none():
    clf = full_batch().partial_fit(X, y, classes=np.arange(10))
    module = linear()
    naive_step(module, X, y, None, lr=0.01)
    module.zero_grad()
    clf.partial_fit(X, y, sample_weight=WEIGHTS["some zero"])
    expected = naive_step(module, X, y, WEIGHTS["some zero"], lr=0.01)
    assert_allclose(weights_of(clf), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [y, WORDS[y]], ids=["integers", "strings"])
@pytest.mark.parametrize("kind", ["dict", "incomplete dict", "balanced"])
def test_class_weight_is_a_sample_weight(kind, labels):
    skewed = np.concatenate([np.flatnonzero(y < 5), np.flatnonzero(y >= 5)[:20]])
    X_skewed, y_skewed = X[skewed], labels[skewed]
    classes = np.unique(y_skewed)
    if kind == "balanced":
        class_weight = "balanced"
        of_class = compute_class_weight("balanced", classes=classes, y=y_skewed)
    else:
        of_class = np.linspace(1, 3, len(classes))
        if kind == "incomplete dict":
            of_class[3:] = 1
        class_weight = dict(zip(classes, of_class, strict=True))
        if kind == "incomplete dict":
            class_weight = dict(list(class_weight.items())[:3])
    weights = of_class[np.searchsorted(classes, y_skewed)]
    expected = small().fit(X_skewed, y_skewed, sample_weight=weights)
    clf = small(class_weight=class_weight).fit(X_skewed, y_skewed)
    assert_array_equal(weights_of(clf), weights_of(expected))
    assert not np.array_equal(weights_of(clf), weights_of(small().fit(X_skewed, y_skewed)))


def test_class_weight_and_sample_weight_multiply():
    class_weight, sample_weight = {1: 3.0, 2: 0.5}, WEIGHTS["random"]
    clf = small(class_weight=class_weight).fit(X, y, sample_weight=sample_weight)
    both = sample_weight * np.select([y == 1, y == 2], [3.0, 0.5], 1.0)
    assert_array_equal(weights_of(clf), weights_of(small().fit(X, y, sample_weight=both)))


@pytest.mark.parametrize("labels", [y, WORDS[y]], ids=["integers", "strings"])
def test_class_weights_of_classes_that_a_chunk_lacks(labels):
    classes, chunk = np.unique(labels), y < 4
    class_weight = {classes[1]: 3.0, labels[y == 7][0]: 5.0}
    weights = np.array([class_weight.get(label, 1.0) for label in labels[chunk]])
    clf, expected = small(class_weight=class_weight), small()
    clf.partial_fit(X[chunk], labels[chunk], classes=classes)
    expected.partial_fit(X[chunk], labels[chunk], classes=classes, sample_weight=weights)
    assert_array_equal(weights_of(clf), weights_of(expected))


def test_class_weights_of_classes_that_a_fold_lacks():
    fold = y < 3
    clf = small(class_weight={0: 1.0, 1: 2.0, 2: 1.0, 9: 5.0}).fit(X[fold], y[fold])
    expected = small(class_weight={1: 2.0}).fit(X[fold], y[fold])
    assert_array_equal(weights_of(clf), weights_of(expected))


# Validation and early stopping --------------------------------------------------------------


def test_nothing_is_held_out_unless_asked():
    clf = small(callbacks=[Recorder()]).fit(X, y)
    assert recorder_of(clf).valid_ is None
    assert len(recorder_of(clf).train_) == len(X)
    assert {row["valid_loss"] for row in clf.history_} == {None}
    assert {row["valid_accuracy"] for row in clf.history_} == {None}


@pytest.mark.parametrize("early_stopping", [False, True])
def test_X_val_is_validated_on_and_nothing_is_held_out(early_stopping):
    clf = small(early_stopping=early_stopping, callbacks=[Recorder()])
    clf.fit(X, y, X_val=X_val, y_val=y_val)
    assert len(recorder_of(clf).train_) == len(X)
    assert_array_equal(recorder_of(clf).valid_.y, y_val)
    last = clf.history_[-1]
    assert last["valid_loss"] == pytest.approx(cross_entropy(clf, X_val, y_val), rel=1e-5)
    assert last["valid_accuracy"] == pytest.approx(clf.score(X_val, y_val))


def test_validation_alone_does_not_change_the_training():
    dropped = {"module": [("conv1", Conv(4, 3)), ("bn", BatchNorm()), ("drop", Dropout(0.3))]}
    plain = small(**dropped).fit(X, y)
    validated = small(**dropped).fit(X, y, X_val=X_val, y_val=y_val)
    assert_array_equal(weights_of(plain), weights_of(validated))


def test_X_val_of_another_form_and_labels_of_the_classes():
    clf = small().fit(X, WORDS[y], X_val=X_val.reshape(100, 64), y_val=WORDS[y_val])
    assert clf.history_[-1]["valid_accuracy"] == pytest.approx(clf.score(X_val, WORDS[y_val]))


def test_sample_weight_val_weights_the_validation_loss():
    weights = rng.uniform(0, 3, len(y_val))
    clf = small().fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weights)
    assert_array_equal(weights_of(clf), weights_of(small().fit(X, y)))
    expected = cross_entropy(clf, X_val, y_val, weights)
    assert clf.history_[-1]["valid_loss"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(cross_entropy(clf, X_val, y_val), rel=1e-3)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_early_stopping_holds_out_a_stratified_part(fraction):
    numbered = X.copy()
    numbered[:, 0, 0] = np.arange(len(X))
    clf = small(early_stopping=True, validation_fraction=fraction, callbacks=[Recorder()])
    clf.fit(numbered, y)
    train, valid = recorder_of(clf).train_, recorder_of(clf).valid_
    assert len(valid) == round(fraction * len(y))
    shares = np.bincount(valid.y, minlength=10) / np.bincount(y)
    assert_allclose(shares, fraction, atol=1 / np.bincount(y).min())
    rows = [np.asarray(part.X)[:, 0, 0, 0].astype(int) for part in (train, valid)]
    assert_array_equal(np.sort(np.concatenate(rows)), np.arange(len(y)))
    for part, numbers in zip((train, valid), rows, strict=True):
        assert_array_equal(part.y, y[numbers])


def test_held_out_rows_take_their_weights_with_them():
    numbered = X.copy()
    numbered[:, 0, 0] = np.arange(len(X))
    weights = WEIGHTS["random"]
    clf = small(early_stopping=True, max_epochs=1, callbacks=[Recorder()])
    clf.fit(numbered, y, sample_weight=weights)
    rows = np.asarray(recorder_of(clf).valid_.X)[:, 0, 0, 0].astype(int)
    expected = cross_entropy(clf, numbered[rows], y[rows], weights[rows])
    assert clf.history_[0]["valid_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_hold_out_depends_on_random_state():
    def held_out(random_state):
        clf = small(
            early_stopping=True, max_epochs=1, random_state=random_state, callbacks=[Recorder()]
        )
        return np.asarray(recorder_of(clf.fit(X, y)).valid_.X)

    assert_array_equal(held_out(0), held_out(0))
    assert not np.array_equal(held_out(0), held_out(1))


def test_classes_of_one_member_survive_the_hold_out():
    lonely = np.flatnonzero(y == 9)[1:]
    X_lonely, y_lonely = np.delete(X, lonely, axis=0), np.delete(y, lonely)
    assert (y_lonely == 9).sum() == 1
    clf = small(early_stopping=True, callbacks=[Recorder()]).fit(X_lonely, y_lonely)
    assert_array_equal(clf.classes_, np.arange(10))
    assert 9 in recorder_of(clf).train_.y
    assert 9 not in recorder_of(clf).valid_.y


IMPOSSIBLE = {
    "too few held out": (np.repeat([0, 1, 2, 3], 2), 0.1),
    "too few left": (np.repeat([0, 1, 2, 3], 2), 0.9),
    "nothing held out": (np.repeat([0, 1], 4), 0.01),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_hold_outs_say_why(case):
    labels, fraction = IMPOSSIBLE[case]
    clf = small(early_stopping=True, validation_fraction=fraction)
    with pytest.raises(ValueError, match=f"validation_fraction={fraction} of 8 images") as info:
        clf.fit(X[:8], labels)
    assert "X_val and y_val" in str(info.value)
    clf.fit(X[:8], labels, X_val=X_val[:4], y_val=labels[:4])  # the remedy


def naive_last_epoch(losses, patience, tol):
    """Epochs that early stopping lets run, by the rule in the documentation."""
    reference, waited = math.inf, 0
    for epoch, loss in enumerate(losses, start=1):
        if loss < reference - tol:
            reference, waited = loss, 0
        else:
            waited += 1
        if waited >= patience:
            return epoch
    return len(losses)


@pytest.mark.parametrize(("patience", "tol"), [(1, 1e-4), (3, 0.0), (2, 0.05), (1, 100.0)])
def test_early_stopping_stops_and_goes_back_to_the_best_weights(patience, tol):
    params = {"lr": 0.02, "max_epochs": 12, "callbacks": [Recorder()]}
    data = {"X_val": X_val, "y_val": y_val}
    endless = small(**params, early_stopping=True, n_iter_no_change=12).fit(X[:60], y[:60], **data)
    losses = [row["valid_loss"] for row in endless.history_]
    clf = small(**params, early_stopping=True, n_iter_no_change=patience, tol=tol)
    clf.fit(X[:60], y[:60], **data)

    n_epochs = naive_last_epoch(losses, patience, tol)
    assert clf.n_iter_ == n_epochs < 12
    assert [row["valid_loss"] for row in clf.history_] == losses[:n_epochs]
    best = min(losses[:n_epochs])
    assert cross_entropy(clf, X_val, y_val) == pytest.approx(best, rel=1e-5)
    assert not clf.module_.training


def test_best_weights_are_restored_where_early_stopping_never_stopped():
    clf = small(lr=0.02, max_epochs=8, early_stopping=True, n_iter_no_change=8)
    clf.fit(X[:60], y[:60], X_val=X_val, y_val=y_val)
    losses = [row["valid_loss"] for row in clf.history_]
    assert len(losses) == 8
    assert min(losses) < losses[-1]  # else nothing is shown
    assert cross_entropy(clf, X_val, y_val) == pytest.approx(min(losses), rel=1e-5)


def test_best_weights_include_batch_norm_statistics():
    module = [("conv1", Conv(6, 3)), ("bn", BatchNorm()), ("dense", Dense(16))]
    clf = small(module=module, lr=0.03, max_epochs=8, early_stopping=True, n_iter_no_change=8)
    clf.fit(X[:60], y[:60], X_val=X_val, y_val=y_val)
    losses = [row["valid_loss"] for row in clf.history_]
    assert min(losses) < losses[-1]
    assert cross_entropy(clf, X_val, y_val) == pytest.approx(min(losses), rel=1e-5)


def test_without_early_stopping_the_last_weights_stay():
    clf = small(lr=0.02, lr_schedule=None, max_epochs=8)
    clf.fit(X[:60], y[:60], X_val=X_val, y_val=y_val)
    losses = [row["valid_loss"] for row in clf.history_]
    assert min(losses) < losses[-1]
    assert cross_entropy(clf, X_val, y_val) == pytest.approx(losses[-1], rel=1e-5)


# Going on -----------------------------------------------------------------------------------


def one_cycle_of_torch(n_steps, lr):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    return rates_of(
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=lr, total_steps=n_steps, cycle_momentum=False
        ),
        n_steps,
    )


def cosine_of_torch(n_steps, lr):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    return rates_of(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps), n_steps)


def rates_of(scheduler, n_steps):
    rates = []
    for step in range(n_steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        if step < n_steps - 1:
            scheduler.step()
    return rates


def constant(n_steps, lr):
    return [lr] * n_steps


SCHEDULES = {"onecycle": one_cycle_of_torch, "cosine": cosine_of_torch, None: constant}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("n", "batch_size", "max_epochs"), [(200, 20, 3), (200, 64, 1), (199, 99, 5), (150, 150, 7)]
)
def test_schedules_are_those_of_torch(schedule, n, batch_size, max_epochs):
    params = {"lr_schedule": schedule, "batch_size": batch_size, "max_epochs": max_epochs}
    clf = full_batch(lr=0.05, callbacks=[Recorder()], **params).fit(X[:n], y[:n])
    rates = recorder_of(clf).rates_
    n_batches = len(rates) // max_epochs
    assert_allclose(rates, SCHEDULES[schedule](len(rates), 0.05), rtol=1e-6)
    assert_allclose([row["lr"] for row in clf.history_], rates[n_batches - 1 :: n_batches])


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_one_cycle_of_a_few_steps_reaches_the_full_rate(n_steps):
    clf = full_batch(
        lr=0.05, lr_schedule="onecycle", max_epochs=n_steps, callbacks=[Recorder()]
    ).fit(X, y)
    assert max(recorder_of(clf).rates_) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("lr_schedule", "early_stopping", "expected"),
    [
        ("auto", False, "onecycle"),
        ("auto", True, None),
        ("onecycle", True, "onecycle"),
        ("cosine", True, "cosine"),
        (None, True, None),
    ],
)
def test_the_schedule_is_constant_under_early_stopping_unless_named(
    lr_schedule, early_stopping, expected
):
    params = {"lr_schedule": lr_schedule, "early_stopping": early_stopping, "max_epochs": 3}
    clf = full_batch(lr=0.05, batch_size=40, callbacks=[Recorder()], **params)
    clf.fit(X, y, X_val=X_val, y_val=y_val)
    assert clf.n_iter_ == 3
    rates = recorder_of(clf).rates_
    assert_allclose(rates, SCHEDULES[expected](len(rates), 0.05), rtol=1e-6)


def test_warm_start_goes_on_with_a_new_schedule():
    clf = small(warm_start=True, max_epochs=3, callbacks=[Recorder()]).fit(X, y)
    rates, first = recorder_of(clf).rates_, clf.history_
    clf.fit(X, y)
    assert recorder_of(clf).rates_ == rates
    assert clf.n_iter_ == 3
    assert clf.history_[:3] == first
    assert [row["epoch"] for row in clf.history_] == [1, 2, 3, 4, 5, 6]
    assert clf.history_[3]["train_loss"] < first[0]["train_loss"]
    assert clf.history_[5]["train_loss"] < first[2]["train_loss"]


def test_warm_start_starts_from_the_weights_there_are():
    clf = small(warm_start=True, weight_decay=0.0).fit(X, y)
    weights, probabilities = weights_of(clf), clf.predict_proba(X_val)
    clf.set_params(lr=1e-20).fit(X[:50] + 5, y[:50])
    assert_array_equal(weights_of(clf), weights)
    # The standardisation is part of the network, and stays.
    assert_array_equal(clf.predict_proba(X_val), probabilities)


def test_without_warm_start_a_fit_forgets():
    clf = small().fit(X[:50] + 5, y[:50])
    clf.fit(X, y)
    fresh = small().fit(X, y)
    assert_array_equal(weights_of(clf), weights_of(fresh))
    assert len(clf.history_) == 2


def test_warm_start_takes_new_parameters():
    clf = small(warm_start=True, optimizer="sgd").fit(X, y)
    clf.set_params(optimizer="adam", max_epochs=1, batch_size=50, callbacks=[Recorder()])
    clf.fit(X, y)
    assert isinstance(clf.net_.optimizer_, torch.optim.Adam)
    assert (clf.n_iter_, len(clf.history_)) == (1, 3)
    assert [len(x) for x, _ in recorder_of(clf).batches_] == [50] * 4


def test_partial_fit_is_one_epoch_at_a_constant_rate():
    clf = small(callbacks=[Recorder()], max_epochs=7, batch_size=32)
    for n_calls in (1, 2, 3):
        clf.partial_fit(X, WORDS[y], classes=WORDS)
        assert clf.n_iter_ == 1
        assert [row["epoch"] for row in clf.history_] == list(range(1, n_calls + 1))
        assert {row["lr"] for row in clf.history_} == {3e-3}
    assert set(recorder_of(clf).rates_) == {3e-3}
    losses = [row["train_loss"] for row in clf.history_]
    assert losses[0] > losses[1] > losses[2]
    assert_array_equal(clf.classes_, np.sort(WORDS))


def test_partial_fit_equals_steps_by_hand_and_keeps_the_optimizer():
    clf = full_batch(optimizer_params={"momentum": 0.9})
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for part in np.array_split(np.arange(len(y)), 4):
        clf.partial_fit(X[part], y[part], classes=np.arange(10))
        optimizer.zero_grad()
        logits = module(torch.from_numpy(X[part, None]))
        nn.functional.cross_entropy(logits, torch.from_numpy(y[part])).backward()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in module.parameters()])
    # Pixels of up to 16 make logits of about 20, whose rounding comes back times 16.
    assert_allclose(weights_of(clf), expected, rtol=1e-4, atol=1e-5)


def test_partial_fit_knows_classes_that_have_not_come_yet():
    clf = small().partial_fit(X[y < 3], y[y < 3], classes=np.arange(10))
    assert clf.predict_proba(X_val).shape == (100, 10)
    clf.partial_fit(X, y)
    with pytest.raises(ValueError, match=r"y holds \[11\]"):
        clf.partial_fit(X, np.where(y == 9, 11, y))


def test_partial_fit_needs_classes_once():
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        small().partial_fit(X, y)
    clf = small().partial_fit(X, y, classes=np.arange(10))
    with pytest.raises(ValueError, match="not the same as on the first call"):
        clf.partial_fit(X, y, classes=np.arange(11))


def test_partial_fit_goes_on_from_a_fit():
    clf = small(max_epochs=3).fit(X, y)
    accuracy = clf.score(X, y)
    clf.partial_fit(X, y)
    assert len(clf.history_) == 4
    assert clf.n_iter_ == 1
    assert clf.history_[-1]["lr"] == 3e-3  # not where the schedule ended
    assert clf.score(X, y) > accuracy - 0.1


def test_partial_fit_takes_a_new_learning_rate():
    clf = full_batch().partial_fit(X, y, classes=np.arange(10))
    before = weights_of(clf)
    clf.set_params(lr=1e-20).partial_fit(X, y)
    assert_array_equal(weights_of(clf), before)
    assert clf.history_[-1]["lr"] == 1e-20


# Optimizers and the net's parameters --------------------------------------------------------

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {"betas": (0.8, 0.9)}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {"rho": 0.8}),
    "nadam": (torch.optim.NAdam, {}),
    "lbfgs": (torch.optim.LBFGS, {"max_iter": 3}),
    torch.optim.Adamax: (torch.optim.Adamax, {"eps": 1e-6}),
    torch.optim.RAdam: (torch.optim.RAdam, {}),
}


def name_of(optimizer):
    return optimizer if isinstance(optimizer, str) else optimizer.__name__


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=name_of)
def test_optimizers_by_name_and_class_against_torch(optimizer):
    torch_class, params = OPTIMIZERS[optimizer]
    scaled = X / 16
    clf = full_batch(
        optimizer=optimizer,
        optimizer_params=params or None,
        weight_decay=0.1,
        max_epochs=3,
    ).fit(scaled, y)
    assert type(clf.net_.optimizer_) is torch_class

    module = linear()
    if optimizer != "lbfgs":  # it has none
        params = {**params, "weight_decay": 0.1}
    reference = torch_class(module.parameters(), lr=0.01, **params)

    def closure():
        reference.zero_grad()
        logits = module(torch.from_numpy(scaled[:, None]))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(y))
        loss.backward()
        return loss

    losses = [reference.step(closure).item() for _ in range(3)]
    expected = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert_allclose(weights_of(clf), expected, rtol=1e-3, atol=2e-5)
    # Of several evaluations in a step the first counts, as in skorch.
    assert_allclose([row["train_loss"] for row in clf.history_], losses, rtol=1e-4)


def test_optimizer_params_go_before_what_the_engine_sets():
    clf = full_batch(optimizer="adamw", optimizer_params={"fused": False}).fit(X, y)
    assert not clf.net_.optimizer_.defaults["fused"]


def test_optimizer_params_may_hold_a_weight_decay_that_the_engine_can_not_see():
    class Decaying(torch.optim.SGD):
        def __init__(self, params, **settings):
            super().__init__(params, **settings)

    clf = full_batch(optimizer=Decaying, optimizer_params={"weight_decay": 0.5}).fit(X, y)
    assert clf.net_.optimizer_.defaults["weight_decay"] == 0.5


def test_net_params_reach_the_criterion():
    clf = full_batch(lr=1e-20, net_params={"criterion__label_smoothing": 0.3}).fit(X, y)
    logits = linear()(torch.from_numpy(X[:, None]))
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(y), label_smoothing=0.3)
    assert clf.history_[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_net_params_can_replace_the_criterion():
    params = {"criterion": nn.MultiMarginLoss, "criterion__margin": 2.0}
    clf = full_batch(lr=1e-20, net_params=params).fit(X, y)
    logits = linear()(torch.from_numpy(X[:, None]))
    expected = nn.functional.multi_margin_loss(logits, torch.from_numpy(y), margin=2.0)
    assert clf.history_[0]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_net_params_reach_optimizer_and_callbacks():
    params = {
        "optimizer__momentum": 0.7,
        "optimizer__param_groups": [("body.1.bias", {"lr": 0.5})],
        "callbacks__record__patience": 3,
    }

    class Patient(Recorder):
        def __init__(self, patience=1):
            self.patience = patience

    clf = full_batch(net_params=params, callbacks=[("record", Patient())]).fit(X, y)
    groups = clf.net_.optimizer_.param_groups
    assert {group["momentum"] for group in groups} == {0.7}
    assert sorted(group["lr"] for group in groups) == [0.01, 0.5]
    assert dict(clf.net_.callbacks_)["record"].patience == 3


@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_schedules_scale_the_rates_of_all_groups(schedule):
    class Rates(Callback):
        def initialize(self):
            self.rates_ = []
            return self

        def on_batch_begin(self, net, training=False, **kwargs):
            self.rates_.append([group["lr"] for group in net.optimizer_.param_groups])

    groups = [("body.1.bias", {"lr": 0.5})]
    clf = full_batch(
        max_epochs=6,
        lr_schedule=schedule,
        callbacks=[Rates()],
        net_params={"optimizer__param_groups": groups},
    ).fit(X, y)
    rates = np.sort(dict(clf.net_.callbacks_)["Rates"].rates_)
    assert_allclose(rates[:, 1] / rates[:, 0], 50)


REFUSED = {
    "module": linear(),
    "module__width": 3,
    "iterator_train": torch.utils.data.DataLoader,
    "iterator_train__shuffle": False,
    "iterator_valid__num_workers": 2,
    "dataset": torch.utils.data.Dataset,
    "dataset__length": 3,
    "train_split": None,
    "train_split__cv": 3,
    "classes": [0, 1],
    "lr": 0.1,
    "optimizer": torch.optim.SGD,
    "max_epochs": 3,
    "batch_size": 3,
    "callbacks": [],
    "device": "cpu",
    "verbose": 1,
    "warm_start": True,
}


@pytest.mark.parametrize("key", REFUSED)
def test_net_params_that_are_set_elsewhere_are_refused(key):
    clf = full_batch(net_params={key: REFUSED[key]})
    with pytest.raises(ValueError, match=f"net_params: '{key}'"):
        clf.fit(X, y)
    assert not hasattr(clf, "net_")


def test_unknown_net_params_are_errors():
    with pytest.raises(ValueError, match="critrion__label_smoothing"):
        full_batch(net_params={"critrion__label_smoothing": 0.1}).fit(X, y)


# Batches ------------------------------------------------------------------------------------


def test_auto_batch_size_leaves_steps_enough():
    sizes = {}
    for n in (2, 30, 100, 300, 1000, 1797, 3000, 10_000):
        clf = full_batch(
            linear(2, 1), batch_size="auto", image_shape=(1, 1), callbacks=[Recorder()]
        )
        clf.fit(np.zeros((n, 1), dtype=np.float32), np.arange(n) % 2)
        sizes[n] = len(recorder_of(clf).batches_[0][0])
    assert sizes.pop(2) == 2
    assert sizes[30] == sizes[100] == 8
    assert sizes[10_000] == 128
    assert list(sizes.values()) == sorted(sizes.values())
    for n in (300, 1000, 1797, 3000):
        assert sizes[n] in (8, 16, 32, 64, 128)
        assert n / sizes[n] > 14


def first_rate(n, module=None, **params):
    """Return the learning rate of the first batch, with cosine the highest one."""
    params = {"lr_schedule": "cosine", "image_shape": (1, 1), "batch_size": 128} | params
    module = module or [("output", Dense("n_classes", activation=None))]
    clf = ConvNetClassifier(module, callbacks=[Recorder()], random_state=0, **params)
    clf.fit(np.zeros((n, 1), dtype=np.float32), np.arange(n) % 2)
    return recorder_of(clf).rates_[0]


@pytest.mark.parametrize(
    ("n", "max_epochs", "batch_size", "lr"),
    [
        (1280, 150, 128, 3e-3),
        (1280, 6, 128, 1e-2),
        (640, 120, 128, 3e-3 * 2.5**0.5),
        (160, 75, 32, 3e-3),
        (64, 200, 8, 1e-3),
        (1270, 150, 128, 3e-3),
    ],
)
def test_the_learning_rate_follows_the_number_of_batches(n, max_epochs, batch_size, lr):
    rate = first_rate(n, max_epochs=max_epochs, batch_size=batch_size)
    assert rate == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize(
    "params",
    [
        {"lr_schedule": None},
        {"early_stopping": True, "lr_schedule": "auto"},
        {"optimizer": "sgd"},
        {"module": nn.Sequential(nn.Flatten(), nn.Linear(1, 2))},
        {"module": Backbone(nn.Sequential(nn.Flatten(), nn.Linear(1, 2)))},
        {"lr": 3e-3},
    ],
    ids=str,
)
def test_the_learning_rate_is_a_number_where_nothing_is_known(params):
    assert first_rate(200, max_epochs=2, **params) == 3e-3


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (17, 8, [8, 9]),
        (18, 8, [8, 8, 2]),
        (16, 8, [8, 8]),
        (9, 8, [9]),
        (8, 8, [8]),
        (5, 8, [5]),
        (3, 1, [1, 2]),
    ],
)
def test_a_last_batch_of_one_joins_the_one_before(n, batch_size, sizes):
    clf = small(batch_size=batch_size, max_epochs=1, callbacks=[Recorder()]).fit(X[:n], y[:n])
    assert [len(x) for x, _ in recorder_of(clf).batches_] == sizes


def test_batch_norm_bears_a_number_of_rows_that_leaves_one_over():
    module = [("dense", Dense(8)), ("bn", BatchNorm())]  # refuses a batch of one
    clf = small(module=module, batch_size=8).fit(X[:17], y[:17])
    assert np.isfinite(clf.decision_function(X)).all()


def test_every_image_comes_once_an_epoch_in_a_new_order():
    numbered = X.copy()
    numbered[:, 0, 0] = np.arange(len(X))
    clf = small(batch_size=32, max_epochs=3, callbacks=[Recorder()]).fit(numbered, y)
    batches = recorder_of(clf).batches_
    rows = np.concatenate([x[:, 0, 0, 0].int().numpy() for x, _ in batches]).reshape(3, -1)
    targets = np.concatenate([target.numpy() for _, target in batches]).reshape(3, -1)
    assert_array_equal(targets, y[rows])
    assert_array_equal(np.sort(rows), np.tile(np.arange(len(X)), (3, 1)))
    assert len({tuple(epoch) for epoch in rows}) == 3


# Augmentation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "standardize", "highest"),
    [
        (np.uint8, True, 16),
        (np.uint8, False, 16 / 255),
        (np.float32, True, 16),
        (np.float32, False, 16),
        (np.float64, "auto", 16),
        (np.int64, False, 16),
    ],
)
def test_augment_gets_float_batches_in_training_only(dtype, standardize, highest):
    seen = []

    def augment(images):
        seen.append((images.dtype, tuple(images.shape), images.min().item(), images.max().item()))
        return images

    clf = small(augment=augment, standardize=standardize, batch_size=50)
    clf.fit(X.astype(dtype), y, X_val=X_val.astype(dtype), y_val=y_val)
    clf.predict(X.astype(dtype))
    assert len(seen) == 2 * 4
    assert {entry[:2] for entry in seen} == {(torch.float32, (50, 1, 8, 8))}
    assert {entry[2] for entry in seen} == {0.0}
    assert_allclose([entry[3] for entry in seen], highest)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("standardize", [True, False])
def test_what_augment_returns_is_trained_on(dtype, standardize):
    images = X.astype(dtype)
    flipped = small(standardize=standardize).fit(images[..., ::-1], y)
    for augment in (lambda x: x.flip(3), lambda x: x.copy_(x.flip(3))):
        clf = small(standardize=standardize, augment=augment).fit(images, y)
        assert_allclose(weights_of(clf), weights_of(flipped), rtol=1e-4, atol=1e-5)
    assert_array_equal(images, X)  # in place on the batch, not on X


def test_augment_may_change_the_size_of_images_where_the_network_may():
    module = [("conv1", Conv(4, 3)), ("pool", GlobalAvgPool())]
    clf = small(module=module, augment=lambda x: x[:, :, 1:-1, 1:-1]).fit(X, y)
    assert clf.predict(X).shape == (len(X),)


# Reports ------------------------------------------------------------------------------------

HISTORY_KEYS = [
    "epoch",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_accuracy",
    "lr",
    "duration",
]


@pytest.mark.parametrize("validated", [False, True])
def test_history_holds_plain_numbers(validated):
    data = {"X_val": X_val, "y_val": y_val} if validated else {}
    clf = small().fit(X, y, **data)
    assert [list(row) for row in clf.history_] == [HISTORY_KEYS] * 2
    assert json.loads(json.dumps(clf.history_)) == clf.history_
    assert all(row["duration"] > 0 for row in clf.history_)


def test_train_loss_and_accuracy_are_means_over_images():
    # Batches of 64, 64, 64 and 8: a mean of the batches' means would be another number.
    clf = full_batch(lr=1e-20, batch_size=64).fit(X, y)
    row = clf.history_[0]
    assert row["train_loss"] == pytest.approx(cross_entropy(clf, X, y), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(clf.score(X, y))


COLUMNS = (
    "name",
    "type",
    "output_shape",
    "n_parameters",
    "penultimate",
    "parameter_share",
    "receptive_field",
)
LAYER_TABLE = [
    dict(zip(COLUMNS, row, strict=True))
    for row in [
        ("conv1", "Conv", (6, 6, 6), 60, "", 60 / 1110, (3, 3)),
        ("pool1", "MaxPool", (6, 3, 3), 0, "", 0.0, (4, 4)),
        ("flatten", "Flatten", (54,), 0, "", 0.0, (4, 4)),
        ("dense", "Dense", (16,), 880, "output", 880 / 1110, (8, 8)),
        ("output", "Dense", (10,), 170, "", 170 / 1110, (8, 8)),
    ]
]


def test_layer_table_is_a_data_frame_if_pandas_is_there():
    pd = pytest.importorskip("pandas")
    table = small().fit(X, y).layer_table_
    pd.testing.assert_frame_equal(table, pd.DataFrame(LAYER_TABLE))


def test_layer_table_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert small().fit(X, y).layer_table_ == LAYER_TABLE


def test_layer_table_of_a_users_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    frozen = linear()
    frozen[1].bias.requires_grad_(False)
    table = full_batch(frozen).fit(X, y).layer_table_
    rows = [
        ("0", "Flatten", (64,), 0, "output", 0.0, None),
        ("1", "Linear", (10,), 640, "", 1.0, None),
    ]
    assert table == [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_verbose_0_prints_nothing(capfd):
    small(verbose=0).fit(X, y, X_val=X_val, y_val=y_val).predict(X)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("verbose", [1, True, 2])
def test_verbose_prints_the_layer_table_and_a_line_an_epoch(capsys, verbose, validated):
    data = {"X_val": X_val, "y_val": y_val} if validated else {}
    clf = small(verbose=verbose, max_epochs=3).fit(X, y, **data)
    captured = capsys.readouterr()
    assert captured.err == ""  # a progress bar is for a terminal, or for what takes longer
    lines = captured.out.splitlines()
    total = next(i for i, line in enumerate(lines) if "learnable parameters" in line)
    assert lines[total] == "1,110 learnable parameters"

    cells = [line.split() for line in lines[:total] if not set(line) <= {"-"}]
    columns = ["name", "type", "output", "parameters", "share", "receptive", "field"]
    assert cells[0] == columns
    assert cells[1] == ["input", "1×8×8"]
    assert cells[2:] == [
        [
            *(row["name"], row["type"], "×".join(map(str, row["output_shape"]))),
            *(str(row["n_parameters"]), f"{row['parameter_share']:.1%}"),
            "×".join(map(str, row["receptive_field"])),
        ]
        for row in LAYER_TABLE
    ]

    header = ["epoch", "train", "loss", "valid", "loss", "valid", "acc", "time"]
    assert lines[total + 1] == "penultimate: the output of dense"
    assert lines[total + 2].split() == header
    epochs = lines[total + 3 :]
    assert len(epochs) == 3
    assert {len(line) for line in epochs} == {len(epochs[0])}
    for line, row in zip(epochs, clf.history_, strict=True):
        values = [f"{row['epoch']}", f"{row['train_loss']:.4f}"]
        if validated:
            values += [f"{row['valid_loss']:.4f}", f"{row['valid_accuracy']:.4f}"]
        assert line.split() == [*values, f"{row['duration']:.2f}", "s"]


def test_partial_fit_reports_too(capsys):
    small(verbose=1).partial_fit(X, y, classes=np.arange(10))
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "1"


@pytest.mark.parametrize("train", ["fit", "partial_fit"])
def test_the_network_is_left_in_eval_mode(train):
    module = [("conv1", Conv(4, 3)), ("bn", BatchNorm()), ("drop", Dropout(0.5))]
    clf = small(module=module)
    if train == "fit":
        clf.fit(X, y)
    else:
        clf.partial_fit(X, y, classes=np.arange(10))
    assert not any(module.training for module in clf.module_.modules())


def test_predictions_put_the_network_back_into_eval_mode():
    module = [("conv1", Conv(4, 3)), ("bn", BatchNorm()), ("drop", Dropout(0.5))]
    clf = small(module=module).fit(X, y)
    expected, statistics = clf.predict_proba(X), clf.module_.body.bn.running_mean.clone()
    clf.module_.train()
    assert_array_equal(clf.predict_proba(X), expected)
    assert_array_equal(clf.module_.body.bn.running_mean, statistics)
