"""What all Displays draw with: axes, images in a grid, colour scales that all can tell apart."""

import numpy as np

# Of Okabe and Ito's colours, which colour-blind eyes tell apart.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#767676"

# Between the images of a grid, as a part of an image's width.
GAP = 0.08


def import_matplotlib():
    """Return `matplotlib.pyplot`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            'Displays are drawn by matplotlib: pip install "sklconv[plot]"'
        ) from None
    return plt


def new_axes(ax=None, size=None):
    """Return ``ax``, or axes in a new figure of ``size``, (width, height) in inches."""
    if ax is not None:
        return ax
    return import_matplotlib().subplots(figsize=size, layout="constrained")[1]


def colour_scale(values, symmetric=None):
    """Return the keywords of `imshow` for numbers that share a scale.

    Blue below zero, white, red above it, if any is negative, or ``symmetric`` says so; else from
    dark to bright.
    """
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if symmetric or (symmetric is None and low < 0):
        high = max(-low, high) or 1.0
        return {"cmap": "RdBu_r", "vmin": -high, "vmax": high}
    return {"cmap": "viridis", "vmin": min(low, 0.0), "vmax": high or 1.0}


def drawable(images):
    """Return images as `imshow` takes them: grey or colour, in [0, 1].

    Bytes go from 0 to 255. Other numbers, unless they are within [0, 1], go from the smallest to
    the largest of all.

    Parameters
    ----------
    images : ndarray of shape (n, C, H, W)
        Of 3 or 4 channels, the first three are red, green and blue; else the mean is drawn.

    Returns
    -------
    ndarray of shape (n, H, W) or (n, H, W, 3)
    """
    low, high = (0, 255) if images.dtype == np.uint8 else (0, 1)
    pixels = images.astype(np.float64)
    if images.dtype != np.uint8 and (pixels.min() < 0 or pixels.max() > 1):
        low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / ((high - low) or 1)
    if pixels.shape[1] in (3, 4):
        return pixels[:, :3].transpose(0, 2, 3, 1)
    return pixels.mean(1)


def draw_image(ax, image, **im_kw):
    """Draw one image, as `drawable` returns it, without ticks; return the artist."""
    ax.set_axis_off()
    return ax.imshow(image, **{"cmap": "gray", "vmin": 0, "vmax": 1, **im_kw})


def grid_shape(n, n_columns=None):
    """Return rows and columns of a grid of ``n`` images: about a square, rather wide than high."""
    n_columns = min(n, n_columns or int(np.ceil(np.sqrt(n))))
    return -(-n // n_columns), n_columns


def grid_size(n, image_shape, n_columns=None, *, side=0.8, text=0.0):
    """Return width and height of a figure in inches, of ``side`` an image and ``text`` above."""
    n_rows, n_columns = grid_shape(n, n_columns)
    height = image_shape[0] / image_shape[1]
    return max(2.5, n_columns * side), max(1.0, n_rows * (side * height + text))


def draw_grid(ax, images, *, n_columns=None, labels=None, text=0.0, **im_kw):
    """Draw images side by side in one axes, which is much faster than an axes each.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Its units are an image's width; the first image's upper left corner is (0, 0).
    images : ndarray of shape (n, H, W) or (n, H, W, 3)
    n_columns : int, default=None
        None: as many as make it about a square.
    labels : list of str, default=None
        A text above each image.
    text : float, default=0.0
        Height of the room for it, in the same units.
    **im_kw
        Of `imshow`, for all images.

    Returns
    -------
    images, texts : ndarray of artists of shape (n,)
    """
    _, n_columns = grid_shape(len(images), n_columns)
    height = images.shape[1] / images.shape[2]
    im_kw = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest", **im_kw}
    drawn, texts = [], []
    for i, image in enumerate(images):
        row, column = divmod(i, n_columns)
        left, top = column * (1 + GAP), row * (height + text + GAP) + text
        extent = (left, left + 1, top + height, top)
        drawn.append(ax.imshow(image, extent=extent, **im_kw))
        if labels is not None:
            at = (left + 0.5, top - GAP / 2)
            texts.append(ax.text(*at, labels[i], ha="center", va="bottom"))
    ax.set_xlim(-GAP, n_columns * (1 + GAP))
    ax.set_ylim(-(-len(images) // n_columns) * (height + text + GAP), -GAP)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return np.array(drawn, dtype=object), np.array(texts, dtype=object)
