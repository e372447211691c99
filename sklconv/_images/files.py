"""Image files as X: paths, file contents and PIL images, decoded batch by batch."""

import errno
import functools
import importlib
import io
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from numbers import Integral

import joblib
import numpy as np
import torch

from .._platform.digests import Undigestible, digest_of
from .cropping import WHOLE, Fitting
from .resizing import UPRIGHT, pad, resize_part, turned
from .sources import ImageSource

# The formats that are read, whatever a file is called, and Pillow's modules for them: common
# ones, and none whose decoder starts another program.
FORMATS = {
    "AVIF": "AvifImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "JPEG": "JpegImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "PNG": "PngImagePlugin",
    "PPM": "PpmImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

EXIF_ORIENTATION = 0x0112

# A JPEG decoder scales down by 2, 4 or 8 at little cost. Down to four times the size that is
# wanted, the antialiased resize behind it differs by a third of a grey level in the mean, and
# features of EfficientNet-Lite0 by half a percent; down to twice the size by 0.9 and 3 percent.
DRAFT_MARGIN = 4

MAX_THREADS = 4

# What a reason ends in where a reader may help.
TAKE_A_READER = "; take a reader that returns it as an array"

# Behind what says that a folder is no image.
FOLDER_REMEDY = (
    "list its files, for example sorted(Path(folder).glob('*.jpg')), or with labels "
    "sklearn.datasets.load_files(folder, load_content=False)"
)

# Pixels of 16 bits that are made 8 bits at a time.
STRIP_PIXELS = 2**16

# No fault of the file's: to take it for a bad image would hide it.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# Pillow opens files lazily, and an image that stands in X twice must not be loaded by two threads.
_loading = threading.Lock()


def _renew_lock():
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    # In the child nobody releases what another thread held.
    os.register_at_fork(after_in_child=_renew_lock)


class BadImageError(ValueError):
    """An image file that can't be read: ``name`` says which, ``reason`` why."""

    def __init__(self, name, reason):
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name, self.reason = name, reason

    def __str__(self):
        return f"{self.name} can't be read: {self.reason}"


class _Unreadable(Exception):
    """Why an image can't be read, before it is known what it is called."""


@functools.cache
def import_pillow():
    """Return `PIL.Image`, its readers of `FORMATS` registered."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            'image files are read by Pillow: pip install "sklconv[images]"'
        ) from None
    for module in FORMATS.values():
        try:
            # Pillow itself imports them at need, which several threads must not do at a time.
            importlib.import_module(f"PIL.{module}")
        except ImportError:
            pass  # AVIF came with Pillow 11.3
    return Image


def is_image_files(X):
    """Whether ``X`` holds image files rather than pixels, judged by its first entry.

    True for paths, bytes (what a file contains) and PIL images, in a list, a tuple, a 1-D array,
    an array or DataFrame of one column, or a Series.
    """
    first = _entries(X, slice(1))
    return bool(first) and _is_image_file(first[0])


def as_file_list(X):
    """Return ``X``, as `is_image_files` knows it, as a list; raise if an entry is none."""
    files = _entries(X, slice(None))
    if files is None:
        came = f"{type(X).__name__}" + (f" of shape {X.shape}" if hasattr(X, "shape") else "")
        raise TypeError(
            "image files are given as a list, a 1-D array or a DataFrame of one column that "
            f"holds paths, bytes or PIL images, not as {came}"
        )
    for position, file in enumerate(files):
        if not _is_image_file(file):
            raise TypeError(
                f"entry {position} of the image files is {_shortened(file)}, of type "
                f"{type(file).__name__}; each must be a path (str or path-like), bytes or a PIL "
                "image"
            )
    return files


def _entries(X, rows):
    if isinstance(X, (list, tuple)):
        return list(X[rows])
    if not (isinstance(X, np.ndarray) or hasattr(X, "to_numpy")):
        return None
    shape = getattr(X, "shape", ())
    if not shape or shape[1:] not in ((), (1,)):
        return None
    if not isinstance(X, np.ndarray):
        X = np.asarray(getattr(X, "iloc", X)[rows])
    # An array of dtype S has lost the zero bytes that a file's content may end with.
    return X[rows].reshape(-1).tolist() if X.dtype.kind in "OTU" else None


def _is_image_file(entry):
    return isinstance(entry, (str, bytes, os.PathLike)) or is_pil_image(entry)


def is_pil_image(entry):
    # Another thread may be importing it.
    kind = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return kind is not None and isinstance(entry, kind)


def _shortened(value):
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True)
class FileOptions:
    """How image files are read.

    Parameters
    ----------
    reader : callable, default=None
        Called with an item as it stands, from several threads at a time, in Pillow's place.
        Returns a PIL image, or an array of shape (H, W) or (H, W, C), which is resized: uint8
        stays uint8, other numbers become float32. The number of channels may then be any; grey
        is repeated to 3 channels, 3 become their luma, alpha is dropped.
    on_bad_image : {"raise", "nan"}, default="raise"
        What a file that can't be read does: raise `BadImageError`, or leave an image of zeros
        and a line in `ImageFiles.bad`.
    shape : tuple of int or None, default=None
        ``(C, H, W)`` that the network wants, where nobody says another one.
    fitting : Fitting or None, default=None
        Which part of an image is resized to that, and how. None: the whole.
    """

    reader: Callable | None = None
    on_bad_image: str = "raise"
    shape: tuple | None = None
    fitting: Fitting | None = None


PLAIN = FileOptions()


class ImageFiles(ImageSource):
    """Image files that look like an array of images and are decoded when they are indexed.

    Parameters
    ----------
    items : list of str, path-like, bytes or PIL image
        Paths, contents of files, or images.
    shape : tuple of int
        ``(C, H, W)`` of each image: 1 channel is grey, 3 are red, green and blue, 4 have alpha
        behind these. Images are turned upright as their EXIF orientation says, converted and
        resized, antialiased; the first frame of animated ones is read, and alpha
        is dropped where it is not asked for. 16 bits of grey become 8; integers of 32 bits and
        floats, whose range nothing states, take a `reader`.
    options : FileOptions, default=PLAIN
        Of which ``shape`` has no effect here.

    Attributes
    ----------
    shape : tuple of int
        ``(n, C, H, W)``.
    dtype : dtype
        uint8, or float32. A `reader` is called on the first file to learn it.
    bad : list of (int, item, str)
        Positions of the files that could not be read so far, the files, and the reasons.
    """

    lazy = True

    def __init__(self, items, shape, options=PLAIN):
        import_pillow()
        if options.reader is None and shape[0] not in MODES:
            raise ValueError(
                f"image_shape={tuple(shape)} has {shape[0]} channels, but image files are read as "
                "grey (1), colour (3) or colour and alpha (4); a reader may return any number"
            )
        self.items = list(items)
        self.shape = (len(self.items), *shape)
        self.options = options
        self._dtype = np.dtype(np.uint8) if options.reader is None else None
        self._bad = {}  # position -> reason
        self._unloaded = {}  # position of a PIL image -> error

    def __getitem__(self, index):
        if isinstance(index, Integral):
            return self[[index]][0]
        (images,) = self.arrays([index])
        return images

    @property
    def dtype(self):  # type: ignore[override]
        if self._dtype is None:
            self._dtype = self._find_dtype()
        return self._dtype

    @property
    def bad(self):  # type: ignore[override]
        return [(row, self.items[row], reason) for row, reason in sorted(self._bad.items())]

    def take(self, rows):
        """Return those files that ``rows``, an array, a slice or a mask, names."""
        items = [self.items[position] for position in np.arange(len(self))[rows].tolist()]
        files = ImageFiles(items, self.shape[1:], self.options)
        files._dtype = self._dtype
        return files

    def digests(self):
        form = digest_of((self.shape[1:], self.options.reader, self.options.fitting))
        found = [self._item_digest(position) for position in range(len(self))]
        return [None if digest is None else digest + form.encode() for digest in found]

    def digest(self):
        digests = self.digests()
        return None if None in digests else b"".join(digests)

    def _item_digest(self, position):
        item = self.items[position]
        try:
            return item_digest(item, self.options.reader)
        except Exception as error:
            # To load it again would leave out what is broken.
            if is_pil_image(item) and not isinstance(error, Undigestible):
                self._unloaded[position] = error
            return None

    def arrays(self, indices, device=None):
        """Yield the images that each of ``indices`` names; decode the next ones meanwhile.

        Threads are no more than torch's: where that has one, decoding takes turns with a network
        on the CPU.

        Parameters
        ----------
        indices : iterable of slice, array of int or mask
        device : str, torch.device or None, default=None
            Where a network computes on what was yielded last, if one does.

        Yields
        ------
        ndarray of shape (batch, C, H, W)
        """
        n_threads = _n_threads()
        take_turns = n_threads == 1 and device is not None and torch.device(device).type == "cpu"
        pool = ThreadPoolExecutor(n_threads, "sklconv-files")
        pending: deque = deque()
        try:
            for index in indices:
                pending.append(self._begin(pool, index))
                if take_turns or len(pending) == 2:
                    yield self._finish(*pending.popleft())
            while pending:
                yield self._finish(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool, index):
        positions = np.arange(len(self))[index].tolist()
        batch = np.zeros((len(positions), *self.shape[1:]), self.dtype)
        tasks = [
            pool.submit(self._read_into, image, position)
            for image, position in zip(batch, positions, strict=True)
        ]
        return batch, positions, tasks

    def _finish(self, batch, positions, tasks):
        for position, task in zip(positions, tasks, strict=True):
            try:
                task.result()
            except BadImageError as error:
                if self.options.on_bad_image == "raise":
                    raise
                self._bad[position] = error.reason
        return batch

    def _read_into(self, target, position):
        image = self._read(position)
        if image.dtype != target.dtype:
            raise TypeError(
                f"the reader returned values that are read as {image.dtype} for "
                f"{_name(self.items[position], position)}, and as {target.dtype} before: it must "
                "return uint8 for all files or for none"
            )
        target[...] = image

    def _read(self, position):
        item, fitting = self.items[position], self.options.fitting or WHOLE
        try:
            if position in self._unloaded:
                raise self._unloaded[position]
            if self.options.reader is None:
                return decode(item, self.shape[1:], fitting)
            return fit(self.options.reader(item), self.shape[1:], fitting)
        except Exception as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in EXHAUSTED:
                raise
            raise BadImageError(_name(item, position), self._reason(error)) from error

    def _reason(self, error):
        from PIL import Image, UnidentifiedImageError

        if isinstance(error, _Unreadable):
            return str(error)
        if isinstance(error, IsADirectoryError):
            return f"is a directory: {FOLDER_REMEDY}"
        if isinstance(error, OSError) and error.strerror:
            return error.strerror.lower()
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            return _too_large()
        if isinstance(error, UnidentifiedImageError):
            return f"it is none of {', '.join(FORMATS)}{TAKE_A_READER}"
        if self.options.reader is not None:
            return f"the reader raised {type(error).__name__}: {error}"
        return f"it can't be decoded ({str(error) or type(error).__name__})"

    def _find_dtype(self):
        for position in range(len(self)):
            try:
                return self._read(position).dtype
            except BadImageError:
                if self.options.on_bad_image == "raise":
                    raise
        return np.dtype(np.uint8)


def _n_threads():
    # Torch knows of the share of the cores that joblib gives a worker, joblib of containers.
    return min(MAX_THREADS, joblib.cpu_count(), torch.get_num_threads())


def item_digest(item, reader=None):
    """Return a digest of all of an image file that counts as bytes; raise if it can't be read.

    A ``reader`` gets more than the content: the path, or what stands beside a PIL image's pixels.
    """
    path = b""
    if isinstance(item, bytes):
        content = item
    elif is_pil_image(item):
        if reader is not None:
            raise Undigestible("what a reader makes of a PIL image may depend on all of it")
        content = _content(item)
    else:
        with open_file(item) as file:
            content = file.read()
        path = b"" if reader is None else os.fsencode(item)
    return blake2b(content, digest_size=16, key=blake2b(path).digest()).digest()


def _content(image):
    """Return all of a PIL image that counts, as bytes."""
    with _loading:
        pixels = image.tobytes()
    palette = image.palette.getdata() if image.palette else None
    turned_by, alpha = _orientation(image), image.info.get("transparency")
    mode = f"{image.mode} {image.format}" if image.mode == "I" else image.mode
    return f"{mode} {image.size} {palette} {turned_by} {alpha} ".encode() + pixels


def _name(item, position):
    if isinstance(item, (str, os.PathLike)):
        return os.fsdecode(item)
    kind = "bytes" if isinstance(item, bytes) else "PIL image"
    return f"{kind} at position {position}"


def decode(item, shape, fitting=WHOLE):
    """Return the image file ``item`` as an array of ``shape``, (C, H, W), and dtype uint8."""
    if is_pil_image(item):
        return _fit_shared(item, shape, fitting)
    with io.BytesIO(item) if isinstance(item, bytes) else open_file(item) as file:
        image = _open(file)
        return _fit_image(image, shape, fitting, _draft(image, shape, fitting))


def open_file(path):
    """Open a file to read from; raise if it is a pipe, a terminal or another device.

    To open or to read one of these can wait for ever. It is looked at when it is open, so that
    nothing takes its place in between.
    """
    return open(path, "rb", opener=_open_without_waiting)


def _open_without_waiting(path, flags):
    # Windows has neither flag, nor what they are for.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder, open says that it is one
        os.close(descriptor)
        raise _Unreadable("it is not a regular file")
    return descriptor


def fit(image, shape, fitting=WHOLE):
    """Return what a reader returned, a PIL image or an array, as an array of ``shape``."""
    if is_pil_image(image):
        return _fit_shared(image, shape, fitting)
    return _fit_array(np.asarray(image), shape, fitting)


def _open(file):
    Image = import_pillow()
    if not file.seek(0, io.SEEK_END):
        raise _Unreadable("it is empty (0 bytes)")
    file.seek(0)
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    width, height = image.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise _Unreadable(_too_large())
    return image


def _draft(image, shape, fitting):
    """Have a JPEG decoded at a fraction of its size, where that is large enough.

    Return its size and the width and height that a pixel then has; None for all others.
    """
    if image.format not in ("JPEG", "MPO"):
        return None
    size, orientation = image.size, _orientation(image)
    rows, columns = fitting.spans(turned(size, orientation)[::-1], shape[1:])
    wanted = turned((columns.resized, rows.resized), orientation)
    drafted = image.draft(None, tuple(DRAFT_MARGIN * n for n in wanted))
    if drafted is None:
        return None
    # Exact, which its size is not: the last pixels may lie half outside of the image.
    _, (_, _, width, height) = drafted
    return size, (width / size[0], height / size[1])


def _too_large():
    limit = import_pillow().MAX_IMAGE_PIXELS
    return f"it has more pixels than PIL.Image.MAX_IMAGE_PIXELS = {limit} allows"


def _fit_shared(image, shape, fitting):
    with _loading:
        image.load()
        _orientation(image)  # which the image keeps, too
    return _fit_image(image, shape, fitting)


def _fit_image(image, shape, fitting, drafted=None):
    channels, *target = shape
    image.load()
    if 0 in image.size:
        raise _Unreadable(f"it has no pixels ({image.width} × {image.height})")
    size, scales = drafted or (image.size, (1, 1))
    orientation = _orientation(image)
    spans = fitting.spans(turned(size, orientation)[::-1], target)
    image = _convert(image, channels)
    image = resize_part(
        image, spans, fitting.interpolation, orientation=orientation, scales=scales
    )
    if image.mode != MODES[channels]:
        image = image.convert(MODES[channels])
    pixels = np.asarray(image).reshape(*image.size[::-1], channels)
    return pad(pixels.transpose(2, 0, 1), spans, fitting)


def _orientation(image):
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1  # the pixels can be good where what is written beside them is not
    return orientation if orientation in UPRIGHT else 1


def _convert(image, channels):
    if channels not in MODES:
        raise _Unreadable(f"an image of mode {image.mode} has no {channels} channels")
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if sixteen_bits:
        image = _to_eight_bits(image)
    elif image.mode in ("I", "F"):
        mode = f"Pillow's mode {image.mode}"
        raise _Unreadable(f"its values ({mode}) have no fixed range{TAKE_A_READER}")
    elif "transparency" in image.info and image.mode == "P":
        # By way of RGBA: to convert it at once is undefined, and Pillow warns of it.
        image = image.convert("RGBA")
    # Grey becomes colour when it is small: the numbers are the same, of a fifth of the memory.
    modes = ("RGB", "L") if channels == 3 else (MODES[channels],)
    return image if image.mode in modes else image.convert(modes[0])


def _to_eight_bits(image):
    # Pillow's own conversion clips at 255. 65,535 is 257 times 255. Some rows at a time: large
    # images would take several times their memory.
    width, height = image.size
    pixels = np.empty((height, width), np.uint8)
    n_rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, n_rows):
        strip = image.crop((0, top, width, min(top + n_rows, height)))
        pixels[top : top + n_rows] = (np.asarray(strip, np.uint32) + 128) // 257
    return import_pillow().fromarray(pixels)


def _fit_array(array, shape, fitting):
    channels, height, width = shape
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or 0 in array.shape:
        raise _Unreadable(
            f"the reader returned an array of shape {array.shape} and dtype {array.dtype}, not "
            "numbers of shape (H, W) or (H, W, C)"
        )
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # infinity is an error when images are used
            array = array.astype(np.float32)
    spans = fitting.spans(array.shape[:2], (height, width))
    rows, columns = (span.reach(fitting.interpolation) for span in spans)
    array = array[rows, columns]
    array = _match_channels(array if array.ndim == 3 else array[..., None], channels)
    images = (
        import_pillow().fromarray(np.ascontiguousarray(array[..., c])) for c in range(channels)
    )
    offset = (columns.start, rows.start)
    planes = [resize_part(image, spans, fitting.interpolation, offset=offset) for image in images]
    return pad(np.stack(planes), spans, fitting)


def _match_channels(array, channels):
    came = array.shape[2]
    if came == channels:
        return array
    if came == 4 and channels in (1, 3):
        return _match_channels(array[..., :3], channels)
    if (came, channels) == (1, 3):
        return np.repeat(array, 3, axis=2)
    if (came, channels) == (3, 1):
        luma = array @ np.array([[0.299], [0.587], [0.114]], np.float32)
        return luma if array.dtype != np.uint8 else np.rint(luma).astype(np.uint8)
    raise _Unreadable(
        f"the reader returned {came} channels, which can't become {channels}: arrays are read as "
        "(H, W) or (H, W, C)"
    )
