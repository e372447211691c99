"""ActivationsDisplay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .._images import ImagesLike
from ._drawing import BLUE, draw_image, drawable, new_row_of_axes
from ._find_network import find_network
from ._text import draw_title

# So many bars have room for a name each.
MAX_NAMED = 20


class ActivationsDisplay:
    """One image's activations, or class probabilities, as bars beside the image.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    activations : ndarray of shape (n_activations,)
        The values.
    classes : array-like of shape (n_activations,) or None, default=None
        The class labels, if the values are their probabilities.
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
        self.axes_ = new_row_of_axes(ax, len(ratios), (6.4, 2.2), width_ratios=ratios)
        bars, self.figure_ = self.axes_[-1], self.axes_[-1].figure
        self.im_ = None
        if image is not None:
            self.im_ = draw_image(self.axes_[0], drawable(image[None])[0])
        places = np.arange(len(self.activations))
        # No gaps, which would flicker, between more bars than have room for a name each.
        width = 0.8 if len(places) <= MAX_NAMED else 1.0
        self.bars_ = bars.bar(
            places, self.activations, **{"width": width, "color": BLUE, **bar_kw}
        )
        if self.classes is None:
            bars.set(xlabel="Unit", ylabel="Activation")
            draw_title(bars, [self.layer or ""])
            bars.margins(x=0.01)
        else:
            bars.set(xlabel="Class", ylabel="Probability", ylim=(0, 1))
            if len(places) <= MAX_NAMED:
                _name_classes(bars, places, [str(label) for label in self.classes])
        return self


def _name_classes(ax, places, names):
    slanted = max(map(len, names)) > 3
    ax.set_xticks(
        places,
        names,
        parse_math=False,
        rotation=45 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
