"""An exported graph gives what the fitted model gives, or the export says why not."""

import copy
import sys
import threading

import numpy as np
import pytest
import torch
from exported_networks import Branches, Branching, ScaledByTheirNumber
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier, SGDClassifier
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsOneClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC, NuSVC
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, layers
from sklconv._engines.graph import NotExportable

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
skl2onnx = pytest.importorskip("skl2onnx")

from sklconv.onnx import to_onnx  # noqa: E402
from sklconv.onnx._converters import register  # noqa: E402

X, y = load_digits(return_X_y=True)
WORDS = np.array(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "ni\u00f1e"]
)[y]
PHOTOS = np.random.default_rng(0).integers(0, 256, (8, 3, 20, 24), dtype=np.uint8)
TWO = np.arange(len(PHOTOS)) % 2
BATCHES = (1, 7, 300)

# Of probabilities whose logits are sums of large products, as of features that are not scaled.
ROUNDED = 1e-4


def net(module="auto", **params):
    return ConvNetClassifier(
        module, **{"max_epochs": 1, "random_state": 0, "device": "cpu"} | params
    )


def logistic():
    return LogisticRegression(C=0.01, max_iter=1000)


class Sampled(Branches):
    """Operators that are others in later opsets, and some that leave out inputs."""

    def __init__(self):
        super().__init__()
        self.grid = torch.rand(1, 9, 9, 2) * 2 - 1

    def forward(self, x):
        grid = self.grid.expand(x.shape[0], -1, -1, -1)
        x = nn.functional.gelu(nn.functional.grid_sample(x, grid, align_corners=False))
        x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear").clamp(max=1)
        return super().forward(nn.functional.group_norm(x, 3))


class Tokens(nn.Module):
    """A class token in front of those of 16 patches."""

    num_prefix_tokens = 1

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(1, 8, 2, stride=2)
        self.start = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return self.block(torch.cat([self.start.expand(x.shape[0], -1, -1), patches], dim=1))


def backbone(module=Branches, **preprocessing):
    return Backbone(module, mean=[0.5] * 3, std=[0.25] * 3, image_size=16, **preprocessing)


def extractor(module=Branches, *, of=None, **params):
    return ConvFeatureExtractor(backbone(module, **of or {}), **{"device": "cpu"} | params)


def run(graph, X):
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {"X": X})


def assert_same(graph, X, wanted, tolerance=1e-5):
    """What the graph puts out last, of batches, is what is wanted of all images."""
    for n in BATCHES:
        came = run(graph, X[:n])[-1]
        assert came.shape == wanted[:n].shape
        np.testing.assert_allclose(came, wanted[:n], atol=tolerance * np.abs(wanted).max(), rtol=0)


def assert_same_labels(labels, scores, model, wanted, margin):
    """Labels are equal where the two best scores are apart."""
    best = np.sort(scores, axis=1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > margin
    assert clear.mean() > 0.9
    assert np.array_equal(labels[clear], wanted[clear])
    assert set(labels) <= set(model.classes_)


# Pipelines and classifiers on real digits -------------------------------------------------------

trained = {}


def digits_net(y=y):
    """A classifier of the digits that is trained once."""
    key = y.dtype.kind
    if key not in trained:
        trained[key] = net(max_epochs=2).fit(X[:900], y[:900])
    return trained[key]


@pytest.mark.parametrize("y", [y, WORDS], ids=["numbers", "words"])
@pytest.mark.parametrize("convert", [to_onnx, skl2onnx.to_onnx], ids=["ours", "skl2onnx"])
def test_logistic_regression_behind_a_net(y, convert):
    features = ConvFeatureExtractor(FrozenEstimator(digits_net(y)), layer=["pool1", "dense"])
    model = make_pipeline(features, StandardScaler(), logistic()).fit(X[:600], y[:600])
    wanted = model.predict_proba(X[:300])
    graph = convert(model, X=X[:1])
    for n in BATCHES:
        labels, came = run(graph, X[:n])
        if convert is not to_onnx:  # a dict an image
            came = np.array([[row[label] for label in model.classes_] for row in came])
        np.testing.assert_allclose(came, wanted[:n], atol=1e-5, rtol=0)
        assert_same_labels(labels, wanted[:n], model, model.predict(X[:n]), 1e-5)


@pytest.mark.parametrize("y", [y, WORDS], ids=["numbers", "words"])
@pytest.mark.parametrize("head", [SVC(), LinearSVC(C=1e-3)], ids=["SVC", "LinearSVC"])
def test_a_support_vector_machine_behind_a_net(y, head):
    features = ConvFeatureExtractor(FrozenEstimator(digits_net(y)), layer="dense")
    model = make_pipeline(features, StandardScaler(), clone(head)).fit(X[:600], y[:600])
    wanted = model.decision_function(X[:300])
    graph = to_onnx(model, X=X)
    margin = 1e-3 * np.abs(wanted).max()
    for n in BATCHES:
        labels, came = run(graph, X[:n])
        np.testing.assert_allclose(came, wanted[:n], atol=margin, rtol=0)
        assert_same_labels(labels, wanted[:n], model, model.predict(X[:n]), margin)


FEW_AND_MANY = [
    SVC(),
    NuSVC(nu=0.1),
    LinearSVC(C=1e-3),
    RidgeClassifier(),
    SGDClassifier(random_state=0),
]


@pytest.mark.parametrize(
    ("head", "n_classes"),
    [
        *((head, n) for head in FEW_AND_MANY for n in (2, 10)),
        (QuadraticDiscriminantAnalysis(reg_param=0.1), 2),
        (OneVsOneClassifier(LinearSVC(C=1e-3)), 10),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseEstimator) else str(value),
)
def test_outputs_are_a_label_an_image_and_a_column_a_class(head, n_classes):
    y_few = y % n_classes
    features = ConvFeatureExtractor(FrozenEstimator(digits_net(y)), layer="dense")
    model = make_pipeline(features, StandardScaler(), clone(head)).fit(X[:600], y_few[:600])
    method = "predict_proba" if hasattr(model, "predict_proba") else "decision_function"
    wanted = getattr(model, method)(X[:300])
    if wanted.ndim == 1:
        wanted = np.stack([-wanted, wanted], axis=1)
    graph = to_onnx(model, X=X)
    assert [len(out.type.tensor_type.shape.dim) for out in graph.graph.output] == [1, 2]
    onnx.checker.check_model(graph, full_check=True)
    for n in BATCHES:
        labels, came = run(graph, X[:n])
        margin = 1e-3 * np.abs(wanted).max()
        np.testing.assert_allclose(came, wanted[:n], atol=margin, rtol=0)
        assert labels.shape == (n,)
        sure = np.abs(np.diff(np.sort(wanted[:n], axis=1)[:, -2:])[:, 0]) > margin
        np.testing.assert_array_equal(labels[sure], model.predict(X[:n])[sure])


@pytest.mark.parametrize(
    ("head", "targets", "shapes"),
    [
        (KMeans(5, random_state=0), y, [(9,), (9, 5)]),
        (PLSRegression(2), y, [(9, 1)]),
        (Ridge(), y, [(9, 1)]),
        (RandomForestClassifier(3, random_state=0), np.stack([y % 2, y], 1), [(9, 2), (2, 9, 10)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_outputs_of_other_models_are_skl2onnxs_own(head, targets, shapes):
    features = ConvFeatureExtractor(FrozenEstimator(digits_net(y)), layer="output")
    model = make_pipeline(features, clone(head)).fit(X[:600], targets[:600])
    came = run(to_onnx(model, X=X), X[:9])
    assert [np.shape(values) for values in came] == shapes
    wanted = model.predict(X[:9])
    np.testing.assert_allclose(np.reshape(came[0], wanted.shape), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            TunedThresholdClassifierCV(logistic(), cv=2),
            "converts no threshold. Convert its estimator_, .* best_threshold_",
        ),
        (NearestCentroid(), "skl2onnx can't convert this Pipeline: .*NearestCentroid"),
        (HistGradientBoostingClassifier(max_iter=2), "skl2onnx can't convert this Pipeline: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_skl2onnx_does_not_convert(head, message):
    features = ConvFeatureExtractor(FrozenEstimator(digits_net(y)), layer="output")
    model = make_pipeline(features, StandardScaler(), clone(head)).fit(X[:600], y[:600] % 2)
    with pytest.raises(ValueError, match=message) as error:
        to_onnx(model)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("head", [SVC(), logistic(), RidgeClassifier(), PCA(3)])
def test_what_skl2onnx_converts_wrongly(head, monkeypatch):
    features = ConvFeatureExtractor(FrozenEstimator(digits_net(y)), layer="dense")
    model = make_pipeline(features, clone(head)).fit(X[:600], y[:600] % 2)
    other = make_pipeline(features, clone(head)).fit(X[600:900], 1 - y[600:900] % 2)
    convert = skl2onnx.to_onnx
    monkeypatch.setattr(skl2onnx, "to_onnx", lambda _, *args, **kw: convert(other, *args, **kw))
    with pytest.raises(
        ValueError, match=r"converts this Pipeline wrongly: .* output '\w+' is not"
    ):
        to_onnx(model)


@pytest.mark.parametrize("y", [y, WORDS, WORDS.astype(object), y > 4, y * 1.0, y.astype(np.uint8)])
def test_a_classifier_with_labels_of_any_kind(y):
    model = net(max_epochs=2).fit(X[:600], y[:600])
    wanted = model.predict_proba(X[:300])
    for convert in (to_onnx, skl2onnx.to_onnx):
        graph = convert(model, X=X)
        for n in BATCHES:
            labels, came = run(graph, X[:n])
            if convert is not to_onnx:
                came = np.array([[row[key] for key in sorted(row)] for row in came])
                came = came[:, np.argsort(np.argsort(model.classes_))]
            np.testing.assert_allclose(came, wanted[:n], atol=1e-5, rtol=0)
            assert_same_labels(labels.astype(y.dtype), came, model, model.predict(X[:n]), 1e-5)


def test_mnist(mnist):
    images, _, labels, _ = mnist
    images, labels = images[:800], labels[:800].astype(str)
    conv = [("conv", layers.Conv(16, 5)), ("pool", layers.MaxPool(2)), ("dense", layers.Dense(64))]
    model = make_pipeline(ConvFeatureExtractor(net(conv)), StandardScaler(), SVC())
    model.fit(images, labels)
    wanted = model.decision_function(images[:300])
    assert_same(to_onnx(model, X=images[:1]), images, wanted, 1e-3)
    classifier = model[0].estimator_
    assert_same(to_onnx(classifier, X=images), images, classifier.predict_proba(images[:300]))


# X in any form ----------------------------------------------------------------------------------

COLOUR = np.random.default_rng(1).integers(0, 256, (300, 5, 6, 3), dtype=np.uint8)
FORMS = {
    "flat": X,
    "maps": X.reshape(-1, 8, 8),
    "channels first": COLOUR.transpose(0, 3, 1, 2),
    "channels last": COLOUR,
}


@pytest.mark.parametrize("form", FORMS)
def test_without_X_the_form_is_that_of_the_fit(form):
    images = np.ascontiguousarray(FORMS[form][:300])
    model = net().fit(images, y[:300])
    graph = to_onnx(model)
    (taken,) = graph.graph.input
    dims = taken.type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, *images.shape[1:]]
    assert_same(graph, images.astype(np.float32), model.predict_proba(images))


@pytest.mark.parametrize(
    "dtype", ["uint8", "float32", "float64", "int64", "uint16", "bool", ">f4"]
)
def test_X_says_form_and_dtype(dtype):
    model, images = digits_net(), X.astype(dtype).reshape(-1, 1, 8, 8)
    graph = to_onnx(model, X=images[:2])
    images = images.astype(images.dtype.newbyteorder("="))
    assert_same(graph, images, model.predict_proba(images[:300]))


@pytest.mark.parametrize("container", ["DataFrame", "tensor"])
def test_X_in_other_containers(container):
    if container == "DataFrame":
        given = pytest.importorskip("pandas").DataFrame(X, columns=[f"p{i}" for i in range(64)])
    else:
        given = torch.from_numpy(X)
    model = net().fit(given[:300], y[:300])
    assert_same(to_onnx(model, X=given), X, model.predict_proba(given)[:300])
    assert_same(to_onnx(model), X.astype(np.float32), model.predict_proba(given)[:300])


def test_flat_rows_whose_channels_are_last():
    rows = COLOUR.reshape(300, -1)
    model = net(image_shape=(3, 5, 6), data_format="channels_last").fit(rows, y[:300])
    assert_same(to_onnx(model, X=rows), rows, model.predict_proba(rows))
    assert_same(to_onnx(model), rows.astype(np.float32), model.predict_proba(rows))


def test_bytes_without_standardisation():
    images = X.astype(np.uint8)
    model = net(standardize=False).fit(images[:300], y[:300])
    assert_same(to_onnx(model, X=images), images, model.predict_proba(images[:300]))
    floats = (images / 255).astype(np.float32)
    assert_same(to_onnx(model), floats, model.predict_proba(floats[:300]))


# Networks ---------------------------------------------------------------------------------------

STACKS = [
    [(name, layers.Conv(2, 3, padding="same", activation=name)) for name in list(names)]
    for names in (
        sorted(layers._activation.ACTIVATIONS)[::2],
        sorted(layers._activation.ACTIVATIONS)[1::2],
    )
] + [
    [
        ("conv", layers.Conv(3, (2, 3), stride=(1, 2))),
        ("norm", layers.BatchNorm()),
        ("act", layers.Activation("leaky_relu", negative_slope=0.3)),
        ("average", layers.AvgPool(3, stride=2, ceil_mode=True)),
        ("means", layers.GlobalAvgPool()),
        ("flat_norm", layers.BatchNorm()),
    ],
    [
        ("even", layers.Conv(3, 2, padding="same")),
        ("full", layers.Conv(3, 3, padding="full")),
        ("maps", layers.SpatialDropout(0.2)),
        ("pool", layers.MaxPool("auto")),
        ("most", layers.MaxPool(3, stride=2, ceil_mode=True)),
        ("flatten", layers.Flatten()),
        ("drop", layers.Dropout(0.5)),
        ("dense", layers.Dense(5, activation="gelu")),
    ],
]


@pytest.mark.parametrize("module", STACKS, ids=lambda steps: "-".join(n for n, _ in steps))
def test_every_declarative_layer(module):
    images, labels = X[:60], y[:60]
    model = net(module).fit(images, labels)
    assert_same(to_onnx(model), images.astype(np.float32), model.predict_proba(images))
    everything = ConvFeatureExtractor(FrozenEstimator(model), layer="*", pool="flatten")
    everything.fit(images)
    assert_same(to_onnx(everything, X=images), images, everything.transform(images))


@pytest.mark.parametrize("pool", ["auto", "avg", "max", "flatten"])
@pytest.mark.parametrize("layer", ["penultimate", ["first", "again"], -1])
def test_layers_and_poolings_of_a_module(layer, pool):
    model = extractor(layer=layer, pool=pool).fit(PHOTOS)
    assert_same(to_onnx(model, X=PHOTOS), PHOTOS, model.transform(PHOTOS))


@pytest.mark.parametrize("pool", ["auto", "max", "flatten", "cls"])
def test_tokens(pool):
    images = X.astype(np.float32).reshape(-1, 1, 8, 8) / 16
    model = ConvFeatureExtractor(Tokens(), layer="block", pool=pool, device="cpu").fit(images)
    assert_same(to_onnx(model), images, model.transform(images[:300]))


def test_without_X_the_form_of_a_union_is_that_of_its_networks():
    images = X[:300].reshape(-1, 8, 8)
    parts = [ConvFeatureExtractor(net(), layer=layer) for layer in ("conv1", "dense")]
    model = make_union(*parts).fit(images, y[:300])
    assert_same(to_onnx(model), images.astype(np.float32), model.transform(images))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"interpolation": "bicubic"},
        {"crop_mode": "border", "crop_pct": 1.2, "value_range": (-1, 3)},
        {"crop_mode": "center", "crop_pct": 0.7},
    ],
    ids=lambda preprocessing: "-".join(preprocessing) or "plain",
)
def test_what_a_backbone_does_to_pixels(preprocessing, dtype):
    images = PHOTOS.transpose(0, 2, 3, 1)
    if dtype == np.float32:
        low, high = preprocessing.get("value_range", (0, 1))
        images = (low + images / 255 * (high - low)).astype(dtype)
    model = extractor(of=preprocessing).fit(images)
    assert_same(to_onnx(model, X=images[:1]), images, model.transform(images))


def test_grey_images_for_a_backbone_of_three_channels():
    images = X.astype(np.uint8).reshape(-1, 8, 8)
    model = extractor().fit(images)
    assert_same(to_onnx(model, X=images), images, model.transform(images[:300]))


def test_a_fine_tuned_backbone():
    model = net(backbone()).fit(PHOTOS, TWO)
    assert_same(to_onnx(model, X=PHOTOS), PHOTOS, model.predict_proba(PHOTOS))
    floats = (PHOTOS / 255).astype(np.float32)
    assert_same(to_onnx(model), floats, model.predict_proba(floats))


def test_a_net_in_bfloat16_is_exported_in_float32():
    network = digits_net()
    halves = copy.deepcopy(network)
    halves.module_.precision = "bfloat16"
    assert_same(to_onnx(halves, X=X), X, network.predict_proba(X[:300]))


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_opsets(opset):
    model = extractor(Sampled).fit(PHOTOS)
    graph = skl2onnx.to_onnx(model, PHOTOS[:1], target_opset=opset)
    assert [entry.version for entry in graph.opset_import] == [opset]
    pytest.importorskip("onnx").checker.check_model(graph, full_check=True)
    assert_same(graph, PHOTOS, model.transform(PHOTOS))


# Models around ----------------------------------------------------------------------------------


def frozen(**params):
    return ConvFeatureExtractor(FrozenEstimator(digits_net()), **params)


def test_searches_frozen_estimators_and_idle_steps():
    grid = {"logisticregression__C": [0.1, 1]}
    whole = GridSearchCV(make_pipeline(frozen(), logistic()), grid, cv=2)
    last = make_pipeline(frozen(), RandomizedSearchCV(logistic(), {"C": [1]}, n_iter=1))
    held = FrozenEstimator(frozen().fit(X))
    idle = make_pipeline(held, "passthrough", StandardScaler(), logistic())
    for model in (whole, last, idle):
        model.fit(X[:300], y[:300])
        assert_same(to_onnx(model, X=X), X, model.predict_proba(X[:300]), ROUNDED)


def test_models_that_hold_networks():
    columns = make_column_transformer((frozen(), list(range(64))), (StandardScaler(), [1, 20]))
    for model in (
        make_pipeline(make_union(frozen(), frozen(layer="conv1"), PCA(5)), logistic()),
        make_pipeline(columns, logistic()),
        make_pipeline(StandardScaler(), net()),
        CalibratedClassifierCV(net(), cv=2),
    ):
        model.fit(X[:300], y[:300])
        assert_same(to_onnx(model, X=X), X, model.predict_proba(X[:300]), ROUNDED)
        assert_same(to_onnx(model), X.astype(np.float32), model.predict_proba(X[:300]), ROUNDED)


def test_bytes_reach_a_network_as_bytes_where_they_do_in_scikit_learn():
    rows = PHOTOS.reshape(len(PHOTOS), -1)
    first = extractor(image_shape=(3, 20, 24))
    union = make_pipeline(make_union(first, clone(first)), StandardScaler(), Ridge())
    through = make_column_transformer(("passthrough", slice(0, rows.shape[1])))
    for model in (union, make_pipeline(through, clone(first), Ridge())):
        model.fit(rows, TWO)
        assert_same(to_onnx(model, X=rows), rows, model.predict(rows)[:, None])
    mixed = make_pipeline(make_union(first, PCA(2)), Ridge()).fit(rows, TWO)
    with pytest.raises(RuntimeError, match="UInt8TensorType"):  # of PCA's converter
        to_onnx(mixed, X=rows)


def test_a_scaler_takes_bytes():
    images = X.astype(np.uint8)
    model = make_pipeline(StandardScaler(), frozen(), logistic()).fit(images[:300], y[:300])
    assert_same(to_onnx(model, X=images), images, model.predict_proba(images[:300]))


def test_options_of_skl2onnx():
    model = digits_net(WORDS)

    def outputs(**options):
        return run(skl2onnx.to_onnx(model, X[:1], options={id(model): options}), X[:7])

    scores = model.decision_function(X[:7])
    np.testing.assert_allclose(outputs(zipmap=False, raw_scores=True)[1], scores, atol=1e-4)
    assert np.array_equal(outputs(zipmap=False, nocl=True)[0], scores.argmax(1))
    columns = outputs(zipmap="columns")[1:]
    np.testing.assert_allclose(np.stack(columns, 1), model.predict_proba(X[:7]), atol=1e-5)


def test_threads_at_once():
    models = [digits_net(), extractor().fit(PHOTOS)] * 4
    given, graphs = [X, PHOTOS] * 4, [None] * 8

    def work(i):
        graphs[i] = to_onnx(models[i], X=given[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, images, graph in zip(models, given, graphs, strict=True):
        compute = getattr(model, "predict_proba", None) or model.transform
        assert_same(graph, images, compute(images[:300]))


def test_the_estimator_stays_as_it_was():
    model = extractor().fit(PHOTOS)
    before, names = model.transform(PHOTOS), set(vars(model))
    to_onnx(model, X=PHOTOS)
    assert np.array_equal(model.transform(PHOTOS), before)
    assert set(vars(model)) == names
    assert not any(module._forward_hooks for module in model.module_.modules())


# Files ------------------------------------------------------------------------------------------


def test_the_file_is_written_whole(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"older")
    graph = to_onnx(digits_net(), path, X)
    assert path.read_bytes() == graph.SerializeToString()
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == ["label", "probabilities"]
    with pytest.raises(ValueError, match="63 features"):
        to_onnx(digits_net(), str(path), X[:, :63])
    assert path.read_bytes() == graph.SerializeToString()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*missing'"):
        to_onnx(digits_net(), tmp_path / "missing" / "net.onnx")


# What can't be exported -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "message"),
    [(Branching, "depends on values that it reads"), (ScaledByTheirNumber, "differs from torch")],
)
def test_a_network_that_is_no_fixed_graph(module, message):
    model = extractor(module, layer="fc").fit(PHOTOS)
    with pytest.raises(NotExportable, match=f"can't become an ONNX graph: .*{message}"):
        to_onnx(model, X=PHOTOS)


def test_a_function_as_pool():
    model = extractor(layer="first", pool=lambda maps: maps.amax((2, 3))).fit(PHOTOS)
    with pytest.raises(ValueError, match=r"pool is a function.*take one of 'auto', 'avg'"):
        to_onnx(model, X=PHOTOS)


@pytest.mark.parametrize("model", [net(), extractor(), make_pipeline(extractor(), SVC())])
def test_a_model_that_is_not_fitted(model):
    for convert in (to_onnx, skl2onnx.to_onnx):
        with pytest.raises(NotFittedError):
            convert(clone(model), X=PHOTOS)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (X[:, :63], ValueError, "X has 63 features"),
        (PHOTOS, ValueError, r"X of shape \(8, 3, 20, 24\) does not hold images of shape \(1, 8,"),
        (X[0].reshape(8, 8)[:, :7], ValueError, "X has 7 features"),
        (X[0].reshape(1, 8, 8)[..., None][0], ValueError, "does not hold images"),
        (["a.png"], TypeError, "not list: files and lists can't be"),
        ("a.png", TypeError, "not str: files"),
        (np.array(["a.png"], dtype=object), TypeError, "must hold numbers, not object"),
        (np.array(["a.png"]), TypeError, "must hold numbers, not <U5"),
    ],
)
def test_an_X_that_can_be_no_input(given, error, message):
    with pytest.raises(error, match=message):
        to_onnx(digits_net(), X=given)


def test_images_in_place_of_a_file():
    with pytest.raises(TypeError, match=r"path is an array, .*: pass images as X="):
        to_onnx(digits_net(), X[:1])


def test_a_model_fitted_on_files_needs_an_X(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    files = [tmp_path / f"{i}.png" for i in range(len(PHOTOS))]
    for file, photo in zip(files, PHOTOS, strict=True):
        Image.fromarray(photo.transpose(1, 2, 0)).save(file)
    model = extractor().fit(files)
    with pytest.raises(ValueError, match=r"fitted on image files.*\(3, 16, 16\)"):
        to_onnx(model)
    images = np.ascontiguousarray(PHOTOS[:, :, :16, :16])
    assert_same(to_onnx(model, X=images), images, model.transform(images))


def test_skl2onnx_called_with_what_does_not_fit():
    pd = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"one input that holds whole images, not 64.*to_numpy"):
        skl2onnx.to_onnx(digits_net(), pd.DataFrame(X[:1]).add_prefix("p"))
    with pytest.raises(ValueError, match="target_opset=17: ConvNetClassifier needs 18"):
        skl2onnx.to_onnx(digits_net(), X[:1], target_opset=17)


@pytest.mark.parametrize("package", ["skl2onnx", "onnxruntime"])
def test_a_missing_package(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "sklconv\[onnx\]"'):
        register()
