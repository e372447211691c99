"""Image data sets as arrays."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from sklearn.datasets import fetch_openml

from ._images import ImagesLike
from ._images.files import FileOptions, ImageFiles, as_file_list
from ._images.forms import check_image_shape
from ._images.sources import CHUNK_BYTES, slices
from ._platform.files import replacing
from ._progress import progress

__all__ = ["load_images", "load_mnist"]

_IMAGE_SHAPE = (28, 28)
_N_TRAIN, _N_TEST = 60_000, 10_000
_GZIP_MAGIC = b"\x1f\x8b"
_IDX_UINT8 = 0x08

# Progress is shown a batch at a time: not too many of small images.
_MAX_BATCH = 256


def load_mnist(
    data_home: str | os.PathLike[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Load the MNIST database of handwritten digits.

    60,000 training and 10,000 test images of 28 × 28 grey pixels, 0 (background) to 255 (ink),
    each showing one digit. The order is that of
    :func:`sklearn.model_selection.train_test_split`.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Folder that holds the four IDX files ``train-images-idx3-ubyte``,
        ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``,
        gzipped (with or without the ending ``.gz``) or not. If None, they are read from the
        folder ``mnist`` in the folder that the environment variable ``SKLCONV_DATA`` names. If
        that variable is not set, the data are downloaded from OpenML and kept in scikit-learn's
        data home (see :func:`sklearn.datasets.get_data_home`).

    Returns
    -------
    X_train : ndarray of shape (60000, 28, 28), dtype=uint8
        Training images.
    X_test : ndarray of shape (10000, 28, 28), dtype=uint8
        Test images.
    y_train : ndarray of shape (60000,), dtype=int64
        Digits, 0 to 9, of the training images.
    y_test : ndarray of shape (10000,), dtype=int64
        Digits of the test images.

    Raises
    ------
    FileNotFoundError
        If a folder is given, by `data_home` or by ``SKLCONV_DATA``, and a file is missing from it.
    ConnectionError
        If OpenML can't be reached.
    ValueError
        If a file is truncated, damaged, or not the IDX file that its name promises.

    Notes
    -----
    The four files of any data set in MNIST's format are read, for example those of Fashion-MNIST,
    with their number of images.

    References
    ----------
    .. [1] Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to
       document recognition", Proceedings of the IEEE, 86(11), 2278-2324, 1998.

    Examples
    --------
    Three training images and one test image, all black, in MNIST's format:

    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklconv.datasets import load_mnist
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part, n in [("train", 3), ("t10k", 1)]:
    ...         images = bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28])
    ...         labels = bytes([0, 0, 8, 1, 0, 0, 0, n])
    ...         stem = Path(folder) / part
    ...         _ = Path(f"{stem}-images-idx3-ubyte").write_bytes(images + bytes(n * 28 * 28))
    ...         _ = Path(f"{stem}-labels-idx1-ubyte").write_bytes(labels + bytes(n))
    ...     X_train, X_test, y_train, y_test = load_mnist(folder)
    >>> X_train.shape, y_train, X_test.shape, y_test
    ((3, 28, 28), array([0, 0, 0]), (1, 28, 28), array([0]))
    """
    if data_home is None:
        shared = os.environ.get("SKLCONV_DATA")
        if not shared:
            return _fetch_mnist()
        data_home = Path(shared) / "mnist"
    folder = Path(data_home)
    X_train, y_train = _read_part(folder, "train")
    X_test, y_test = _read_part(folder, "t10k")
    return X_train, X_test, y_train, y_test


def _fetch_mnist():
    # liac-arff reads this file without pandas, but takes several times as long.
    parser = "pandas" if find_spec("pandas") else "liac-arff"
    try:
        X, y = fetch_openml("mnist_784", version=1, as_frame=False, parser=parser, return_X_y=True)
    except URLError as error:
        raise ConnectionError(
            f"MNIST can't be fetched from OpenML ({error.reason}). If you have its four IDX "
            "files, name their folder: load_mnist(data_home=...)"
        ) from error
    expected = (_N_TRAIN + _N_TEST, prod(_IMAGE_SHAPE))
    if X.shape != expected or y.shape != expected[:1]:
        raise ValueError(
            f"OpenML's 'mnist_784' came with data of shape {X.shape} and target of shape "
            f"{y.shape}; expected {expected} and {expected[:1]}. Remove the incomplete copy from "
            "scikit-learn's data home."
        )
    X = X.astype(np.uint8).reshape(-1, *_IMAGE_SHAPE)
    y = y.astype(np.int64)
    return X[:_N_TRAIN], X[_N_TRAIN:], y[:_N_TRAIN], y[_N_TRAIN:]


def _read_part(folder, part):
    images_path = _find_file(folder, f"{part}-images-idx3-ubyte")
    labels_path = _find_file(folder, f"{part}-labels-idx1-ubyte")
    images = _read_idx(images_path, n_dims=3)
    labels = _read_idx(labels_path, n_dims=1)
    if images.shape[1:] != _IMAGE_SHAPE:
        height, width = images.shape[1:]
        raise ValueError(f"{images_path} holds images of {height}×{width} pixels; expected 28×28.")
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path} holds {len(labels)} labels, but {images_path} {len(images)} images; "
            "expected one label an image."
        )
    return images, labels.astype(np.int64)


def _find_file(folder, name):
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder / name} is missing, and so is {name}.gz beside it.")


def _read_idx(path, n_dims):
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from error
    expected_magic, header_size = bytes([0, 0, _IDX_UINT8, n_dims]), 4 + 4 * n_dims
    if content[:4] != expected_magic:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes in {n_dims} dimensions: it begins with "
            f"'{content[:4].hex(' ')}', expected '{expected_magic.hex(' ')}'."
        )
    if len(content) < header_size:
        raise ValueError(
            f"{path} is truncated: {len(content)} bytes, but the header of an IDX file of "
            f"{n_dims} dimensions takes {header_size}."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=n_dims, offset=4))
    if len(content) - header_size != prod(shape):
        raise ValueError(
            f"{path} is truncated or too long: its header announces values of shape {shape}, "
            f"{prod(shape)} bytes, but {len(content) - header_size} follow."
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape).copy()


def load_images(
    paths: ImagesLike,
    image_shape: Sequence[int],
    *,
    out: np.ndarray | str | os.PathLike[str] | None = None,
    reader: Callable[[Any], Any] | None = None,
    verbose: int = 0,
) -> np.ndarray:
    """Decode image files once, into an array in memory or on disk.

    An estimator reads files each time it needs them; only within one `fit` up to 1 GiB of pixels
    stays in memory. Several fits, such as a search's, and epochs over more images are faster from
    the array that this returns; one image of shape (3, 224, 224) takes 150 kB.

    Parameters
    ----------
    paths : list, array of shape (n_images,) or DataFrame of one column
        Paths, contents of files as bytes, or PIL images.
    image_shape : tuple of int
        ``(height, width)`` of grey images, or ``(channels, height, width)``: 1 channel is grey, 3
        are colour, 4 are colour and alpha. Each image is turned upright according to its EXIF
        orientation, converted, and resized, antialiased, without a crop.
    out : ndarray, str or path-like, default=None
        Array or memmap to write to, of the shape and dtype of the result, or path of a ``.npy``
        file to write. It replaces an existing file when all images are in it; the result is
        then a read-only memmap of it. If None, a new array is returned.
    reader : callable, default=None
        Called with each of `paths`, from several threads at a time, for what Pillow can't read.
        Returns a PIL image, or an array of shape (H, W) or (H, W, C), which is resized; uint8
        stays uint8, other numbers become float32. `image_shape` may then have any number of
        channels.
    verbose : int, default=0
        1 or more: a progress bar on stderr, with the time left; see :ref:`progress`.

    Returns
    -------
    images : ndarray of shape (n_images, channels, height, width)
        dtype uint8, or float32 if `reader` returns other numbers. `out` itself if that is an
        array.

    Raises
    ------
    BadImageError
        If a file can't be read; a `ValueError` that names it and the reason. What was already
        written to an array `out` stays there; an existing file `out` is left as it was.

    See Also
    --------
    sklearn.datasets.load_files : With ``load_content=False`` and ``shuffle=False``, lists the
        files in folders with the folders' names as target.

    Notes
    -----
    AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF and WebP files are read, whatever they are
    named. Of animated images the first frame is read. Grey values of 16 bits are scaled to 8;
    integers of 32 bits and floats, whose range is unknown, need a `reader`.

    Large JPEGs are decoded at a fraction of their size, at least four times that of
    the result.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklconv.datasets import load_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, colour in [("red", (255, 0, 0)), ("grey", (99, 99, 99))]:
    ...         Image.new("RGB", (40, 30), colour).save(Path(folder) / f"{name}.png")
    ...     X = load_images(sorted(Path(folder).glob("*.png")), image_shape=(3, 8, 8))
    >>> X.shape, X.dtype
    ((2, 3, 8, 8), dtype('uint8'))
    >>> X[:, :, 0, 0]
    array([[ 99,  99,  99],
           [255,   0,   0]], dtype=uint8)
    """
    shape = check_image_shape(image_shape)
    if shape is None:
        raise ValueError("image_shape=None: say (height, width) or (channels, height, width)")
    files = ImageFiles(as_file_list(paths), shape, FileOptions(reader))
    if not len(files):
        raise ValueError("paths is empty: there are no images to load")
    if isinstance(out, (str, os.PathLike)):
        return _write_npy(files, Path(out), verbose)
    if out is None:
        out = np.empty(files.shape, files.dtype)
    _check_out(out, files)
    for cut, batch in _iterate_batches(files, verbose):
        out[cut] = batch
    return out


def _check_out(out, files):
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an array, a path or None, not {type(out).__name__}")
    if out.shape != files.shape or out.dtype != files.dtype:
        raise ValueError(
            f"out is an array of shape {out.shape} and dtype {out.dtype}; the images need "
            f"{files.shape} and {files.dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only; open a memmap with mode='r+'")


def _iterate_batches(files, verbose):
    image_bytes = prod(files.shape[1:]) * files.dtype.itemsize
    cuts = slices(len(files), max(1, min(_MAX_BATCH, CHUNK_BYTES // image_bytes)))
    with (
        closing(files.batches(cuts)) as batches,
        progress("load_images", len(files), verbose) as bar,
    ):
        for cut, batch in zip(cuts, batches, strict=True):
            yield cut, batch.numpy()
            bar.update(len(batch))


def _write_npy(files, path, verbose):
    if path.is_dir():
        raise IsADirectoryError(f"out={str(path)!r} is a folder; give the name of a .npy file")
    header = {
        "descr": np.lib.format.dtype_to_descr(files.dtype),
        "fortran_order": False,
        "shape": files.shape,
    }
    # Written as a file, for a memmap on a full disk kills the process instead of raising.
    with replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, batch in _iterate_batches(files, verbose):
            file.write(batch)
    return np.load(path, mmap_mode="r")
