"""Whatever is done to an estimator, in any order, it keeps what the user guide promises."""

import copy
import fnmatch
import pickle
import random
import signal
from collections import OrderedDict
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._platform.devices import check_precision
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, MaxPool

CLASSES = np.array(["a", "b", "c"])
BATCH_SIZE = 8


def precisions():
    try:
        check_precision("bfloat16", torch.device("cpu"))
    except ValueError:
        return ["float32"]
    return ["float32", "bfloat16"]


PRECISIONS = precisions()


# Networks of each kind, all with a layer "conv" or "conv1"


class Net(nn.Module):
    """A user's module; its dropout draws from torch's global generator."""

    def __init__(self, in_channels=3, num_classes=3, width=4):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def layered():
    return [
        ("conv", Conv(4, 3, padding="same")),
        ("norm", BatchNorm()),
        ("pool", MaxPool(2)),
        ("drop", Dropout(0.3)),
        ("dense", Dense(6, activation="tanh")),
    ]


def instance():
    torch.manual_seed(0)
    return Net()


def backbone():
    torch.manual_seed(0)
    network = OrderedDict(
        conv=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        drop=nn.Dropout(0.2),
        head=nn.Linear(4, 10),
    )
    return Backbone(nn.Sequential(network))


MODULES = {
    "layers": layered,
    "auto": lambda: "auto",
    "torch module": lambda: TorchModule(Net, width=5),
    "instance": instance,
    "backbone": backbone,
}


# What makes a fit fail, or interrupts it


class Failure(Exception):
    pass


class At:
    """An ``augment`` that does nothing but ``action`` at one call, counted from 1."""

    def __init__(self, call, action):
        self.call, self.action, self.calls = call, action, 0

    def __call__(self, batch):
        self.calls += 1
        return self.action(batch) if self.calls == self.call else batch


def fail(batch):
    raise Failure


def to_nan(batch):
    return batch * torch.nan


def to_nothing(batch):
    return None


def press_ctrl_c(batch):
    signal.raise_signal(signal.SIGINT)
    return batch


AUGMENT_FAILURES = {
    fail: (Failure, None),
    to_nan: (ValueError, "loss .* nan"),
    to_nothing: (ValueError, "augment returned"),
}
EVENTS = [
    "on_train_begin",
    "on_epoch_begin",
    "on_batch_begin",
    "on_grad_computed",
    "on_batch_end",
    "on_epoch_end",
    "on_train_end",
]


class FailAt(Callback):
    def __init__(self, event):
        def on_event(net, **kwargs):
            raise Failure

        setattr(self, event, on_event)


BAD_DATA = {
    "short y": "inconsistent numbers of samples",
    "a NaN": "NaN",
    "classes": "classes",
    "labels": "needs samples of at least 2 classes|not among the classes",
    "axes": "dim",
    "no weight": "zero",
    "NaN weight": "NaN",
}
BAD_PARAMS = [
    {"lr": -1.0},
    {"optimizer": "adamant"},
    {"freeze": "nothing"},
    {"freeze": ["conv*", "nothing"], "precision": PRECISIONS[-1]},
    {"batch_size": 0},
    {"device": "abacus"},
    {"class_weight": {"a": -1.0}},
    {"class_weight": {"a": 0.0, "b": 0.0, "c": 0.0}},
    {"net_params": {"module__width": 3}},
]


class KeepWeights(Callback):
    """Notes the weights behind each batch, for all nets alike."""

    seen: list = []

    def on_batch_end(self, net, training=True, **kwargs):
        if training:
            self.seen.append(copy.deepcopy(net.module_.state_dict()))


@contextmanager
def global_states_untouched():
    def states():
        name, keys, *position = np.random.get_state()
        return random.getstate(), name, keys.tobytes(), position, torch.get_rng_state().tolist()

    before = states()
    yield
    assert states() == before


# What there is to see of an estimator


def as_bits(value):
    """``value`` in a form that compares bit by bit, also where it holds NaN."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, nn.Module):
        return repr(value), as_bits(value.state_dict()), [m.training for m in value.modules()]
    if isinstance(value, Backbone):
        return repr(value), as_bits(value.network)
    if isinstance(value, dict):
        return {key: as_bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_bits(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def parameters(clf):
    return as_bits(clf.get_params(deep=True))


def fitted_state(clf, durations=True):
    """All that is fitted, but for the names of the attributes that hold it."""
    if not hasattr(clf, "net_"):
        return None
    network, optimizer = clf.module_, clf.net_.optimizer_
    dropped = () if durations else ("duration",)
    return {
        "weights": as_bits(network.state_dict()),
        "optimizer": as_bits(optimizer.state_dict()),
        "learnable": [p.requires_grad for p in network.parameters()],
        "training": [module.training for module in network.modules()],
        "precision": network.precision,
        "criterion": clf.net_.criterion_.reduction,
        "history": [
            {key: value for key, value in row.items() if key not in dropped}
            for row in clf.history_
        ],
        "epochs": clf.n_iter_,
        "classes": clf.classes_.tolist(),
        "images": (clf.image_shape_, clf.n_features_in_),
        "layers": as_bits(clf.layer_table_.to_dict("list")),
    }


@contextmanager
def left_as_it_is(estimator, *, except_for=()):
    """Check that the block writes nothing: the same attributes, objects and values."""

    def attributes():
        return {k: id(v) for k, v in vars(estimator).items() if k not in except_for}

    def seen():
        clf = getattr(estimator, "estimator_", estimator)
        return {"parameters": parameters(estimator), "fitted": fitted_state(clf)}

    names, before, kept = attributes(), seen(), dict(vars(estimator))
    yield
    assert attributes() == names
    check_same(seen(), before)
    del kept  # held until now, so that no other object gets its id


def check_same(one, other):
    """Compare nested dicts; an error names what differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert set(one) == set(other)
        for key in one:
            try:
                check_same(one[key], other[key])
            except AssertionError as error:
                error.add_note(f"in {key!r}")
                raise
    else:
        assert one == other


# The machine

ways = st.sampled_from(["fit", "partial_fit"])
lrs = st.sampled_from([1e-3, 1e-2, 0.1])
seeds = st.integers(0, 20)
net_params = st.sampled_from(
    [
        None,
        {"criterion__label_smoothing": 0.1},
        {"optimizer__param_groups": [("body.conv*", {"lr": 0.0})]},
        {"optimizer__param_groups": [("body.conv*", {"weight_decay": 0.0})]},
    ]
)
PARAMS = {
    "lr": lrs,
    "optimizer": st.sampled_from(["adamw", "adam", "sgd", "rmsprop", "nadam"]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "lr_schedule": st.sampled_from(["auto", "cosine", None]),
    "max_epochs": st.integers(1, 3),
    "batch_size": st.sampled_from([BATCH_SIZE, 5, "auto"]),
    "class_weight": st.sampled_from([None, {"a": 2.0}, {"c": 0.5}, "balanced"]),
    "freeze": st.sampled_from([None, "conv*", ["norm*", "conv*"], "backbone"]),
    "early_stopping": st.booleans(),
    "net_params": net_params,
    "precision": st.sampled_from(PRECISIONS),
    "random_state": st.integers(0, 1),
    "module": st.sampled_from(list(MODULES)),
    "conv__filters": st.integers(2, 5),
    "drop__rate": st.sampled_from([0.0, 0.5]),
    "pool": st.sampled_from(["passthrough", MaxPool(2), MaxPool(3, ceil_mode=True)]),
}
LAYER_PARAMS = {"conv__filters", "drop__rate", "pool"}


class EstimatorAndTwin(RuleBasedStateMachine):
    """A classifier, and a twin that is trained in the same way and spared all else.

    The classifier's fits also fail and are interrupted, it predicts, goes through pickle and is
    copied. It must stay equal to its twin, to the bit.
    """

    @initialize(
        kind=st.sampled_from(list(MODULES)),
        dtype=st.sampled_from([np.uint8, np.float32, np.float64]),
        scale=st.sampled_from([1.0, 0.1]),
        begun=st.sampled_from([None, "fit", "partial_fit"]),
    )
    def start(self, kind, dtype, scale, begun):
        self.dtype, self.shape = dtype, (3, 5, 5)
        self.clf = ConvNetClassifier(
            MODULES[kind](),
            batch_size=BATCH_SIZE,
            lr=3e-3,
            max_epochs=2,
            validation_fraction=0.3,
            backbone_lr_scale=scale,
            random_state=0,
        )
        self.twin = copy.deepcopy(self.clf)
        if begun:
            self.train(begun, *self.data(0))

    # Data

    def images(self, seed, n=None, shape=None):
        rng = np.random.default_rng(seed)
        n = n or 20 + seed % 11
        return rng.integers(0, 256, (n, *(shape or self.shape))).astype(self.dtype)

    def data(self, seed, classes=CLASSES):
        """Images and labels, each of ``classes`` at least five times."""
        X = self.images(seed)
        labels = np.resize(classes, len(X))
        return X, np.random.default_rng(seed).permutation(labels)

    # Training

    @property
    def fitted(self):
        return hasattr(self.clf, "net_")

    def goes_on(self, way):
        return self.fitted and (way == "partial_fit" or self.clf.warm_start)

    def refusal(self, way):
        """Why the parameters as they are make a fit an error, or None."""
        clf = self.clf
        if way == "partial_fit" and clf.class_weight == "balanced":
            return "balanced"
        if way == "partial_fit" and self.fitted:
            groups = clf.net_.optimizer_.param_groups
            if len(groups) != len(self.rates(way)):
                return "optimizer__param_groups can't change while partial_fit goes on"
        if clf.freeze == "backbone":
            return None if self.head(way) else "freeze='backbone' needs"
        names = {"conv", "conv1", "norm"}
        if isinstance(clf.freeze, list):  # of which "auto" has no normalisation
            network = clf.module_.body if self.goes_on(way) else None
            if network is not None:
                names = dict(network.named_modules())
            elif clf.module == "auto":
                names = {"conv1"}
            if not fnmatch.filter(names, "norm*"):
                return "is not a layer of this network"
        return None

    def call(self, clf, way, X, y, **kwargs):
        if way == "partial_fit" and not hasattr(clf, "net_"):
            kwargs = {"classes": CLASSES, **kwargs}
        with global_states_untouched():
            return getattr(clf, way)(X, y, **kwargs)

    def train(self, way, X, y, **kwargs):
        refused, goes_on, rates = self.refusal(way), self.goes_on(way), self.rates(way)
        if refused:
            with left_as_it_is(self.clf), pytest.raises(ValueError, match=refused):
                self.call(self.clf, way, X, y, **kwargs)
            return False
        n_before = len(self.clf.history_) if goes_on else 0
        frozen, given = self.frozen_weights() if goes_on else {}, parameters(self.clf)
        for clf in (self.clf, self.twin):
            assert self.call(clf, way, X, y, **kwargs) is clf
        check_same(parameters(self.clf), given)
        assert self.net_rates() == rates
        self.check_history(n_before, 1 if way == "partial_fit" else None)
        weights = as_bits(self.clf.module_.state_dict())
        assert {name: weights[name] for name in frozen} == frozen
        return True

    def frozen_weights(self):
        """Of the layers that ``freeze`` names, their batch-norm statistics among them."""
        clf, network = self.clf, self.clf.module_
        patterns = [clf.freeze] if isinstance(clf.freeze, str) else clf.freeze or []
        found = {}
        for name, value in as_bits(network.state_dict()).items():
            layer = name.removeprefix("body.").rpartition(".")[0]
            if clf.freeze == "backbone":
                frozen = layer not in network.head
            else:
                frozen = any(fnmatch.fnmatch(layer, pattern) for pattern in patterns)
            if frozen:
                found[name] = value
        return found

    def rates(self, way):
        """Each parameter group's learning rate: the user's own, or what follows from ``lr``."""
        clf, head = self.clf, self.head(way)
        groups = [("head", {})] if head else []
        groups = (clf.net_params or {}).get("optimizer__param_groups", groups)
        others = clf.lr * clf.backbone_lr_scale if head else clf.lr
        return [
            *(own.get("lr", clf.lr if where == "head" else others) for where, own in groups),
            others,
        ]

    def head(self, way):
        """Whether the network that ``way`` would train has a head on a backbone."""
        if self.goes_on(way):
            return self.clf.module_.head is not None
        return isinstance(self.clf.module, Backbone)

    def check_history(self, n_before, n_epochs):
        clf = self.clf
        assert len(clf.history_) == n_before + clf.n_iter_
        assert 1 <= clf.n_iter_ <= clf.max_epochs or n_epochs == clf.n_iter_
        if not clf.early_stopping and n_epochs is None:
            assert clf.n_iter_ == clf.max_epochs
        epochs = [row["epoch"] for row in clf.history_]
        assert epochs == sorted(set(epochs))

    def net_rates(self):
        return [group["lr"] for group in self.clf.net_.optimizer_.param_groups]

    @rule(
        seed=seeds,
        shape=st.sampled_from([(3, 5, 5), (3, 4, 6)]),
        weighted=st.booleans(),
        warm=st.booleans(),
    )
    def fit(self, seed, shape, weighted, warm):
        for clf in (self.clf, self.twin):
            clf.set_params(warm_start=warm)
        goes_on = self.goes_on("fit")
        before = self.shape
        if not goes_on:
            self.shape = shape
        X, y = self.data(seed, CLASSES[: 3 - (goes_on and seed % 2)])
        weights = np.random.default_rng(seed).uniform(0.5, 2, len(y)) if weighted else None
        if not self.train("fit", X, y, sample_weight=weights):
            self.shape = before
            return
        if not goes_on:
            # Whatever it has been through, it is as good as new.
            new = clone(self.clf).fit(X, y, weights)
            check_same(fitted_state(new, durations=False), fitted_state(self.clf, durations=False))

    @rule(seed=seeds, classes=st.sampled_from(["abc", "ab", "bc", "c"]), weighted=st.booleans())
    def partial_fit(self, seed, classes, weighted):
        X, y = self.data(seed, np.array(list(classes)))
        weights = np.random.default_rng(seed).uniform(0.5, 2, len(y)) if weighted else None
        if self.train("partial_fit", X, y, sample_weight=weights):
            assert self.clf.history_[-1]["lr"] == self.net_rates()[0]

    # Parameters

    @rule(params=st.fixed_dictionaries({}, optional=PARAMS))
    def set_params(self, params):
        layered = isinstance(self.clf.module, list)
        if params.get("module", "layers" if layered else "") != "layers":
            params = {key: value for key, value in params.items() if key not in LAYER_PARAMS}
        for clf in (self.clf, self.twin):
            own = copy.deepcopy(params)
            if "module" in params:
                own["module"] = MODULES[params["module"]]()
            assert clf.set_params(**own) is clf

    # What a fit does not survive

    def expect_failure(self, way, error, message, X, y, params, **kwargs):
        before = {name: getattr(self.clf, name) for name in params}
        self.clf.set_params(**params)
        refused = self.refusal(way)
        if refused:  # which of the errors comes first does not matter
            error = (ValueError, error)
            message = message and f"{refused}|{message}"
        with left_as_it_is(self.clf), pytest.raises(error, match=message):
            self.call(self.clf, way, X, y, **kwargs)
        self.clf.set_params(**before)

    @rule(way=ways, bad=st.sampled_from(list(BAD_DATA)), seed=seeds)
    def fit_to_bad_data(self, way, bad, seed):
        (X, y), kwargs = self.data(seed), {}
        goes_on = self.goes_on(way)
        if (bad, self.dtype) == ("a NaN", np.uint8) or (bad, way) == ("classes", "fit"):
            bad = "short y"
        if bad == "short y":
            y = y[:-1]
        elif bad == "a NaN":
            X[-1, 0, 0, 0] = np.nan
        elif bad == "classes":
            kwargs["classes"] = ["b", "c"] if goes_on else ["b"]
        elif bad == "labels":
            y = np.full(len(y), "d")
        elif bad == "axes":
            X = X[..., None, None]
        else:
            kwargs["sample_weight"] = np.full(len(y), 0.0 if bad == "no weight" else np.nan)
        self.expect_failure(way, ValueError, BAD_DATA[bad], X, y, {}, **kwargs)

    @rule(way=ways, params=st.sampled_from(BAD_PARAMS), seed=seeds)
    def fit_with_bad_params(self, way, params, seed):
        if "net_params" in params:
            way = "fit"  # partial_fit goes on with the net there is
        self.expect_failure(way, ValueError, None, *self.data(seed), params)

    @rule(
        way=ways,
        where=st.sampled_from(list(AUGMENT_FAILURES)) | st.sampled_from(EVENTS),
        at=st.integers(1, 2),
        params=st.fixed_dictionaries(
            {},
            optional={
                "lr": lrs,
                "precision": PARAMS["precision"],
                "freeze": st.sampled_from([None, "conv*"]),
                "random_state": st.integers(2, 3),
            },
        ),
        weighted=st.booleans(),
        seed=seeds,
    )
    def fit_that_fails_amid_the_training(self, way, where, at, params, weighted, seed):
        params = {"freeze": None, "class_weight": None, **params}
        error, message = AUGMENT_FAILURES.get(where, (Failure, None))
        if where in AUGMENT_FAILURES:
            params["augment"] = At(at, where)
        else:
            way = "fit"  # partial_fit goes on with the callbacks that there are
            params["callbacks"] = [FailAt(where)]
        X, y = self.data(seed)
        weights = np.arange(1.0, len(y) + 1) if weighted else None
        self.expect_failure(way, error, message, X, y, params, sample_weight=weights)

    @rule(way=ways, seed=seeds)
    def fit_that_diverges(self, way, seed):
        before = {name: getattr(self.clf, name) for name in ("lr", "freeze", "class_weight")}
        state = fitted_state(self.clf)
        self.clf.set_params(lr=1e38, freeze=None, class_weight=None)
        if self.refusal(way):
            self.clf.set_params(**before)
            return
        try:
            self.call(self.clf, way, *self.data(seed))
        except ValueError as raised:
            error = raised
        else:
            # Saturated functions bear any weights.
            self.clf = copy.deepcopy(self.twin)
            return
        assert "take a smaller lr" in str(error)
        check_same(fitted_state(self.clf), state)
        self.clf.set_params(**before)

    @rule(way=ways, at=st.integers(1, 4), seed=seeds)
    def interrupt(self, way, at, seed):
        goes_on, clf = self.goes_on(way), self.clf
        if way == "partial_fit":
            at = min(at, 3)
        n_before = len(clf.history_) if goes_on else 0
        params = {
            "augment": At(at, press_ctrl_c),
            "callbacks": [KeepWeights()],
            "freeze": None,
            "class_weight": None,
            "early_stopping": False,
            "batch_size": BATCH_SIZE,
            "max_epochs": 2,
        }
        KeepWeights.seen.clear()
        before = {name: getattr(clf, name) for name in params}
        clf.set_params(**params)
        if at == 1 and not self.refusal(way):
            self.expect_failure(way, KeyboardInterrupt, None, *self.data(seed), {})
        if at == 1 or self.refusal(way):
            clf.set_params(**before)
            return
        rates = self.rates(way)
        with pytest.raises(KeyboardInterrupt):
            self.call(clf, way, *self.data(seed))
        clf.set_params(**before)
        assert self.net_rates() == rates
        # What goes on has the callbacks that it began with.
        if KeepWeights.seen:
            assert as_bits(clf.module_.state_dict()) == as_bits(KeepWeights.seen[-1])
        # A last batch of one image joins the one before.
        n = len(self.images(seed))
        n_batches = n // BATCH_SIZE + (n % BATCH_SIZE > 1)
        assert clf.n_iter_ == (at - 1) // n_batches
        assert len(clf.history_) == n_before + clf.n_iter_
        self.twin = copy.deepcopy(clf)

    # What changes nothing

    @rule(n=st.integers(1, 40), seed=seeds)
    def predict(self, n, seed):
        if not self.fitted:
            return
        X = self.images(seed, n)
        with left_as_it_is(self.clf), global_states_untouched():
            logits = self.clf.decision_function(X)
            labels, shares = self.clf.predict(X), self.clf.predict_proba(X)
        assert logits.shape == shares.shape == (n, 3)
        np.testing.assert_array_equal(labels, self.clf.classes_[logits.argmax(1)])
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)

    @rule(how=st.sampled_from(["pickle", "deepcopy", "clone"]))
    def copy(self, how):
        with left_as_it_is(self.clf), global_states_untouched():
            if how == "pickle":
                other = pickle.loads(pickle.dumps(self.clf))
            else:
                other = clone(self.clf) if how == "clone" else copy.deepcopy(self.clf)
        check_same(parameters(other), parameters(self.clf))
        if how == "clone":
            assert set(vars(other)) == set(vars(ConvNetClassifier()))
        else:
            check_same(fitted_state(other), fitted_state(self.clf))
            self.clf = other

    @rule(
        layer=st.sampled_from(["penultimate", -1, "conv*", ["*conv*", -1]]),
        pool=st.sampled_from(["auto", "max", "flatten"]),
        seed=seeds,
    )
    def extract(self, layer, pool, seed):
        if not self.fitted:
            return
        X = self.images(seed)
        extractor = ConvFeatureExtractor(FrozenEstimator(self.clf), layer=layer, pool=pool)
        with left_as_it_is(self.clf), global_states_untouched():
            extractor.fit(X)
            with left_as_it_is(extractor):
                features = extractor.transform(X)
                again = extractor.transform(X)
                batches = list(extractor.transform_batches(X))
                loaded = pickle.loads(pickle.dumps(extractor)).transform(X)
                with pytest.raises(ValueError):
                    extractor.fit(X[..., 1:])
        assert features.shape == (len(X), len(extractor.get_feature_names_out()))
        for other in (again, np.concatenate(batches), loaded):
            np.testing.assert_array_equal(other, features)

    @rule(seed=seeds)
    def train_an_extractor(self, seed):
        if self.clf.freeze is not None and not isinstance(self.clf.module, Backbone):
            return
        X, y = self.data(seed)
        extractor = ConvFeatureExtractor(self.clf)
        with left_as_it_is(self.clf), global_states_untouched():
            features = extractor.fit(X, y).transform(X)
            with left_as_it_is(extractor), pytest.raises(ValueError):
                extractor.fit(X, y[:-1])
        frozen = FrozenEstimator(clone(self.clf).fit(X, y))
        np.testing.assert_array_equal(ConvFeatureExtractor(frozen).fit(X).transform(X), features)

    # What always holds

    @invariant()
    def is_its_twin(self):
        if not hasattr(self, "clf"):
            return
        check_same(parameters(self.clf), parameters(self.twin))
        assert set(vars(self.clf)) == set(vars(self.twin))
        state = fitted_state(self.clf, durations=False)
        check_same(state, fitted_state(self.twin, durations=False))
        if state is not None:
            X = self.images(0, 17)
            logits = self.clf.decision_function(X)
            np.testing.assert_array_equal(logits, self.twin.decision_function(X))
            assert not any(state["training"])


EstimatorAndTwin.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)
TestEstimatorAndTwin = EstimatorAndTwin.TestCase
