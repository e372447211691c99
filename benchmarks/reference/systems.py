"""The systems: networks, recipes and authors' figures from the examples, and the images.

What the examples in ``examples/reference`` define stands there only: `System` runs the first
cell of a script.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold, train_test_split

from sklconv.datasets import load_mnist

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "reference"
# An author's figure in fewer epochs than these is not asked for in a third of them.
FEWEST_EPOCHS_TO_CUT = 6


@dataclass(frozen=True)
class Parts:
    """Images and labels, as pairs: to train on, to measure on after each epoch, and others."""

    train: tuple
    watched: tuple
    others: dict[str, tuple]
    figure: str = ""  # the part that the author's figure is about; "" is the one watched


@dataclass(frozen=True)
class System:
    """A network that somebody has published.

    Attributes
    ----------
    words : str
        What kind of network it is.
    script : str
        The example's name, without its ending.
    prefix : str
        Of the names that its first cell defines: ``network``, ``recipe`` and ``author``.
    figure : str
        What the author's figure is.
    split : callable
        Makes `Parts` from a seed.
    """

    words: str
    script: str
    prefix: str
    figure: str
    split: Callable[[int], Parts]

    @cached_property
    def _defined(self):
        return run_first_cell(SCRIPTS / f"{self.script}.py")

    @property
    def network(self):
        return self._defined[f"{self.prefix}network"]

    @property
    def recipe(self):
        return self._defined[f"{self.prefix}recipe"]

    @property
    def author(self):
        return self._defined[f"{self.prefix}author"]

    def parameters(self, variant):
        """The classifier's parameters: the author's ``"recipe"``, or the ``"defaults"``."""
        if variant == "recipe":
            return self.recipe
        return {"max_epochs": max(1, self.recipe["max_epochs"] // 3)}

    def text(self, accuracy):
        """The figure with five digits: an accuracy as such or as the error rate."""
        return f"{1 - accuracy if self.figure == 'test error' else accuracy:.5f}"

    @property
    def is_exempt(self):
        """Whether the defaults need not reach the figure: the author has too few epochs."""
        return self.recipe["max_epochs"] < FEWEST_EPOCHS_TO_CUT

    @property
    def bound(self):
        """The author's accuracy less one standard error."""
        p, n = self.author["accuracy"], self.author["n_images"]
        return p - (p * (1 - p) / n) ** 0.5


def run_first_cell(script):
    """Run a sphinx-gallery script up to its second cell; return what it defines."""
    cells = script.read_text(encoding="utf-8").split("\n# %%\n")
    names = {"__name__": script.stem}
    exec(compile("\n# %%\n".join(cells[:2]), str(script), "exec"), names)
    return names


def _first_50000(seed):
    X, X_test, y, y_test = load_mnist()
    # nolearn's own validation split: the first of five stratified folds.
    rows, held_out = next(StratifiedKFold(5).split(X[:50_000], y[:50_000]))
    return Parts((X[rows], y[rows]), (X[held_out], y[held_out]), {"test": (X_test, y_test)})


def _first_20000(seed):
    X, X_test, y, y_test = load_mnist()
    return Parts((X[:20_000], y[:20_000]), (X_test, y_test), {})


def _standard(seed):
    X, X_test, y, y_test = load_mnist()
    return Parts((X, y), (X_test, y_test), {})


def _of_all_70000(seed):
    X, X_test, y, y_test = load_mnist()
    X, X_test, y, y_test = train_test_split(
        np.concatenate([X, X_test]),
        np.concatenate([y, y_test]),
        test_size=10_000,
        random_state=seed,
    )
    return Parts((X, y), (X_test, y_test), {})


def _third_of_test(seed):
    X, X_test, y, y_test = load_mnist()
    X_test, X_val, y_test, y_val = train_test_split(
        X_test, y_test, test_size=3_300, random_state=seed
    )
    return Parts((X, y), (X_val, y_val), {"test": (X_test, y_test)}, figure="test")


TITLES = {
    "r1": "R1. C. S. Perone, 2015 (nolearn and Lasagne)",
    "r2": "R2. Introduction to convolutional neural networks, 2017 (Keras 2)",
    "r3": "R3. A textbook chapter (TensorFlow 1)",
    "r4": "R4. K. Dillon, 2019 (Keras)",
    "r5": "R5. Introduction to Deep Learning, 2016 (Theano)",
}
_R1 = "plot_r1_feature_extraction"
_R2 = "plot_r2_learnt_filters"
_R3 = "plot_r3_checkpoints"
_R4 = "plot_r4_dense_and_cnn"
_R5 = "plot_r5_softmax_to_convnet"

SYSTEMS = {
    "r1": System("convolutional network", _R1, "", "validation accuracy", _first_50000),
    "r2": System("convolutional network", _R2, "", "test accuracy", _first_20000),
    "r3": System("convolutional network", _R3, "", "test accuracy", _of_all_70000),
    "r4_dense": System("dense network", _R4, "dense_", "test accuracy", _standard),
    "r4_cnn": System("convolutional network", _R4, "cnn_", "test accuracy", _third_of_test),
    "r5_softmax": System("softmax regression", _R5, "softmax_", "test error", _standard),
    "r5_hidden": System("one hidden layer", _R5, "hidden_", "test error", _standard),
    "r5_two_hidden": System("two hidden layers", _R5, "two_hidden_", "test error", _standard),
    "r5_convnet": System("convolutional network", _R5, "convnet_", "test error", _standard),
}
# What takes little time comes first.
ORDER = (
    "r2",
    "r1",
    "r4_dense",
    "r5_softmax",
    "r5_hidden",
    "r5_two_hidden",
    "r4_cnn",
    "r3",
    "r5_convnet",
)
