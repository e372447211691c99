"""Accuracy on real digits with default parameters: ``python -m benchmarks.accuracy``.

Seeds are fixed beforehand, the last epoch counts, nothing is chosen on test data, and every run
is printed. MNIST is read as `sklconv.datasets.load_mnist` reads it.
"""

import argparse
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.datasets import load_mnist

from .reference.systems import SYSTEMS

SEEDS = range(5)

# System of benchmarks.reference, training images, epochs, seeds: a short training and a long one.
TRAININGS = ("r2", 20_000, 2, (0, 1, 2)), ("r5_two_hidden", 50_000, 33, (0,))


def digits():
    """Cross-validate the default network on scikit-learn's digits, and an SVC beside it."""
    X, y = load_digits(return_X_y=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for name, model in [
        *(
            (f"ConvNetClassifier(random_state={s})", ConvNetClassifier(random_state=s))
            for s in SEEDS
        ),
        ("SVC(gamma=.001)", SVC(gamma=0.001)),
    ]:
        started = time.perf_counter()
        score = cross_val_score(model, X, y, cv=folds).mean()
        seconds = (time.perf_counter() - started) / 5
        print(f"digits, 5 folds, {name}: {score:.4f}, {seconds:.2f} s a fold", flush=True)


def mnist(max_epochs):
    """Train the default network on MNIST with five seeds; print the mean test accuracy."""
    X, X_test, y, y_test = load_mnist()
    scores = []
    for seed in SEEDS:
        started = time.perf_counter()
        clf = ConvNetClassifier(max_epochs=max_epochs, random_state=seed).fit(X, y)
        seconds = time.perf_counter() - started
        scores.append(clf.score(X_test, y_test))
        print(
            f"MNIST, {max_epochs} epochs, seed {seed}: {scores[-1]:.4f} ({seconds:.0f} s)",
            flush=True,
        )
    print(f"MNIST, {max_epochs} epochs: mean {np.mean(scores):.4f}", flush=True)


def svc_on_dense():
    """Put an SVC behind the dense activations; print it beside the network it stands on."""
    X, X_test, y, y_test = load_mnist()
    scores, of_nets = [], []
    for seed in SEEDS:
        net = ConvNetClassifier(max_epochs=3, random_state=seed)
        model = make_pipeline(ConvFeatureExtractor(net, layer="dense"), SVC(C=10)).fit(X, y)
        scores.append(model.score(X_test, y_test))
        of_nets.append(FrozenEstimator(model[0].estimator_).score(X_test, y_test))
        print(
            f"MNIST, SVC on dense, seed {seed}: {scores[-1]:.4f}, its net {of_nets[-1]:.4f}",
            flush=True,
        )
    print(f"MNIST, SVC on dense: mean {np.mean(scores):.4f}, its nets {np.mean(of_nets):.4f}")


def rates():
    """Compare the default learning rate with 3e-3, on images of MNIST's training part alone."""
    X, _, y, _ = load_mnist()
    for name, n, max_epochs, seeds in TRAININGS:
        for lr in ("auto", 3e-3):
            scores = []
            for seed in seeds:
                net = SYSTEMS[name].network
                clf = ConvNetClassifier(net, lr=lr, max_epochs=max_epochs, random_state=seed)
                scores.append(clf.fit(X[:n], y[:n]).score(X[50_000:], y[50_000:]))
            shown = ", ".join(f"{score:.4f}" for score in scores)
            print(f"{name}, {n:,} images, {max_epochs} epochs, lr={lr}: {shown}", flush=True)


PARTS = {"digits": digits, "mnist": lambda: mnist(2), "svc": svc_on_dense, "rates": rates}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default: all")
    for part in parser.parse_args().parts or PARTS:
        PARTS[part]()
