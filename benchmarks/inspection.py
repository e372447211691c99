"""OcclusionDisplay beside one pass of the same images: ``python -m benchmarks.inspection``.

A digit of 28 × 28 pixels through the default network and an SVC, a patch of 4 pixels hidden at 169
positions, 2 pixels apart; once with drawing, and once drawing alone. The pass is
``decision_function`` of all the occluded images, ready in an array. Turns alternate; a ratio is
that of neighbouring turns.
"""

import argparse
import statistics
import time

import matplotlib
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.datasets import load_mnist
from sklconv.inspection import OcclusionDisplay

PATCH, STRIDE = 4, 2
TO_REACH = 2


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.inspection", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--n-train", type=int, default=5_000, help="digits to train on")
    options = parser.parse_args()
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    X, X_test, y, _ = load_mnist()
    X, y = X[: options.n_train], y[: options.n_train]
    network = ConvNetClassifier(max_epochs=1, random_state=0)
    model = make_pipeline(ConvFeatureExtractor(network), SVC()).fit(X, y)
    image = X_test[0]
    images = occluded(image)

    def show():
        axes = Figure().subplots()
        params = {"patch_size": PATCH, "stride": STRIDE, "ax": axes}
        return OcclusionDisplay.from_estimator(model, image, **params)

    display = show()
    calls = {
        "one pass": lambda: model.decision_function(images),
        "display": show,
        "of that, drawing": lambda: display.plot(Figure().subplots()),
    }
    turns = [[seconds(call) for call in calls.values()] for _ in range(options.rounds + 2)][2:]
    print(f"{len(images)} occluded images; ratios to one pass, to reach: {TO_REACH}")
    for name, times in zip(calls, zip(*turns, strict=True), strict=True):
        ratios = sorted(time / turn[0] for time, turn in zip(times, turns, strict=True))
        print(
            f"{name:18}{statistics.median(times):8.4f} s{statistics.median(ratios):7.2f}"
            f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def occluded(image):
    """Return copies of ``image``, a patch of each filled with its mean."""
    starts = range(0, len(image) - PATCH + 1, STRIDE)
    corners = [(top, left) for top in starts for left in starts]
    images = np.repeat(image[None], len(corners), axis=0)
    for copy, (top, left) in zip(images, corners, strict=True):
        copy[top : top + PATCH, left : left + PATCH] = round(image.mean())
    return images


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
