"""What ``memory`` saves and costs: ``python -m benchmarks.searches [STUDY ...]``.

heads: a search over layers and an SVC's parameters behind a network that is trained, five folds.
scores: those of a search are the same without memory, with it, and of two processes. frozen: a
search over layers and poolings of EfficientNet-Lite0, five folds. cost: a fit that finds nothing.
kills: a search that is killed at moments spread over it, and started again each time, ends with
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
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
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

# A search that is killed so often goes on from where it was.
KILLS_A_SEARCH = 5

# Seconds after which a search that nobody kills waits for what does not come.
STUCK = 600


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


class Timed(ConvFeatureExtractor):
    """An extractor that adds up the seconds of its fits and transforms."""

    seconds = 0.0

    def fit(self, X, y=None, **params):
        return self._timed(super().fit, X, y, **params)

    def transform(self, X):
        return self._timed(super().transform, X)

    def _timed(self, call, *args, **params):
        started = time.perf_counter()
        try:
            return call(*args, **params)
        finally:
            Timed.seconds += time.perf_counter() - started


def heads(options):
    """Two layers, five C, two gamma, five folds; 10,000 images of MNIST, three epochs."""
    X, y = first_images(options.images)
    net = ConvNetClassifier(TorchModule(Counting), max_epochs=3, random_state=0)
    grid = {"layer": ["8", "5"], "C": [0.1, 1, 10, 100, 1000], "gamma": ["scale", 1e-3]}

    def search(memory):
        Timed.seconds = 0.0
        model = make_pipeline(Timed(net, engine="torch", memory=memory), SVC())
        return timed(GridSearchCV(model, prefixed(grid, "timed"), cv=FOLDS), X, y)

    with tempfile.TemporaryDirectory() as folder:
        first, n_trained, n_passes = counted(search, folder)
        second, *again = counted(search, folder)
    parts = separately(net, grid, X, y)
    rest = Timed.seconds / sum(parts[:2])
    scores = [search.cv_results_["mean_test_score"] for search in (first, second)]
    show("trainings", n_trained / (3 * len(X) * 4 / 5), "5")
    show(
        "passes of an image, a fold and layer", n_passes / (len(X) * 5 * 2), "1, and some to trace"
    )
    show("parts: training, extraction, heads", " + ".join(f"{part:.1f}" for part in parts), "s")
    show("first run, of its parts", first.seconds / sum(parts), f"1.15; {first.seconds:.1f} s")
    bound = f"0.1; {Timed.seconds:.1f} of {second.seconds:.1f} s"
    show("second run's extractor, of the first's training and extraction", rest, bound)
    show("images that passed in the second run", sum(again), "0, but for those that trace")
    show("equal scores", np.array_equal(*scores), "True")


def separately(net, grid, X, y):
    """Return the seconds of all trainings, distinct extractions, and heads."""
    seconds = [0.0, 0.0, 0.0]
    for train, test in FOLDS.split(X, y):
        started = time.perf_counter()
        fitted = ConvFeatureExtractor(net, engine="torch").fit(X[train], y[train])
        seconds[0] += time.perf_counter() - started
        network = FrozenEstimator(fitted.estimator_)
        for layer in grid["layer"]:
            started = time.perf_counter()
            extractor = ConvFeatureExtractor(network, layer=layer, engine="torch")
            parts = [extractor.fit(X[rows]).transform(X[rows]) for rows in (train, test)]
            seconds[1] += time.perf_counter() - started
            started = time.perf_counter()
            for c, gamma in itertools.product(grid["C"], grid["gamma"]):
                SVC(C=c, gamma=gamma).fit(parts[0], y[train]).score(parts[1], y[test])
            seconds[2] += time.perf_counter() - started
    return seconds


def scores(options):
    """The same scores without memory, with it, and with two processes that share it."""
    X, y = first_images(options.images // 5)
    torch.set_num_threads(1)  # as many as each process has
    net = ConvNetClassifier(TorchModule(Counting), max_epochs=1, random_state=0)
    fitted = FrozenEstimator(clone(net).fit(X, y))
    for label, network, bound in (("trained", net, "0"), ("frozen", fitted, "0.002")):
        tables = []
        for has_memory, n_jobs in ((False, 1), (True, 1), (True, 2)):
            with tempfile.TemporaryDirectory() as folder:
                extractor = ConvFeatureExtractor(
                    network, engine="torch", memory=folder if has_memory else None
                )
                grid = prefixed({"layer": ["8", "5"], "C": [1, 10]})
                model = make_pipeline(extractor, SVC())
                search = timed(GridSearchCV(model, grid, cv=FOLDS, n_jobs=n_jobs), X, y)
                keys = [f"split{fold}_test_score" for fold in range(5)]
                tables.append(np.array([search.cv_results_[key] for key in keys]))
        largest = max(np.abs(table - tables[0]).max() for table in tables)
        show(f"{label}: largest difference of a score", largest, bound)


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
            bound = "at most 1" if has_memory else "5"
            what = "passes of an image, a layer and pooling"
            show(f"{label} memory, {seconds[-1]:.1f} s: {what}", n_passes, bound)
        ratios.append(seconds[0] / seconds[1])
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    show("time without memory to that with it", statistics.median(ratios), f"4 or more; {spread}")


def cost(options):
    """60,000 images of MNIST, one epoch: a fit that finds nothing against one without memory."""
    X, y = first_images(6 * options.images)
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
    median = statistics.median(ratios)
    show("time with memory to that without", median, f"1.03 or less; {spread}")


def kills(options):
    """A search of some 30 seconds, killed at moments spread over it; each time it goes on."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, seconds = _search_in_a_process(options.images, folder)
    n_killed, n_ended, same, n_rounds = 0, 0, [], -(-options.kills // KILLS_A_SEARCH)
    for number in range(n_rounds):
        with tempfile.TemporaryDirectory() as folder:
            for kill in range(KILLS_A_SEARCH):
                # The moments of a round lie between those of the one before.
                share = (number + 1) / n_rounds if kill == 0 else 1
                found, _ = _search_in_a_process(
                    options.images, folder, share * seconds / KILLS_A_SEARCH
                )
                n_killed, n_ended = n_killed + (found is None), n_ended + (found is not None)
            found, _ = _search_in_a_process(options.images, folder)
            same.append(found == wanted)
    show("seconds of a search that nobody kills", seconds, "some 30")
    show("kills", n_killed, f"{options.kills}; {n_ended} came too late")
    show("searches that ended with the same scores", f"{sum(same)} of {len(same)}", "all")


def _search_in_a_process(n_images, memory, killed_after=None):
    """Return what a search prints, None if it was killed, and its seconds."""
    command = [sys.executable, "-m", "benchmarks.searches", "--one-search", memory]
    command += ["--images", str(n_images)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()  # it begins
        started = time.perf_counter()
        try:
            found = process.communicate(timeout=killed_after or STUCK)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            if killed_after is None:
                raise
            return None, killed_after
    return found, time.perf_counter() - started


def one_search(options):
    """Print the scores of the search that is killed: twenty trainings, and cheap heads."""
    X, y = first_images(options.images // 2)
    net = ConvNetClassifier(networks.declarative("R1"), max_epochs=3, random_state=0)
    grid = {"layer": ["dense", "pool2", "pool1"], "pool": ["avg", "max"]}
    grid["estimator__lr"] = [1e-3, 2e-3, 3e-3, 4e-3]
    model = make_pipeline(ConvFeatureExtractor(net, memory=options.one_search), GaussianNB())
    # An entry that is broken would be computed anew, with a warning.
    warnings.filterwarnings("error", "memory: ")
    print("begins", flush=True)
    search = GridSearchCV(model, prefixed(grid), cv=5, refit=False, error_score="raise").fit(X, y)
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


def first_images(n):
    """Return so many training images of MNIST, and their labels."""
    X, _, y, _ = load_mnist()
    return X[:n], y[:n]


def counted(search, folder):
    """Return the search, done, and the images that passed in training and at inference."""
    PASSED.update({True: 0, False: 0})
    done = search(folder)
    return done, PASSED[True], PASSED[False]


def show(what, figure, bound):
    """Print a figure beside what it should be."""
    figure = f"{figure:.3g}" if isinstance(figure, float) else figure
    print(f"{what}: {figure}  ({bound})", flush=True)


def prefixed(grid, extractor="convfeatureextractor"):
    """Return the grid with the names of a pipeline's steps."""
    steps = {"C": "svc", "gamma": "svc"}
    return {f"{steps.get(name, extractor)}__{name}": values for name, values in grid.items()}


def timed(search, X, y):
    """Return the search, done, with its ``seconds``."""
    search.set_params(refit=False)
    started = time.perf_counter()
    search.fit(X, y)
    search.seconds = time.perf_counter() - started
    return search


STUDIES = {study.__name__: study for study in (heads, scores, frozen, cost, kills, halving, jobs)}


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.searches", description=__doc__)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), help=", ".join(STUDIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="of MNIST; 10,000")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--one-search", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # regressions that have not converged
    if options.one_search:
        return one_search(options)
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    for study in options.studies:
        print(f"\n{STUDIES[study].__doc__}")
        STUDIES[study](options)
    return None


if __name__ == "__main__":
    main()
