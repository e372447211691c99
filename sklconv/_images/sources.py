"""Sources of images: arrays, rows of another source, what is kept of one, tensors on a device."""

import math
import threading
from contextlib import closing, contextmanager
from hashlib import blake2b, sha256

import numpy as np
import torch
from sklearn.utils import assert_all_finite

# Bytes worked on at a time: X may be larger than memory.
CHUNK_BYTES = 32 * 2**20
# Bytes gathered or summed at a time: they stay in the processor's cache.
CACHE_BYTES = 2**20
# What a fit keeps of images that are costly to read: 7,100 colour images of 224 × 224 bytes.
MAX_KEPT_BYTES = 2**30


class ImageSource:
    """Images that are read when they are indexed; what training and inference take.

    A new source has a ``shape``, a ``dtype``, and ``__getitem__`` or `batch`, of which each
    follows from the other: the images that a slice or an array of rows names, as an ndarray or
    as a tensor. It defines the rest as well where it has a faster way.

    Attributes
    ----------
    shape : tuple of int
        ``(n, C, H, W)``.
    dtype : numpy.dtype
        Of real numbers.
    lazy : bool
        Whether images are made anew each time they are read, at a cost. Then their values are
        checked at each reading, not once beforehand, and statistics are those of a sample.
    bad : list of (int, item, str) or None
        Rows that could not be read so far, what they hold, and the reasons. None: all can be
        read.
    """

    shape: tuple
    dtype: np.dtype
    lazy = False
    bad = None

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self.batch(index).cpu().numpy()

    def take(self, rows):
        """Return those images that ``rows``, an array, a slice or a mask, names: no copy."""
        return ImageRows(self, np.arange(len(self))[rows])

    def batch(self, index, device=None, estimator_name=None):
        """Return the images that ``index`` names as a tensor; see `as_tensor`."""
        return as_tensor(self[index], device, estimator_name)

    def arrays(self, indices, device=None):
        """Yield the images that each of ``indices`` names as an ndarray.

        ``device`` is where a network computes on them meanwhile, if one does.
        """
        return (self[index] for index in indices)

    def batches(self, cuts, device=None, estimator_name=None, order=None):
        """Yield what `batch` returns for each of ``cuts``, slices one behind another.

        ``order`` holds the rows that are cut up; without it they are the images as they stand.
        Several small batches are gathered at a time, unless the source is lazy.
        """
        if self.lazy:
            indices = (cut if order is None else order[cut] for cut in cuts)
            with closing(self.arrays(indices, device)) as arrays:
                for images in arrays:
                    yield as_tensor(images, device, estimator_name)
            return
        n_bytes = math.prod((cuts[0].stop - cuts[0].start, *self.shape[1:], self.dtype.itemsize))
        for several in slices(len(cuts), max(1, CACHE_BYTES // n_bytes)):
            index = slice(cuts[several][0].start, cuts[several][-1].stop)
            gathered = self.batch(index if order is None else order[index], device, estimator_name)
            yield from gathered.split([cut.stop - cut.start for cut in cuts[several]])

    def check_finite(self, estimator_name):
        """Raise scikit-learn's own error if there is NaN or infinity, chunk by chunk."""
        if not self.lazy and self.dtype.kind == "f":
            for chunk in self.chunks(CHUNK_BYTES):
                self.batch(chunk, estimator_name=estimator_name)

    def chunks(self, n_bytes):
        """Cut all rows into slices of at most ``n_bytes`` in float64."""
        return slices(len(self), max(1, n_bytes // (8 * math.prod(self.shape[1:]))))

    def digests(self):
        """Return a digest of each image's content as bytes; None for what can't be read."""
        form = blake2b(self._form(), digest_size=16).digest()
        return [
            blake2b(image.data, digest_size=16, person=form).digest()
            for chunk in self.chunks(CHUNK_BYTES)
            for image in np.ascontiguousarray(self[chunk])
        ]

    def digest(self):
        """Return a digest of all images as bytes, or None if one can't be read."""
        return self._form() + self._digest_of_bytes()

    def _digest_of_bytes(self):
        # CPUs have instructions for it, with which it is 2.5 times as fast as BLAKE2.
        found = sha256()
        for chunk in self.chunks(CHUNK_BYTES):
            found.update(np.ascontiguousarray(self[chunk]).data)
        return found.digest()

    def _form(self):
        return f"{self.shape[1:]} {np.dtype(self.dtype).str} ".encode()

    def on_device(self, device):
        """Return the images on a GPU if it pays, and they fit there beside what else it holds."""
        return self

    def unwrap(self):
        """Return the array or tensor that the source consists of; else the source itself."""
        return self


class ImageArray(ImageSource):
    """An array of images."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index):
        return self.array[index]

    def _digest_of_bytes(self):
        known = getattr(_digested, "once", {})
        if not _same_bytes(self.array, known.get("array")):
            return super()._digest_of_bytes()
        if "digest" not in known:
            known["digest"] = super()._digest_of_bytes()
        return known["digest"]

    def on_device(self, device):
        n_bytes = self.array.size * (1 if self.dtype == np.uint8 else 4)
        if torch.device(device).type != "cuda" or n_bytes > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        chunks = self.chunks(CHUNK_BYTES)
        return ImageTensor(torch.cat([self.batch(chunk, device) for chunk in chunks]))

    def unwrap(self):
        return self.array


class ImageRows(ImageSource):
    """Some rows of another source, gathered when they are indexed."""

    def __init__(self, source, rows):
        self.source, self.rows, self.lazy = source, rows, source.lazy
        self.shape, self.dtype = (len(rows), *source.shape[1:]), source.dtype

    def __getitem__(self, index):
        return self.source[self.rows[index]]

    def arrays(self, indices, device=None):
        return self.source.arrays((self.rows[index] for index in indices), device)


class KeptImages(ImageSource):
    """Images of a lazy source, each read when it is first asked for and in memory from then on.

    Parameters
    ----------
    source : ImageSource
    """

    lazy = True  # to the bit, training on them is what it is where they are not kept

    def __init__(self, source):
        self.source, self.shape, self.dtype = source, source.shape, source.dtype
        self._pixels = np.empty(self.shape, self.dtype)
        self._is_here = np.zeros(len(source), bool)

    def __getitem__(self, index):
        (images,) = self.arrays([index])
        return images

    def arrays(self, indices, device=None):
        indices, rows = list(indices), np.arange(len(self))
        missing = [np.unique(rows[index][~self._is_here[index]]) for index in indices]
        with closing(self.source.arrays([new for new in missing if len(new)], device)) as arrays:
            for index, new in zip(indices, missing, strict=True):
                if len(new):
                    self._pixels[new], self._is_here[new] = next(arrays), True
                yield self._pixels[index]

    def batches(self, cuts, device=None, estimator_name=None, order=None):
        if self._is_here.all():
            return ImageArray(self._pixels).batches(cuts, device, estimator_name, order)
        return super().batches(cuts, device, estimator_name, order)

    def unwrap(self):
        return self.source


class ImageTensor(ImageSource):
    """Images, uint8 or float32, on the device where they are needed."""

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tuple(tensor.shape)
        self.dtype = tensor[:0].cpu().numpy().dtype

    def batch(self, index, device=None, estimator_name=None):
        if not isinstance(index, slice):
            index = torch.from_numpy(np.ascontiguousarray(index)).to(self.tensor.device)
        return self.tensor[index]

    def unwrap(self):
        return self.tensor


# Of each thread, the array whose digest is asked for several times.
_digested = threading.local()


@contextmanager
def digested_once(X):
    """In the block, in which nobody changes ``X``, read its bytes only once for its digests."""
    before = getattr(_digested, "once", {})
    _digested.once = {"array": X} if isinstance(X, np.ndarray) else {}
    try:
        yield
    finally:
        _digested.once = before


def _same_bytes(view, array):
    """Whether ``view`` is all of ``array``, in the same order."""
    if array is None or (view is not array and view.base is not array):
        return False
    return view.nbytes == array.nbytes and view.flags.c_contiguous and array.flags.c_contiguous


def keep(images):
    """Return ``images`` so that each is read at most once, if that takes and fits in memory."""
    n_bytes = math.prod(images.shape) * images.dtype.itemsize
    return KeptImages(images) if images.lazy and n_bytes <= MAX_KEPT_BYTES else images


def as_tensor(batch, device=None, estimator_name=None):
    """Return an array of images as a tensor: uint8 as it is, every other dtype as float32.

    With ``estimator_name`` their values are checked to be finite.
    """
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


def slices(n, size):
    """Cut ``range(n)`` into slices of ``size``."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
