"""Batches of images through a network, without gradients, to numpy arrays."""

import math

import numpy as np
import torch

from ._images import check_images, slices, take_batch
from ._network import device_of

DEFAULT_BATCH_SIZE = 128

# Linear layers and convolutions choose other kernels for few rows, which changes their bits.
# On images this small the work of a full batch costs nothing.
PADDED_ROWS, PADDED_VALUES = 32, 64


def read_images(estimator, X):
    """Check ``X`` against the images that ``estimator`` was fitted on; return ``(n, C, H, W)``."""
    X = check_images(estimator, X, reset=False)
    return estimator._format.read(X, type(estimator).__name__)


def iterate_outputs(estimator, images, run, batch_size):
    """Yield what ``run`` makes of each batch of ``images``, as numpy arrays.

    Parameters
    ----------
    estimator : estimator
        Its ``module_`` is put into eval mode; its name stands in the errors.
    images : array of shape (n, C, H, W)
    run : callable
        Takes a batch on the network's device; returns a tensor of as many rows.
    batch_size : int or None

    Yields
    ------
    ndarray of shape (batch, n_outputs) and dtype float32
    """
    network, name = estimator.module_, type(estimator).__name__
    if any(module.training for module in network.modules()):
        network.eval()
    device = device_of(network)
    pad = math.prod(images.shape[1:]) <= PADDED_VALUES
    for index in slices(len(images), batch_size or DEFAULT_BATCH_SIZE):
        batch = take_batch(images, index, device, estimator_name=name)
        with torch.inference_mode():
            output = run(_padded(batch)) if pad else run(batch)
        yield output[: len(batch)].float().cpu().numpy()


def collect_outputs(estimator, images, run, batch_size):
    """Return what `iterate_outputs` yields as one array."""
    n, start, collected = len(images), 0, None
    for rows in iterate_outputs(estimator, images, run, batch_size):
        if collected is None:
            collected = np.empty((n, *rows.shape[1:]), dtype=np.float32)
        collected[start : start + len(rows)] = rows
        start += len(rows)
    return collected


def _padded(batch):
    missing = PADDED_ROWS - len(batch)
    if missing <= 0:
        return batch
    return torch.cat([batch, batch.new_zeros((missing, *batch.shape[1:]))])
