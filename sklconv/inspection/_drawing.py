"""What all Displays draw with: axes, images in a grid, texts, colour scales all can tell apart."""

from numbers import Integral

import numpy as np

from .._platform.sklearn import Interval, validate_parameter_constraints

# Okabe and Ito's colours, which colour-blind eyes tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
BLUE, ORANGE = COLOURS[:2]

# Over an image, values cover so much of it at most.
MAX_OPACITY = 0.7

# Under values, an image is drawn in greys so bright that colours show on its darkest parts.
DARKEST = 0.4

# A legend's place in constrained layout, and in a figure that may have no room above its axes.
ABOVE = {"loc": "lower right", "bbox_to_anchor": (1, 1), "frameon": False}
INSIDE = {"loc": "upper left", "fontsize": "small", "borderaxespad": 0.3}

# Between the images of a grid, as a part of an image's width, which is that many pixels at least.
GAP, MIN_PIXELS = 0.08, 12

# Of a figure, in inches; of text in points, and height and width of a character as parts of it.
MAX_WIDTH, FONT_SIZE, MIN_FONT_SIZE, LINE, CHARACTER = 10.0, 10.0, 5.0, 1.4, 0.65

# Of a text's size, what is left where it is made smaller before it is cut.
SMALLEST = 0.7

# Text above images is cut to be of this size, in points, but to no fewer characters a line.
LEGIBLE, FEWEST = 6.5, 14


def import_matplotlib():
    """Return `matplotlib.pyplot`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            'Displays are drawn by matplotlib: pip install "sklconv[plot]"'
        ) from None
    return plt


def check_count(caller, least=1, **param):
    """Raise unless the value of the parameter is an integer from ``least`` up."""
    constraints = {name: [Interval(Integral, least, None, closed="left")] for name in param}
    validate_parameter_constraints(constraints, param, caller)


def new_axes(ax=None, size=None):
    """Return ``ax``, or axes in a new figure of ``size``, (width, height) in inches."""
    return new_row_of_axes(ax, 1, size)[0]


def new_row_of_axes(ax, n, size, **subplots_kw):
    """Return ``ax``, ``n`` axes, as an array, or axes side by side in a new figure."""
    if ax is None:
        plt = import_matplotlib()
        _, ax = plt.subplots(1, n, figsize=size, layout="constrained", **subplots_kw)
    axes = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(axes) != n:
        count = "one" if n == 1 else n
        raise ValueError(f"ax must be {count} axes here, not {len(axes)}")
    if wrong := [type(one).__name__ for one in axes if not hasattr(one, "transAxes")]:
        raise TypeError(f"ax must be matplotlib axes, not {wrong[0]}")
    return axes


def part_of_legend(ax, legend):
    """Return which part of the axes' height a legend in their upper corner takes, at most 0.7."""
    gaps = FONT_SIZE  # above and below
    height = 72 * legend.get_window_extent().height / ax.figure.dpi + gaps
    return min(0.7, height / slot_size(ax)[1])


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


def draw_over(ax, image, values, label, extent=None, **im_kw):
    """Draw values, more opaque the further from 0, over an image in grey, and their scale.

    Parameters
    ----------
    ax : matplotlib.axes.Axes or None
    image : ndarray of shape (C, H, W)
    values : ndarray of shape (height, width)
    label : list of str
        Of the scale, in parts that may have a line each.
    extent : (left, right, bottom, top), default=None
        Where the values lie, in pixels of the image. None: all over it.
    **im_kw
        Of `imshow`, for the values.

    Returns
    -------
    ax, image, im, colorbar : artists
    """
    ax = new_axes(ax, (4.4, 3.6))
    height, width = image.shape[1:]
    whole = (-0.5, width - 0.5, height - 0.5, -0.5)
    grey = drawable(image[None])[0]
    grey = DARKEST + (1 - DARKEST) * (grey if grey.ndim == 2 else grey.mean(2))
    background = draw_image(ax, grey, extent=whole)
    strength = MAX_OPACITY * np.abs(values) / (np.abs(values).max() or 1)
    scale = colour_scale(values, symmetric=True)
    if values.min() >= 0:
        scale |= {"cmap": "Reds", "vmin": 0}
    im_kw = {**scale, "alpha": strength, **im_kw}
    im = ax.imshow(values, extent=extent or whole, **im_kw)
    ax.set(xlim=whole[:2], ylim=whole[2:])
    colorbar = ax.figure.colorbar(im, ax=ax)
    colorbar.set_label(" ".join(label))
    fit_text(colorbar.ax.yaxis.label, label, slot_size(ax)[1], " ")
    return ax, background, im, colorbar


def grid_shape(n, n_columns=None):
    """Return rows and columns of a grid of ``n`` images.

    Without ``n_columns`` about a square, rather wide than high, and full where that is possible.
    """
    if n_columns is None:
        root = int(np.ceil(np.sqrt(n)))
        wide = range(root, int(1.5 * root) + 1)
        n_columns = next((columns for columns in wide if n % columns == 0), root)
    check_count("plot", n_columns=n_columns)
    n_columns = min(n, n_columns)
    return -(-n // n_columns), n_columns


def grid_size(n, image_shape, n_columns=None, *, side=0.7, n_lines=0, margins=(0.0, 0.0)):
    """Return width and height of a figure in inches.

    Of ``side`` an image, or less where there are many, lines of text above each, and ``margins``
    beside and above all.
    """
    n_rows, n_columns = grid_shape(n, n_columns)
    side = min(side, MAX_WIDTH / n_columns)
    height = side * image_shape[0] / image_shape[1] + n_lines * LINE * FONT_SIZE / 72
    return max(3.0, n_columns * side) + margins[0], n_rows * height + margins[1]


def draw_grid(ax, images, *, n_columns=None, labels=None, **im_kw):
    """Draw images side by side as one, which takes a fraction of the time of an artist each.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    images : ndarray of shape (n, H, W) or (n, H, W, 3)
    n_columns : int, default=None
        As of `grid_shape`.
    labels : list of str, default=None
        A text above each image.
    **im_kw
        Of `imshow`.

    Returns
    -------
    im : AxesImage
        Between the images it is masked or transparent.
    texts : ndarray of Text of shape (n,), or of none
    """
    ax.set_axis_off()
    shape = _, n_columns = grid_shape(len(images), n_columns)
    size, room = _room_for_text(ax, labels, shape, images.shape[1:3]) if labels else (0, 0)
    # Small ones, of which a pixel would be a wide gap, are enlarged.
    repeats = max(1, round(MIN_PIXELS / images.shape[2]))
    images = images.repeat(repeats, axis=1).repeat(repeats, axis=2)
    height, width = images.shape[1:3]
    room = round(room * width)
    mosaic, steps = _mosaic(images, n_columns, room)
    im = ax.imshow(mosaic, **{"cmap": "gray", "vmin": 0, "vmax": 1, **im_kw})
    places = (divmod(i, n_columns) for i in range(len(labels or ())))
    texts = [
        ax.text(
            column * steps[1] + width / 2,
            row * steps[0] + room - height / 25,
            label,
            **{"ha": "center", "va": "bottom", "size": size, "parse_math": False},
        )
        for label, (row, column) in zip(labels or (), places, strict=True)
    ]
    return im, np.array(texts, dtype=object)


def _mosaic(images, n_columns, room):
    """Return the images as one, ``room`` above each, and the steps from one to the next."""
    n, height, width, *channels = images.shape
    n_rows, gap = -(-n // n_columns), max(1, round(GAP * width))
    if channels:  # then what is between is seen through
        images = np.concatenate([images, np.ones((n, height, width, 1))], axis=3)
    steps = height + room + gap, width + gap
    empty = 0.0 if channels else np.nan
    cells = np.full((n_rows * n_columns, *steps, *images.shape[3:]), empty)
    cells[:n, room : room + height, :width] = images
    rows = cells.reshape(n_rows, n_columns, *cells.shape[1:]).swapaxes(1, 2)
    mosaic = rows.reshape(n_rows * steps[0], n_columns * steps[1], *images.shape[3:])
    return mosaic[:-gap, :-gap], steps


def characters_per_line(ax, n, image_shape, n_columns, n_lines):
    """Return how many characters a line above each image of a grid may have, to be legible."""
    width = _cell_width(ax, grid_shape(n, n_columns), image_shape, n_lines, FEWEST)
    return max(FEWEST, int(width / (CHARACTER * LEGIBLE)))


def _room_for_text(ax, labels, shape, image_shape):
    """Return the size at which the longest text fits, in points, and its height in images."""
    lines = [label.split("\n") for label in labels]
    n_lines, longest = max(map(len, lines)), max(len(line) for label in lines for line in label)
    width = _cell_width(ax, shape, image_shape, n_lines, longest)
    size = min(width / (CHARACTER * longest), FONT_SIZE)
    return size, n_lines * LINE * size / width


def _cell_width(ax, shape, image_shape, n_lines, longest):
    """Return the width of an image of a grid in points, with text above that is as wide."""
    width, height = slot_size(ax) / shape[::-1]
    proportions, text = image_shape[0] / image_shape[1], n_lines * LINE
    # As high as images with text of the largest size, or of one that follows the width.
    largest = (height - text * FONT_SIZE) / proportions
    return min(width, max(largest, height / (proportions + text / (CHARACTER * longest))))


def literal(label):
    """Return a label that legends draw as it is: no mathematics, and not left out."""
    label = label.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def shortened(text, most):
    """Return ``text`` with its middle left out where it has more than ``most`` characters.

    Names of classes and layers often differ at their ends.
    """
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def class_title(label):
    """Return what a class is called in a title: a string is a name, and no number."""
    return label if isinstance(label, str) else f"class {label}"


def slot_size(ax):
    """Return width and height, in points, of where axes are, and an image may fill a part."""
    figure = ax.figure.figure
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
    place = ax.get_position(original=True)
    return 72 * np.array(place.size) * ax.figure.bbox.size / figure.dpi


def draw_title(ax, parts, between=", "):
    """Draw a title as wide as the axes' place at most, of parts that may have a line each."""
    title = ax.set_title(between.join(parts), parse_math=False)
    fit_text(title, parts, slot_size(ax)[0], between)


def fit_text(text, parts, room, between):
    """Make a text smaller, part it in lines, then shorten these, to be in ``room`` points."""
    length = _length(text)
    if length <= room:
        return
    text.set_linespacing(1.1)
    size = text.get_size()
    # Widths are rounded to pixels, so that they do not follow sizes quite.
    text.set_size(size * max(SMALLEST, 0.95 * room / length))
    if room / length < SMALLEST:
        lines = [part + between.rstrip() for part in parts[:-1]] + [parts[-1]]
        text.set_text("\n".join(lines))
        most = max(map(len, lines))
        while _length(text) > room and most > 1:
            most -= 1
            text.set_text("\n".join(shortened(line, most) for line in lines))


def _length(text):
    """Return the longer side of a text, also where it is turned, in points."""
    extent = text.get_window_extent()
    return 72 * max(extent.width, extent.height) / text.figure.figure.dpi
