"""PredictionsDisplay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from .._images import ImagesLike
from .._platform.sklearn import safe_indexing
from ._drawing import (
    BLUE,
    ORANGE,
    characters_per_line,
    check_count,
    draw_grid,
    drawable,
    grid_size,
    new_axes,
    shortened,
)
from ._find_network import find_network

# Longer texts take two lines.
MAX_CHARACTERS = 16


class PredictionsDisplay:
    """Images with their predictions, probabilities and labels.

    Above each image stands the prediction and, if there are any, its probability; a wrong one in
    orange, behind the label: "7 → 2". Of names that are too long for that the middle is left out.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    images : ndarray of shape (n_images, C, H, W)
        The images.
    y_pred : ndarray of shape (n_images,)
        The predicted labels.
    y_true : ndarray of shape (n_images,) or None, default=None
        The labels.
    probabilities : ndarray of shape (n_images,) or None, default=None
        Those of the predicted labels.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        The images, side by side.
    texts_ : ndarray of matplotlib.text.Text of shape (n_images,)
        What stands above them.
    ax_ : matplotlib.axes.Axes
        The axes that all are drawn in.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    sklearn.metrics.ConfusionMatrixDisplay : Which classes are taken for which.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import PredictionsDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X[:1000], y[:1000])
    >>> display = PredictionsDisplay.from_estimator(net, X, y, which="wrong", n_images=9)
    >>> bool((display.y_pred != display.y_true).all())
    True
    >>> plt.show()
    """

    def __init__(
        self,
        images: NDArray[Any],
        y_pred: NDArray[Any],
        *,
        y_true: NDArray[Any] | None = None,
        probabilities: NDArray[Any] | None = None,
    ) -> None:
        self.images = images
        self.y_pred = y_pred
        self.y_true = y_true
        self.probabilities = probabilities

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        y: ArrayLike | None = None,
        *,
        which: Literal["first", "random", "worst", "wrong"] | Sequence[int] = "first",
        n_images: int = 25,
        random_state: int | np.random.RandomState | None = None,
        n_columns: int | None = None,
        ax: Any = None,
        **im_kw: Any,
    ) -> Self:
        """Predict with a fitted model, and draw some of the images.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier`, or a Pipeline or search with a `ConvFeatureExtractor`
            and a classifier behind it.
        X : array-like
            Images in any form that ``predict`` takes; one also without its batch axis.
        y : array-like of shape (n_samples,) or None, default=None
            Their labels; needed by "wrong" and "worst".
        which : {"first", "random", "worst", "wrong"} or array-like of int, default="first"
            Which images: the first or random ones; those whose labels have the lowest
            probabilities, the lowest first; the first that are predicted wrongly; or those of
            these rows. All of X is predicted only where that is needed to choose.
        n_images : int, default=25
            The largest number of images, unless ``which`` says the rows.
        random_state : int, RandomState instance or None, default=None
            Seeds "random".
        n_columns, ax, **im_kw
            As `plot` takes them.

        Returns
        -------
        display : PredictionsDisplay
        """
        check_count("PredictionsDisplay.from_estimator", n_images=n_images)
        found = find_network(estimator)
        X, truth = found.labelled(X, y, compared=True)
        rows, predicted = _choose(found, X, truth, which, n_images, random_state)
        X = safe_indexing(X, rows)
        labels, probabilities = predicted or found.predict(X)
        display = cls(
            found.pictures(X)[:],
            labels,
            y_true=None if truth is None else truth[rows],
            probabilities=_of_labels(probabilities, labels, found.classes),
        )
        return display.plot(ax, n_columns=n_columns, **im_kw)

    def plot(self, ax: Any = None, *, n_columns: int | None = None, **im_kw: Any) -> Self:
        """Draw the images.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        n_columns : int or None, default=None
            Images in a row; None: as many as make it about a square.
        **im_kw
            Keywords of :meth:`~matplotlib.axes.Axes.imshow`.

        Returns
        -------
        self
        """
        images, parts = drawable(self.images), self._parts()
        n, shape = len(images), images.shape[1:3]
        is_long = max(len(_text(*part)) for part in parts) > MAX_CHARACTERS
        n_lines = 1 + (is_long and any(truth is not None for truth, *_ in parts))
        size = grid_size(n, shape, n_columns, side=1.2, n_lines=n_lines)
        self.ax_ = new_axes(ax, size)
        self.figure_ = self.ax_.figure
        self.ax_.set_axis_off()
        if is_long:
            most = characters_per_line(self.ax_, n, shape, n_columns, n_lines)
            texts = [_text(*part, most, between=" →\n") for part in parts]
        else:
            texts = [_text(*part) for part in parts]
        self.im_, self.texts_ = draw_grid(
            self.ax_, images, n_columns=n_columns, labels=texts, **im_kw
        )
        if self.y_true is not None:
            for text, is_right in zip(self.texts_, self.y_pred == self.y_true, strict=True):
                text.set_color(BLUE if is_right else ORANGE)
        return self

    def _parts(self) -> list[tuple[str | None, str, str]]:
        """Return of each image its label where it is another, the predicted one, a probability."""
        truths: list = [None] * len(self.y_pred)
        percents = [""] * len(self.y_pred)
        if self.y_true is not None:
            pairs = zip(self.y_true, self.y_pred, strict=True)
            truths = [None if y == label else str(y) for y, label in pairs]
        if self.probabilities is not None:
            percents = [f"  {probability:.0%}" for probability in self.probabilities]
        return list(zip(truths, map(str, self.y_pred), percents, strict=True))


def _text(truth, name, percent, most=1_000_000, between=" → "):
    """Return what stands above an image, of names short enough for ``most`` a line."""
    predicted = shortened(name, most - len(percent)) + percent
    if truth is None:
        return predicted
    return shortened(truth, most - len(between.rstrip())) + between + predicted


def _choose(found, X, y, which, n_images, random_state):
    """Return the rows to draw and, if all were predicted, their labels and probabilities."""
    n = len(X)
    if not isinstance(which, str) and _are_rows(np.asarray(which)):
        return _rows_of(np.asarray(which), n), None
    if not isinstance(which, str) or which not in ("first", "random", "worst", "wrong"):
        raise ValueError(
            f"which={which!r} is none of 'first', 'random', 'worst', 'wrong' and row numbers"
        )
    if which == "first":
        return np.arange(min(n, n_images)), None
    if which == "random":
        return check_random_state(random_state).permutation(n)[:n_images], None
    if y is None:
        raise ValueError(f"which={which!r} compares with labels: pass y")
    labels, probabilities = found.predict(X)
    if which == "wrong":
        rows = np.flatnonzero(labels != y)[:n_images]
        if not len(rows):
            raise ValueError(f"which='wrong': all of the {n} images are predicted rightly")
    else:
        rows = np.argsort(_true_probabilities(found, y, probabilities), kind="stable")[:n_images]
    return rows, (labels[rows], None if probabilities is None else probabilities[rows])


def _are_rows(which):
    """Whether these are numbers of rows, or a mask, of at least one."""
    n_rows = which.sum() if which.dtype == bool else which.size
    return which.ndim == 1 and which.dtype.kind in "iub" and n_rows > 0


def _rows_of(which, n):
    """Return numbers of rows, or a mask, as rows of ``n`` images."""
    if which.dtype == bool:
        if len(which) != n:
            raise IndexError(f"which: the mask has {len(which)} entries, but X {n} images")
        return np.flatnonzero(which)
    if beyond := [int(row) for row in which if not -n <= row < n]:
        raise IndexError(f"which: X has no row {beyond[0]}; its rows are 0 to {n - 1}")
    return np.arange(n)[which]


def _true_probabilities(found, y, probabilities):
    if probabilities is None:
        raise ValueError(
            f"which='worst' goes by probabilities, which {type(found.head()).__name__} has none "
            "of: take which='wrong', or a classifier with predict_proba, such as "
            "LogisticRegression"
        )
    return _of_labels(probabilities, y, found.classes)


def _of_labels(probabilities, labels, classes):
    """Return the probability of each label; 0 of one that is none of the classes."""
    if probabilities is None:
        return None
    is_class = np.asarray(labels)[:, None] == np.asarray(classes)
    return (probabilities * is_class).sum(1)
