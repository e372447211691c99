"""ConfidenceDisplay."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._images import ImagesLike
from ._drawing import ABOVE, BLUE, INSIDE, ORANGE, check_count, new_axes, part_of_legend
from ._find_network import find_network


class ConfidenceDisplay:
    """Histogram of the highest probability, of right predictions against wrong ones.

    Images are counted on a log axis, on which a few mistakes stay visible beside thousands of
    right predictions.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    confidences : ndarray of shape (n_samples,)
        The highest probability of each image.
    is_right : ndarray of bool of shape (n_samples,)
        Whether the prediction is its label.
    n_classes : int, default=2
        Among so many classes, the highest probability is at least ``1 / n_classes``, where the
        axis begins.

    Attributes
    ----------
    right_, wrong_ : matplotlib.patches.StepPatch
        The histograms.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    sklearn.calibration.CalibrationDisplay : Whether probabilities are as frequent as they say.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import ConfidenceDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X[:1000], y[:1000])
    >>> display = ConfidenceDisplay.from_estimator(net, X[1000:], y[1000:])
    >>> display.confidences.shape
    (797,)
    >>> plt.show()
    """

    def __init__(
        self, confidences: NDArray[Any], is_right: NDArray[np.bool_], *, n_classes: int = 2
    ) -> None:
        self.confidences = confidences
        self.is_right = is_right
        self.n_classes = n_classes

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        y: ArrayLike,
        *,
        bins: int = 20,
        ax: Any = None,
        **stairs_kw: Any,
    ) -> Self:
        """Predict with a fitted model, compare with labels, and draw.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier`, or a Pipeline or search with a `ConvFeatureExtractor`
            and a classifier with probabilities behind it.
        X : array-like
            Images in any form that ``predict`` takes; one also without its batch axis.
        y : array-like of shape (n_samples,)
            Their labels.
        bins, ax, **stairs_kw
            As `plot` takes them.

        Returns
        -------
        display : ConfidenceDisplay

        Raises
        ------
        ValueError
            If the classifier has no probabilities, or y is None or not of its classes' type.
        """
        found = find_network(estimator)
        head = found.head()
        if not hasattr(head, "predict_proba"):
            name = type(head).__name__
            raise ValueError(
                f"{name} has no predict_proba: a classifier with probabilities would do, such as "
                f"LogisticRegression or CalibratedClassifierCV({name}(), ensemble=False)"
            )
        if y is None:
            raise ValueError("ConfidenceDisplay compares with labels: pass y")
        X, y = found.labelled(X, y, compared=True)
        labels, probabilities = found.predict(X)
        display = cls(probabilities.max(1), labels == y, n_classes=probabilities.shape[1])
        return display.plot(ax, bins=bins, **stairs_kw)

    def plot(self, ax: Any = None, *, bins: int = 20, **stairs_kw: Any) -> Self:
        """Draw the histograms.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        bins : int, default=20
            Number of bins of equal width.
        **stairs_kw
            Keywords of :meth:`~matplotlib.axes.Axes.stairs`, for both histograms.

        Returns
        -------
        self
        """
        check_count("ConfidenceDisplay.plot", bins=bins)
        is_new = ax is None
        self.ax_ = ax = new_axes(ax, (5, 3.4))
        self.figure_ = ax.figure
        edges = np.linspace(1 / self.n_classes, 1, bins + 1)
        # Float32 sums can end a little beyond 1, or below the least.
        confidences = np.clip(self.confidences, edges[0], edges[-1])
        drawn, highest = [], 1
        parts = (("right", self.is_right, BLUE), ("wrong", ~self.is_right, ORANGE))
        for name, rows, colour in parts:
            counts, _ = np.histogram(confidences[rows], edges)
            highest = max(highest, counts.max())
            label = f"{name} ({rows.sum():,})"
            style = {"fill": True, "edgecolor": colour, "linewidth": 1.5, "label": label}
            face = {"facecolor": (colour, 0.35)}
            drawn.append(ax.stairs(counts, edges, **{**style, **face, **stairs_kw}))
        self.right_, self.wrong_ = drawn
        ax.set_yscale("log")
        # One image stands half a decade above the axis.
        ax.set(xlim=edges[[0, -1]], ylim=(0.5, 2 * highest))
        ax.set(xlabel="Highest probability", ylabel="Images")
        _draw_legend(ax, is_new)
        return self


def _draw_legend(ax, is_new):
    """Draw the legend above the histograms, of which others' axes may have to show less."""
    legend = ax.legend(title="Predicted", **(ABOVE | {"ncols": 2} if is_new else INSIDE))
    if not is_new:
        bottom, top = ax.get_ylim()
        ax.set_ylim(top=bottom * (top / bottom) ** (1 / (1 - part_of_legend(ax, legend))))
