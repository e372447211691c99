"""dask arrays and columns of files as X, and searches on the workers of a cluster."""

import os
import pickle
from unittest import mock

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._estimators.dask import _without_training
from sklconv.layers import Conv, Dense

pytest.importorskip("dask.array", reason='pip install "sklconv[dask]"')
distributed = pytest.importorskip("distributed", reason='pip install "sklconv[dask]"')

import dask  # noqa: E402
import dask.array as da  # noqa: E402
import dask.dataframe as dd  # noqa: E402

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = DIGITS[:90].reshape(-1, 8, 8).astype(np.float32), LABELS[:90]
METHODS = ["transform", "decision_function", "predict", "predict_proba"]

# What another grouping of the rows into batches may change, of values of order 1 to 10.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class Noting(nn.Module):
    """A network that notes in a file that it is trained, and where it is unpickled."""

    def __init__(self, notes=None, num_classes=10):
        super().__init__()
        torch.manual_seed(0)
        self.notes, self.is_noted = notes, False
        self.conv = nn.Conv2d(1, 6, 3)
        self.output = nn.Linear(6, num_classes)

    def forward(self, x):
        if self.training and not self.is_noted:
            self.is_noted = True
            self.note("trained")
        return self.output(self.conv(x).relu().mean((2, 3)))

    def __setstate__(self, state):
        super().__setstate__(state)
        self.note(os.getpid())

    def note(self, what):
        if self.notes:
            with open(self.notes, "a") as file:
                file.write(f"{what}\n")


@pytest.fixture(scope="module")
def clf():
    layers = [("conv", Conv(6, 3)), ("dense", Dense(12))]
    return ConvNetClassifier(layers, max_epochs=2, random_state=0).fit(DIGITS, LABELS)


@pytest.fixture(scope="module")
def extractor():
    return frozen().fit(DIGITS)


def frozen(**params):
    return ConvFeatureExtractor(Noting(), layer="conv", device="cpu", engine="torch", **params)


def start_cluster(**options):
    # It leaves variables in this process's environment, such as OMP_NUM_THREADS. Any port will do:
    # the usual one may be taken by another process that runs tests.
    with mock.patch.dict(os.environ):
        return distributed.LocalCluster(threads_per_worker=1, dashboard_address=":0", **options)


@pytest.fixture(scope="module")
def cluster():
    """Two processes, as on two machines."""
    with start_cluster(n_workers=2, processes=True) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def paths(tmp_path):
    found = [str(tmp_path / f"{number}.png") for number in range(7)]
    for path, image in zip(found, DIGITS, strict=False):
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    return found


def never_computed(block):
    raise AssertionError("nothing was to be computed")


# Blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("labels", ["digits", "names", "two classes"])
def test_a_dask_array_gives_one_of_the_same_values(method, labels):
    y = {"digits": LABELS, "names": LABELS.astype(str), "two classes": LABELS > 4}[labels]
    clf = ConvNetClassifier([("conv", Conv(4, 3))], max_epochs=1, random_state=0)
    extractor = ConvFeatureExtractor(clf, layer="conv").fit(DIGITS, y)
    call = getattr(extractor if method == "transform" else extractor.estimator_, method)
    expected = call(DIGITS)
    X = da.from_array(DIGITS, chunks=(40, 8, 8))
    result = call(X)
    assert type(result) is da.Array
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert result.chunks[0] == X.chunks[0] == (40, 40, 10)
    assert (result._meta.ndim, result._meta.dtype) == (expected.ndim, expected.dtype)
    computed = result.compute()
    assert type(computed) is np.ndarray
    assert computed.dtype == expected.dtype
    if method == "predict":
        assert_array_equal(computed, expected)
    else:
        assert_allclose(computed, expected, **CLOSE)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 8, 8), (8, 8, 1)])
def test_chunks_along_other_axes_are_joined(extractor, clf, shape):
    X = DIGITS.reshape(-1, *shape)
    chunked = da.from_array(X, chunks=(32, *((n + 1) // 2 for n in shape)))
    assert_allclose(extractor.transform(chunked).compute(), extractor.transform(X), **CLOSE)
    assert clf.predict(chunked).chunks == ((32, 32, 26),)
    assert_array_equal(clf.predict(chunked).compute(), clf.predict(X))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_computed_before_it_is_asked_for(method, extractor, clf):
    X = da.zeros((90, 8, 8), chunks=30, dtype=np.float32)
    X = X.map_blocks(never_computed, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    result = getattr(extractor if method == "transform" else clf, method)(X)
    with pytest.raises(AssertionError, match="nothing was to be computed"):
        result.compute()


@pytest.mark.parametrize("method", METHODS)
def test_sizes_of_chunks_may_be_unknown_and_blocks_empty(method, extractor, clf):
    call = getattr(extractor if method == "transform" else clf, method)
    expected = call(DIGITS)
    X = da.from_array(DIGITS, chunks=(30, 4, 8))
    for rows in (np.arange(90) < 50, np.zeros(90, bool)):
        result = call(X[da.from_array(rows, chunks=30)])
        assert np.isnan(result.shape[0])
        assert result.shape[1:] == expected.shape[1:]
        computed = result.compute()
        assert computed.dtype == expected.dtype
        assert_allclose(computed, expected[rows], **CLOSE)


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("kind", ["trained", "frozen", "backbone", "module"])
def test_workers_are_sent_the_weights_once_and_nothing_of_training(kind, with_memory, tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 60, 3), nn.Flatten(), nn.Linear(60 * 36, 10))
    net = ConvNetClassifier(module, max_epochs=1, random_state=0)
    estimator = {
        "trained": net,
        "frozen": FrozenEstimator(clone(net).fit(DIGITS, LABELS)),
        "backbone": Backbone(module, mean=[0.5], std=[0.5], value_range=(0, 16)),
        "module": module,
    }[kind]
    extractor = ConvFeatureExtractor(
        estimator, layer="0", memory=tmp_path if with_memory else None
    )
    expected = extractor.fit(DIGITS, LABELS).transform(DIGITS)
    X = da.from_array(DIGITS, chunks=(40, 8, 8))
    assert_allclose(extractor.transform(X).compute(), expected, **CLOSE)
    n_bytes = sum(4 * parameter.numel() for parameter in module.parameters())
    assert n_bytes < len(pickle.dumps(_without_training(extractor))) < 1.3 * n_bytes
    assert type(extractor.estimator) is type(estimator)  # as it was


def test_batches_are_the_blocks(extractor):
    X = da.from_array(DIGITS, chunks=(40, 8, 8))
    batches = list(extractor.transform_batches(X))
    assert [len(rows) for rows in batches] == [40, 40, 10]
    assert_allclose(np.concatenate(batches), extractor.transform(DIGITS), **CLOSE)


def test_a_later_fit_does_not_change_what_was_asked_for():
    extractor = frozen(pool="flatten").fit(DIGITS)
    expected = extractor.transform(DIGITS)
    result = extractor.transform(da.from_array(DIGITS, chunks=(40, 8, 8)))
    extractor.set_params(layer="output").fit(DIGITS)
    assert_allclose(result.compute(), expected, **CLOSE)


def test_further_training_does_not_change_what_was_asked_for():
    clf = ConvNetClassifier(max_epochs=1, random_state=0).fit(DIGITS, LABELS)
    expected = clf.predict_proba(DIGITS)
    result = clf.predict_proba(da.from_array(DIGITS, chunks=(40, 8, 8)))
    clf.partial_fit(DIGITS, LABELS)
    assert_allclose(result.compute(), expected, **CLOSE)
    assert np.abs(clf.predict_proba(DIGITS) - expected).max() > 0.01


def test_set_output_asks_for_all_of_it(extractor):
    extractor = frozen().set_output(transform="pandas").fit(DIGITS)
    result = extractor.transform(da.from_array(DIGITS, chunks=(40, 8, 8)))
    assert list(result) == list(extractor.get_feature_names_out())
    assert_allclose(result, extractor.transform(DIGITS), **CLOSE)


# Tables and files -------------------------------------------------------------------------------


def forms_of_files(paths):
    frame = dd.from_pandas(pd.DataFrame({"path": paths, "number": range(7)}), npartitions=3)
    return [
        frame["path"],
        frame[["path"]],
        da.from_array(np.array(paths), chunks=3),
        da.from_array(np.array(paths, dtype=object)[:, None], chunks=3),
    ]


def test_columns_of_files(paths):
    extractor = frozen(image_shape=(8, 8)).fit(paths)
    expected = extractor.transform(paths)
    for X in forms_of_files(paths):
        result = extractor.transform(X)
        assert type(result) is da.Array
        assert (result.dtype, result.shape[1]) == (np.float32, 6)
        assert_allclose(result.compute(), expected, **CLOSE)
        assert_allclose(frozen(image_shape=(8, 8)).fit(X).transform(paths), expected, **CLOSE)
    frame = dd.from_pandas(pd.DataFrame({"path": paths, "number": range(7)}), npartitions=3)
    few = frame["path"][frame["number"] > 4]  # the first partition is empty
    assert_allclose(extractor.transform(few).compute(), expected[5:], **CLOSE)


def test_files_that_cannot_be_read(paths):
    paths = [*paths, "missing.png"]
    X = dd.from_pandas(pd.Series(paths), npartitions=3)
    extractor = frozen(image_shape=(8, 8)).fit(paths[:7])
    with pytest.raises(ValueError, match=r"missing.png can't be read: no such file"):
        extractor.transform(X).compute()
    features = extractor.set_params(on_bad_image="nan").fit(paths[:7]).transform(X).compute()
    assert_array_equal(np.isnan(features).all(1), np.arange(8) == 7)


def test_tables_of_pixels_keep_their_names():
    table = pd.DataFrame(DIGITS.reshape(-1, 64), columns=[f"pixel{n}" for n in range(64)])
    X = dd.from_pandas(table, npartitions=3)
    extractor = frozen().fit(X)
    assert list(extractor.feature_names_in_) == list(table)
    assert_allclose(extractor.transform(X).compute(), extractor.transform(table), **CLOSE)
    with pytest.raises(ValueError, match="feature names should match"):
        extractor.transform(X.rename(columns={"pixel0": "other"})).compute()


# Fits, and what follows the extractor -----------------------------------------------------------


@pytest.mark.parametrize("with_memory", [False, True])
def test_fit_takes_dask_arrays_into_memory(with_memory, tmp_path):
    X, y = da.from_array(DIGITS, chunks=(40, 4, 8)), da.from_array(LABELS, chunks=50)
    net = ConvNetClassifier([("conv", Conv(4, 3))], max_epochs=1, random_state=0)
    extractor = ConvFeatureExtractor(net, layer="conv", memory=tmp_path if with_memory else None)
    expected = extractor.fit(DIGITS, LABELS).transform(DIGITS)
    assert_array_equal(extractor.fit(X, y).transform(DIGITS), expected)
    assert_array_equal(
        net.fit(X, y).predict_proba(DIGITS), net.fit(DIGITS, LABELS).predict_proba(DIGITS)
    )
    assert net.score(X, y) == net.score(DIGITS, LABELS)


def test_a_pipeline_goes_on_with_features_in_memory(extractor):
    model = make_pipeline(extractor, SVC()).fit(DIGITS, LABELS)
    X = da.from_array(DIGITS, chunks=(40, 8, 8))
    assert_array_equal(model.predict(X), model.predict(DIGITS))


@pytest.mark.parametrize(
    ("X", "error"),
    [
        (da.zeros((90, 7, 8)), r"X of shape \(90, 7, 8\) does not hold images of shape"),
        (da.zeros((90, 63)), r"X has 63 features, but ConvFeatureExtractor is expecting 64"),
        (da.zeros((8, 8)), r"looks like a single image: pass X\[None\]"),
        (da.zeros(90), r"X of shape \(90,\) does not hold images"),
        (da.zeros((90, 8, 8)).astype(object), r"must hold numbers, not object: X.astype"),
        (da.zeros((90, 8, 8)).astype("U3"), r"must hold numbers, not <U3"),
    ],
)
def test_what_can_be_told_beforehand_is_told_before_it_is_computed(extractor, X, error):
    with pytest.raises(ValueError, match=error):
        extractor.transform(X)


def test_estimators_that_are_not_fitted():
    X = da.zeros((9, 8, 8))
    for call in (frozen().transform, *(getattr(ConvNetClassifier(), m) for m in METHODS[1:])):
        with pytest.raises(NotFittedError):
            call(X)


def test_a_cluster_that_closes_takes_along_only_what_was_asked_of_it(extractor):
    X = da.from_array(DIGITS, chunks=(40, 8, 8))
    with start_cluster(n_workers=1, processes=False) as cluster, distributed.Client(cluster):
        result = extractor.transform(X)
    with pytest.raises(ValueError, match="ConvFeatureExtractor"):
        result.compute()
    assert_allclose(extractor.transform(X).compute(), extractor.transform(DIGITS), **CLOSE)


# Two processes ----------------------------------------------------------------------------------


def test_each_worker_is_sent_the_network_once(client, tmp_path):
    notes = tmp_path / "notes"
    extractor = ConvFeatureExtractor(Noting(str(notes)), layer="conv", engine="torch").fit(DIGITS)
    expected = extractor.transform(DIGITS)
    X = da.from_array(DIGITS, chunks=(5, 8, 8))
    assert_allclose(extractor.transform(X).compute(), expected, **CLOSE)
    workers = {str(info["pid"]) for info in client.run(lambda: {"pid": os.getpid()}).values()}
    unpickled = [line for line in notes.read_text().split() if line != str(os.getpid())]
    assert set(unpickled) == workers
    assert len(unpickled) <= 2 * len(workers)  # of 18 blocks; one hands it on to the other
    # Again, while the first network may be on its way out.
    for _ in range(3):
        assert_allclose(extractor.transform(X).compute(), expected, **CLOSE)
    with dask.config.set(scheduler="threads"):
        assert_allclose(extractor.transform(X).compute(), expected, **CLOSE)


def test_a_search_on_two_workers_trains_once_a_fold(client, tmp_path):
    def search(notes, memory):
        net = ConvNetClassifier(
            TorchModule(Noting, notes=str(notes)), max_epochs=2, device="cpu", random_state=0
        )
        extractor = ConvFeatureExtractor(net, layer="conv", memory=memory)
        grid = {
            "convfeatureextractor__layer": ["conv", "output"],
            "svc__C": [1, 10],
        }
        return GridSearchCV(make_pipeline(extractor, SVC()), grid, cv=2, refit=False)

    local, shared = tmp_path / "local", tmp_path / "shared"
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as dask's workers have
    try:
        expected = search(local, None).fit(DIGITS, LABELS).cv_results_
    finally:
        torch.set_num_threads(n_threads)
    with joblib.parallel_config(backend="dask"):
        found = search(shared, tmp_path / "kept").fit(DIGITS, LABELS).cv_results_
    assert_array_equal(found["split0_test_score"], expected["split0_test_score"])
    assert_array_equal(found["split1_test_score"], expected["split1_test_score"])
    assert local.read_text().split().count("trained") == 8
    assert shared.read_text().split().count("trained") == 2
