"""Rows and batches of images, out of arrays, files, or tensors on a device."""

import math
from contextlib import closing

import numpy as np
import torch
from sklearn.utils import assert_all_finite

from .files import ImageFiles

# Bytes worked on at a time: X may be larger than memory.
CHUNK_BYTES = 32 * 2**20
# Bytes gathered or summed at a time: they stay in the processor's cache.
CACHE_BYTES = 2**20


def take_batch(images, index, device=None, estimator_name=None):
    """Return the images that ``index``, a slice or an array, names, as a tensor.

    uint8 stays uint8, every other dtype becomes float32. With ``estimator_name`` their values
    are checked to be finite.
    """
    if isinstance(images, torch.Tensor):
        rows = index if isinstance(index, slice) else torch.from_numpy(index).to(images.device)
        return images[rows]
    return as_tensor(images[index], device, estimator_name)


def on_device(images, device):
    """Return ``images`` as a tensor on a GPU if they fit there beside what else it holds."""
    if torch.device(device).type != "cuda" or not isinstance(images, np.ndarray):
        return images
    n_bytes = images.size * (1 if images.dtype == np.uint8 else 4)
    if n_bytes > torch.cuda.mem_get_info(device)[0] / 2:
        return images
    return torch.cat([take_batch(images, chunk, device) for chunk in _chunks(images)])


def as_tensor(batch, device=None, estimator_name=None):
    """Return an array of images as a tensor; see `take_batch`."""
    if batch.dtype not in (np.uint8, np.float32):
        with np.errstate(over="ignore"):  # what is too large for float32 is an error below
            batch = batch.astype(np.float32)
    elif not (batch.flags.writeable and batch.flags.aligned):
        batch = batch.copy()  # torch would write to it, and read it as if it were aligned
    try:
        tensor = torch.from_numpy(batch)
    except ValueError:  # reversed axes, or a field of packed records: distances of any length
        tensor = torch.from_numpy(batch.copy())
    checked = estimator_name is not None and batch.dtype == np.float32
    # The sum of all is finite where each is; else each is looked at, for the error.
    if checked and not math.isfinite(tensor.sum()):
        assert_all_finite(batch, estimator_name=estimator_name, input_name="X")
    return tensor if device is None else tensor.to(device, non_blocking=True)


def iterate_batches(images, cuts, device=None, estimator_name=None, order=None):
    """Yield what `take_batch` returns for each of ``cuts``, slices one behind another.

    ``order`` holds the rows that are cut up; without it they are the images as they stand.
    Arrays are gathered several small batches at a time, and files decoded ahead.
    """
    if isinstance(images, ImageFiles):
        indices = cuts if order is None else (order[cut] for cut in cuts)
        with closing(images.batches(indices)) as batches:
            for batch in batches:
                yield as_tensor(batch, device, estimator_name)
        return
    batch_bytes = (
        math.prod(images.shape[1:]) * images.dtype.itemsize * (cuts[0].stop - cuts[0].start)
    )
    for several in slices(len(cuts), max(1, CACHE_BYTES // batch_bytes)):
        index = slice(cuts[several][0].start, cuts[several][-1].stop)
        gathered = take_batch(
            images, index if order is None else order[index], device, estimator_name
        )
        yield from gathered.split([cut.stop - cut.start for cut in cuts[several]])


class Rows:
    """Some rows of an array of images, gathered when they are indexed."""

    def __init__(self, images, rows):
        self.images, self.rows = images, rows
        self.shape, self.dtype = (len(rows), *images.shape[1:]), images.dtype

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.images[self.rows[index]]


def take_rows(images, rows):
    """Return the images that ``rows`` names, without a copy of them."""
    return images.take(rows) if isinstance(images, ImageFiles) else Rows(images, rows)


def slices(n, size):
    """Cut ``range(n)`` into slices of ``size``."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def check_finite(images, estimator_name):
    """Raise scikit-learn's own error if ``images`` holds NaN or infinity, chunk by chunk."""
    # Files are checked as they are decoded.
    if isinstance(images, ImageFiles) or images.dtype.kind != "f":
        return
    for chunk in _chunks(images):
        take_batch(images, chunk, estimator_name=estimator_name)


def _chunks(images):
    row_bytes = images[:1].size * 8
    return slices(len(images), max(1, CHUNK_BYTES // row_bytes))
