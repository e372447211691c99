"""What untouched defaults reach on real data."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier


def test_untouched_defaults_on_digits():
    X, y = load_digits(return_X_y=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    # One seed's mean differs by 0.0006 between CPUs, and by 0.002 from another seed's.
    nets = [ConvNetClassifier(random_state=seed) for seed in range(3)]
    scores = [cross_val_score(net, X, y, cv=folds) for net in nets]
    assert np.mean(scores) >= 0.985


def test_an_svm_on_dense_features_of_digits():
    X, y = load_digits(return_X_y=True)
    train, test = np.arange(1200), np.arange(1200, 1797)
    net = ConvNetClassifier(random_state=0)
    model = make_pipeline(ConvFeatureExtractor(net, layer="dense"), SVC(C=10))
    model.fit(X[train], y[train])
    alone = net.fit(X[train], y[train]).score(X[test], y[test])
    assert model.score(X[test], y[test]) >= alone - 0.005


@pytest.fixture(scope="session")  # in a random order others' tests come in between
def mnist_net(mnist):
    """A network with default parameters, trained on all of MNIST for two epochs."""
    X_train, _, y_train, _ = mnist
    return ConvNetClassifier(max_epochs=2, random_state=0).fit(X_train, y_train)


def test_two_epochs_on_mnist(mnist, mnist_net):
    # The mean over five seeds, at least 99.0%, is measured in benchmarks/.
    _, X_test, _, y_test = mnist
    assert mnist_net.score(X_test, y_test) >= 0.988


def test_an_svm_on_dense_features_of_mnist(mnist, mnist_net):
    X_train, X_test, y_train, y_test = mnist
    frozen = FrozenEstimator(mnist_net)
    model = make_pipeline(ConvFeatureExtractor(frozen, layer="dense"), SVC(C=10))
    # From a sixth of the network's rows an SVM loses 0.001 to 0.003, by how bits are rounded.
    model.fit(X_train[:30_000], y_train[:30_000])
    assert model.score(X_test, y_test) >= mnist_net.score(X_test, y_test) - 0.002
