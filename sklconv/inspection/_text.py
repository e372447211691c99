"""Names as they are, and no longer than there is room for."""

import numpy as np

# Of a text's size, what is left where it is made smaller before it is cut.
SMALLEST = 0.7


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
