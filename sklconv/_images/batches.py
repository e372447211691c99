"""Batches of a training set."""

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from .sources import ImageSource, as_tensor, slices


@dataclass
class ImageSet:
    """Images with their targets: what a net trains on or is validated on."""

    images: ImageSource  # (n, C, H, W)
    targets: torch.Tensor  # (n,), int64, on the net's device
    weights: torch.Tensor | None = None  # (n,), float32, of mean 1

    def __len__(self):
        return len(self.images)

    def batches(self, cuts, device, order=None):
        """Return an iterator, to be closed by ``with``, over tensors of images.

        Those that each of ``cuts`` names, out of ``order``.
        """
        # Arrays have been checked as a whole; what a reader of files returns has not.
        name = "ConvNetClassifier" if self.images.lazy else None
        return closing(self.images.batches(cuts, device, name, order))


class SkorchBatches:
    """Batches of a skorch dataset, as ``(images, targets)``."""

    def __init__(self, dataset, cuts, shuffle):
        self.dataset, self.cuts, self.shuffle = dataset, cuts, shuffle

    def __len__(self):
        return len(self.cuts)

    def __iter__(self):
        n, X, y = len(self.dataset), self.dataset.X, self.dataset.y
        # What callbacks and users of the net hand over: an array, a tensor or a source.
        X = X.cpu().numpy() if isinstance(X, torch.Tensor) else X
        order = torch.randperm(n).numpy() if self.shuffle else np.arange(n)
        for cut in self.cuts:
            rows = order[cut]
            target = torch.zeros(len(rows)) if y is None else torch.as_tensor(y[rows])
            yield as_tensor(X[rows]), target


def training_batches(n, size):
    """Cut ``range(n)`` into slices of ``size``; a last one of one row joins the one before."""
    cuts = slices(n, size)
    if len(cuts) > 1 and cuts[-1].stop - cuts[-1].start == 1:
        cuts[-2:] = [slice(cuts[-2].start, n)]
    return cuts


def augmented(x, augment, module):
    """Return what ``augment`` makes of a batch, checked, for `ImageNetwork` ``module``."""
    pixels = module.prepare.unpack_bytes(x) if x.dtype == torch.uint8 else x.float()
    images = augment(pixels.contiguous())  # noise like them is drawn in the order of memory
    if not isinstance(images, torch.Tensor) or images.shape[:2] != x.shape[:2]:
        came = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(
            f"augment returned {came} for a batch of shape {tuple(x.shape)}; it must return a "
            "tensor of as many images and channels"
        )
    return images
