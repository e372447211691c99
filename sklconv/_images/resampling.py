"""Antialiased resizing of a part of images, as products with matrices of weights."""

import functools

import numpy as np
import torch

from .cropping import rows_come_first

# Columns of a matrix that are computed at a time: the weights of neighbours lie in a band.
BLOCK = 16


def part_needed(x, spans, interpolation):
    """Return the pixels of ``x``, (N, C, H, W), that `resample` wants; a view of it."""
    rows, columns = (span.reach(interpolation) for span in spans)
    return x[:, :, rows, columns]


def as_bytes(x):
    """Make grey levels what bytes can hold, in place."""
    return x.round_().clamp_(0, 255)


def resample(x, spans, interpolation, finish=None):
    """Return what `part_needed` left over, resized to what is kept of the rows and columns.

    The numbers are those of ``torch.nn.functional.interpolate(antialias=True)`` of the whole
    image, which can't begin between two pixels; with `as_bytes` as ``finish``, those of Pillow.

    Parameters
    ----------
    x : torch.Tensor of shape (N, C, H, W)
        Of dtype float32, best contiguous.
    spans : (Span, Span)
    interpolation : {"bilinear", "bicubic"}
    finish : callable or None
        Applied in place to what comes out of each of the two passes.

    Returns
    -------
    torch.Tensor of shape (N, C, rows kept, columns kept)
    """
    rows, columns = spans
    passes = [(_resample_columns, columns), (_resample_rows, rows)]
    if rows_come_first((rows.source, columns.source), (rows.resized, columns.resized)):
        passes.reverse()
    with torch.autocast(x.device.type, enabled=False):  # half of the bits would be lost
        for run, span in passes:
            if span.resized != span.source:
                x = run(x, _blocks(span, interpolation, x.device))
                x = x if finish is None else finish(x)
    return x


def _resample_columns(x, blocks):
    return torch.cat([x[..., part] @ weights.mT for part, weights in blocks], -1)


def _resample_rows(x, blocks):
    return torch.cat([weights @ x[..., part, :] for part, weights in blocks], -2)


@functools.lru_cache(maxsize=16)
def _blocks(span, interpolation, device):
    """Return pairs of a slice of the pixels needed and the matrix that takes them further."""
    # In inference mode the tensors would be of no use to a backward pass.
    with torch.inference_mode(False):
        weights = _weights(span, interpolation)
        blocks = []
        for block in np.split(weights, range(BLOCK, len(weights), BLOCK)):
            used = np.flatnonzero(block.any(axis=0))
            part = slice(int(used[0]), int(used[-1]) + 1)
            matrix = np.ascontiguousarray(block[:, part], dtype=np.float32)
            blocks.append((part, torch.from_numpy(matrix).to(device)))
    return blocks


def _weights(span, interpolation):
    """Return a row for each pixel kept: the weights of the pixels that `part_needed` left."""
    scale = span.source / span.resized
    needed = span.reach(interpolation)
    centers = (np.arange(span.start, span.stop) + 0.5) * scale
    distances = np.arange(needed.start, needed.stop) + 0.5 - centers[:, None]
    weights = KERNELS[interpolation](np.abs(distances) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def _triangle(x):
    return np.maximum(1 - x, 0)


def _cubic(x):
    # Keys' kernel with a = -1/2, which is Pillow's.
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {"bilinear": _triangle, "bicubic": _cubic}
