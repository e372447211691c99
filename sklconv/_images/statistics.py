"""Mean and standard deviation of each channel."""

import math

import numpy as np
import torch

from .sources import CACHE_BYTES

# Of a lazy source, such as files, at most this many images are read for the statistics.
MAX_LAZY_SUMMED = 1000


def channel_statistics(images):
    """Return each channel's mean and standard deviation, and the largest absolute value.

    Two lists and a number. The standard deviation of a constant channel is 1.
    """
    if images.lazy and len(images) > MAX_LAZY_SUMMED:
        spread = np.linspace(0, len(images) - 1, MAX_LAZY_SUMMED).astype(int)
        images = images.take(spread)
    channels = images.shape[1]
    n_values = math.prod(images.shape) // channels
    # The first pixel as origin keeps the squares small whatever the offset.
    origin = images[:1][0, :, 0, 0].astype(np.float64)
    exact = images.dtype == np.uint8
    total, squares, largest = np.zeros(channels), np.zeros(channels), 0.0
    for rows in images.arrays(images.chunks(CACHE_BYTES)):
        # In float64 and in C order, so that the sums do not depend on X's memory layout.
        dtype = np.uint8 if rows.dtype == np.uint8 else np.float64  # torch does not take them all
        in_order = np.require(rows, dtype, ["C", "A", "W"]).reshape(-1)
        flat = torch.from_numpy(in_order)
        largest = max(largest, *(abs(float(value)) for value in flat.aminmax()))
        block = flat.to(torch.float64).view(rows.shape)
        for channel in range(channels):
            values = block[:, channel].reshape(-1)
            values = values if exact else values - origin[channel]
            total[channel] += float(values.sum())
            squares[channel] += float(torch.dot(values, values))
    if exact:  # sums of bytes are exact, so they are moved to the origin afterwards
        squares += n_values * origin**2 - 2 * origin * total
        total -= n_values * origin
    mean = total / n_values
    std = np.sqrt(np.maximum(squares / n_values - mean**2, 0))
    std[std <= 1e-7 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)] = 1
    for small in np.flatnonzero(std < 1 / float(np.finfo(np.float32).max)):
        raise ValueError(
            f"channel {small} of X has a standard deviation of {std[small]:.3g}, by which "
            "float32 can't divide: multiply X by a constant so that it is near 1"
        )
    return (mean + origin).tolist(), std.tolist(), largest
