"""ActivationsDisplay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .._images import ImagesLike
from ._drawing import (
    BLUE,
    CHARACTER,
    FONT_SIZE,
    MIN_FONT_SIZE,
    draw_image,
    draw_title,
    drawable,
    new_row_of_axes,
    shortened,
    slot_size,
)
from ._find_network import find_network

# So many bars have room for a name each; of more, so many of the highest are named, if they are
# at least a tenth as high as the highest.
MAX_NAMED, N_HIGHEST = 20, 5

# Longer names are slanted, in a figure that is higher by so many inches, and take so many times
# their size in width and such a part of the axes' place in height.
MAX_UPRIGHT, HIGHER, SLANTED, DEPTH = 3, 0.8, 1.6, 0.35


class ActivationsDisplay:
    """One image's activations, or class probabilities, as bars beside the image.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    activations : ndarray of shape (n_activations,)
        The values.
    classes : array-like of shape (n_activations,) or None, default=None
        The class labels, if the values are their probabilities. Of more than 20, or than there is
        room for, the five highest at most are named.
    image : ndarray of shape (C, H, W) or None, default=None
        The image; None: the bars stand alone.
    layer : str or None, default=None
        The name of the layer that they come from, for the title.

    Attributes
    ----------
    bars_ : matplotlib.container.BarContainer
        The bars.
    im_ : matplotlib.image.AxesImage or None
        The image.
    axes_ : ndarray of matplotlib.axes.Axes
        Those of the image, if there is one, and of the bars.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    FeatureMapsDisplay : Of layers that put out maps.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import ActivationsDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X, y)
    >>> ActivationsDisplay.from_estimator(net, X[0], layer="dense").activations.shape
    (256,)
    >>> plt.show()
    """

    def __init__(
        self,
        activations: NDArray[Any],
        *,
        classes: Sequence[Any] | NDArray[Any] | None = None,
        image: NDArray[Any] | None = None,
        layer: str | None = None,
    ) -> None:
        self.activations = activations
        self.classes = classes
        self.image = image
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        *,
        layer: str | int | list[str | int] | None = None,
        ax: Any = None,
        **bar_kw: Any,
    ) -> Self:
        """Pass one image through a fitted model up to a layer, and draw its activations.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier` or `ConvFeatureExtractor`, or a Pipeline or search with
            one inside, whose steps in front of it are applied first.
        X : array-like
            One image in any form that ``predict`` takes, with or without its batch axis.
        layer : str, int, list of these or None, default=None
            As `ConvFeatureExtractor` takes it, except "auto"; of maps the mean of each is drawn.
            None: an extractor's features; a classifier's probabilities of the classes.
        ax, **bar_kw
            As `plot` takes them.

        Returns
        -------
        display : ActivationsDisplay
        """
        found = find_network(estimator)
        X = found.one_image(X)
        image = found.pictures(X)[0:1][0]
        if layer is None and not found.is_extractor:
            _, probabilities = found.predict(X)
            display = cls(probabilities[0], classes=found.classes, image=image)
        else:
            taps = found.taps(layer)
            features = found.features(found.images(X), taps)
            display = cls(features[0], image=image, layer=", ".join(taps.layers))
        return display.plot(ax, **bar_kw)

    def plot(self, ax: Any = None, **bar_kw: Any) -> Self:
        """Draw the image and the bars.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, pair of these or None, default=None
            Where to draw: the image and the bars, or in one the bars alone. None: in a new figure.
        **bar_kw
            Keywords of :meth:`~matplotlib.axes.Axes.bar`.

        Returns
        -------
        self
        """
        image = None if ax is not None and np.size(ax) == 1 else self.image
        ratios = [1] if image is None else [1, 3]
        names = None if self.classes is None else [str(label) for label in self.classes]
        size = 6.4, 2.2 + HIGHER * (names is not None and _are_long(names))
        self.axes_ = new_row_of_axes(ax, len(ratios), size, width_ratios=ratios)
        bars, self.figure_ = self.axes_[-1], self.axes_[-1].figure
        self.im_ = None
        if image is not None:
            self.im_ = draw_image(self.axes_[0], drawable(image[None])[0])
        n = len(self.activations)
        # No gaps, which would flicker, between more bars than have room for a name each.
        bar_kw = {"width": 0.8 if n <= MAX_NAMED else 1.0, "color": BLUE, **bar_kw}
        self.bars_ = bars.bar(np.arange(n), self.activations, **bar_kw)
        if names is None:
            bars.set(xlabel="Unit", ylabel="Activation")
            draw_title(bars, [self.layer or ""])
            bars.margins(x=0.01)
        else:
            bars.set(xlabel="Class", ylabel="Probability", ylim=(0, 1))
            _name_classes(bars, self.activations, names)
        return self


def _are_long(names):
    return max(map(len, names)) > MAX_UPRIGHT


def _name_classes(ax, heights, names):
    """Name all bars or, of more than have room for a name each, the highest ones."""
    width, height = slot_size(ax)
    is_slanted = _are_long(names)
    taken = SLANTED if is_slanted else CHARACTER * (max(map(len, names)) + 1)
    places, size = range(len(names)), width / (len(names) * taken)
    if len(names) > MAX_NAMED or size < MIN_FONT_SIZE:
        places, size = _highest(heights, gap=FONT_SIZE / size), FONT_SIZE
    style = {"size": min(size, FONT_SIZE), "parse_math": False}
    if is_slanted:
        style |= {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    most = max(8, int(DEPTH * height / (CHARACTER * style["size"] * np.sqrt(0.5))))
    ax.set_xticks(places, [shortened(names[place], most) for place in places], **style)


def _highest(heights, gap):
    """Return the places of the highest bars, from the highest on where they are ``gap`` apart."""
    chosen: list[int] = []
    for place in np.argsort(-heights, kind="stable"):
        is_high = 10 * heights[place] >= np.max(heights)
        if is_high and all(abs(place - other) >= gap for other in chosen):
            chosen.append(int(place))
    return sorted(chosen[:N_HIGHEST])
