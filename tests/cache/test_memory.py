"""`ConvFeatureExtractor(memory=...)`: what is computed once, and what is not."""

import io
import os
import pickle
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from joblib import Memory
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._engines import runtime
from sklconv.layers import Conv

DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS, LABELS = DIGITS[:120].astype(np.float32), LABELS[:120]


# Numbers of images that passed, in training and at inference.
TRAINED, SEEN = [], []


class Counting(nn.Module):
    """A small network that notes the images that it sees."""

    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, width, 3)
        self.more = nn.Conv2d(width, 5, 3)
        self.output = nn.Linear(5, 10)

    def forward(self, x):
        (TRAINED if self.training else SEEN).append(len(x))
        return self.output(self.more(self.conv(x).relu()).relu().mean((2, 3)))


@pytest.fixture(autouse=True)
def counts():
    TRAINED.clear()
    SEEN.clear()


@pytest.fixture
def by_row(monkeypatch):
    monkeypatch.setattr("sklconv._cache.features.WORTH_A_ROW", 0)


def trained(memory=None, **params):
    net = ConvNetClassifier(TorchModule(Counting), max_epochs=2, device="cpu", random_state=0)
    own = set(params) - {"layer", "pool", "batch_size", "verbose", "engine"}
    net.set_params(**{name: params.pop(name) for name in own})
    params = {"layer": "conv", "engine": "torch", "memory": memory} | params
    return ConvFeatureExtractor(net, **params)


def frozen(memory=None, **params):
    torch.manual_seed(0)
    params = {"layer": "conv", "engine": "torch", "device": "cpu", "memory": memory} | params
    return ConvFeatureExtractor(Counting(), **params)


def n_trained(extractor, *data, **further):
    before = len(TRAINED)
    extractor.fit(*(data or (DIGITS, LABELS)), **further)
    return len(TRAINED) - before


def n_seen(extractor, X=DIGITS):
    SEEN.clear()
    extractor.transform(X)
    return sum(SEEN)


# Trained networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: Memory(path, verbose=0)])
def test_an_equal_fit_is_taken_with_the_same_bits(form, tmp_path):
    memory = form(tmp_path / "kept")
    wanted = trained().fit_transform(DIGITS, LABELS)
    first, second = trained(memory), trained(memory)
    assert n_trained(first) > 0
    assert n_trained(second) == 0
    for extractor in (first, second):
        np.testing.assert_array_equal(extractor.transform(DIGITS), wanted)
    assert second.estimator_ is not first.estimator_
    for one, other in zip(first.module_.parameters(), second.module_.parameters(), strict=True):
        assert torch.equal(one, other)
    assert second.estimator_.history_ == first.estimator_.history_


def test_what_is_taken_is_a_copy_of_its_own(tmp_path):
    first = trained(tmp_path).fit(DIGITS, LABELS)
    second = trained(tmp_path).fit(DIGITS, LABELS)
    with torch.no_grad():
        second.module_.body.conv.weight.zero_()
    assert first.module_.body.conv.weight.abs().sum() > 0
    assert trained(tmp_path).fit(DIGITS, LABELS).module_.body.conv.weight.abs().sum() > 0


@pytest.mark.parametrize(
    "params",
    [{"layer": "more"}, {"pool": "max"}, {"batch_size": 7}, {"verbose": 1}, {"engine": "auto"}],
)
def test_what_training_does_not_depend_on(params, tmp_path, capsys):
    trained(tmp_path).fit(DIGITS, LABELS)
    extractor = trained(tmp_path, **params)
    assert n_trained(extractor) == 0
    for name, value in params.items():
        if name in ("verbose", "engine"):
            assert getattr(extractor, name) == value
            assert getattr(extractor.estimator_, name) == (value if name == "verbose" else "auto")
    if "verbose" in params:
        assert "an equal fit is taken from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        "lr",
        "seed",
        "epochs",
        "module",
        "X",
        "dtype",
        "y",
        "weights",
        "validation",
        "early",
        "matmul",
    ],
)
def test_what_training_depends_on(change, tmp_path, monkeypatch):
    trained(tmp_path).fit(DIGITS, LABELS)
    X, y, further, extractor = DIGITS, LABELS, {}, trained(tmp_path)
    if change == "X":
        X = np.where(DIGITS == 3, 4, DIGITS)
    elif change == "dtype":
        X = DIGITS.astype(np.uint8)
    elif change == "y":
        y = np.roll(LABELS, 1)
    elif change == "weights":
        further = {"sample_weight": np.linspace(1, 2, len(LABELS))}
    elif change == "validation":
        further = {"X_val": DIGITS, "y_val": LABELS}
    elif change == "matmul":
        monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: "medium")
    else:
        extractor.estimator.set_params(
            **{
                "lr": {"lr": 0.01},
                "seed": {"random_state": 1},
                "epochs": {"max_epochs": 3},
                "module": {"module__width": 6},
                "early": {"early_stopping": True},
            }[change]
        )
    assert n_trained(extractor, X, y, **further) > 0


def test_a_module_counts_by_its_code(tmp_path):
    class Other(Counting):
        def forward(self, x):
            return super().forward(x) * 2

    trained(tmp_path).fit(DIGITS, LABELS)
    with pytest.warns(UserWarning, match="can't be pickled"):
        assert n_trained(trained(tmp_path, module=TorchModule(Other))) > 0


def test_a_name_that_stands_for_another_class_now(tmp_path, monkeypatch):
    net = trained().estimator
    before = ConvFeatureExtractor(net, layer="conv", memory=tmp_path).fit(DIGITS, LABELS)

    class Other(Counting):
        def forward(self, x):
            return super().forward(x) * 2

    monkeypatch.setattr(sys.modules[__name__], "Counting", Other)
    with pytest.warns(UserWarning, match=r"not kept: the name of Counting"):
        after = clone(before).fit(DIGITS, LABELS)
    assert type(after.module_.body) is type(before.module_.body)


SCRIPT = """
import sys
import numpy as np
from joblib import Parallel, delayed
from torch import nn
from sklconv import ConvFeatureExtractor, ConvNetClassifier, TorchModule

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    def forward(self, x):
        if self.training:
            print("trained", file=open(sys.argv[1] + "/log", "a"))
        return super().forward(x)

X = np.random.default_rng(0).normal(size=(60, 36)).astype(np.float32)
net = ConvNetClassifier(TorchModule(Net), max_epochs=1, batch_size=60, random_state=0)
extractor = ConvFeatureExtractor(net, layer="0", memory=sys.argv[1])
for n_jobs in (2, 1, 2):
    fit = delayed(lambda: extractor.fit(X, np.arange(60) % 3).transform(X))
    Parallel(n_jobs)(fit() for _ in range(4))
"""


def test_a_script_shares_its_networks_with_its_workers(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py"), str(tmp_path)]
    # Of another number of threads, as workers have, bits differ.
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "log").read_text().split() == ["trained"]


def test_which_weights_learn_counts(tmp_path):
    networks = [Counting(), Counting()]
    networks[1].conv.requires_grad_(False)
    for network in networks:
        assert n_trained(trained(tmp_path, module=network)) > 0


def test_a_file_of_weights_counts_by_its_content(tmp_path):
    network, path = Counting(), tmp_path / "weights.pth"
    for _ in range(2):
        with torch.no_grad():
            network.conv.weight.add_(1)
        torch.save(network.state_dict(), path)
        extractor = trained(tmp_path, module=Backbone(Counting(), weights=path))
        assert n_trained(extractor) > 0
        assert n_trained(extractor) == 0


def in_order(X):
    return [torch.from_numpy(row.reshape(8, 8)) for row in X]


@pytest.mark.parametrize(
    "form", [in_order, lambda X: X.astype(object), lambda X: torch.tensor(X).bfloat16()]
)
def test_all_forms_of_images_are_kept(form, tmp_path):
    assert n_trained(trained(tmp_path), form(DIGITS), LABELS) > 0
    assert n_trained(trained(tmp_path), form(DIGITS), LABELS) == 0


@pytest.mark.filterwarnings("ignore:memory. this training is not kept")
@pytest.mark.parametrize(
    ("data", "further"),
    [
        (([np.zeros((8, 8)), np.zeros((8, 9))], [0, 1]), {}),
        ((DIGITS[:2], [[1], [2, 3]]), {}),
        ((["missing.png"] * 2, [0, 1]), {}),
        ((DIGITS, LABELS), {"X_val": np.zeros((3, 0)), "y_val": LABELS[:3]}),
    ],
)
def test_bad_input_is_named_as_without(data, further, tmp_path):
    messages = []
    for memory in (None, tmp_path):
        with pytest.raises(ValueError) as raised:
            trained(memory, image_shape=(8, 8)).fit(*data, **further)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_parameters_are_those_of_the_call(tmp_path):
    trained(tmp_path, device="auto").fit(DIGITS, LABELS)
    extractor = trained(tmp_path, device="cpu", verbose=1).fit(DIGITS, LABELS)
    assert extractor.estimator_.device == "cpu"
    assert extractor.estimator_.verbose == 1


class Locked:
    """An augmentation that holds a lock."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, x):
        return x

    def __deepcopy__(self, memo):
        return Locked()


@pytest.mark.parametrize(
    "params",
    [
        {"random_state": np.random.RandomState(0)},
        {"augment": Locked()},
        {"callbacks": [("name", Callback())]},
    ],
)
def test_what_is_not_kept_is_said(params, tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"memory: this training is not kept"):
            assert n_trained(trained(tmp_path, **params)) > 0


def test_an_interrupted_fit_is_not_kept(tmp_path):
    class Interrupts:
        n = 0

        def __call__(self, x):
            Interrupts.n += 1
            if Interrupts.n == 2:
                raise KeyboardInterrupt
            return x

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, augment=Interrupts()).fit(DIGITS, LABELS)
    assert not list(tmp_path.glob("sklconv/networks/*"))
    Interrupts.n = 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a local class can't be pickled
        assert n_trained(trained(tmp_path, augment=Interrupts())) > 0


def test_a_search_trains_once_a_fold(tmp_path):
    grid = {
        "convfeatureextractor__layer": ["conv", "more"],
        "convfeatureextractor__pool": ["avg", "max"],
        "logisticregression__C": [0.1, 1],
    }

    def scores(memory):
        model = make_pipeline(trained(memory), LogisticRegression())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a regression that has not converged
            search = GridSearchCV(model, grid, cv=3, refit=False).fit(DIGITS, LABELS)
        return search.cv_results_["mean_test_score"]

    wanted, n_without = scores(None), len(TRAINED)
    TRAINED.clear()
    np.testing.assert_array_equal(scores(tmp_path), wanted)
    assert len(TRAINED) == n_without / 8
    TRAINED.clear()
    SEEN.clear()
    np.testing.assert_array_equal(scores(tmp_path), wanted)
    assert TRAINED == []


# Features ---------------------------------------------------------------------------------------


def test_features_of_equal_images_are_computed_once(tmp_path):
    extractor = trained(tmp_path).fit(DIGITS, LABELS)
    assert n_seen(extractor) == len(DIGITS)
    assert n_seen(extractor) == 0
    assert n_seen(clone(extractor).fit(DIGITS, LABELS)) == 0
    assert n_seen(extractor, DIGITS[:60]) == 60
    assert n_seen(extractor.set_params(memory=None)) == len(DIGITS)


def test_rows_of_frozen_networks_are_shared(tmp_path, by_row):
    wanted = frozen(layer=["conv", "more"]).fit(DIGITS).transform(DIGITS)
    assert n_seen(frozen(tmp_path).fit(DIGITS), DIGITS[:50]) == 50
    extractor = frozen(tmp_path).fit(DIGITS)
    assert n_seen(extractor) == len(DIGITS) - 50
    assert n_seen(extractor, DIGITS[::-3]) == 0
    assert n_seen(frozen(tmp_path, layer="more").fit(DIGITS)) == len(DIGITS)
    both = frozen(tmp_path, layer=["conv", "more"]).fit(DIGITS)
    assert n_seen(both) == 0
    np.testing.assert_allclose(both.transform(DIGITS), wanted, rtol=1e-5, atol=1e-5)
    assert n_seen(frozen(tmp_path, pool="max").fit(DIGITS)) == len(DIGITS)


def test_means_and_maxima_come_of_one_pass(tmp_path, by_row):
    layers = {"layer": ["more", "conv", "more"]}
    averages = frozen(tmp_path, pool="avg", **layers).fit(DIGITS)
    assert n_seen(averages, DIGITS[:50]) == 50
    for pool in ("max", "avg"):
        extractor = frozen(tmp_path, pool=pool, **layers).fit(DIGITS)
        assert n_seen(extractor) == (len(DIGITS) - 50 if pool == "max" else 0)
        wanted = frozen(pool=pool, **layers).fit(DIGITS).transform(DIGITS)
        np.testing.assert_allclose(extractor.transform(DIGITS), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_either_pooling_is_kept_by_either_engine(engine, pool, tmp_path, by_row):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    params = {"layer": ["more", "conv"], "engine": engine}
    wanted = frozen(pool=pool, **params).fit(DIGITS).transform(DIGITS)
    for first in ("avg", "max"):
        frozen(tmp_path, pool=first, **params).fit(DIGITS).transform(DIGITS[:70])
        kept = frozen(tmp_path, pool=pool, **params).fit(DIGITS).transform(DIGITS)
        np.testing.assert_allclose(kept, wanted, rtol=1e-5, atol=1e-5)


def test_a_frozen_classifier_has_rows(tmp_path, by_row):
    classifier = trained().fit(DIGITS, LABELS).estimator_
    extractor = ConvFeatureExtractor(FrozenEstimator(classifier), memory=tmp_path, layer="conv")
    extractor.fit(DIGITS)
    assert n_seen(extractor, DIGITS[:50]) == 50
    assert n_seen(extractor) == len(DIGITS) - 50


def test_equal_images_are_one_row(tmp_path, by_row):
    X = np.repeat(DIGITS[:3], 4, axis=0)
    extractor = frozen(tmp_path).fit(X)
    wanted = frozen().fit(X).transform(X)
    for _ in range(2):
        np.testing.assert_allclose(extractor.transform(X), wanted, rtol=1e-5, atol=1e-6)


def test_weights_of_another_network_are_other_rows(tmp_path, by_row):
    extractor = frozen(tmp_path).fit(DIGITS)
    before = extractor.transform(DIGITS)
    with torch.no_grad():
        extractor.module_.body.conv.weight.mul_(2)
    assert n_seen(extractor) == len(DIGITS)
    assert np.abs(extractor.transform(DIGITS) - before).max() > 0.01


def test_rows_that_torch_computed_in_place_of_onnx_runtime(tmp_path, by_row, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("sklconv._engines.choice.WORTHWHILE", 0)
    # Graphs of an equal network may be there, from another test.
    monkeypatch.setattr(runtime, "_registry", runtime._Registry())

    def refuse(*args, **kwargs):
        raise RuntimeError("no export today")

    with monkeypatch.context() as without:
        without.setattr("sklconv._engines.runtime.Graph", refuse)
        extractor = frozen(tmp_path, engine="auto").fit(DIGITS)
        with pytest.warns(UserWarning, match="so torch does"):
            extractor.transform(DIGITS)
    assert n_seen(frozen(tmp_path, engine="torch").fit(DIGITS)) == 0
    frozen(tmp_path, engine="onnxruntime").fit(DIGITS).transform(DIGITS)
    table = sqlite3.connect(tmp_path / "sklconv" / "rows.sqlite")
    (n_rows,) = table.execute("SELECT count(*) FROM kept").fetchone()
    table.close()
    assert n_rows == 2 * len(np.unique(DIGITS, axis=0))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "auto"])
def test_rows_of_engines(engine, tmp_path, by_row):
    pytest.importorskip("onnxruntime")
    frozen(tmp_path, engine="torch").fit(DIGITS).transform(DIGITS)
    SEEN.clear()
    frozen(tmp_path, engine=engine).fit(DIGITS).transform(DIGITS)
    table = sqlite3.connect(tmp_path / "sklconv" / "rows.sqlite")
    (n_rows,) = table.execute("SELECT count(*) FROM kept").fetchone()
    table.close()
    assert n_rows == len(np.unique(DIGITS, axis=0)) * (2 if engine == "onnxruntime" else 1)


def test_files_count_by_their_content(tmp_path, by_row):
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(DIGITS[number].reshape(8, 8).astype(np.uint8) * 15).save(path)
        paths.append(str(path))
    extractor = frozen(tmp_path, image_shape=(1, 9, 9)).fit(paths)
    wanted = frozen(image_shape=(1, 9, 9)).fit(paths).transform(paths)
    assert n_seen(extractor, paths) == 4
    os.rename(paths[0], tmp_path / "elsewhere.png")
    moved = [str(tmp_path / "elsewhere.png"), *paths[1:]]
    assert n_seen(extractor, moved) == 0
    np.testing.assert_allclose(extractor.transform(moved), wanted, rtol=1e-5, atol=1e-6)
    Image.open(paths[1]).point(lambda value: 255 - value).save(paths[1])
    assert n_seen(extractor, moved) == 1
    assert n_seen(frozen(tmp_path, image_shape=(1, 9, 10)).fit(moved), moved) == 4


def test_pictures_in_memory_count_by_their_content(tmp_path, by_row):
    images = [Image.fromarray(row.reshape(8, 8).astype(np.uint8) * 15) for row in DIGITS[:4]]
    extractor = frozen(tmp_path, image_shape=(1, 9, 9)).fit(images)
    assert n_seen(extractor, images) == 4
    assert n_seen(extractor, [image.copy() for image in images]) == 0


def by_name(name):
    """Read what is no file."""
    return DIGITS[int(name)].reshape(8, 8).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:memory. this training is not kept")
@pytest.mark.parametrize("make", [trained, frozen])
@pytest.mark.parametrize("costly", [False, True])
def test_what_only_a_reader_knows_is_not_kept(make, costly, tmp_path, monkeypatch):
    monkeypatch.setattr("sklconv._cache.features.WORTH_A_ROW", 0 if costly else 1e9)
    names = [str(number) for number in range(len(DIGITS))]
    params = {"image_shape": (1, 8, 8), "reader": by_name}
    for some in (names[:60], names[60:]):
        wanted = make(**params).fit(some, LABELS[:60]).transform(some)
        features = make(tmp_path, **params).fit(some, LABELS[:60]).transform(some)
        np.testing.assert_allclose(features, wanted, rtol=1e-5, atol=1e-5)


def by_path(path):
    """Read what depends on the path as well."""
    return np.asarray(Image.open(path)) // (2 if "half" in path else 1)


def test_a_reader_is_told_the_path(tmp_path, by_row):
    paths = [str(tmp_path / name) for name in ("whole.png", "half.png")]
    for path in paths:
        Image.fromarray(DIGITS[0].reshape(8, 8).astype(np.uint8) * 15).save(path)
    extractor = frozen(tmp_path, image_shape=(1, 8, 8), reader=by_path).fit(paths)
    features = [extractor.transform([path]) for path in paths]
    assert np.abs(features[0] - features[1]).max() > 0.01


def test_a_reader_of_pictures_in_memory(tmp_path, by_row):
    image = Image.fromarray(DIGITS[0].reshape(8, 8).astype(np.uint8) * 15)
    params = {
        "image_shape": (1, 8, 8),
        "reader": lambda image: np.full((8, 8), image.info["grey"]),
    }
    for grey in (1.0, 2.0):
        image.info["grey"] = grey
        features = frozen(tmp_path, **params).fit([image]).transform([image])
        np.testing.assert_array_equal(features, frozen(**params).fit([image]).transform([image]))


@pytest.mark.parametrize("costly", [False, True])
def test_broken_pictures_in_memory_are_bad(costly, tmp_path, monkeypatch):
    monkeypatch.setattr("sklconv._cache.features.WORTH_A_ROW", 0 if costly else 1e9)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    content = bytearray((tmp_path / "image.png").read_bytes())
    content[2000] ^= 255
    closed = Image.open(tmp_path / "image.png")
    closed.close()
    images = [Image.fromarray(pixels), Image.open(io.BytesIO(content)), closed]
    extractor = frozen(tmp_path, image_shape=(1, 8, 8), on_bad_image="nan").fit(images)
    assert np.isnan(extractor.transform(images)).all(1).tolist() == [False, True, True]


def test_broken_pictures_in_memory_are_not_trained_on(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    content = bytearray((tmp_path / "image.png").read_bytes())
    content[2000] ^= 255
    messages = []
    for memory in (None, tmp_path):
        images = [Image.fromarray(pixels), Image.open(io.BytesIO(content))] * 4
        with pytest.raises(ValueError, match="can't be read") as raised:
            trained(memory, image_shape=(1, 8, 8)).fit(images, [0, 1] * 4)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


class LockedReader(Locked):
    def __call__(self, path):
        return Image.open(path)


def test_a_reader_without_a_digest_is_said(tmp_path, by_row):
    path = str(tmp_path / "image.png")
    Image.fromarray(DIGITS[0].reshape(8, 8).astype(np.uint8)).save(path)
    extractor = frozen(tmp_path, image_shape=(1, 9, 9), reader=LockedReader()).fit([path])
    for _ in range(2):
        with pytest.warns(UserWarning, match="memory: these features are not kept"):
            assert n_seen(extractor, [path]) > 0


def test_files_that_cant_be_read_are_tried_again(tmp_path, by_row):
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, row in zip(paths, DIGITS, strict=False):
        Image.fromarray(row.reshape(8, 8).astype(np.uint8) * 15).save(path)
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(b"no picture")
    os.unlink(paths[2])
    extractor = frozen(tmp_path, image_shape=(1, 9, 9), on_bad_image="nan").fit(paths)
    for _ in range(2):
        features = extractor.transform(paths)
        assert np.isnan(features).all(axis=1).tolist() == [False, True, True]
        assert [row for row, _, _ in extractor.bad_images_] == [1, 2]
    for path in paths[1:]:
        with open(path, "wb") as file:
            file.write(content)
    assert not np.isnan(extractor.transform(paths)).any()


# What fails there -------------------------------------------------------------------------------


@pytest.mark.parametrize("by_image", [False, True])
def test_damaged_entries_are_computed_anew(by_image, tmp_path, monkeypatch):
    if by_image:
        monkeypatch.setattr("sklconv._cache.features.WORTH_A_ROW", 0)
    make = frozen if by_image else trained
    extractor = make(tmp_path).fit(DIGITS, LABELS)
    wanted = extractor.transform(DIGITS)
    rng = np.random.default_rng(0)
    for _ in range(5):
        for path in [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]:
            content = bytearray(path.read_bytes())
            for place in rng.integers(0, len(content), 1 + len(content) // 50):
                content[place] ^= 255
            path.write_bytes(content[: rng.integers(1, len(content) + 1)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "memory: ", UserWarning)
            again = make(tmp_path).fit(DIGITS, LABELS)
            for _ in range(2):
                np.testing.assert_allclose(again.transform(DIGITS), wanted, rtol=1e-5, atol=1e-5)


def test_a_table_that_is_damaged_within_is_made_anew(tmp_path, by_row):
    extractor = frozen(tmp_path).fit(DIGITS)
    wanted = extractor.transform(DIGITS)
    file = tmp_path / "sklconv" / "rows.sqlite"
    table = sqlite3.connect(file)
    (page,) = table.execute("SELECT rootpage FROM sqlite_master WHERE name = 'keys'").fetchone()
    (size,) = table.execute("PRAGMA page_size").fetchone()
    table.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    table.close()
    content = bytearray(file.read_bytes())
    content[(page - 1) * size] ^= 255
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"rows.sqlite is damaged .*malformed.*: it is made anew"):
        np.testing.assert_allclose(extractor.transform(DIGITS), wanted, rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(extractor.transform(DIGITS), wanted, rtol=1e-5, atol=1e-5)


def test_a_row_is_that_of_its_key(tmp_path, by_row):
    extractor = frozen(tmp_path).fit(DIGITS)
    wanted = extractor.transform(DIGITS[:2])
    table = sqlite3.connect(tmp_path / "sklconv" / "rows.sqlite")
    (first, row), (second, other) = table.execute("SELECT key, row FROM kept").fetchall()
    with table:
        table.executemany("UPDATE kept SET row = ? WHERE key = ?", [(other, first), (row, second)])
    table.close()
    with pytest.warns(UserWarning, match="is damaged"):
        np.testing.assert_allclose(extractor.transform(DIGITS[:2]), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", ["text", None, 3, b""])
def test_rows_of_another_kind_are_computed_anew(row, tmp_path, by_row):
    extractor = frozen(tmp_path).fit(DIGITS)
    wanted = extractor.transform(DIGITS[:3])
    table = sqlite3.connect(tmp_path / "sklconv" / "rows.sqlite")
    with table:
        table.execute("UPDATE kept SET row = ?", [row])
    table.close()
    with pytest.warns(UserWarning, match="is damaged"):
        np.testing.assert_allclose(extractor.transform(DIGITS[:3]), wanted, rtol=1e-5, atol=1e-5)


def test_a_file_is_that_of_its_name(tmp_path):
    extractor, folder = frozen(tmp_path).fit(DIGITS), tmp_path / "sklconv" / "features"
    wanted = extractor.transform(DIGITS[:10])
    (mine,) = folder.iterdir()
    extractor.transform(DIGITS[10:20])
    (other,) = set(folder.iterdir()) - {mine}
    other.replace(mine)
    with pytest.warns(UserWarning, match="is damaged"):
        np.testing.assert_array_equal(extractor.transform(DIGITS[:10]), wanted)


@pytest.mark.parametrize("make", [trained, frozen])
def test_a_folder_that_cant_be_used_is_said(make, tmp_path, by_row):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"memory: .*can't be used"):
        features = make(tmp_path / "file").fit(DIGITS, LABELS).transform(DIGITS)
    np.testing.assert_allclose(
        features, make().fit(DIGITS, LABELS).transform(DIGITS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no owners of files")
def test_a_folder_that_others_can_write_to_is_said(tmp_path):
    (tmp_path / "sklconv").mkdir()
    (tmp_path / "sklconv").chmod(0o777)
    for _ in range(3):  # nor is anything read from there in silence
        with pytest.warns(UserWarning, match="can be written to by other users"):
            trained(tmp_path).fit(DIGITS, LABELS)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no owners of files")
def test_a_new_folder_is_private(tmp_path):
    before = os.umask(0)
    try:
        trained(tmp_path / "new").fit(DIGITS, LABELS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "sklconv").stat().st_mode) == 0o700


@pytest.fixture
def unprivileged(tmp_path):
    """Without root's rights, for whom every folder can be written to."""
    if not hasattr(os, "getuid"):
        pytest.skip("there are no owners of files")
    before = os.geteuid()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == before:
            folder.chmod(folder.stat().st_mode | 0o555)
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.fixture
def kept(tmp_path, by_row):
    """A folder that holds the rows of most images, and a trained network; it is read-only."""
    frozen(tmp_path).fit(DIGITS).transform(DIGITS[:80])
    trained(tmp_path).fit(DIGITS, LABELS).transform(DIGITS)
    trained(tmp_path).fit(DIGITS, LABELS).transform(DIGITS)  # imports what reads a network
    paths = [tmp_path / "sklconv", *tmp_path.rglob("sklconv/**/*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield tmp_path
    for path in paths:
        path.chmod(0o755)


def test_a_read_only_folder_is_read(kept, unprivileged):
    assert n_seen(frozen(kept).fit(DIGITS), DIGITS[:80]) == 0
    extractor = trained(kept)
    assert n_trained(extractor) == 0
    assert n_seen(extractor) == 0
    with pytest.warns(UserWarning, match=r"memory: .*can't be used"):
        assert n_seen(frozen(kept).fit(DIGITS)) == 40


def test_threads_train_once(tmp_path):
    extractors = [trained(tmp_path) for _ in range(6)]
    threads = [threading.Thread(target=e.fit, args=(DIGITS, LABELS)) for e in extractors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    n_once = len(TRAINED)
    assert n_trained(trained()) == n_once


KILLED = """
import sys
import numpy as np
from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.layers import Conv
X = np.random.default_rng(0).normal(size=(60, 36)).astype(np.float32)
net = ConvNetClassifier([("conv", Conv(3, 3))], max_epochs=3, random_state=0)
print("ready", flush=True)
for seed in range(1000):
    extractor = ConvFeatureExtractor(net, layer="conv", memory=sys.argv[1], random_state=seed)
    extractor.fit(X, np.arange(60) % 3).transform(X)
"""


def test_a_hit_is_not_unpickled_before_it_is_asked_for(tmp_path):
    trained(tmp_path).fit(DIGITS, LABELS).transform(DIGITS)
    trained(tmp_path).fit(DIGITS, LABELS)  # once in a process it is tried
    wanted, extractor = trained().fit(DIGITS, LABELS), trained(tmp_path).fit(DIGITS, LABELS)
    np.testing.assert_array_equal(extractor.transform(DIGITS), wanted.transform(DIGITS))
    assert "estimator_" not in vars(extractor)
    shutil.rmtree(tmp_path / "sklconv")
    wanted.module_.body.conv.weight.data.mul_(2)
    for one in (pickle.loads(pickle.dumps(extractor)), extractor):
        one.module_.body.conv.weight.data.mul_(2)  # its digest is taken anew
        np.testing.assert_array_equal(one.transform(DIGITS), wanted.transform(DIGITS))


def test_images_that_change_between_fits(tmp_path):
    X = DIGITS.copy()
    for _ in range(3):
        X[0] += 1
        for _ in range(2):
            features = trained(tmp_path).fit_transform(X, LABELS)
            np.testing.assert_array_equal(features, trained().fit_transform(X, LABELS))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing kills so")
def test_a_killed_process_leaves_nothing_broken(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 36)).astype(np.float32)
    for wait in rng.uniform(0.05, 0.6, 3):
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(wait)
        process.kill()
        process.wait()
        process.stdout.close()
    net = ConvNetClassifier([("conv", Conv(3, 3))], max_epochs=3, random_state=0)
    for seed in range(3):
        extractor = ConvFeatureExtractor(net, layer="conv", random_state=seed)
        wanted = extractor.fit_transform(X, np.arange(60) % 3)
        kept = clone(extractor).set_params(memory=tmp_path)
        np.testing.assert_array_equal(kept.fit_transform(X, np.arange(60) % 3), wanted)


@pytest.mark.parametrize("memory", [3, ["folder"], True])
def test_what_memory_may_be(memory):
    with pytest.raises(ValueError, match="memory"):
        trained(memory).fit(DIGITS, LABELS)
