"""The same random_state gives the same bits, and global random states are left alone."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F

from sklconv import ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, MaxPool

IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = IMAGES.reshape(-1, 1, 8, 8).astype(np.float32)
X, y = IMAGES[:120], DIGITS[:120]
X_new = IMAGES[1000:1030]


def layers():
    return [
        ("conv1", Conv(4, 3, kernel_init="he_normal")),
        ("pool1", MaxPool(2)),
        ("bn", BatchNorm()),
        ("drop", Dropout(0.3)),
        ("dense", Dense(12)),
    ]


class OwnNet(nn.Module):
    """A user's network, which draws from torch's global generator."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.drop = nn.Dropout2d(0.2)
        self.dense = nn.Linear(width * 9, num_classes)
        nn.init.orthogonal_(self.dense.weight)

    def forward(self, x):
        x = self.drop(F.max_pool2d(self.conv(x).relu(), 2)).flatten(1)
        return self.dense(F.dropout(x, 0.1, training=self.training))


class LazyNet(nn.Sequential):
    """A user's network whose weights are drawn when it first sees an image."""

    def __init__(self, num_classes):
        conv = nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyBatchNorm2d()
        super().__init__(*conv, nn.Flatten(), nn.LazyLinear(num_classes))


def draw_from_everywhere(images):
    """An augmentation that draws from all three global generators."""
    if random.random() < 0.5:
        images = images.flip(3)
    images = images + float(np.random.normal())
    return images + torch.randn_like(images) * 0.1


def make_instance():
    generator_state = torch.get_rng_state()
    torch.manual_seed(5)
    module = OwnNet(10)
    torch.set_rng_state(generator_state)
    return module


CLASSIFIERS = {
    "auto": lambda: ConvNetClassifier(),
    "layers": lambda: ConvNetClassifier(layers()),
    "early stopping": lambda: ConvNetClassifier(layers(), early_stopping=True),
    "class": lambda: ConvNetClassifier(TorchModule(OwnNet, width=6)),
    "lazy class": lambda: ConvNetClassifier(TorchModule(LazyNet)),
    "instance": lambda: ConvNetClassifier(make_instance()),
    "augment": lambda: ConvNetClassifier(layers(), augment=draw_from_everywhere),
    "augment and class": lambda: ConvNetClassifier(
        TorchModule(OwnNet), augment=draw_from_everywhere
    ),
    "optimizer of one tensor at a time": lambda: ConvNetClassifier(layers(), optimizer="rmsprop"),
}


def make(kind, **params):
    defaults = {"max_epochs": 2, "batch_size": 40, "random_state": 0}
    return CLASSIFIERS[kind]().set_params(**{**defaults, **params})


def other_work():
    """Draw, train, and leave the generators somewhere else."""
    random.seed(11)
    np.random.seed(12)
    torch.manual_seed(13)
    F.dropout(torch.ones(100), 0.5)
    ConvNetClassifier(max_epochs=1).fit(X[:40], y[:40])
    np.random.permutation(10)


def bits(classifier):
    """Everything that was learnt, as one array of bytes."""
    state = classifier.module_.state_dict()
    arrays = [np.ascontiguousarray(value.numpy()) for value in state.values()]
    losses = [(row["train_loss"], row["valid_loss"]) for row in classifier.history_]
    return b"".join(array.tobytes() for array in arrays), losses


def global_states():
    return torch.get_rng_state().numpy(), np.random.get_state()[1:3], random.getstate()


def assert_same_states(before):
    after = global_states()
    assert_array_equal(after[0], before[0])
    assert_array_equal(after[1][0], before[1][0])
    assert after[1][1] == before[1][1]
    assert after[2] == before[2]


# One after the other --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_two_fits_give_the_same_bits_whatever_comes_between(kind):
    first = make(kind).fit(X, y)
    other_work()
    second = make(kind).fit(X, y)
    assert bits(first) == bits(second)
    assert_array_equal(first.predict_proba(X_new), second.predict_proba(X_new))
    other_work()
    assert bits(first.fit(X, y)) == bits(second)  # again, on a fitted one
    assert bits(clone(first).fit(X, y)) == bits(second)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_global_states_are_left_alone(kind):
    clf = make(kind)
    extractor = ConvFeatureExtractor(make(kind))
    of_module = ConvFeatureExtractor(OwnNet(10))
    before = global_states()
    for act in (
        lambda: clf.fit(X, y, X_val=X_new, y_val=DIGITS[1000:1030]),
        lambda: clf.set_params(warm_start=True).fit(X, y),
        lambda: clf.partial_fit(X, y),
        lambda: clf.predict(X_new),
        lambda: clf.predict_proba(X_new[:1]),
        lambda: extractor.fit(X, y),
        lambda: extractor.transform(X_new),
        lambda: list(extractor.transform_batches(X_new)),
        lambda: of_module.fit(X).transform(X),
        lambda: pickle.loads(pickle.dumps(clone(clf).fit(X, y))),
    ):
        act()
        assert_same_states(before)


@pytest.mark.parametrize("kind", ["auto", "layers", "early stopping", "augment"])
def test_the_callers_default_precision_does_not_count(kind):
    wanted = make(kind).fit(X, y)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert bits(make(kind).fit(X, y)) == bits(wanted)
        assert_array_equal(wanted.predict_proba(X_new), make(kind).fit(X, y).predict_proba(X_new))
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", ["layers", "class", "augment"])
def test_global_states_are_left_alone_without_a_random_state(kind):
    # numpy's is drawn from, as scikit-learn's convention for None has it; torch's is not.
    before = global_states()
    make(kind, random_state=None).fit(X, y)
    after = global_states()
    assert_array_equal(after[0], before[0])
    assert after[2] == before[2]


@pytest.mark.parametrize("kind", ["class", "augment"])
def test_global_states_are_restored_after_an_error(kind):
    def fail(*args, **kwargs):
        torch.rand(3), np.random.rand(3), random.random()
        raise ZeroDivisionError

    before = global_states()
    broken = {"module": TorchModule(fail)} if kind == "class" else {"augment": fail}
    with pytest.raises(ZeroDivisionError):
        make(kind, **broken).fit(X, y)
    assert_same_states(before)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_another_seed_gives_another_network(kind):
    assert bits(make(kind).fit(X, y)) != bits(make(kind, random_state=1).fit(X, y))


def test_without_a_random_state_fits_differ():
    assert bits(make("layers", random_state=None).fit(X, y)) != bits(
        make("layers", random_state=None).fit(X, y)
    )


def test_a_random_state_instance_is_drawn_from():
    first, second = (make("layers", random_state=np.random.RandomState(3)) for _ in range(2))
    assert bits(first.fit(X, y)) == bits(second.fit(X, y))
    # It moves on, as scikit-learn's glossary has it: a second fit is another one.
    before = bits(first)
    assert bits(first.fit(X, y)) != before
    assert bits(first) == bits(second.fit(X, y))


def test_the_seed_does_not_depend_on_numpys_global_state():
    np.random.seed(1)
    first = bits(make("layers").fit(X, y))
    np.random.seed(2)
    assert bits(make("layers").fit(X, y)) == first


def test_seeds_of_initialisation_order_and_dropout_are_not_the_same():
    # Warm fits must not see the images in the same order and with the same dropout again.
    clf = make("layers", warm_start=True, lr=1e-30, weight_decay=0.0, max_epochs=1).fit(X, y)
    clf.fit(X, y)
    losses = [row["train_loss"] for row in clf.history_]
    assert losses[0] != losses[1]


# Going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_partial_fit_twice_gives_the_same_bits_twice(kind):
    def train(between):
        clf = make(kind)
        for part in (slice(0, 60), slice(60, 120), slice(0, 120)):
            clf.partial_fit(X[part], y[part], classes=np.arange(10))
            between()
        return bits(clf)

    assert train(lambda: None) == train(other_work)


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("go_on", ["partial_fit", "warm_start"])
def test_going_on_from_a_pickle_is_going_on(kind, go_on):
    clf = make(kind, warm_start=True).fit(X, y)
    loaded = pickle.loads(pickle.dumps(clf))
    for estimator in (clf, loaded):
        if go_on == "partial_fit":
            estimator.partial_fit(X, y).partial_fit(X[:50], y[:50])
        else:
            estimator.fit(X, y)
        other_work()
    assert bits(clf) == bits(loaded)
    assert len(clf.history_) == 4


@pytest.mark.parametrize("kind", ["layers", "class"])
def test_partial_fits_do_not_repeat_order_and_dropout(kind):
    clf = make(kind, lr=1e-30, weight_decay=0.0)
    for _ in range(3):
        clf.partial_fit(X, y, classes=np.arange(10))
    losses = [row["train_loss"] for row in clf.history_]
    assert len(set(losses)) == 3


# Threads and processes ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", "layers", "class", "instance", "augment"])
def test_threads_give_the_same_bits_as_alone(kind):
    alone = [make(kind, random_state=seed).fit(X, y) for seed in range(4)]
    seeds = [0, 1, 2, 3, 3, 2, 1, 0]
    classifiers = [make(kind, random_state=seed) for seed in seeds]
    before = global_states()

    def train(clf):
        return clf.fit(X, y).predict_proba(X_new)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(train, classifiers))
    for clf, probabilities, seed in zip(classifiers, results, seeds, strict=True):
        assert bits(clf) == bits(alone[seed])
        assert_array_equal(probabilities, alone[seed].predict_proba(X_new))
    assert_same_states(before)


def test_threads_of_several_kinds_at_once():
    kinds = ["layers", "class", "augment", "layers", "instance", "auto"]
    classifiers = [make(kind, random_state=i) for i, kind in enumerate(kinds)]
    alone = [bits(clone(clf).fit(X, y)) for clf in classifiers]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda clf: bits(clf.fit(X, y)), classifiers))
    assert together == alone


def search(n_jobs):
    """Tune both stages at once; return the scores of every candidate and fold."""
    net = ConvNetClassifier(layers(), max_epochs=1, random_state=0)
    grid = {
        "convfeatureextractor__estimator__conv1__filters": [3, 5],
        "convfeatureextractor__estimator__lr": [0.003, 0.01],
        "convfeatureextractor__layer": ["dense", "conv1"],
        "svc__C": [1, 10],
    }
    model = make_pipeline(ConvFeatureExtractor(net, layer="dense"), SVC())
    cv = StratifiedKFold(2, shuffle=True, random_state=0)
    found = GridSearchCV(model, grid, cv=cv, n_jobs=n_jobs, refit=False, error_score="raise")
    found.fit(X[:80], y[:80])
    return {key: found.cv_results_[key].tolist() for key in found.cv_results_ if "test" in key}


def test_grid_search_gives_the_same_scores_in_processes_and_threads():
    alone = search(n_jobs=1)
    scores = np.array(alone["split0_test_score"])
    assert len(scores) == 16
    assert len(set(scores)) > 4  # else nothing is shown
    with joblib.parallel_config("threading"):
        assert search(n_jobs=2) == alone
    # Of their own, worker processes would share the machine's threads among them.
    with joblib.parallel_config("loky", inner_max_num_threads=torch.get_num_threads()):
        assert search(n_jobs=2) == alone


def test_a_search_over_a_users_module_in_threads():
    def search(n_jobs):
        net = ConvNetClassifier(TorchModule(OwnNet), max_epochs=1, random_state=0)
        found = GridSearchCV(net, {"module__width": [4, 6], "lr": [0.003, 0.01]}, cv=2)
        with joblib.parallel_config("threading"):
            found.set_params(n_jobs=n_jobs, refit=False).fit(X, y)
        return [found.cv_results_[f"split{i}_test_score"].tolist() for i in (0, 1)]

    assert search(1) == search(2)
