"""The short way of a plain array: it gives and refuses what the long way does."""

import os
import subprocess
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv._images.forms import is_plain_array

X, y = load_digits(return_X_y=True)
X = np.pad(X.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1))).astype(np.float32)  # too large to pad


@pytest.fixture(scope="module")
def classifier():
    return ConvNetClassifier(max_epochs=1, random_state=0).fit(X[:300], y[:300])


@pytest.fixture(params=["predict", "predict_proba", "decision_function", "transform"])
def method(request, classifier):
    if request.param == "transform":
        return ConvFeatureExtractor(FrozenEstimator(classifier)).fit(X[:2]).transform
    return getattr(classifier, request.param)


def long_way(X):
    """The same numbers in a form that is checked in full."""
    return np.asarray(X, dtype=np.float64)


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 300])
def test_both_ways_give_the_same(method, n):
    assert is_plain_array(X[:n])
    assert not is_plain_array(long_way(X[:n]))
    np.testing.assert_array_equal(method(X[:n]), method(long_way(X[:n])))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_forms_of_one_image(method, dtype):
    image = X[:1].astype(dtype)
    expected = method(image)
    for form in (image[:, None], image[..., None], image.reshape(1, -1)):
        np.testing.assert_array_equal(method(form), expected)


def bad_images():
    nan, infinite, too_many = X[:1].copy(), X[:1].copy(), X[:1, :9]
    nan[0, 3, 4] = np.nan
    infinite[0, 9, 9] = -np.inf
    return {
        "NaN": nan,
        "infinity": infinite,
        "another size": too_many,
        "colour": np.zeros((1, 3, 10, 10), np.float32),
        "one image without its batch": X[0],
        "no images": X[:0],
        "five axes": X[:1][:, None, None],
        "complex": X[:1].astype(complex),
    }


@pytest.mark.parametrize("name", bad_images())
def test_both_ways_refuse_the_same(method, name):
    bad = bad_images()[name]
    with pytest.raises(ValueError) as short:
        method(bad)
    if name == "complex":
        return
    with pytest.raises(ValueError) as long:
        method(long_way(bad))
    assert str(short.value) == str(long.value)


def test_large_finite_values_whose_sum_is_not_are_taken(classifier):
    image = np.full((1, 10, 10), 3e38, np.float32)
    with np.errstate(all="ignore"):
        classifier.predict(image)


def test_unfitted():
    with pytest.raises(NotFittedError):
        ConvNetClassifier().predict(X[:1])


def test_names_are_checked_where_there_were_names():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(X.reshape(len(X), -1)).rename(columns=str)
    clf = ConvNetClassifier(max_epochs=1, random_state=0).fit(table[:300], y[:300])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        clf.predict(X[:1])


def test_a_part_left_in_training_mode_by_hand_is_put_back(classifier):
    expected = classifier.predict_proba(X[:1])
    classifier.module_.body.dense.train()
    assert_allclose(classifier.predict_proba(X[:1]), expected)
    assert not any(module.training for module in classifier.module_.modules())


# Scales


SCALES = {
    "bytes": lambda X: X.astype(np.uint8),
    "floats like bytes": lambda X: X,
    "fractions": lambda X: X / 255,
    "float64 fractions": lambda X: X.astype(np.float64) / 255,
    "standardised": lambda X: X / 100 - 1,
    "16 bits": lambda X: (X * 257).astype(np.uint16),
    "up to 16": lambda X: X / 16,
}
PHOTOS = np.random.default_rng(0).integers(0, 256, (300, 20, 20)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "transform"])
@pytest.mark.parametrize(
    ("at_fit", "later"),
    [
        ("bytes", "fractions"),
        ("bytes", "float64 fractions"),
        ("floats like bytes", "fractions"),
        ("16 bits", "fractions"),
        ("fractions", "bytes"),
        ("fractions", "floats like bytes"),
        ("standardised", "bytes"),
        ("standardised", "16 bits"),
    ],
)
def test_pixels_on_another_scale_are_warned_of(at_fit, later, method, n):
    clf = ConvNetClassifier([], max_epochs=1, random_state=0)
    clf.fit(SCALES[at_fit](PHOTOS), np.arange(300) % 2)
    estimator = clf
    if method == "transform":
        estimator = ConvFeatureExtractor(FrozenEstimator(clf)).fit(SCALES[at_fit](PHOTOS[:2]))
    message = "X is on another scale than it was at fit, where its largest value was"
    with pytest.warns(UserWarning, match=message):
        getattr(estimator, method)(SCALES[later](PHOTOS[:n]))


def test_another_scale_is_warned_of_once():
    clf = ConvNetClassifier([], max_epochs=1, random_state=0).fit(PHOTOS, np.arange(300) % 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()  # to Python's own way, which shows a warning once
        for n in (1, 300, 7, 299):
            clf.predict(PHOTOS[:n] / 255)
    assert len(caught) == 1


@pytest.mark.parametrize("n", [1, 300])
@pytest.mark.parametrize(
    ("at_fit", "later"),
    [
        *[(scale, scale) for scale in SCALES],
        ("bytes", "floats like bytes"),
        ("floats like bytes", "bytes"),
        ("fractions", "standardised"),
        ("up to 16", "fractions"),
    ],
)
def test_pixels_on_the_scale_of_fit_are_not_warned_of(at_fit, later, n):
    clf = ConvNetClassifier([], max_epochs=1, random_state=0)
    clf.fit(SCALES[at_fit](PHOTOS), np.arange(300) % 2).predict(SCALES[later](PHOTOS[:n]))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20)),
        np.ones((20, 20)),
        np.full((20, 20), 0.01),
        np.eye(20),  # a mask
        PHOTOS[0] > 99,
        PHOTOS[0] / 10_000,  # blank, but for what resizing has left
        -PHOTOS[0] - 1,
    ],
)
def test_dark_images_are_not_warned_of(image):
    clf = ConvNetClassifier([], max_epochs=1, random_state=0).fit(PHOTOS, np.arange(300) % 2)
    clf.predict(image[None])


def test_a_single_small_dark_image_is_not_warned_of(classifier):
    clf = ConvNetClassifier([], max_epochs=1, random_state=0)
    clf.fit(PHOTOS[:, :8, :8], np.arange(300) % 2).predict(PHOTOS[:1, :8, :8] / 255)


@pytest.mark.parametrize("standardize", [True, False])
def test_networks_that_learn_no_scale_warn_of_none(standardize):
    module = nn.Sequential(nn.Flatten(), nn.Linear(400, 2))
    clf = ConvNetClassifier(module, max_epochs=1, lr=1e-6, standardize=standardize)
    clf.fit(PHOTOS, np.arange(300) % 2)
    with pytest.warns(UserWarning, match="another scale") if standardize else nullcontext():
        clf.predict(PHOTOS / 255)


# Forked children


FORKS = '''
import multiprocessing, os, signal, sys, threading
import numpy as np, torch
from PIL import Image
from sklconv import ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv.layers import Conv, Dense
from sklconv._platform.randomness import seeded_global_states

LIMIT = 100  # seconds after which a child that hangs is ended, and the test with it


class Net(torch.nn.Sequential):
    def __init__(self, image_shape, n_classes):
        n_values = image_shape[0] * image_shape[1] * image_shape[2]
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(n_values, n_classes))


def in_bare_fork(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_process(work):
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(LIMIT)
    child.kill()
    child.join()
    return child.exitcode


def held_by_another_thread(context):
    """Enter a context in a thread that never leaves it."""
    entered = threading.Event()

    def hold():
        with context:
            entered.set()
            threading.Event().wait()

    threading.Thread(target=hold, daemon=True).start()
    entered.wait()


X = np.random.default_rng(0).random((200, 20, 20), np.float32)
y = np.arange(200) % 2
fork = {"os.fork": in_bare_fork, "multiprocessing": in_process}[sys.argv[1]]
'''


def run_forking(script, way):
    # Python 3.12 warns of any fork beside threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS + script, way]
    # Threads that wait busily take each other's time where there are few processors.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 0, done.stderr


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
ways_of_forking = pytest.mark.parametrize("way", ["os.fork", "multiprocessing"])


@needs_fork
@ways_of_forking
def test_a_child_forked_after_parallel_work_computes(way):
    run_forking(
        """
torch.set_num_threads(2)
layers = [("conv", Conv(8, 3)), ("dense", Dense(4))]
clf = ConvNetClassifier(layers, max_epochs=1, random_state=0).fit(X, y)
expected = clf.predict_proba(X)
extractor = ConvFeatureExtractor(torch.nn.Conv2d(1, 8, 3)).fit(X)
features = extractor.transform(X)


def predict():
    np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-4, atol=1e-5)


def transform():
    np.testing.assert_allclose(extractor.transform(X), features, rtol=1e-4, atol=1e-5)


def fit():
    clf.fit(X, y)


def partial_fit():
    clf.partial_fit(X, y)


def watched(work):
    def run():
        assert torch.get_num_threads() == 2  # nothing is changed before it must be
        work()
        assert torch.get_num_threads() == 1

    return run


for work in (predict, transform, fit, partial_fit):
    assert fork(watched(work)) == 0, work
assert torch.get_num_threads() == 2
predict()
""",
        way,
    )


@needs_fork
@ways_of_forking
@pytest.mark.parametrize(
    "context",
    ["seeded_global_states(0)", "sklconv._images.files._loading"],
    ids=["states", "images"],
)
def test_a_child_waits_for_no_lock_of_another_thread(context, way):
    run_forking(
        f"""
import sklconv._images.files

torch.set_num_threads(1)
images = [Image.new("L", (8, 8), shade) for shade in range(20)]
held_by_another_thread({context})


def work():
    network = TorchModule(Net)
    clf = ConvNetClassifier(network, image_shape=(8, 8), max_epochs=1).fit(images, y[:20])
    clf.predict(images)


assert fork(work) == 0
""",
        way,
    )
