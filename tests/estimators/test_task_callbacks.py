"""scikit-learn's callbacks: epochs are tasks. Where they are missing, `set_callbacks` is, too."""

import copy
import pickle
import signal

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.layers import BatchNorm, Conv, Dense, Dropout

X, y = load_digits(return_X_y=True)
X, y = X[:120], y[:120]

try:
    from sklearn.callback import ProgressBar, ScoringMonitor
except ImportError:
    ProgressBar = ScoringMonitor = None

needs_callbacks = pytest.mark.skipif(
    ScoringMonitor is None, reason="scikit-learn has no callbacks before 1.9"
)


def layers():
    return [("conv", Conv(4, 3)), ("bn", BatchNorm()), ("drop", Dropout(0.3)), ("dense", Dense(8))]


def torch_module():
    torch.manual_seed(0)
    body = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(144, 10))


def small(**params):
    defaults = {"module": layers(), "max_epochs": 3, "batch_size": 40, "random_state": 0}
    return ConvNetClassifier(**{**defaults, **params})


class Watch:
    """Notes tasks, and predicts with the network of each moment; stops behind an epoch."""

    def __init__(self, stop_after=None, at_end=None):
        self.stop_after, self.at_end = stop_after, at_end
        self.events, self.predictions, self.fitted = [], [], []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, metadata=None):
        self.events.append(f"begin {context.task_name} {context.task_id}")
        self.n_rows, self.metadata = len(X), metadata

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        self.events.append(f"end {context.task_name} {context.task_id}")
        if context.task_name != "epoch":
            return None
        self.fitted.append(fitted_estimator)
        self.predictions.append(fitted_estimator.predict_proba(X))
        if self.at_end is not None and context.task_id == 1:
            self.at_end()
        return context.task_id + 1 == self.stop_after


class WatchAll(Watch):
    """One that is handed on to inner estimators."""

    max_propagation_depth = None


EPOCHS = [f"{what} epoch {n}" for n in range(3) for what in ("begin", "end")]


def weights(classifier):
    return torch.cat([value.flatten() for value in classifier.module_.state_dict().values()])


def test_without_support_there_is_no_attribute():
    for estimator in (ConvNetClassifier(), ConvFeatureExtractor()):
        assert hasattr(estimator, "set_callbacks") == (ScoringMonitor is not None)


@needs_callbacks
def test_epochs_are_tasks():
    watch = Watch()
    clf = small().set_callbacks(watch)
    assert clf.fit(X, y, sample_weight=np.ones(120)) is clf
    assert watch.events == ["setup", "begin fit 0", *EPOCHS, "end fit 0", "teardown"]
    assert watch.n_rows == 120
    assert_array_equal(watch.metadata["sample_weight"], np.ones(120))
    assert set(vars(clf)) - set(vars(small().fit(X, y))) == {"_skl_callbacks"}


@needs_callbacks
@pytest.mark.parametrize("params", [{}, {"module": torch_module()}, {"optimizer": "lbfgs"}])
def test_weights_are_the_same_with_and_without(params):
    watched, alone = small(**params).set_callbacks(Watch()).fit(X, y), small(**params).fit(X, y)
    assert torch.equal(weights(watched), weights(alone))
    losses = [[row["train_loss"] for row in clf.history_] for clf in (watched, alone)]
    assert losses[0] == losses[1]


@needs_callbacks
@pytest.mark.parametrize("params", [{}, {"module": torch_module()}])
def test_what_predicts_in_the_middle_is_the_network_of_that_epoch(params):
    watch = Watch()
    clf = small(lr_schedule=None, **params).set_callbacks(watch).fit(X, y)
    for n_epochs, seen, fitted in zip((1, 2, 3), watch.predictions, watch.fitted, strict=True):
        shorter = small(lr_schedule=None, **params).set_params(max_epochs=n_epochs).fit(X, y)
        assert_array_equal(seen, shorter.predict_proba(X))
        assert_array_equal(fitted.predict_proba(X), seen)  # it stays so
        assert fitted.n_iter_ == len(fitted.history_) == n_epochs
        assert fitted is not clf
    expected = clf.predict_proba(X)
    watch.fitted[-1].partial_fit(X, y)  # its own affair
    assert_array_equal(clf.predict_proba(X), expected)


@needs_callbacks
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_callback_ends_the_fit(early_stopping):
    watch = Watch(stop_after=2)
    clf = small(early_stopping=early_stopping, lr_schedule=None).set_callbacks(watch).fit(X, y)
    assert clf.n_iter_ == len(clf.history_) == 2
    assert watch.events[-3:] == ["end epoch 1", "end fit 0", "teardown"]
    if not early_stopping:
        shorter = small(max_epochs=2, lr_schedule=None).fit(X, y)
        assert torch.equal(weights(clf), weights(shorter))


@needs_callbacks
@pytest.mark.parametrize("fitted", [False, True])
def test_a_callback_that_fails_leaves_the_estimator_as_it_was(fitted):
    clf = small()
    if fitted:
        clf.fit(X, y)
    watch = Watch(at_end=lambda: 1 / 0)
    clf.set_callbacks(watch)
    before = dict(vars(clf))
    with pytest.raises(ZeroDivisionError):
        clf.fit(X[:, ::-1], y)
    assert watch.events[-2:] == ["end epoch 1", "teardown"]
    assert vars(clf) == before


@needs_callbacks
def test_ctrl_c_is_raised_on_and_leaves_the_weights_of_that_moment():
    watch = Watch(at_end=lambda: signal.raise_signal(signal.SIGINT))
    clf = small(lr_schedule=None).set_callbacks(watch)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert watch.events[-1] == "teardown"
    assert clf.n_iter_ == 2
    assert_array_equal(clf.predict_proba(X), watch.predictions[-1])
    clf.set_callbacks().fit(X, y)
    assert clf.n_iter_ == 3


@needs_callbacks
def test_partial_fit_and_warm_start():
    watch = Watch()
    clf = small(warm_start=True).set_callbacks(watch).partial_fit(X, y, classes=np.arange(10))
    one = ["begin partial_fit 0", "begin epoch 0", "end epoch 0", "end partial_fit 0"]
    assert watch.events == ["setup", *one, "teardown"]
    clf.partial_fit(X, y)
    assert watch.events == ["setup", *one, "teardown"] * 2
    clf.fit(X, y)
    alone = small(warm_start=True).partial_fit(X, y, classes=np.arange(10)).partial_fit(X, y)
    assert torch.equal(weights(clf), weights(alone.fit(X, y)))
    assert [fitted.n_iter_ for fitted in watch.fitted] == [1, 1, 1, 2, 3]
    assert len(watch.fitted[-1].history_) == 5


@needs_callbacks
def test_beside_skorchs_callbacks_and_a_bar():
    from skorch.callbacks import EpochScoring

    watch = Watch()
    options = {"callbacks": [EpochScoring("accuracy", on_train=True)], "verbose": 1}
    clf = small(**options).set_callbacks(watch).fit(X, y)
    assert "accuracy" in watch.fitted[0].net_.history[0]
    assert torch.equal(weights(clf), weights(small().fit(X, y)))
    watch.fitted[0].partial_fit(X, y)
    assert len(clf.net_.callbacks_) == 1


@needs_callbacks
def test_clones_share_them_and_pickles_keep_them():
    monitor = ScoringMonitor(scoring="accuracy")
    clf = small().set_callbacks(monitor)
    assert clone(clf)._skl_callbacks == [monitor]
    clf.fit(X, y)
    loaded = pickle.loads(pickle.dumps(clf))
    assert_array_equal(loaded.predict(X), clf.predict(X))
    assert [type(callback) for callback in loaded._skl_callbacks] == [ScoringMonitor]
    assert_array_equal(copy.deepcopy(clf).predict(X), clf.predict(X))


@needs_callbacks
def test_scoring_monitor_scores_the_network_of_each_epoch():
    monitor = ScoringMonitor(scoring="accuracy")
    clf = small(lr_schedule=None).set_callbacks(monitor).fit(X, y)
    logged = {row["task_id_path"]: row["accuracy"] for row in monitor.get_logs().data}
    expected = {
        (0, n): small(lr_schedule=None, max_epochs=n + 1).fit(X, y).score(X, y) for n in range(3)
    }
    assert logged == {(0,): clf.score(X, y), **expected}


@needs_callbacks
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_in_a_search(n_jobs):
    monitor = ScoringMonitor(scoring="accuracy")
    grid = {"convnetclassifier__lr": [1e-3, 1e-2]}
    pipe = make_pipeline(StandardScaler(), small(max_epochs=2).set_callbacks(monitor))
    with joblib.parallel_config(backend="threading"):
        GridSearchCV(pipe, grid, cv=2, n_jobs=n_jobs).fit(X, y)
    rows = monitor.get_logs().data
    assert len([row for row in rows if row["task_name"] == "epoch"]) == 2 * (2 * 2 + 1)


@needs_callbacks
def test_an_extractor_hands_them_on():
    watch, own = WatchAll(), Watch()
    net = small().set_callbacks(own)
    pipe = make_pipeline(ConvFeatureExtractor(net, layer="dense"), StandardScaler())
    pipe.set_callbacks(watch).fit(X, y)
    assert [event for event in watch.events if "epoch" in event] == EPOCHS
    assert [event for event in own.events if "epoch" in event] == EPOCHS
    assert watch.events.count("setup") == own.events.count("teardown") == 1
    assert watch.events[-2:] == ["end fit 0", "teardown"]
    assert not hasattr(pipe[0], "_skl_callbacks")
    assert not hasattr(pipe[0].estimator_, "_parent_callback_ctx")
    expected = ConvFeatureExtractor(small(), layer="dense").fit(X, y).transform(X)
    assert_array_equal(pipe[0].transform(X), expected)


@needs_callbacks
def test_a_frozen_network_has_no_epochs():
    watch = WatchAll()
    extractor = ConvFeatureExtractor(torch_module(), layer="3", image_shape=(8, 8))
    extractor.set_callbacks(watch).fit(X)
    assert watch.events == ["setup", "begin fit 0", "end fit 0", "teardown"]


@needs_callbacks
@pytest.mark.parametrize("inner", [False, True])
def test_a_fit_that_a_callback_may_stop_is_not_kept(tmp_path, inner):
    def extractor(callback=None):
        net = small()
        model = ConvFeatureExtractor(net, layer="dense", memory=tmp_path)
        if callback is not None:
            (net if inner else model).set_callbacks(callback)
        return model

    with pytest.warns(UserWarning, match="this training is not kept"):
        stopped = extractor(WatchAll(stop_after=1) if not inner else Watch(stop_after=1)).fit(X, y)
    assert stopped.estimator_.n_iter_ == 1
    assert extractor().fit(X, y).estimator_.n_iter_ == 3


@needs_callbacks
def test_scikit_learns_progress_bar(tmp_path, capsys):
    """It is shown, in a Pipeline as well, and does not keep a training from being kept."""
    pytest.importorskip("rich")
    small().set_callbacks(ProgressBar()).fit(X, y)
    assert "ConvNetClassifier - fit" in capsys.readouterr().out
    for epochs_are_there in (True, False):
        model = ConvFeatureExtractor(small(), layer="dense", memory=tmp_path)
        pipe = make_pipeline(model, StandardScaler())
        pipe.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
        shown = capsys.readouterr().out
        assert "ConvFeatureExtractor" in shown
        assert ("ConvNetClassifier - fit" in shown) == epochs_are_there
        assert not hasattr(pipe[0].estimator_, "_skl_callbacks")
