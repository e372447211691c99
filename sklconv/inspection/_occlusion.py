"""OcclusionDisplay."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .._images import ImagesLike
from .._images.files import is_image_files
from .._images.sources import CHUNK_BYTES, slices
from .._platform.words import by
from ._class_scores import as_rows, choose_responses, choose_target, score_images
from ._drawing import class_title, draw_over, draw_title
from ._find_network import find_network

# A seventh of the shorter side, in steps of half of that: 169 images for a square one.
PARTS = 7

# A probability that falls by less than this anywhere shows rounding errors, not the image.
LEAST_DROP = 1e-3

# Images that are occluded, and go through all steps, at a time.
MAX_IMAGES = 256


class OcclusionDisplay:
    """What hiding each part of an image does to the score of a class.

    A patch is moved over the image in steps of ``stride`` pixels, the last one flush with the
    edge. At each position it gives the score of the image as it is minus the score with the patch
    hidden. Drawn over the image, each pixel has the mean of the positions that hide it: what
    speaks for the class is positive.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    image : ndarray of shape (C, H, W)
        The image.
    drops : ndarray of shape (n_rows, n_columns)
        How far the score falls at each position of the patch.
    patch_size, stride : (int, int)
        Height and width, in pixels.
    target : object
        The class.
    response_method : {"predict_proba", "decision_function"}
        Where the score comes from.

    Attributes
    ----------
    heatmap : ndarray of shape (H, W)
        The mean of ``drops`` over the positions that hide each pixel.
    image_ : matplotlib.image.AxesImage
        The image, in grey.
    im_ : matplotlib.image.AxesImage
        The heatmap over it: red speaks for the class, blue against it.
    colorbar_ : matplotlib.colorbar.Colorbar
        Its scale.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    SaliencyDisplay : Gradients, from one pass, where all behind the network is linear.

    References
    ----------
    M. D. Zeiler and R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import SVC
    >>> from sklconv import ConvFeatureExtractor, ConvNetClassifier
    >>> from sklconv.inspection import OcclusionDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0)
    >>> model = make_pipeline(ConvFeatureExtractor(net), SVC()).fit(X, y)
    >>> display = OcclusionDisplay.from_estimator(model, X[0], patch_size=3, stride=1)
    >>> display.drops.shape
    (6, 6)
    >>> plt.show()
    """

    def __init__(
        self,
        image: NDArray[Any],
        drops: NDArray[Any],
        *,
        patch_size: tuple[int, int],
        stride: tuple[int, int],
        target: Any,
        response_method: str,
    ) -> None:
        self.image = image
        self.drops = drops
        self.patch_size = patch_size
        self.stride = stride
        self.target = target
        self.response_method = response_method

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        *,
        patch_size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        fill: float | Sequence[float] | None = None,
        target: Any = None,
        response_method: Literal["auto", "predict_proba", "decision_function"] = "auto",
        ax: Any = None,
        **im_kw: Any,
    ) -> Self:
        """Hide each part of an image in turn, ask the whole model, and draw.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier`, or a Pipeline or search with a `ConvFeatureExtractor`
            and any classifier behind it. Steps in front of the network are applied to the image
            once, before anything is hidden.
        X : array-like
            One image in any form that ``predict`` takes, with or without its batch axis.
        patch_size : int, (int, int) or None, default=None
            Height and width of what is hidden, in pixels. None: a seventh of the shorter side.
        stride : int, (int, int) or None, default=None
            Pixels from one position to the next, at most ``patch_size``. None: half of it.
        fill : float, sequence of float or None, default=None
            What hidden pixels become, on the scale of ``X``, one value or one a channel; it goes
            through the steps in front of the network as an image full of it, unless they take
            image files. None: the mean of each channel behind these steps.
        target : object, default=None
            The class whose score is looked at. None: the predicted one.
        response_method : {"auto", "predict_proba", "decision_function"}, default="auto"
            Where the score comes from. "auto": the probability, or the decision function where the
            classifier has no probabilities, or where that of the class changes by less than 0.001
            whatever is hidden: one near 0 or 1 hardly does, but the decision function shows more.
            Of two classes it is negated for the first.
        ax, **im_kw
            As `plot` takes them.

        Returns
        -------
        display : OcclusionDisplay

        Raises
        ------
        TypeError
            If no classifier is at the end.
        ValueError
            If ``X`` holds several images, or the patch is larger than the image.
        """
        found = find_network(estimator)
        methods = choose_responses(found.head(), response_method)
        X = found.one_image(X)
        target, column = choose_target(found, X, target)
        image = found.images(X)[0:1]
        size = image.shape[2:]
        patch = _as_sizes(patch_size, "patch_size", max(1, min(size) // PARTS), size, "image")
        step = _as_sizes(stride, "stride", [max(1, side // 2) for side in patch], patch, "patch")
        grid = [_positions(*sides) for sides in zip(size, patch, step, strict=True)]
        pixels = _fill_pixels(fill, found, X, image)
        for method in methods:
            drops = _drops(found, image, method, column, _occluded(image, grid, patch, pixels))
            if np.abs(drops).max() >= LEAST_DROP:
                break
        display = cls(
            found.pictures(X)[0:1][0],
            drops.reshape([len(starts) for starts in grid]),
            patch_size=patch,
            stride=step,
            target=target,
            response_method=method,
        )
        return display.plot(ax, **im_kw)

    def plot(self, ax: Any = None, **im_kw: Any) -> Self:
        """Draw the heatmap over the image.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        **im_kw
            Keywords of :meth:`~matplotlib.axes.Axes.imshow`, for the heatmap.

        Returns
        -------
        self
        """
        name = {"predict_proba": "probability"}.get(self.response_method, "decision function")
        label = [f"drop of the {name}", "when hidden"]
        drawn = draw_over(ax, self.image, self.heatmap, label, **im_kw)
        self.ax_, self.image_, self.im_, self.colorbar_ = drawn
        self.figure_ = self.ax_.figure
        draw_title(self.ax_, [class_title(self.target)])
        return self

    @property
    def heatmap(self) -> NDArray[Any]:
        """The mean of ``drops`` over the positions that hide each pixel."""
        covers = [
            np.array([(start <= pixel) & (pixel < start + side) for start in starts], float)
            for pixel, side, starts in self._axes()
        ]
        rows, columns = covers
        return rows.T @ self.drops @ columns / np.outer(rows.sum(0), columns.sum(0))

    def _axes(self):
        """Yield pixels, the patch's length and its positions for rows and for columns."""
        shape = self.image.shape[1:]
        for length, side, step in zip(shape, self.patch_size, self.stride, strict=True):
            yield np.arange(length), side, _positions(length, side, step)


def _drops(found, image, method, column, occluded):
    """Return how far the score is below that of the image, for each of the batches' images."""
    scores = (score_images(found, images, method, column) for images in (image, *occluded))
    return next(scores) - np.concatenate([*scores])


def _as_sizes(value, name, default, most, what):
    """Return ``value`` as height and width, of at most those of what it must fit in."""
    value = default if value is None else value
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(sizes) != 2 or not all(isinstance(n, Integral) and int(n) > 0 for n in sizes):
        raise ValueError(f"{name}={value!r} is neither an integer from 1 up nor a pair of these")
    if any(n > limit for n, limit in zip(sizes, most, strict=True)):
        raise ValueError(
            f"{name}={value!r} is larger than the {what} of {by(most)} pixels: pass at most that"
        )
    return int(sizes[0]), int(sizes[1])


def _positions(length, side, step):
    """Return where a patch begins on an axis, so that each pixel is hidden at least once."""
    last = length - side
    return np.unique([*range(0, last, step), last])


def _fill_pixels(fill, found, X, image):
    """Return an image (C, H, W) of what hidden pixels become, in the type of ``image``."""
    if fill is None:
        means = image.mean((0, 2, 3), dtype=np.float64)
        pixels = means if image.dtype.kind == "f" else np.rint(means)
    elif found.before and not is_image_files(X):
        return found.images(_full_of(fill, X, found))[0:1][0]
    else:
        pixels = _as_pixels(fill, image.dtype, image.shape[1])
    return np.broadcast_to(pixels.astype(image.dtype)[..., None, None], image.shape[1:])


def _full_of(fill, X, found):
    """Return an image full of ``fill``, in the form of ``X``."""
    plain, pictures = np.asarray(X), found.pictures(X)[0:1]
    channels = pictures.shape[1] if pictures.size == plain.size else 1
    pixels = _as_pixels(fill, plain.dtype, channels)
    full = np.full(plain.shape, pixels.flat[0], plain.dtype)
    if channels > 1:
        full = np.broadcast_to(pixels.astype(plain.dtype)[..., None, None], pictures.shape)
        full = as_rows(full, found.estimator).reshape(plain.shape)
    if isinstance(X, torch.Tensor):
        return torch.from_numpy(full.copy()).to(X)
    return X.__class__(full, index=X.index, columns=X.columns) if hasattr(X, "iloc") else full


def _as_pixels(fill, dtype, channels):
    """Return ``fill`` as one number, or one a channel, that pixels of ``dtype`` can be."""
    values = np.asarray(fill)
    if values.dtype.kind not in "iuf" or values.shape not in ((), (1,), (channels,)):
        raise ValueError(
            f"fill={fill!r} is neither one number nor one for each channel; None is the mean of "
            "each"
        )
    if dtype.kind != "f" and not np.array_equal(values.astype(dtype), values):
        raise ValueError(f"fill={fill!r} is no pixel of an image of {dtype}")
    return values


def _occluded(image, grid, patch, pixels):
    """Yield batches of copies of ``image``, a patch of each hidden: row by row."""
    corners = [(top, left) for top in grid[0] for left in grid[1]]
    for cut in slices(len(corners), max(1, min(MAX_IMAGES, CHUNK_BYTES // image.nbytes))):
        images = np.repeat(image, len(corners[cut]), axis=0)
        for copy, (top, left) in zip(images, corners[cut], strict=True):
            hidden = np.s_[:, top : top + patch[0], left : left + patch[1]]
            copy[hidden] = pixels[hidden]
        yield images
