"""Batches of images through a fitted network, without gradients, to numpy arrays."""

import math

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from ._images import check_images, is_plain_array, slices, take_batch

DEFAULT_BATCH_SIZE = 128

# Linear layers and convolutions choose other kernels for few rows, which changes their bits.
# On images this small the work of a full batch costs nothing.
PADDED_ROWS, PADDED_VALUES = 32, 64


def read_images(estimator, X):
    """Check ``X`` against the images that ``estimator`` was fitted on; return ``(n, C, H, W)``."""
    # check_is_fitted and validate_data alone cost a third of one image's way through a network.
    if not estimator.__sklearn_is_fitted__():
        check_is_fitted(estimator)
    if not is_plain_array(X) or hasattr(estimator, "feature_names_in_"):
        X = check_images(estimator, X, reset=False)
    return estimator._format.read(X, type(estimator).__name__)


def iterate_outputs(estimator, images, run, batch_size=None):
    """Yield what ``run`` makes of each batch of ``images``, as float32 numpy arrays.

    Parameters
    ----------
    estimator : estimator
        Its ``module_`` is put into eval mode; its name stands in the errors.
    images : array-like of shape (n, C, H, W)
    run : callable
        Takes a batch on the network's device; returns a tensor of as many rows.
    batch_size : int or None

    Yields
    ------
    ndarray of shape (batch, n_outputs)
    """
    cuts = slices(len(images), batch_size or DEFAULT_BATCH_SIZE)
    yield from (_evaluate(estimator, images, cut, run) for cut in cuts)


def collect_outputs(estimator, images, run, batch_size=None):
    """Return what `iterate_outputs` yields as one array."""
    n, start = len(images), 0
    if n <= (batch_size or DEFAULT_BATCH_SIZE):
        return _evaluate(estimator, images, slice(0, n), run)
    for rows in iterate_outputs(estimator, images, run, batch_size):
        if start == 0:
            collected = np.empty((n, *rows.shape[1:]), dtype=np.float32)
        collected[start : start + len(rows)] = rows
        start += len(rows)
    return collected


def _evaluate(estimator, images, cut, run):
    network = estimator.module_
    if network.has_training_parts():
        network.eval()
    batch = take_batch(images, cut, network.device, estimator_name=type(estimator).__name__)
    n, missing = len(batch), 0
    if math.prod(images.shape[1:]) <= PADDED_VALUES:
        missing = max(PADDED_ROWS - n, 0)
    with torch.inference_mode():
        if missing:
            batch = torch.cat([batch, batch.new_zeros((missing, *batch.shape[1:]))])
        output = run(batch)
        if missing:
            output = output[:n]
        return output.float().cpu().numpy()
