"""Batches of images through a fitted network, without gradients, to numpy arrays."""

import math
import warnings
from contextlib import closing

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .._images.forms import check_images, is_plain_array
from .._images.sources import slices
from .._platform.devices import keep_freed_memory, leave_parents_threads, without_autocast
from .._progress import progress

# Images of few values take less time in larger batches, of which no layer's output grows so
# large that the C library would no longer reuse its memory.
DEFAULT_BATCH_SIZE, SMALL_IMAGES_BATCH_SIZE, SMALL_VALUES = 128, 256, 1024

# Linear layers and convolutions choose other kernels for few rows, which changes their bits.
# On images this small the work of a full batch costs nothing.
PADDED_ROWS, PADDED_VALUES = 32, 64

# On a CPU, the feature maps of many large images do not stay in its caches: batches are cut.
PIECE_IMAGES, PIECE_VALUES = 4, 2**20

# So few can all be dark by chance.
FEW_VALUES = 256


def read_images(estimator, X):
    """Check ``X`` against the images that ``estimator`` was fitted on; return an `ImageSource`."""
    leave_parents_threads()
    # check_is_fitted and validate_data alone cost a third of one image's way through a network.
    if not estimator.__sklearn_is_fitted__():
        check_is_fitted(estimator)
    if not is_plain_array(X) or hasattr(estimator, "feature_names_in_"):
        X = check_images(estimator, X, reset=False)
    return estimator._format.read(X, type(estimator).__name__)


def iterate_outputs(network, images, run, name, batch_size=None, rows=None, verbose=0):
    """Yield what ``run`` makes of each batch of ``images``, as float32 numpy arrays.

    Parameters
    ----------
    network : ImageNetwork
        It is put into eval mode.
    images : ImageSource of shape (n, C, H, W)
    run : callable
        Takes a batch on the network's device; returns a tensor of as many rows. On a CPU batches
        are cut into pieces of ``run.piece_values`` values, if it has that.
    name : str
        The estimator's, for errors and the progress bar.
    batch_size : int or None
        None: 256 for images of at most 1,024 values, else 128.
    rows : array of int, default=None
        Those of the images; None: all.
    verbose : int
        Whether there is a progress bar.

    Yields
    ------
    ndarray of shape (batch, n_outputs)
    """
    for output in _iterate_tensors(network, images, run, name, batch_size, rows, verbose):
        yield output.numpy()


def collect_outputs(network, images, run, name, batch_size=None, verbose=0):
    """Return what `iterate_outputs` yields as one array."""
    n, start = len(images), 0
    if n <= (batch_size or DEFAULT_BATCH_SIZE):  # of the defaults the smaller: less to ask
        batch = images.batch(slice(0, n), network.device, name)
        warn_of_scale(network.prepare.largest, batch)
        return _evaluate(network, batch, run).numpy()
    for output in _iterate_tensors(network, images, run, name, batch_size, verbose=verbose):
        if start == 0:
            # Numpy's memory comes in large pages; torch fills them with all threads.
            collected = torch.from_numpy(np.empty((n, *output.shape[1:]), dtype=np.float32))
        collected[start : start + len(output)] = output
        start += len(output)
    return collected.numpy()


def _iterate_tensors(network, images, run, name, batch_size, rows=None, verbose=0):
    n = len(images) if rows is None else len(rows)
    cuts = slices(n, batch_size or _default_batch_size(network, images))
    with (
        closing(images.batches(cuts, network.device, name, rows)) as batches,
        progress(name, n, verbose) as bar,
    ):
        for number, batch in enumerate(batches):
            if number == 0:
                warn_of_scale(network.prepare.largest, batch)
            yield _evaluate(network, batch, run)
            bar.update(len(batch))


def warn_of_scale(largest, batch):
    """Warn if ``batch`` is on quite another scale than the pixels at fit.

    That is, of fractions in [0, 1] if they went beyond 30, and beyond 100 if they did not go
    beyond 3. What is dark, blank or a mask on the right scale gets no warning.

    Parameters
    ----------
    largest : float or None
        The largest absolute value at fit; None: nothing is known of it.
    batch : torch.Tensor
    """
    if largest is None or 3 < largest <= 30 or (largest > 30 and batch.dtype == torch.uint8):
        return
    highest = float(batch.max())
    if largest <= 3:
        strange = highest > 100
    else:
        strange = 0.5 < highest <= 1 and batch.numel() > FEW_VALUES and _has_fractions(batch)
    if strange:
        warnings.warn(
            f"X is on another scale than it was at fit, where its largest value was {largest:.4g}"
            f": now it holds {'numbers beyond 100' if largest <= 3 else 'fractions up to 1'}. "
            "Predictions and features are meaningless unless X has the scale that it had at fit",
            UserWarning,
            stacklevel=1,  # one place, so that Python shows it once
        )


def _has_fractions(batch):
    return bool(batch.min() >= -1) and bool((batch != batch.round()).any())


def _n_values(network, image_shape):
    """Values of an image as the network gets it."""
    size = getattr(network.prepare, "size", None) or image_shape[1:]
    return image_shape[0] * math.prod(size)


def _default_batch_size(network, images):
    small = _n_values(network, images.shape[1:]) <= SMALL_VALUES
    return SMALL_IMAGES_BATCH_SIZE if small else DEFAULT_BATCH_SIZE


def _piece_size(network, batch, n_values):
    """Number of images that go through the network at a time."""
    if batch.device.type != "cpu":
        return len(batch)
    return max(PIECE_IMAGES, n_values // _n_values(network, batch.shape[1:]))


def _evaluate(network, batch, run):
    keep_freed_memory()
    if network.has_training_parts():
        network.eval()
    n, missing = len(batch), 0
    if math.prod(batch.shape[1:]) <= PADDED_VALUES:
        missing = max(PADDED_ROWS - n, 0)
    with torch.inference_mode(), without_autocast(batch.device):
        if missing:
            # With an image, for zeros may be no pixels: a backbone's range can exclude them.
            batch = torch.cat([batch, batch[:1].expand(missing, -1, -1, -1)])
        n_values = getattr(run, "piece_values", PIECE_VALUES)
        if n <= PIECE_IMAGES or n <= (size := _piece_size(network, batch, n_values)):
            output = run(batch)
        else:
            output = torch.cat([run(piece) for piece in batch.split(size)])
        if missing:
            output = output[:n]
        return output.float().cpu()
