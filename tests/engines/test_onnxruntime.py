"""ONNX Runtime gives what torch gives, or says why not."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from exported_networks import Branches, Branching, ScaledByTheirNumber
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, layers
from sklconv._engines import choice, graph, runtime
from sklconv._engines.graph import NotExportable

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

X, y = load_digits(return_X_y=True)
X = X[:120].reshape(-1, 8, 8)
y = y[:120]
PHOTOS = np.random.default_rng(0).integers(0, 256, (7, 3, 20, 24), dtype=np.uint8)
TOLERANCE = 1e-4


class CentredOnTheBatch(Branches):
    """An image's output depends on the others."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


FACTORS = [1.0]


class Global(Branches):
    """What it computes depends on what its digest does not cover."""

    def forward(self, x):
        return super().forward(x * FACTORS[-1])


class LargeAndWrong(Branches):
    """The small layer's features are constants to the exporters."""

    def __init__(self):
        super().__init__()
        self.large, self.small = nn.Identity(), nn.Identity()

    def forward(self, x):
        y = super().forward(x)
        return self.large(y * 1e6) + self.small(y * len(x))


class Standardised(Branches):
    def forward(self, x):
        x = x - x.mean((1, 2, 3), keepdim=True)
        return super().forward(x / x.abs().amax((1, 2, 3), keepdim=True))


class Listed(Branches):
    def forward(self, x):
        y = super().forward(x)
        return [y, y]


class Counting(Branches):
    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        return super().forward(x)


class Unexportable(Branches):
    def forward(self, x):
        return super().forward(torch.linalg.eigh(x @ x.mT).eigenvectors[..., :8, :8])


def assert_alike(came, wanted):
    assert came.dtype == wanted.dtype
    np.testing.assert_allclose(came, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)


def both(extractor, X):
    """Return what either engine makes of ``X``."""
    in_torch = extractor.set_params(engine="torch").transform(X)
    return extractor.set_params(engine="onnxruntime").transform(X), in_torch


def extractor_of(module, **params):
    return ConvFeatureExtractor(
        Backbone(module, mean=[0.5] * 3, std=[0.25] * 3, image_size=16), **params
    )


ALL_LAYERS = [
    [
        ("conv", layers.Conv(4, 3, padding="same", activation=name)),
        ("pool", layers.MaxPool("auto")),
    ]
    for name in sorted(layers._activation.ACTIVATIONS)
] + [
    [("conv", layers.Conv(3, (2, 3), stride=(1, 2))), ("norm", layers.BatchNorm())],
    [("even", layers.Conv(3, 2, padding="same")), ("full", layers.Conv(3, 3, padding="full"))],
    [("pool", layers.AvgPool(3, stride=2, ceil_mode=True)), ("gap", layers.GlobalAvgPool())],
    [("drop", layers.SpatialDropout(0.2)), ("flatten", layers.Flatten()), ("d", layers.Dense(5))],
    [("act", layers.Activation("leaky_relu", negative_slope=0.3)), ("drop", layers.Dropout(0.5))],
]


@pytest.mark.parametrize("module", ALL_LAYERS, ids=lambda steps: "-".join(n for n, _ in steps))
def test_every_declarative_layer(module):
    classifier = ConvNetClassifier(module, max_epochs=1, random_state=0, device="cpu").fit(X, y)
    wanted = classifier.predict_proba(X)
    classifier.set_params(engine="onnxruntime")
    for n in (1, 7, len(X)):
        assert_alike(classifier.predict_proba(X[:n]), wanted[:n])
    extractor = ConvFeatureExtractor(FrozenEstimator(classifier), layer="*", pool="flatten")
    assert_alike(*both(extractor.fit(X), X))


@pytest.mark.parametrize("pool", ["avg", "max", "flatten"])
@pytest.mark.parametrize("layer", ["penultimate", "again", ["first", "relu"], "*", -1])
def test_layers_and_poolings_of_a_module(layer, pool):
    extractor = extractor_of(Branches, layer=layer, pool=pool, device="cpu").fit(PHOTOS)
    for n in (1, 2, 7):
        assert_alike(*both(extractor, PHOTOS[:n]))


def test_a_module_without_preparation():
    floats = (PHOTOS / 255).astype(np.float32)
    extractor = ConvFeatureExtractor(Branches(), device="cpu").fit(floats)
    assert_alike(*both(extractor, floats))
    assert_alike(*both(extractor, floats.transpose(0, 2, 3, 1)[:, ::-1].transpose(0, 3, 1, 2)))


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_xxs"]
)
def test_networks_of_timm(timm, name):
    torch.manual_seed(0)
    options = {} if name in ("resnet18", "mobilevit_xxs") else {"img_size": 64}
    if name.startswith("swin"):
        options["window_size"] = 4
    network = timm.create_model(name, pretrained=False, **options).eval()
    backbone = Backbone(network, mean=[0.5] * 3, std=[0.25] * 3, image_size=64)
    photos = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    assert_alike(*both(ConvFeatureExtractor(backbone, device="cpu").fit(photos), photos))


def test_the_same_call_gives_the_same_bits():
    extractor = extractor_of(Branches, engine="onnxruntime", device="cpu").fit(PHOTOS)
    first = extractor.transform(PHOTOS)
    assert np.array_equal(extractor.transform(PHOTOS), first)
    assert np.array_equal(clone(extractor).fit(PHOTOS).transform(PHOTOS), first)
    assert np.array_equal(np.vstack(list(extractor.transform_batches(PHOTOS))), first)


def test_partial_fit_and_warm_starts_are_seen():
    classifier = ConvNetClassifier(
        max_epochs=1, random_state=0, engine="onnxruntime", device="cpu", warm_start=True
    ).fit(X, y)
    for train in (classifier.partial_fit, classifier.fit):
        before = classifier.decision_function(X)
        train(X, y)
        after = classifier.decision_function(X)
        assert np.abs(before - after).max() > 0.01
        assert_alike(after, classifier.set_params(engine="torch").decision_function(X))
        classifier.set_params(engine="onnxruntime")


@pytest.mark.parametrize("change", ["in_place", "replaced", "another_layer", "buffer", "no_relu"])
def test_changes_to_a_fitted_network_are_seen(change):
    # Backbones of one factory share their network, which is changed here.
    extractor = extractor_of(lambda: Branches(), engine="onnxruntime", device="cpu").fit(PHOTOS)
    before, body = extractor.transform(PHOTOS), extractor.module_.body
    with torch.no_grad():
        if change == "in_place":
            body.first.weight.mul_(2)
        elif change == "replaced":
            body.first.weight = nn.Parameter(2 * body.first.weight)
        elif change == "another_layer":
            body.first = nn.Conv2d(3, 6, 5, padding=2)
        elif change == "no_relu":
            body.relu = nn.Identity()
        else:
            body.norm.running_mean.add_(1)
    came, wanted = both(extractor, PHOTOS)
    assert np.abs(came - before).max() > 1e-3
    assert_alike(came, wanted)


def test_a_search_over_layers_and_poolings_exports_once(monkeypatch):
    made = []
    original = graph.Graph.__init__
    monkeypatch.setattr(
        graph.Graph, "__init__", lambda self, *a, **k: (made.append(1), original(self, *a, **k))[1]
    )
    monkeypatch.setattr(runtime, "_registry", runtime._Registry())
    photos = np.random.default_rng(1).integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)
    labels = np.arange(12) % 2
    search = GridSearchCV(
        make_pipeline(extractor_of(Branches(), engine="onnxruntime", device="cpu"), LinearSVC()),
        {
            "convfeatureextractor__layer": ["first", "again", "relu"],
            "convfeatureextractor__pool": ["avg", "max"],
        },
        cv=2,
        error_score="raise",
    )
    search.fit(photos, labels)
    assert len(made) == 1


def test_nothing_of_it_is_pickled_or_copied_and_it_goes_with_the_network(monkeypatch):
    monkeypatch.setattr(runtime, "_registry", runtime._Registry())
    extractor = extractor_of(Branches(), engine="onnxruntime", device="cpu").fit(PHOTOS)
    size, names = len(pickle.dumps(extractor)), set(vars(extractor))
    features = extractor.transform(PHOTOS)
    assert len(pickle.dumps(extractor)) == size
    assert set(vars(extractor)) == names
    again = pickle.loads(pickle.dumps(extractor))
    assert np.array_equal(again.transform(PHOTOS), features)
    assert np.array_equal(copy.deepcopy(extractor).transform(PHOTOS), features)
    sessions = weakref.ref(runtime._registry.find(extractor.module_).sessions)
    del extractor, again
    other = extractor_of(lambda: Branches(3).double().float(), engine="onnxruntime", device="cpu")
    other.fit(PHOTOS)
    with torch.no_grad():
        other.module_.body.fc.weight.add_(1)
        other.module_.body.first.weight.add_(1)
    other.transform(PHOTOS)
    gc.collect()
    assert sessions() is None


def test_threads_at_once():
    extractor = extractor_of(Branches, engine="onnxruntime", device="cpu").fit(PHOTOS)
    wanted = clone(extractor).set_params(engine="torch").fit(PHOTOS).transform(PHOTOS)
    came, errors = [None] * 32, []

    def work(number):
        try:
            came[number] = extractor.transform(PHOTOS)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for features in came:
        assert_alike(features, wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_makes_its_own(tmp_path):
    script = tmp_path / "forks.py"
    script.write_text(
        "import os, warnings\n"
        "import numpy as np\n"
        "from sklearn.datasets import load_digits\n"
        "from sklconv import ConvNetClassifier\n"
        "X, y = load_digits(return_X_y=True)\n"
        "model = ConvNetClassifier(max_epochs=1, random_state=0, engine='onnxruntime').fit(X, y)\n"
        "wanted = model.predict_proba(X)\n"
        "warnings.simplefilter('ignore')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    same = np.allclose(model.predict_proba(X), wanted, atol=1e-5)\n"
        "    os._exit(0 if same else 1)\n"
        "_, status = os.waitpid(child, 0)\n"
        "assert status == 0, status\n"
        "assert np.array_equal(model.predict_proba(X), wanted)\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=300)


# What can't be computed so ----------------------------------------------------------------------


def test_a_network_whose_output_depends_on_the_batch():
    extractor = extractor_of(CentredOnTheBatch, device="cpu", batch_size=7).fit(PHOTOS)
    for n in (2, 7):
        assert_alike(*both(extractor, PHOTOS[:n]))


@pytest.mark.parametrize("module", [Unexportable, ScaledByTheirNumber])
def test_required_of_what_it_cant_compute_it_is_an_error(module):
    extractor = extractor_of(module, engine="onnxruntime", device="cpu").fit(PHOTOS)
    with pytest.raises(NotExportable, match=r"ONNX Runtime can't compute this network.*torch'"):
        extractor.transform(PHOTOS)


def test_an_export_that_fails_prints_nothing(capfd):
    extractor = extractor_of(Unexportable, engine="onnxruntime", device="cpu").fit(PHOTOS)
    with pytest.raises(NotExportable):
        extractor.transform(PHOTOS)
    assert capfd.readouterr() == ("", "")


def test_unasked_torch_takes_over_with_one_warning(monkeypatch):
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    extractor = extractor_of(ScaledByTheirNumber, device="cpu").fit(PHOTOS)
    with pytest.warns(UserWarning, match="so torch does") as caught:
        features = extractor.transform(PHOTOS)
    assert len(caught) == 1
    assert np.array_equal(features, extractor.set_params(engine="torch").transform(PHOTOS))


def test_a_graph_that_differs_from_torch_is_not_used(monkeypatch):
    def wrong(session, pixels):
        return torch.full((len(pixels), 6), 7.0)

    extractor = extractor_of(Branches, engine="onnxruntime", device="cpu").fit(PHOTOS)
    monkeypatch.setattr(runtime, "_run", wrong)
    monkeypatch.setattr(runtime, "_registry", runtime._Registry())
    with pytest.raises(NotExportable, match="its graph differs from torch by"):
        extractor.transform(PHOTOS)


def test_a_pass_that_branches_on_values_is_refused():
    extractor = extractor_of(Branching, layer="fc", engine="onnxruntime", device="cpu").fit(PHOTOS)
    with pytest.raises(NotExportable, match="depends on values that it reads"):
        extractor.transform(PHOTOS)


def test_an_equal_network_is_tried_anew():
    first = extractor_of(Global, layer="fc", engine="onnxruntime", device="cpu").fit(PHOTOS)
    before = first.transform(PHOTOS)
    FACTORS.append(5.0)
    try:
        second = clone(first).fit(PHOTOS)
        came, wanted = both(second, PHOTOS)
    finally:
        FACTORS.pop()
    assert_alike(came, wanted)
    assert np.abs(came - before).max() > 0.1


def test_weights_written_through_data_are_seen_at_the_next_fit():
    model = ConvNetClassifier(max_epochs=1, random_state=0, device="cpu").fit(X, y)
    extractor = ConvFeatureExtractor(FrozenEstimator(model), engine="onnxruntime").fit(X)
    before = extractor.transform(X)
    for parameter in model.module_.parameters():
        parameter.data.mul_(2)
    came, wanted = both(extractor.fit(X), X)
    assert_alike(came, wanted)
    assert np.abs(came - before).max() > 0.1


def test_each_layer_has_a_tolerance_of_its_own():
    extractor = extractor_of(LargeAndWrong, layer=["large", "small"], device="cpu").fit(PHOTOS)
    with pytest.raises(NotExportable):
        extractor.set_params(engine="onnxruntime").transform(PHOTOS)


def test_values_that_are_not_finite_are_no_difference():
    photos = PHOTOS.copy()
    photos[0] = 128
    extractor = extractor_of(Standardised, engine="onnxruntime", device="cpu").fit(photos)
    came, wanted = both(extractor, photos)
    assert np.isnan(wanted[0]).any()
    assert np.isfinite(wanted[1:]).all()
    assert_alike(came[1:], wanted[1:])
    assert np.array_equal(np.isnan(came), np.isnan(wanted))


def test_layers_of_a_network_that_puts_out_a_list():
    assert_alike(*both(extractor_of(Listed, layer="first", device="cpu").fit(PHOTOS), PHOTOS))


def test_a_network_that_cant_be_exported_is_freed(monkeypatch):
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    extractor = extractor_of(Unexportable(), device="cpu").fit(PHOTOS)
    with pytest.warns(UserWarning, match="so torch does"):
        extractor.transform(PHOTOS)
    network = weakref.ref(extractor.module_)
    del extractor
    gc.collect()
    assert network() is None


def test_there_are_never_many_sessions(monkeypatch):
    extractor = extractor_of(Branches(), engine="onnxruntime", device="cpu")
    for layer in ("first", "norm", "again", "relu"):
        for pool in ("avg", "max"):
            extractor.set_params(layer=layer, pool=pool)
            assert_alike(*both(extractor.fit(PHOTOS), PHOTOS))
            extractor.set_params(engine="onnxruntime")
    sessions = runtime._registry.find(extractor.module_).sessions
    assert len(sessions.made) <= runtime.MAX_SESSIONS
    assert len(sessions.graphs) == 1


def test_a_network_that_counts_its_passes_is_exported_once(monkeypatch):
    made = []
    original = graph.Graph.__init__
    monkeypatch.setattr(
        graph.Graph, "__init__", lambda self, *a, **k: (made.append(1), original(self, *a, **k))[1]
    )
    extractor = extractor_of(Counting, engine="onnxruntime", device="cpu", batch_size=2)
    extractor.fit(PHOTOS)
    for _ in range(3):
        extractor.transform(PHOTOS)
    assert len(made) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_amid_an_export_waits_for_it():
    started, entered = threading.Event(), threading.Event()

    def export():
        with graph.exporting:
            entered.set()
            started.wait(0.3)

    thread = threading.Thread(target=export)
    thread.start()
    entered.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside threads
        child = os.fork()
    if not child:
        os._exit(0 if graph.exporting.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pool": lambda x: x.amax((2, 3)), "layer": "first"}, "can't call the function"),
        ({"precision": "bfloat16"}, "in float32, not in precision='bfloat16'"),
    ],
)
def test_what_it_never_computes_is_an_error_at_fit(params, message, monkeypatch):
    monkeypatch.setattr("sklconv._estimators.feature_extractor.check_precision", lambda *_: None)
    with pytest.raises(ValueError, match=message):
        extractor_of(Branches, engine="onnxruntime", device="cpu", **params).fit(PHOTOS)


def test_a_missing_package_is_an_error_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"sklconv\[onnxruntime\]"):
        extractor_of(Branches, engine="onnxruntime", device="cpu").fit(PHOTOS)
    with pytest.raises(ImportError, match=r"sklconv\[onnxruntime\]"):
        ConvNetClassifier(max_epochs=1, engine="onnxruntime", device="cpu").fit(X, y)
    extractor = extractor_of(Branches, device="cpu").fit(PHOTOS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = extractor.transform(PHOTOS)
    assert np.array_equal(features, extractor.set_params(engine="torch").transform(PHOTOS))


# "auto" -----------------------------------------------------------------------------------------


class Counted(runtime.SessionRun):
    n_made = 0

    def __init__(self, *args):
        type(self).n_made += 1
        super().__init__(*args)


@pytest.fixture
def sessions(monkeypatch):
    """Return a function that says how many calls went to ONNX Runtime."""
    Counted.n_made = 0
    monkeypatch.setattr(choice, "SessionRun", Counted)
    return lambda: Counted.n_made


def test_auto_follows_the_multiply_adds_of_the_call(sessions, monkeypatch):
    extractor = extractor_of(Branches, device="cpu").fit(PHOTOS)
    work = extractor._taps.multiply_adds
    # Three convolutions of 3 to 6 channels a group, and the linear layer.
    assert work == 3 * 16 * 16 * 6 * 3 * 9 + 6 * 4
    monkeypatch.setattr(choice, "WORTHWHILE", 5 * work)
    extractor.transform(PHOTOS[:4])
    assert sessions() == 0
    first = extractor.transform(PHOTOS[:5])
    assert sessions() == 1
    assert np.array_equal(extractor.transform(PHOTOS[:5]), first)
    extractor.transform(PHOTOS[:4])
    assert sessions() == 2


def test_auto_is_torch_for_declarative_layers_and_for_a_classifiers_own(sessions, monkeypatch):
    monkeypatch.setattr(choice, "WORTHWHILE", 0)
    model = ConvNetClassifier(max_epochs=1, random_state=0, device="cpu")
    ConvFeatureExtractor(model).fit(X, y).transform(X)
    ConvFeatureExtractor(FrozenEstimator(model.fit(X, y)), engine="auto").fit(X).transform(X)
    model.predict(X)
    foreign = clone(model).set_params(module=Branches(1))
    foreign.fit(X, np.arange(len(X)) % 4).predict(X)
    ConvFeatureExtractor(clone(foreign)).fit(X, np.arange(len(X)) % 4).transform(X)
    assert sessions() == 0
    ConvFeatureExtractor(FrozenEstimator(foreign)).fit(X).transform(X)
    assert sessions() == 1


def test_an_extractor_takes_its_estimators_engine(sessions):
    model = ConvNetClassifier(max_epochs=1, engine="onnxruntime", random_state=0, device="cpu")
    ConvFeatureExtractor(model).fit(X, y).transform(X)
    assert sessions() == 1
    ConvFeatureExtractor(model, engine="torch").fit(X, y).transform(X)
    assert sessions() == 1


@pytest.mark.parametrize("engine", ["onnx", "Torch", 1])
def test_unknown_engines_are_errors(engine):
    with pytest.raises(ValueError, match="'engine' parameter"):
        ConvNetClassifier(engine=engine).fit(X, y)
