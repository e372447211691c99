"""The single images of a grid that was drawn as one."""

import numpy as np


def images_of(im, shape):
    """Return the images, each of ``shape``, in their order, as an array."""
    drawn = im.get_array()
    is_colour = drawn.ndim == 3
    shown = drawn[..., 3] > 0 if is_colour else ~np.ma.getmaskarray(drawn)
    pixels = np.asarray(drawn)[..., :3] if is_colour else np.asarray(drawn)
    blocks = [
        pixels[rows, columns]
        for rows in _runs(shown.any(1))
        for columns in _runs(shown.any(0))
        if shown[rows, columns].all()
    ]
    repeats = len(blocks[0]) // shape[0]
    images = np.stack([block[::repeats, ::repeats] for block in blocks])
    assert images.shape[1:3] == tuple(shape)
    return images


def _runs(flags):
    edges = np.flatnonzero(np.diff([False, *flags, False]))
    return [slice(start, stop) for start, stop in edges.reshape(-1, 2)]
