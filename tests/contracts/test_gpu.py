"""What is particular to a GPU; skipped where there is none."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv._images.sources import ImageArray, ImageTensor

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

X, y = load_digits(return_X_y=True)
X = X.reshape(-1, 8, 8).astype(np.uint8)


def test_images_stay_where_they_are_without_a_gpu():
    images = ImageArray(X)
    assert images.on_device("cpu") is images


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_trains_and_predicts_as_on_a_cpu(precision):
    clf = ConvNetClassifier(device="cuda", precision=precision, random_state=0)
    clf.fit(X[:1400], y[:1400])
    assert next(clf.module_.parameters()).is_cuda
    assert clf.score(X[1400:], y[1400:]) > 0.9
    on_cpu = pickle.loads(pickle.dumps(clf))
    on_cpu.module_.cpu()
    tolerance = 1e-3 if precision == "float32" else 0.1
    assert_allclose(clf.predict_proba(X[1400:]), on_cpu.predict_proba(X[1400:]), atol=tolerance)


@needs_gpu
def test_the_whole_training_set_is_moved_once_and_in_chunks_where_it_does_not_fit(monkeypatch):
    images = ImageArray(X[:, None])
    there = images.on_device("cuda")
    assert isinstance(there, ImageTensor)
    assert there.unwrap().is_cuda
    rows = np.array([5, 3, 3, 60])
    for index in (rows, rows[::-1], slice(2, 9)):
        assert torch.equal(there.batch(index).cpu(), images.batch(index))
        np.testing.assert_array_equal(there[index], images[index])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (X.nbytes, X.nbytes))
    assert images.on_device("cuda") is images


@needs_gpu
def test_features_from_a_gpu_and_a_pickle():
    clf = ConvNetClassifier(device="cuda", max_epochs=1, random_state=0).fit(X, y)
    extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer=["conv1", "dense"]).fit(X)
    features = extractor.transform(X)
    assert features.dtype == np.float32
    assert_allclose(pickle.loads(pickle.dumps(extractor)).transform(X), features, atol=1e-4)
