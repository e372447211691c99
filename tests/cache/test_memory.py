"""`ConvFeatureExtractor(memory=...)`: what is computed once, and what is not."""

import os
import signal
import sqlite3
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

from sklconv import ConvFeatureExtractor, ConvNetClassifier, TorchModule
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
    monkeypatch.setattr("sklconv._estimators.feature_extractor.WORTH_A_ROW", 0)


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
    ["lr", "seed", "epochs", "module", "X", "dtype", "y", "weights", "validation", "early"],
)
def test_what_training_depends_on(change, tmp_path):
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
        monkeypatch.setattr("sklconv._estimators.feature_extractor.WORTH_A_ROW", 0)
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
    with pytest.warns(UserWarning, match="can be written to by other users"):
        trained(tmp_path).fit(DIGITS, LABELS)


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
