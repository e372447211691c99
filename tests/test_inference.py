"""The short way of a plain array: it gives and refuses what the long way does."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv._images import is_plain_array

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
