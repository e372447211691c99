"""EmbeddingDisplay."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.utils import get_tags

from .._images import ImagesLike
from ._drawing import (
    check_count,
    draw_image,
    draw_title,
    drawable,
    literal,
    new_axes,
    shortened,
    slot_size,
)
from ._find_network import find_network

# Paul Tol's muted ones and black, which colour-blind eyes tell apart
# (https://personal.sron.nl/~pault); further classes have them again with other markers.
COLOURS = (
    *("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee"),
    *("#882255", "#44aa99", "#999933", "#aa4499", "#000000"),
)
MARKERS = "os^DvP*X"

# More than that many classes are named where they lie, not in a legend. Of longer names the middle
# is left out.
MAX_NAMED, MAX_CHARACTERS = 20, 20

# The longer side of an image, as a part of the longer side of the embedding.
IMAGE_SIDE = 1 / 14


class EmbeddingDisplay:
    """Features in two dimensions, coloured by class, with a few of the images at their places.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    embedding : ndarray of shape (n_samples, 2)
        The places.
    y : array-like of shape (n_samples,) or None, default=None
        Labels; None: all points have one colour.
    images : ndarray of shape (n_images, C, H, W) or None, default=None
        Images to draw.
    rows : ndarray of int of shape (n_images,) or None, default=None
        Which of the points they are.
    layer : str or None, default=None
        Where the features come from, for the title.

    Attributes
    ----------
    points_ : list of matplotlib.collections.PathCollection
        The points, ten classes in each, drawn in random order.
    images_ : list of matplotlib.image.AxesImage
        The images, around their places.
    legend_ : matplotlib.legend.Legend or None
        The classes, if there are at most 20 and there is room beside the axes. Else they are named
        at the medians of their points, those with most points first; a name that would cover
        another is left out.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import EmbeddingDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X, y)
    >>> EmbeddingDisplay.from_estimator(net, X, y).embedding.shape
    (1797, 2)
    >>> plt.show()
    """

    def __init__(
        self,
        embedding: NDArray[Any],
        y: ArrayLike | None = None,
        *,
        images: NDArray[Any] | None = None,
        rows: NDArray[np.integer] | None = None,
        layer: str | None = None,
    ) -> None:
        self.embedding = embedding
        self.y = y
        self.images = images
        self.rows = rows
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        y: ArrayLike | None = None,
        *,
        layer: str | int | list[str | int] | None = None,
        reducer: Any = None,
        n_images: int = 25,
        ax: Any = None,
        **scatter_kw: Any,
    ) -> Self:
        """Compute the features of images with a fitted model, reduce and draw them.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier` or `ConvFeatureExtractor`, or a Pipeline or search with
            one inside, whose steps in front of it are applied first.
        X : array-like
            Images in any form that ``predict`` takes.
        y : array-like of shape (n_samples,) or None, default=None
            Their labels.
        layer : str, int, list of these or None, default=None
            As `ConvFeatureExtractor` takes it, except "auto"; of maps the mean of each is taken.
            None: that of the extractor; of a classifier the penultimate one.
        reducer : estimator or None, default=None
            What makes two features of many by ``fit_transform``, such as TSNE or UMAP; a clone
            of it is fitted, with ``y`` if it needs that. None: PCA.
        n_images : int, default=25
            The largest number of images to draw. Those that would cover another are left out.
        ax, **scatter_kw
            As `plot` takes them.

        Returns
        -------
        display : EmbeddingDisplay

        Raises
        ------
        ValueError
            If the reducer does not return two columns.
        """
        check_count("EmbeddingDisplay.from_estimator", least=0, n_images=n_images)
        found = find_network(estimator)
        X, labels = found.labelled(X, y)
        taps = found.taps(layer)
        features = found.features(found.images(X), taps)
        embedding = _reduced(
            PCA(2, random_state=0) if reducer is None else reducer, features, labels
        )
        rows, pictures = _spaced_rows(embedding, n_images), found.pictures(X)
        display = cls(embedding, y, images=pictures[rows], rows=rows, layer=", ".join(taps.layers))
        return display.plot(ax, **scatter_kw)

    def plot(self, ax: Any = None, **scatter_kw: Any) -> Self:
        """Draw the points and the images.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        **scatter_kw
            Keywords of :meth:`~matplotlib.axes.Axes.scatter`.

        Returns
        -------
        self
        """
        self.ax_ = ax = new_axes(ax, (6.4, 5))
        self.figure_ = ax.figure
        y = np.zeros(len(self.embedding), int) if self.y is None else np.asarray(self.y)
        classes, codes = _classes(y)
        self.points_ = self._draw_points(codes, scatter_kw)
        self.images_ = self._draw_images(codes)
        side = _side(self.embedding)
        # Distances mean something, and images keep their proportions.
        ax.set_aspect("equal", adjustable="datalim")
        ax.update_datalim([self.embedding.min(0) - side, self.embedding.max(0) + side])
        ax.margins(0)
        ax.autoscale_view()
        ax.set(xticks=[], yticks=[])
        draw_title(ax, [self.layer or ""])
        self.legend_ = None
        if self.y is not None:
            self._name_classes(classes, codes)
        return self

    def _draw_points(self, codes, scatter_kw):
        n = len(codes)
        style = {"s": np.clip(2e4 / n, 5, 30), "alpha": 0.8 if n <= 2000 else 0.6}
        colours = np.array(COLOURS)[codes % len(COLOURS)]
        groups = codes // len(COLOURS)
        # As pixels: ten thousand shapes make a file of megabytes. Mixed: no class is behind all.
        order = np.random.RandomState(0).permutation(n)
        style |= {"linewidths": 0, "rasterized": True, **scatter_kw}
        points = []
        for group in range(groups.max() + 1):
            rows = order[groups[order] == group]
            places = {"x": self.embedding[rows, 0], "y": self.embedding[rows, 1]}
            style |= {"marker": _marker(group), "c": colours[rows]}
            points.append(self.ax_.scatter(**places, **{**style, **scatter_kw}))
        return points

    def _draw_images(self, codes):
        from matplotlib.patches import Rectangle

        if self.images is None or self.rows is None or not len(self.rows):
            return []
        drawn, size = [], _side(self.embedding) * _proportions(self.images)
        for row, image in zip(self.rows, drawable(self.images), strict=True):
            left, bottom = corner = self.embedding[row] - size / 2
            extent = (left, left + size[0], bottom, bottom + size[1])
            drawn.append(draw_image(self.ax_, image, extent=extent, aspect="auto", zorder=3))
            colour = COLOURS[codes[row] % len(COLOURS)]
            frame = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=1.5, zorder=4)
            self.ax_.add_patch(frame)
        self.ax_.set_axis_on()
        return drawn

    def _name_classes(self, classes, codes):
        names = [shortened(str(label), MAX_CHARACTERS) for label in classes]
        if len(classes) > MAX_NAMED:
            self._name_places(names, codes)
            return
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
        self.legend_ = legend = self.ax_.legend(handles=_handles(names), **beside)
        if self._has_no_room(legend):
            legend.remove()
            self.legend_ = None
            self._name_places(names, codes)

    def _has_no_room(self, legend):
        """Whether the legend is cut off, or covers other axes of the figure."""
        slot_size(self.ax_)  # settles where it is
        box, whole = legend.get_window_extent(), self.figure_.figure.bbox
        others = [ax for ax in self.figure_.axes if ax is not self.ax_]
        is_cut_off = box.x1 > whole.x1 or box.y0 < whole.y0
        return is_cut_off or any(box.overlaps(ax.get_window_extent()) for ax in others)

    def _name_places(self, names, codes):
        """Write each name where its points are, unless it would cover that of a larger class."""
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=2, foreground="white")]
        style = {"size": "small", "parse_math": False, "path_effects": halo}
        style |= {"ha": "center", "va": "center", "zorder": 5}
        slot_size(self.ax_)  # settles where the axes and so the places are
        self.ax_.apply_aspect()
        boxes: list = []
        for code in np.argsort(-np.bincount(codes), kind="stable"):
            place = np.median(self.embedding[codes == code], axis=0)
            text = self.ax_.text(*place, names[code], **style)
            box = text.get_window_extent()
            if any(box.overlaps(other) for other in boxes):
                text.remove()
            else:
                boxes.append(box)


def _classes(y):
    """Return the classes, sorted, and the index of each label's class."""
    try:
        return np.unique(y, return_inverse=True)
    except TypeError:  # None among strings, where some have no label
        return np.unique([str(label) for label in y], return_inverse=True)


def _handles(names):
    """Return what stands in the legend for each class."""
    from matplotlib.lines import Line2D

    return [
        Line2D(
            *([], []),
            linestyle="",
            marker=_marker(code // len(COLOURS)),
            color=COLOURS[code % len(COLOURS)],
            label=literal(name),
        )
        for code, name in enumerate(names)
    ]


def _marker(group):
    return MARKERS[group % len(MARKERS)]


def _reduced(reducer, features, y):
    """Return the features in two columns."""
    name, reducer = type(reducer).__name__, clone(reducer)
    target = y if get_tags(reducer).target_tags.required else None
    embedding = np.asarray(reducer.fit_transform(features, target))
    if embedding.shape != (len(features), 2):
        raise ValueError(
            f"reducer {name} returned an array of shape {embedding.shape}, which is not drawn: "
            "two columns are, mostly by n_components=2"
        )
    return embedding


def _side(embedding):
    """Return the longer side of an image in units of the embedding."""
    return IMAGE_SIDE * (np.ptp(embedding, axis=0).max() or 1.0)


def _proportions(images):
    """Return width and height of images (n, C, H, W), the longer one being 1."""
    height, width = images.shape[2:]
    return np.array([width, height]) / max(width, height)


def _spaced_rows(embedding, n):
    """Return the rows of up to ``n`` points, in random order, whose images do not overlap."""
    rows: list[int] = []
    gap = 1.1 * _side(embedding)
    for row in np.random.RandomState(0).permutation(len(embedding)):
        if len(rows) == n:
            break
        if not rows or np.abs(embedding[rows] - embedding[row]).max(1).min() >= gap:
            rows.append(int(row))
    return np.array(rows, dtype=int)
