"""LayerProbeDisplay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .._images import ImagesLike
from ._drawing import (
    ABOVE,
    COLOURS,
    FONT_SIZE,
    INSIDE,
    LINE,
    MIN_FONT_SIZE,
    literal,
    new_axes,
    part_of_legend,
    shortened,
    slot_size,
)
from ._layer_probe import layer_probe

# How poolings are called, in the order of their colours; callables follow by their names.
POOLINGS = {
    "avg": "mean of each map",
    "flatten": "all values",
    "auto": "vector",
    "max": "maximum of each map",
    "cls": "class token",
}
MARKERS = "osDv^P"

# Of a row of the figure, and of what stands around the rows, in inches; of the width.
ROW, AROUND, WIDTH = 0.22, 2.0, 6.5
# Around the points that are marked, and how far poolings of a layer lie apart, in rows.
RING, APART = 12, 0.5

# Of places for axes, in points: in narrower ones, texts are shorter. Characters of layers' names.
NARROW, SHORT, LONG = 380, 10, 22
XLABELS = ["Cross-validated accuracy, mean and standard deviation", "Accuracy, mean ± std"]


class LayerProbeDisplay:
    """Which layer to tap: accuracy of a linear classifier on each layer of a network.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    probe : Bunch
        As `layer_probe` returns it.

    Attributes
    ----------
    errorbars_ : list of matplotlib.container.ErrorbarContainer
        Mean and standard deviation of the accuracy, a container each pooling.
    best_ : matplotlib.lines.Line2D
        The ring around the best mean; of equals that of the deepest layer.
    own_ : matplotlib.lines.Line2D or None
        The squares around what an extractor takes or, of a classifier, around what goes into its
        last layer; None if that was not probed.
    ax_ : matplotlib.axes.Axes
        The axes, with a row for each layer, the first one on top.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    layer_probe : The numbers.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import LayerProbeDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=1, random_state=0).fit(X[:1000], y[:1000])
    >>> display = LayerProbeDisplay.from_estimator(net, X[1000:], y[1000:], cv=3)
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['conv1', 'pool1', 'conv2', 'pool2', 'flatten', 'dense']
    >>> plt.show()
    """

    def __init__(self, probe: Mapping[str, Any]) -> None:
        self.probe = probe

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        y: ArrayLike,
        *,
        layer: str | int | Sequence[str | int] = "auto",
        pool: str | Callable[[Any], Any] | Sequence[str | Callable[[Any], Any]] = "auto",
        cv: Any = 5,
        verbose: int = 0,
        ax: Any = None,
        **errorbar_kw: Any,
    ) -> Self:
        """Probe the layers of a fitted model, and draw what came out.

        Parameters
        ----------
        estimator, X, y, layer, pool, cv, verbose
            As `layer_probe` takes them.
        ax, **errorbar_kw
            As `plot` takes them.

        Returns
        -------
        display : LayerProbeDisplay
        """
        probe = layer_probe(estimator, X, y, layer=layer, pool=pool, cv=cv, verbose=verbose)
        return cls(probe).plot(ax, **errorbar_kw)

    def plot(self, ax: Any = None, **errorbar_kw: Any) -> Self:
        """Draw the accuracies.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        **errorbar_kw
            Keywords of :meth:`~matplotlib.axes.Axes.errorbar`.

        Returns
        -------
        self
        """
        layers = list(dict.fromkeys(self.probe["layers"]))
        is_new = ax is None
        self.ax_ = ax = new_axes(ax, (WIDTH, AROUND + ROW * len(layers)))
        self.figure_ = ax.figure
        width, _ = slot_size(ax)
        is_narrow = bool(width < NARROW)
        heights = self._draw_poolings(layers, errorbar_kw)
        self._mark(heights, is_narrow)
        ax.set(ylim=(len(layers) - 0.5, -0.5))
        _end_at_one(ax, width)
        ax.set_xlabel(XLABELS[is_narrow])
        legend = ax.legend(**(ABOVE if is_new else INSIDE))
        if not is_new:
            bottom, top = ax.get_ylim()
            ax.set_ylim(bottom, bottom + (top - bottom) / (1 - part_of_legend(ax, legend)))
        _name_rows(ax, [shortened(name, SHORT if is_narrow else LONG) for name in layers])
        return self

    def _draw_poolings(self, layers, errorbar_kw):
        """Draw a container for each pooling; return the height of each mean."""
        pools = self.probe["pools"]
        known = sorted(dict.fromkeys(pools), key=_position)
        of_maps = [pool for pool in known if pool != "auto"]
        rows = np.array([layers.index(name) for name in self.probe["layers"]], dtype=float)
        self.errorbars_ = []
        for number, pool in enumerate(known):
            chosen = [i for i, other in enumerate(pools) if other == pool]
            if pool in of_maps:
                place = of_maps.index(pool) - (len(of_maps) - 1) / 2
                rows[chosen] += APART * place / len(of_maps)
            kw = {
                "fmt": MARKERS[number % len(MARKERS)],
                "color": COLOURS[number % len(COLOURS)],
                "label": literal(_called(pool)),
                "markersize": 4,
                "elinewidth": 1,
                **errorbar_kw,
            }
            means, stds = (self.probe[f"accuracies_{what}"][chosen] for what in ("mean", "std"))
            bars = np.minimum([stds, stds], [means, 1 - means])  # no accuracy is beyond 0 and 1
            self.errorbars_.append(self.ax_.errorbar(means, rows[chosen], xerr=bars, **kw))
        return rows

    def _mark(self, heights, is_narrow):
        """Mark what is best, and what the model itself takes."""
        means = self.probe["accuracies_mean"]
        best = np.flatnonzero(means == np.nanmax(means))[-1]
        ink = self.ax_.xaxis.label.get_color()  # black, or white on dark ground
        ring = {"color": ink, "markerfacecolor": "none", "linestyle": "", "markersize": RING}
        (self.best_,) = self.ax_.plot(
            *(means[best], heights[best]),
            marker="o",
            label=f"best: {self._text(best, is_narrow)}",
            **ring,
        )
        own, self.own_ = np.flatnonzero(self.probe["own"]), None
        if len(own):
            label = "own" if is_narrow else "the model's own"
            label += f": {self._text(own[0], is_narrow)}" if len(own) == 1 else ""
            (self.own_,) = self.ax_.plot(means[own], heights[own], marker="s", label=label, **ring)

    def _text(self, i, is_narrow):
        probe = self.probe
        mean, std = probe["accuracies_mean"][i], probe["accuracies_std"][i]
        if is_narrow:  # its row says which it is
            return f"{mean:.3f} ± {std:.3f}"
        name = literal(shortened(probe["layers"][i], LONG)).lstrip()
        return f"{name}, {_called(probe['pools'][i])}, {mean:.3f} ± {std:.3f}"


def _end_at_one(ax, width):
    """End the axis at accuracies of 1, with room for a ring around them."""
    left, right = ax.get_xlim()
    left = max(left, 0.0)
    if right > 1:
        ax.set_xlim(left, 1 + (1 - left) * RING / width)


def _name_rows(ax, names):
    """Name the rows, or of rows that are too low every second, say."""
    points = slot_size(ax)[1] / abs(np.subtract(*ax.get_ylim()))
    size = float(np.clip(points / LINE, MIN_FONT_SIZE, FONT_SIZE))
    step = max(1, int(np.ceil(size / points)))
    ax.set_yticks(range(0, len(names), step), names[::step], size=size, parse_math=False)
    ax.grid(axis="y", color="0.5", alpha=0.3, linewidth=0.5)
    ax.set_axisbelow(True)


def _position(pool):
    return list(POOLINGS).index(pool) if pool in POOLINGS else len(POOLINGS)


def _called(pool):
    return POOLINGS.get(pool) or getattr(pool, "__name__", str(pool))
