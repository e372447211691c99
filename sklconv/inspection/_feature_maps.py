"""FeatureMapsDisplay."""

from __future__ import annotations

from typing import Any, Self

from numpy.typing import NDArray

from .._activations.taps import layer_names
from .._images import ImagesLike
from .._platform.words import by
from ._drawing import colour_scale, draw_grid, draw_title, grid_size, new_axes
from ._find_network import find_network

# Of smaller maps, little can be seen.
MIN_SIDE = 4


class FeatureMapsDisplay:
    """What a layer makes of one image: its feature maps, as a grid on one colour scale.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    feature_maps : ndarray of shape (n_maps, height, width)
        The activations.
    layer : str or None, default=None
        The layer's name, for the title.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        The maps, side by side.
    colorbar_ : matplotlib.colorbar.Colorbar
        Their scale: from zero up or, where some are negative, as far below zero as above.
    ax_ : matplotlib.axes.Axes
        The axes that all are drawn in.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    FiltersDisplay : The kernels that make them.
    ActivationsDisplay : Of layers that put out a vector.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import FeatureMapsDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X, y)
    >>> FeatureMapsDisplay.from_estimator(net, X[0], layer="conv1").feature_maps.shape
    (32, 8, 8)
    >>> plt.show()
    """

    def __init__(self, feature_maps: NDArray[Any], *, layer: str | None = None) -> None:
        self.feature_maps = feature_maps
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        *,
        layer: str | int | None = None,
        n_columns: int | None = None,
        ax: Any = None,
        **im_kw: Any,
    ) -> Self:
        """Pass one image through a fitted model up to a layer, and draw its maps.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier` or `ConvFeatureExtractor`, or a Pipeline or search with
            one inside, whose steps in front of it are applied first.
        X : array-like
            One image in any form that ``predict`` takes, with or without its batch axis.
        layer : str, int or None, default=None
            A layer's name or negative index. None: the last one with maps of at least 4×4 pixels
            or, without any, of more than one pixel.
        n_columns, ax, **im_kw
            As `plot` takes them.

        Returns
        -------
        display : FeatureMapsDisplay
        """
        found = find_network(estimator)
        images = found.images(found.one_image(X))
        taps, shape = maps_tap(found, layer)
        display = cls(found.features(images, taps).reshape(shape), layer=taps.layers[0])
        return display.plot(ax, n_columns=n_columns, **im_kw)

    def plot(self, ax: Any = None, *, n_columns: int | None = None, **im_kw: Any) -> Self:
        """Draw the maps.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        n_columns : int or None, default=None
            Maps in a row; None: as many as make it about a square.
        **im_kw
            Keywords of :meth:`~matplotlib.axes.Axes.imshow`.

        Returns
        -------
        self
        """
        maps = self.feature_maps
        n, *size = maps.shape
        self.ax_ = ax = new_axes(ax, grid_size(n, size, n_columns, margins=(1.0, 0.5)))
        self.figure_ = ax.figure
        im_kw = {**colour_scale(maps), **im_kw}
        self.im_, _ = draw_grid(ax, maps, n_columns=n_columns, **im_kw)
        self.colorbar_ = self.figure_.colorbar(self.im_, ax=ax)
        draw_title(ax, [self.layer or "layer", f"{n} maps of {by(size)}"], ": ")
        return self


def maps_tap(found, layer, deepest=None):
    """Return the `TapSet` of one layer with maps, and the maps' shape, (C, H, W).

    None is the last one with maps of at least 4×4 pixels, or else of more than one, that runs no
    later than ``deepest``, a `Tap` or None.
    """
    trace = found.trace()
    shapes = {call.name: call.output.shape[1:] for call in trace.calls}  # of the last calls
    names = layer_names(trace.calls)
    if deepest is not None and deepest.module:
        names = names[: names.index(deepest.module) + 1]
    with_maps = [name for name in names if len(shapes[name]) == 3]
    if not with_maps:
        raise ValueError("this network has no layer that puts out feature maps")
    if layer is None:
        layer = _last_wide(with_maps, shapes)
    taps = found.taps(layer, "flatten", trace)
    shape = taps.tapped[0].reading.shape
    if len(taps.tapped) > 1 or len(shape) != 3:
        raise ValueError(
            f"layer={layer!r} is not one layer that puts out feature maps; these are: "
            f"{', '.join(with_maps)}"
        )
    return taps, shape


def _last_wide(names, shapes):
    """Return the last layer whose maps are wide enough to look at, or else wider than a pixel."""
    for least in (MIN_SIDE, 2, 1):
        # Channels may be any of the three axes.
        if wide := [name for name in names if sum(n >= least for n in shapes[name]) > 1]:
            return wide[-1]
    return names[-1]
