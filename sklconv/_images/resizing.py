"""Parts of images, resized by Pillow to the numbers that the whole would give."""

import numpy as np

from .cropping import reach, rows_come_first

# EXIF orientation to the transposition that undoes it; from 5 on width and height are exchanged.
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def resize_part(image, spans, interpolation, *, orientation=1, scales=(1, 1), offset=(0, 0)):
    """Return what rows and columns keep of an image, resized and then turned upright.

    Parameters
    ----------
    image : PIL image
    spans : (Span, Span)
        Rows and columns of the whole upright image.
    interpolation : {"bilinear", "bicubic"}
    orientation : int
        EXIF's: how ``image`` lies.
    scales, offset : (float, float), (int, int)
        Width and height that a pixel of the whole has in ``image``, and how many columns and
        rows of it ``image`` begins behind.
    """
    from PIL.Image import Transpose

    rows, columns = spans
    size = turned((columns.length, rows.length), orientation)
    edges = zip(_box(spans, orientation), scales * 2, offset * 2, strict=True)
    box = tuple(edge * scale - start for edge, scale, start in edges)
    begins_with_columns = _begins_with_columns(
        (columns.source, rows.source), (columns.resized, rows.resized)
    )
    # A column of the upright image may be a row of the one that is stored.
    columns_first = begins_with_columns == (orientation < 5)
    image = _resize(image, size, box, interpolation, columns_first)
    if orientation in UPRIGHT:
        image = image.transpose(Transpose[UPRIGHT[orientation]])
    return image


def turned(pair, orientation):
    """Exchange width and height where ``orientation`` lays the image on its side."""
    return pair[::-1] if orientation >= 5 else pair


def pad(pixels, spans, fitting):
    """Return pixels (C, H, W) with the border that the spans leave around them."""
    rows, columns = spans
    if not (rows.is_padded or columns.is_padded):
        return pixels
    is_bytes = pixels.dtype == np.uint8
    values = np.array(fitting.fill_values(is_bytes))
    padded = np.empty((len(pixels), rows.target, columns.target), pixels.dtype)
    padded[...] = (np.rint(values) if is_bytes else values)[:, None, None]
    padded[:, rows.kept, columns.kept] = pixels
    return padded


def _box(spans, orientation):
    """Return left, top, right and bottom of what is kept, in the image as it is stored."""
    across, down = turned(spans[::-1], orientation)
    left, right = _edges(across, orientation in (2, 3, 7, 8))
    top, bottom = _edges(down, orientation in (3, 4, 6, 7))
    return left, top, right, bottom


def _edges(span, is_reversed):
    first, last = span.box
    return (span.source - last, span.source - first) if is_reversed else (first, last)


def _resize(image, size, box, interpolation, columns_first):
    """Return the part of ``image`` in ``box``, in fractions of a pixel, as one of ``size``."""
    from PIL.Image import Resampling

    if image.size == size and box == (0, 0, *size):
        return image
    resample = Resampling[interpolation.upper()]
    # The whole would be resized in the order given, and be rounded to bytes in between.
    if _begins_with_columns(image.size, size) != columns_first:
        image, box = _cut_out(image, size, box, interpolation)
    if _begins_with_columns(image.size, size) != columns_first:
        image, box = _resize_one_axis(image, size, box, resample, columns_first)
    return image.resize(size, resample, box=box)


def _begins_with_columns(size, resized):
    """Whether Pillow does: earlier versions always."""
    from PIL import __version__

    is_old = int(__version__.partition(".")[0]) < 13
    return is_old or not rows_come_first(size[::-1], resized[::-1])


def _cut_out(image, size, box, interpolation):
    """Return all that counts for ``box``, whose proportions are more like those of ``size``."""
    left, top, right, bottom = box
    across = reach(left, right, size[0], image.width, interpolation)
    down = reach(top, bottom, size[1], image.height, interpolation)
    x, y = across.start, down.start
    part = image.crop((x, y, across.stop, down.stop))
    return part, (left - x, top - y, right - x, bottom - y)


def _resize_one_axis(image, size, box, resample, columns):
    """Return ``image`` with its columns or its rows resized, and the box that is left."""
    left, top, right, bottom = box
    width, height = image.size
    if columns:
        resized = image.resize((size[0], height), resample, box=(left, 0, right, height))
        return resized, (0, top, size[0], bottom)
    resized = image.resize((width, size[1]), resample, box=(0, top, width, bottom))
    return resized, (left, 0, right, size[1])
