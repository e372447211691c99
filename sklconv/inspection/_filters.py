"""FiltersDisplay."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .._activations.taps import resolve_taps
from .._platform.words import by
from ._drawing import colour_scale, draw_grid, draw_title, grid_size, new_axes
from ._find_network import find_network


class FiltersDisplay:
    """The kernels of a convolution, as a grid of images on one colour scale.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    filters : ndarray of shape (n_filters, n_input_maps, height, width)
        The weights.
    layer : str or None, default=None
        The layer's name, for the title.

    Attributes
    ----------
    im_ : matplotlib.image.AxesImage
        The kernels, side by side.
    colorbar_ : matplotlib.colorbar.Colorbar or None
        Of kernels that are not in colour.
    ax_ : matplotlib.axes.Axes
        The axes that all are drawn in.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    FeatureMapsDisplay : What they make of an image.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import FiltersDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X, y)
    >>> FiltersDisplay.from_estimator(net).filters.shape
    (32, 1, 3, 3)
    >>> plt.show()
    """

    def __init__(self, filters: NDArray[Any], *, layer: str | None = None) -> None:
        self.filters = filters
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        layer: str | int | None = None,
        channel: int | None = None,
        n_columns: int | None = None,
        ax: Any = None,
        **im_kw: Any,
    ) -> Self:
        """Draw the kernels of a fitted model's layer.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier` or `ConvFeatureExtractor`, or a Pipeline or search with
            one inside.
        layer : str, int or None, default=None
            A convolution's name or negative index; None: the first one.
        channel, n_columns, ax, **im_kw
            As `plot` takes them.

        Returns
        -------
        display : FiltersDisplay
        """
        name, filters = _kernels(find_network(estimator), layer)
        display = cls(filters, layer=name)
        return display.plot(ax, channel=channel, n_columns=n_columns, **im_kw)

    def plot(
        self,
        ax: Any = None,
        *,
        channel: int | None = None,
        n_columns: int | None = None,
        **im_kw: Any,
    ) -> Self:
        """Draw the kernels.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        channel : int or None, default=None
            The kernels' input map that is drawn. None: all of three, in colour, where grey is a
            weight of zero; else the first one.
        n_columns : int or None, default=None
            Filters in a row; None: as many as make it about a square.
        **im_kw
            Keywords of :meth:`~matplotlib.axes.Axes.imshow`.

        Returns
        -------
        self
        """
        n, n_maps, *size = np.shape(self.filters)
        if channel is not None and not 0 <= channel < n_maps:
            raise ValueError(
                f"channel={channel}: the kernels have the input maps 0 to {n_maps - 1}"
            )
        in_colour = channel is None and n_maps == 3
        self.ax_ = ax = new_axes(ax, grid_size(n, size, n_columns, margins=(1.0, 0.5)))
        self.figure_ = ax.figure
        title = f"{n} filters of {by(size)}"
        if in_colour:
            largest = np.abs(self.filters).max() or 1
            drawn = (0.5 + self.filters / (2 * largest)).transpose(0, 2, 3, 1)
        else:
            drawn = self.filters[:, channel or 0]
            im_kw = {**colour_scale(drawn, symmetric=True), **im_kw}
            title += f", input map {channel or 0}" if n_maps > 1 else ""
        self.im_, _ = draw_grid(ax, drawn, n_columns=n_columns, **im_kw)
        self.colorbar_ = None if in_colour else self.figure_.colorbar(self.im_, ax=ax)
        draw_title(ax, [self.layer or "layer", title], ": ")
        return self


def _kernels(found, layer):
    """Return the layer's name and its kernels as (n_filters, n_input_maps, height, width)."""
    trace = found.trace()
    called = {call.name: call.module for call in trace.calls}
    convolutions = [name for name, module in called.items() if _is_convolution(module)]
    if not convolutions:
        raise ValueError(
            "this network has no layer with kernels: no convolution in two dimensions"
        )
    names = [convolutions[0]]
    if layer is not None:
        names = [tap.module for tap in resolve_taps(layer, trace, None)]
    if len(names) > 1 or names[0] not in convolutions:
        raise ValueError(
            f"layer={layer!r} is not one layer with kernels; these are: {', '.join(convolutions)}"
        )
    module = called[names[0]]
    weights = module.weight.detach().float().cpu().numpy()
    if isinstance(module, nn.ConvTranspose2d):
        weights = weights.swapaxes(0, 1)
    return names[0], weights


def _is_convolution(module):
    return isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
