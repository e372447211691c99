"""What ``memory`` saves and costs: ``python -m benchmarks.searches [STUDY ...]``.

heads: a search over layers and an SVC's parameters behind a network that is trained, five folds.
frozen: a search over layers and poolings of EfficientNet-Lite0, five folds. cost: a fit that finds
nothing. kills: a search that is killed at random moments, and started again each time, ends with
the scores of one that nobody kills. halving: halving over epochs against the full grid. jobs:
n_jobs=2 against 1, in processes and in threads. Passes and trainings are counted by the networks
themselves.
"""

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from joblib import parallel_config
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv.datasets import load_mnist

from .race import machine, networks, photo_networks
from .race.worker import ROOT

# Images that passed in training mode, and in evaluation mode.
PASSED = {True: 0, False: 0}
FOLDS = StratifiedKFold(5)


class Counting(nn.Sequential):
    """R1 that counts its images."""

    def __init__(self):
        super().__init__(*networks.plain("R1"))

    def forward(self, x):
        PASSED[self.training] += len(x)
        return super().forward(x)


class CountingLite0(nn.Module):
    """EfficientNet-Lite0 that counts its images."""

    def __init__(self):
        super().__init__()
        self.body = photo_networks.make_lite0()

    def forward(self, x):
        PASSED[self.training] += len(x)
        return self.body(x)


def heads(options):
    """Two layers, five C, two gamma, five folds; 10,000 images of MNIST, three epochs."""
    X, _, y, _ = load_mnist()
    X, y = X[: options.images], y[: options.images]
    net = ConvNetClassifier(TorchModule(Counting), max_epochs=3, random_state=0)
    grid = {"layer": ["8", "5"], "C": [0.1, 1, 10, 100, 1000], "gamma": ["scale", 1e-3]}
    grid["pool"] = ["flatten"]

    def search(memory):
        extractor = ConvFeatureExtractor(net, engine="torch", memory=memory)
        return timed(GridSearchCV(make_pipeline(extractor, SVC()), prefixed(grid), cv=FOLDS), X, y)

    with tempfile.TemporaryDirectory() as folder:
        first = search(folder)
        n_trained = PASSED[True] / (3 * len(X) * 4 / 5)
        second = search(folder)
    parts = separately(net, grid, X, y)
    print(f"trainings: {n_trained:.2f}")
    print(f"first run {first.seconds:.1f} s, of its parts {first.seconds / sum(parts):.3f}")
    print(f"parts: training {parts[0]:.1f} s, extraction {parts[1]:.1f} s, heads {parts[2]:.1f} s")
    rest = (second.seconds - parts[2]) / sum(parts[:2])
    print(f"second run {second.seconds:.1f} s; without heads {rest:.3f} of the first's")
    same = np.array_equal(
        first.cv_results_["mean_test_score"], second.cv_results_["mean_test_score"]
    )
    print(f"equal scores: {same}")


def separately(net, grid, X, y):
    """Return the seconds of all trainings, distinct extractions, and heads."""
    seconds = [0.0, 0.0, 0.0]
    for train, test in FOLDS.split(X, y):
        started = time.perf_counter()
        fitted = ConvFeatureExtractor(net, engine="torch").fit(X[train], y[train])
        seconds[0] += time.perf_counter() - started
        for layer in grid["layer"]:
            started = time.perf_counter()
            extractor = fitted.set_params(layer=layer, pool="flatten")
            extractor._place_taps()
            parts = [extractor.transform(X[rows]) for rows in (train, test)]
            seconds[1] += time.perf_counter() - started
            started = time.perf_counter()
            for c, gamma in itertools.product(grid["C"], grid["gamma"]):
                SVC(C=c, gamma=gamma).fit(parts[0], y[train]).score(parts[1], y[test])
            seconds[2] += time.perf_counter() - started
    return seconds


def frozen(options):
    """Five layers, two poolings, five folds, 100 images at 112 pixels."""
    X = np.random.default_rng(0).integers(0, 256, (100, 3, 112, 112), dtype=np.uint8)
    y = np.arange(100) % 5
    backbone = Backbone(CountingLite0(), mean=[0.5] * 3, std=[0.5] * 3)
    layers = [f"body._blocks.{number}" for number in (3, 5, 8, 11, 15)]
    grid = prefixed({"layer": layers, "pool": ["avg", "max"]})
    ratios = []
    for _ in range(options.rounds):
        seconds = []
        for has_memory in (False, True):
            PASSED[False] = 0
            with tempfile.TemporaryDirectory() as folder:
                extractor = ConvFeatureExtractor(
                    backbone, engine="torch", memory=folder if has_memory else None
                )
                model = make_pipeline(extractor, LogisticRegression(max_iter=50))
                seconds.append(timed(GridSearchCV(model, grid, cv=FOLDS), X, y).seconds)
            n_passes, label = PASSED[False] / len(X) / 10, "with" if has_memory else "without"
            print(f"{label} memory {seconds[-1]:.1f} s; passes of an image: {n_passes:.2f}")
        ratios.append(seconds[0] / seconds[1])
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def cost(options):
    """60,000 images of MNIST, one epoch: a fit that finds nothing against one without memory."""
    X, _, y, _ = load_mnist()
    net = ConvNetClassifier(networks.declarative("R1"), max_epochs=1)
    ratios = []
    for number in range(options.rounds):
        seconds = {}
        for has_memory in random.Random(number).sample((False, True), 2):
            with tempfile.TemporaryDirectory() as folder:
                memory = folder if has_memory else None
                extractor = ConvFeatureExtractor(net, memory=memory, random_state=number)
                started = time.perf_counter()
                extractor.fit(X, y)
                seconds[has_memory] = time.perf_counter() - started
        ratios.append(seconds[True] / seconds[False])
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"time with memory to that without {statistics.median(ratios):.3f} ({spread})")


def kills(options):
    """A search of some 30 seconds, killed at moments spread over it."""
    wanted = _search_in_a_process(None)
    rng, n_killed = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        while n_killed < options.kills:
            with tempfile.TemporaryDirectory(dir=folder) as memory:
                for _ in range(5):
                    n_killed += _search_in_a_process(memory, rng.uniform(3, 30)) is None
                assert _search_in_a_process(memory) == wanted
    print(f"{n_killed} kills, the same scores each time")


def _search_in_a_process(memory, killed_after=None):
    """Return what a search prints; None if it was killed."""
    command = [sys.executable, "-m", "benchmarks.searches", "--one-search", memory or "none"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        return process.communicate(timeout=killed_after)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None


def one_search(memory):
    """Print the scores of the search that is killed."""
    X, _, y, _ = load_mnist()
    X, y = X[:4000], y[:4000]
    net = ConvNetClassifier(networks.declarative("R1"), max_epochs=3, random_state=0)
    grid = prefixed({"layer": ["dense", "pool2", "pool1"], "pool": ["avg", "flatten"]})
    extractor = ConvFeatureExtractor(net, memory=None if memory == "none" else memory)
    model = make_pipeline(extractor, LogisticRegression(max_iter=20))
    search = GridSearchCV(model, grid, cv=3, refit=False).fit(X, y)
    print(search.cv_results_["mean_test_score"].tolist())


def halving(options):
    """Nine networks, up to nine epochs, three folds: the full grid, and halving over epochs."""
    X, X_test, y, y_test = load_mnist()
    X, y = X[: options.images], y[: options.images]
    net = ConvNetClassifier(networks.declarative("R1"), max_epochs=9, random_state=0)
    grid = {"lr": [3e-4, 1e-3, 3e-3], "dense__units": [32, 128, 512]}
    resource = {"resource": "max_epochs", "max_resources": 9, "random_state": 0}
    searches = {
        "full grid": GridSearchCV(net, grid, cv=3),
        "halving": HalvingGridSearchCV(net, grid, cv=3, factor=3, **resource),
    }
    seconds = {}
    for name, search in searches.items():
        seconds[name] = timed(search, X, y).seconds
        chosen = {key: search.best_params_[key] for key in grid}
        score = clone(net).set_params(**chosen).fit(X, y).score(X_test, y_test)
        print(f"{name} {seconds[name]:.1f} s; {chosen}, with nine epochs {score:.2%} of the test")
    print(f"halving takes {seconds['halving'] / seconds['full grid']:.2f} of the full grid's time")


def jobs(options):
    """Four learning rates, three folds, two epochs: n_jobs=1 and 2, and how many threads each."""
    X, _, y, _ = load_mnist()
    X, y = X[: options.images], y[: options.images]
    net = ConvNetClassifier(networks.declarative("R1"), max_epochs=2, random_state=0)
    search = GridSearchCV(net, {"lr": [3e-4, 1e-3, 3e-3, 1e-2]}, cv=3)
    ways = [
        ("loky", 1, 2),
        ("loky", 1, 1),
        ("loky", 2, 1),
        ("threading", 2, 1),
        ("threading", 2, 2),
    ]
    seconds: dict = {way: [] for way in ways}
    for number in range(options.rounds):
        for way in random.Random(number).sample(ways, len(ways)):
            backend, n_jobs, n_threads = way
            torch.set_num_threads(n_threads)
            with parallel_config(backend=backend):
                seconds[way].append(timed(search.set_params(n_jobs=n_jobs), X, y).seconds)
    for (backend, n_jobs, n_threads), values in seconds.items():
        ratios = [value / one for value, one in zip(values, seconds[ways[0]], strict=True)]
        print(
            f"n_jobs={n_jobs}, {backend}, {n_threads} threads each: {min(values):.1f} s; of the "
            f"first's {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def prefixed(grid):
    """Return the grid with the names of a pipeline's steps."""
    steps = {"C": "svc", "gamma": "svc"}
    return {
        f"{steps.get(name, 'convfeatureextractor')}__{name}": values
        for name, values in grid.items()
    }


def timed(search, X, y):
    """Return the search, done, with its ``seconds``."""
    search.set_params(refit=False)
    started = time.perf_counter()
    search.fit(X, y)
    search.seconds = time.perf_counter() - started
    return search


STUDIES = {
    "heads": heads,
    "frozen": frozen,
    "cost": cost,
    "kills": kills,
    "halving": halving,
    "jobs": jobs,
}


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.searches", description=__doc__)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), help=", ".join(STUDIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--images", type=int, default=10_000, help="of all but frozen, cost, kills; 10,000"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--one-search", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # regressions that have not converged
    if options.one_search:
        return one_search(options.one_search)
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    for study in options.studies:
        print(f"\n{STUDIES[study].__doc__}")
        STUDIES[study](options)
    return None


if __name__ == "__main__":
    main()
