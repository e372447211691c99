"""TrainingHistoryDisplay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np

from .._platform.sklearn import StrOptions, validate_parameter_constraints
from ._drawing import ABOVE, COLOURS, import_matplotlib, literal, new_row_of_axes
from ._find_network import find_network

METRICS = ("loss", "accuracy")
STYLES = {
    "train": {"linestyle": "--", "markerfacecolor": "none"},
    "valid": {"linestyle": "-"},
}


class TrainingHistoryDisplay:
    """Loss and accuracy by epoch.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    history : list of dict
        One dict per epoch, as in ``history_`` of `ConvNetClassifier`.
    name : str or None, default=None
        Of the model, for the legend.

    Attributes
    ----------
    lines_ : list of matplotlib.lines.Line2D
        The curves: loss, accuracy, of each those of training (dashed) and validation (solid). A
        point without neighbours has a marker.
    zeros_ : list of matplotlib.lines.Line2D
        Triangles at the bottom edge of a logarithmic axis, where a curve is 0.
    axes_ : ndarray of matplotlib.axes.Axes
        The axes of each metric.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    sklearn.model_selection.LearningCurveDisplay : Scores by the number of images.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import TrainingHistoryDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=3, early_stopping=True, random_state=0).fit(X, y)
    >>> display = TrainingHistoryDisplay.from_estimator(net)
    >>> [line.get_label() for line in display.lines_]
    ['train', 'valid', 'train', 'valid']

    Several models, and the error on a logarithmic axis:

    >>> _, ax = plt.subplots()
    >>> for lr in [0.001, 0.003]:
    ...     net.set_params(lr=lr).fit(X, y)  # doctest: +ELLIPSIS
    ...     display = TrainingHistoryDisplay.from_estimator(
    ...         net, scale="log", name=f"lr={lr}", ax=ax)
    ConvNetClassifier(...)
    ConvNetClassifier(...)
    >>> plt.show()
    """

    def __init__(self, history: Sequence[dict[str, Any]], *, name: str | None = None) -> None:
        self.history = history
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        metric: Literal["loss", "accuracy"] | None = None,
        split: Literal["auto", "both", "train", "valid"] = "auto",
        scale: Literal["linear", "log"] = "linear",
        name: str | None = None,
        ax: Any = None,
        **line_kw: Any,
    ) -> Self:
        """Draw how a fitted model was trained.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier`, a `ConvFeatureExtractor` that holds one, or a Pipeline
            or search with one of these inside.
        metric, split, scale, ax, **line_kw
            As `plot` takes them.
        name : str or None, default=None
            Of the model, for the legend.

        Returns
        -------
        display : TrainingHistoryDisplay
        """
        found = find_network(estimator).estimator
        trained = getattr(found, "estimator_", found)
        if not hasattr(trained, "history_"):
            raise ValueError(
                f"this {type(found).__name__} trained no network, so there is no history: pass a "
                "ConvNetClassifier, or an extractor that holds one"
            )
        display = cls(trained.history_, name=name)
        return display.plot(ax, metric=metric, split=split, scale=scale, **line_kw)

    def plot(
        self,
        ax: Any = None,
        *,
        metric: Literal["loss", "accuracy"] | None = None,
        split: Literal["auto", "both", "train", "valid"] = "auto",
        scale: Literal["linear", "log"] = "linear",
        name: str | None = None,
        **line_kw: Any,
    ) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, pair of these or None, default=None
            Where to draw, perhaps beside the curves of other models. None: in a new figure.
        metric : {"loss", "accuracy"} or None, default=None
            What is drawn. None: both, side by side; or the accuracy, where ``ax`` is one axes.
        split : {"auto", "both", "train", "valid"}, default="auto"
            Of which data. "auto": of both, if there were data to validate on; else of training.
        scale : {"linear", "log"}, default="linear"
            Of the vertical axis. "log": the error, 1 − accuracy, takes the accuracy's place.
        name : str or None, default=None
            Of the model, for the legend; None: the display's.
        **line_kw
            Keywords of :meth:`~matplotlib.axes.Axes.plot`.

        Returns
        -------
        self
        """
        _check(metric, split, scale)
        if metric is None and ax is not None and np.size(ax) == 1:
            metric = "accuracy"
        metrics = METRICS if metric is None else (metric,)
        splits = self._splits(split)
        name = self.name if name is None else name
        self.axes_ = new_row_of_axes(ax, len(metrics), (3.3 * len(metrics), 2.7))
        self.figure_ = self.axes_[0].figure
        self.lines_: list[Any] = []
        self.zeros_: list[Any] = []
        for axes, drawn in zip(self.axes_, metrics, strict=True):
            self._draw_metric(axes, drawn, splits, scale, name, line_kw)
            _finish(axes, drawn, scale)
            # Above the axes, unless these are of a figure that may have no room there.
            n_columns = len(splits) if name is None else 1
            axes.legend(**({"ncols": n_columns, **ABOVE} if ax is None else {}))
        return self

    def _draw_metric(self, ax, metric, splits, scale, name, line_kw):
        colour = COLOURS[len({line.get_color() for line in ax.lines}) % len(COLOURS)]
        curves = [self._curve(part, metric, scale) for part in splits]
        for part, (epochs, values) in zip(splits, curves, strict=True):
            label = part if name is None else literal(f"{name}, {part}")
            kw = {"color": colour, **STYLES[part], "label": label, **line_kw}
            there = np.where(values > 0, values, np.nan) if scale == "log" else values
            self.lines_ += _draw_curve(ax, epochs, there, kw)
        if scale == "log":
            self.zeros_ += _draw_zeros(curves, self.lines_[-len(splits) :])

    def _splits(self, split):
        validated = any(row["valid_loss"] is not None for row in self.history)
        if split in ("both", "valid") and not validated:
            raise ValueError(
                f"split={split!r}: there were no data to validate on. Pass X_val and y_val to "
                "fit, or set early_stopping=True, which holds some out"
            )
        if split == "auto":
            split = "both" if validated else "train"
        return ["train", "valid"] if split == "both" else [split]

    def _curve(self, part, metric, scale):
        epochs = np.array([row["epoch"] for row in self.history])
        values = np.array([row[f"{part}_{metric}"] for row in self.history], dtype=float)
        return epochs, 1 - values if (metric, scale) == ("accuracy", "log") else values


def _check(metric, split, scale):
    constraints = {
        "metric": [StrOptions(set(METRICS)), None],
        "split": [StrOptions({"auto", "both", "train", "valid"})],
        "scale": [StrOptions({"linear", "log"})],
    }
    params = {"metric": metric, "split": split, "scale": scale}
    validate_parameter_constraints(constraints, params, "TrainingHistoryDisplay.plot")


def _draw_curve(ax, epochs, values, line_kw):
    """Draw a curve, and markers where no line would show because the neighbours are missing."""
    there = np.isfinite(values)
    alone = there & ~np.r_[False, there[:-1]] & ~np.r_[there[1:], False]
    if alone.any():
        line_kw = {"marker": "o", "markevery": np.flatnonzero(alone).tolist(), **line_kw}
    return ax.plot(epochs, values, **line_kw)


def _draw_zeros(curves, lines):
    """Draw where curves are 0, for which a logarithmic axis has no place but its end."""
    drawn = []
    for (epochs, values), line in zip(curves, lines, strict=True):
        ax, epochs = line.axes, epochs[values == 0]
        if len(epochs):
            is_named = "zero" in [other.get_label() for other in ax.lines]
            style = {"marker": "v", "linestyle": "", "clip_on": False, "zorder": 3}
            style |= {"color": line.get_color(), "label": "_zero" if is_named else "zero"}
            style |= {"markerfacecolor": line.get_markerfacecolor()}
            drawn += ax.plot(epochs, 0 * epochs, transform=ax.get_xaxis_transform(), **style)
    return drawn


def _finish(ax, metric, scale):
    plt = import_matplotlib()
    shown = "error" if (metric, scale) == ("accuracy", "log") else metric
    ax.set(xlabel="Epoch", ylabel=shown.capitalize(), yscale=scale)
    if scale == "log" and not (ax.dataLim.minposy < np.inf):
        ax.set_ylim(1e-3, 1, auto=True)  # there is nothing to go by
    # Of one epoch, one tick; by default two are the fewest, one of them between epochs.
    ax.xaxis.set_major_locator(plt.MaxNLocator(integer=True, min_n_ticks=1))
