"""What X is: the forms that images come in, and the shape that they are read in."""

import math
import os
import warnings
from collections.abc import Iterator, Mapping, MappingView, Set
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike

import numpy as np
import torch
from sklearn.utils.validation import validate_data

from .._platform.devices import leave_parents_threads
from .files import (
    FOLDER_REMEDY,
    PLAIN,
    FileOptions,
    ImageFiles,
    as_file_list,
    is_image_files,
    is_pil_image,
)
from .sources import ImageArray

CHANNELS_FIRST, CHANNELS_LAST = "channels_first", "channels_last"


@dataclass(frozen=True)
class ImageFormat:
    """How X is read: the images' shape, and the order of axes where the shape leaves it open."""

    shape: tuple  # (C, H, W)
    layout: str
    n_features: int | None = None  # C * H * W; 1 for files
    files: FileOptions = PLAIN
    n_axes: int = 0  # of the array at fit; 0 for files

    @classmethod
    def infer(cls, X, image_shape, data_format, files=PLAIN):
        """Decide how ``X``, which `check_images` returned, is read: by its shape and parameters.

        The shape and fitting in ``files`` are for files where ``image_shape`` is None. Others
        are made arrays first, as `load_images` does.
        """
        image_shape = check_image_shape(image_shape)
        # An array of another shape shows where its channels are.
        shows = not holds_files(X) and X.ndim == 4 and X.shape[1:] != image_shape
        if data_format != CHANNELS_FIRST and not shows:
            _warn_of_channels_last(image_shape)
        plain = replace(files, shape=None, fitting=None)
        if not holds_files(X):
            inferred = cls._infer_from_array(X, image_shape, data_format)
            n_features = math.prod(inferred.shape)
            return replace(inferred, n_features=n_features, files=plain, n_axes=X.ndim)
        if image_shape is not None:
            return cls(image_shape, CHANNELS_FIRST, 1, plain)
        if files.shape is None:
            raise ValueError(
                "X holds image files, which are resized to one shape: say which, for example "
                "image_shape=(3, 64, 64) for colour or (1, 64, 64) for grey; of a Backbone, "
                "image_size=64"
            )
        return cls(files.shape, CHANNELS_FIRST, 1, files)

    @property
    def is_final(self):
        """Whether images of this shape are resized and cropped as the backbone takes them."""
        return self.files.fitting is not None

    @classmethod
    def _infer_from_array(cls, X, image_shape, data_format):
        if X.ndim == 4:
            return _infer_from_4d(X.shape, image_shape, data_format)
        layout = CHANNELS_FIRST if data_format == "auto" else data_format
        if X.ndim == 3:
            shape = (1, *X.shape[1:])
            if image_shape not in (None, shape):
                raise ValueError(
                    f"image_shape={image_shape} disagrees with X of shape {X.shape}, which is "
                    f"read as grey images of shape {shape}"
                )
            return cls(shape, layout)
        shape = _infer_from_flat(X.shape[1]) if image_shape is None else image_shape
        if math.prod(shape) != X.shape[1]:
            raise ValueError(
                f"image_shape={shape} has {math.prod(shape)} values, but X of shape {X.shape} "
                f"has {X.shape[1]} a row"
            )
        return cls(shape, layout)

    def read(self, X, estimator_name):
        """Return ``X``, an array of any form or a list of files, as an `ImageSource`."""
        if holds_files(X):
            return ImageFiles(X, self.shape, self.files)
        return ImageArray(self._channels_first(X, estimator_name))

    def _channels_first(self, X, estimator_name):
        """Return a view of an array as (n, C, H, W)."""
        axes, order = self.way_to_channels_first(X.shape, estimator_name)
        return X.reshape(len(X), *axes).transpose(order)

    def way_to_channels_first(self, shape, estimator_name):
        """Return how an array of ``shape`` becomes (n, C, H, W): by a reshape, then a transpose.

        Returns
        -------
        axes : tuple of int
            The shape that each image is given.
        order : tuple of int
            That of the axes then.
        """
        c, h, w = self.shape
        ways = {
            CHANNELS_FIRST: (self.shape, (0, 1, 2, 3)),
            CHANNELS_LAST: ((h, w, c), (0, 3, 1, 2)),
        }
        if len(shape) == 4:
            fits = [layout for layout, (axes, _) in ways.items() if axes == shape[1:]]
            if fits:
                return ways[self.layout if self.layout in fits else fits[0]]
        elif len(shape) == 3 and self.shape == (1, *shape[1:]):
            return ways[CHANNELS_FIRST]
        elif len(shape) == 2 and shape[1] == c * h * w:
            return ways[self.layout]
        raise ValueError(self._mismatch(shape, estimator_name))

    @property
    def form(self):
        """The shape of an image in the array at fit, or None for files."""
        c, h, w = self.shape
        whole = self.shape if self.layout == CHANNELS_FIRST else (h, w, c)
        return {2: (c * h * w,), 3: (h, w), 4: whole}.get(self.n_axes)

    def _mismatch(self, came, name):
        c, h, w = self.shape
        if len(came) == 2 and came != (h, w):
            # scikit-learn's own words for a table.
            return (
                f"X has {came[1]} features, but {name} is expecting {c * h * w} features as "
                f"input: images of shape {self.shape}"
            )
        message = (
            f"X of shape {came} does not hold images of shape {self.shape}, which {name} was "
            "fitted on"
        )
        if came in (self.shape, (h, w, c), (h, w)):
            message += "; it looks like a single image: pass X[None]"
        return message


def check_image_shape(image_shape):
    """Return ``image_shape`` as ``(C, H, W)``, or None."""
    if image_shape is None:
        return None
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    if len(shape) not in (2, 3) or not all(isinstance(n, Integral) and int(n) > 0 for n in shape):
        raise ValueError(
            f"image_shape={image_shape!r} is neither (height, width) nor "
            "(channels, height, width), each an integer from 1 up"
        )
    return tuple(int(n) for n in (shape if len(shape) == 3 else (1, *shape)))


def _warn_of_channels_last(image_shape):
    """Warn of an ``image_shape``, (C, H, W) or None, that looks like (H, W, C)."""
    if image_shape is None or min(image_shape[:2]) <= 4 or image_shape[2] not in (1, 3, 4):
        return
    height, width, channels = image_shape
    warnings.warn(
        f"image_shape={image_shape} is read as (channels, height, width): {height} channels of "
        f"{width} × {channels} pixels. For images of {height} × {width} pixels say image_shape="
        f"{(channels, height, width)}; if it is meant, data_format={CHANNELS_FIRST!r}",
        UserWarning,
        stacklevel=1,  # one place, so that Python shows it once
    )


def _infer_from_4d(x_shape, image_shape, data_format):
    first, last = x_shape[1:], (x_shape[3], *x_shape[1:3])
    if image_shape is not None:
        if image_shape not in (first, last):
            raise ValueError(
                f"image_shape={image_shape} disagrees with X of shape {x_shape}, which is read "
                f"as images of shape {first} (channels first) or {last} (channels last)"
            )
        if first != last:
            layout = CHANNELS_FIRST if image_shape == first else CHANNELS_LAST
            return ImageFormat(image_shape, layout)
    if data_format == "auto":
        if first == last == (1, 1, 1):
            return ImageFormat(first, CHANNELS_FIRST)
        if (first[0] <= 4) == (last[0] <= 4):
            which = "both axis 1 and axis 3 have" if first[0] <= 4 else "neither axis 1 nor 3 has"
            raise ValueError(
                f"X of shape {x_shape} could be images of shape {first} (channels first) or "
                f"{last} (channels last): {which} 1 to 4 channels. Say "
                f'data_format="{CHANNELS_FIRST}" or "{CHANNELS_LAST}", or give image_shape'
            )
        data_format = CHANNELS_FIRST if first[0] <= 4 else CHANNELS_LAST
    return ImageFormat(first if data_format == CHANNELS_FIRST else last, data_format)


def _infer_from_flat(n_features):
    side = math.isqrt(n_features)
    if side >= 4 and side * side == n_features:
        return (1, side, side)
    if n_features < 64:
        return (1, 1, n_features)
    for channels in (3, 4, 2):
        side = math.isqrt(n_features // channels)
        if channels * side * side == n_features:
            proposal: tuple = (channels, side, side)
            break
    else:
        height = next(h for h in range(math.isqrt(n_features), 0, -1) if n_features % h == 0)
        proposal = (height, n_features // height)
    raise ValueError(
        f"X has {n_features} features, which is not a square number; say what shape its "
        f"images have, for example image_shape={proposal}"
    )


def check_images(estimator, X, *, reset):
    """Check ``X`` as scikit-learn does, but for its values, and return it as an array.

    Feature names are recorded (``reset``) or compared. Numeric arrays are not copied. Image files
    come back as a list.
    """
    leave_parents_threads()
    X = computed(X)
    _check_container(X)
    if is_image_files(X):
        return as_file_list(X)
    if (isinstance(X, (list, tuple)) and not X) or getattr(X, "shape", None) == (0,):
        raise ValueError("X is empty: it holds no photos or other images")
    if isinstance(X, torch.Tensor):
        X = _as_array(X)
    elif isinstance(X, (list, tuple)) and X and isinstance(X[0], torch.Tensor):
        X = [_as_array(x) if isinstance(x, torch.Tensor) else x for x in X]
    try:
        X = validate_data(
            estimator,
            X,
            reset=reset,
            dtype=None,
            ensure_2d=False,
            allow_nd=True,
            ensure_all_finite=False,
        )
    except ValueError:
        if isinstance(X, (list, tuple)):
            _check_equal_shapes(X)
        raise
    _check_dimensions(X)
    return _as_numeric(X)


def _check_container(X):
    if isinstance(X, (str, bytes, PathLike)) or is_pil_image(X):
        if isinstance(X, (str, PathLike)) and os.path.isdir(X):
            raise TypeError(f"X is a folder: {FOLDER_REMEDY}")
        raise TypeError("X is a single image: put it into a list, [X]")
    if hasattr(X, "shape"):  # which sparse matrices have, some of which are mappings
        return
    if isinstance(X, (Iterator, Set, MappingView)):
        raise TypeError(f"X is a {type(X).__name__}: put its images into a list, list(X)")
    if isinstance(X, Mapping):
        raise TypeError(f"X is a {type(X).__name__}: pass the images that it holds, X[key]")


def is_dask(X):
    """Whether ``X`` is a dask array, DataFrame or Series; dask is imported only if it is."""
    return type(X).__module__.startswith(("dask.array.", "dask.dataframe."))


def computed(X):
    """Return ``X``, or what it holds if that is still to be computed by dask."""
    return X.compute() if is_dask(X) else X


def refuse_single_photo(X):
    """Raise if ``X``, which `check_images` returned, is one colour image: photos are wider."""
    if not holds_files(X) and X.ndim == 3 and X.shape[2] in (3, 4):
        raise ValueError(
            f"X of shape {X.shape} looks like a single colour image: pass X[None]. If it holds "
            f"{X.shape[0]} grey images, say image_shape={X.shape[1:]}"
        )


def _check_dimensions(X):
    if X.ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {X.ndim}D array instead: X of shape {X.shape} holds no "
            "images. Reshape your data: one image a row, or X[None] for a single image"
        )
    if X.ndim > 4:
        raise ValueError(
            f"Found array with dim {X.ndim}, while dim <= 4 is required: X of shape {X.shape} "
            "is none of (n, C, H, W), (n, H, W, C), (n, H, W) and (n, n_features)"
        )
    if 0 in X.shape:
        raise ValueError(
            f"Found array with {X.shape[0]} sample(s) and 0 feature(s) (shape={X.shape}) while "
            "a minimum of 1 is required."
        )


def _as_array(tensor):
    tensor = tensor.detach().cpu()
    # numpy knows no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _check_equal_shapes(images):
    """Raise if two of ``images``, the entries of a list, are not of one shape."""
    first = np.shape(images[0])
    for position, image in enumerate(images):
        if np.shape(image) != first:
            raise ValueError(
                f"X holds images of unequal shapes: X[0] has {first}, X[{position}] has "
                f"{np.shape(image)}. Resize them to one, or give files or PIL images, which are "
                "resized to image_shape"
            )


def holds_files(X):
    """Whether ``X``, which `check_images` returned, holds image files: these alone are a list."""
    return isinstance(X, list)


def is_plain_array(X):
    """Whether `check_images` has nothing to find in ``X`` but its values."""
    return (
        type(X) is np.ndarray
        and X.dtype in (np.uint8, np.float32)
        and 2 <= X.ndim <= 4
        and X.size > 0
    )


def _as_numeric(X):
    if X.dtype.kind in "biuf":
        return X
    strings = X.dtype.kind in "US" or (
        X.dtype.kind == "O" and any(isinstance(value, (str, bytes)) for value in X.flat)
    )
    if strings or X.dtype.kind != "O":
        raise ValueError(
            f"X must hold numbers, not {'strings' if strings else X.dtype}: dtype='numeric' is "
            "not compatible with arrays of bytes/strings. Convert your data to numeric values "
            "explicitly instead."
        )
    return X.astype(np.float64)
