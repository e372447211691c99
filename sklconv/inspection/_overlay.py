"""What speaks for a class, drawn over the image."""

import numpy as np

from ._drawing import colour_scale, draw_image, new_axes

# Of the strongest values; what counts for nothing is transparent.
OPACITY = 0.85


def draw_over(ax, picture, values, label, extent=None, **im_kw):
    """Draw ``values``, more opaque the further from 0, over an image in grey, with a scale.

    Parameters
    ----------
    ax : matplotlib.axes.Axes or None
    picture : ndarray of shape (H, W) or (H, W, 3)
        In [0, 1].
    values : ndarray of shape (height, width)
    label : str
        Of the scale.
    extent : (left, right, bottom, top), default=None
        Where the values lie, in pixels of the picture. None: on all of it.
    **im_kw
        Of `imshow`, for the values.

    Returns
    -------
    ax, image, overlay, colorbar : artists
    """
    ax = new_axes(ax, size=(4.6, 3.8))
    height, width = picture.shape[:2]
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    image = draw_image(ax, picture if picture.ndim == 2 else picture.mean(2), extent=whole)
    im_kw = {**colour_scale(values), "interpolation": "nearest", **im_kw}
    strength = np.abs(values) / (np.abs(values).max() or 1)
    overlay = ax.imshow(values, alpha=OPACITY * strength, extent=extent or whole, **im_kw)
    ax.set(xlim=whole[:2], ylim=whole[2:])
    colorbar = ax.figure.colorbar(overlay, ax=ax, label=label)
    return ax, image, overlay, colorbar
