"""SaliencyDisplay."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from numpy.typing import NDArray

from .._activations.tap_set import output_taps
from .._images import ImagesLike
from .._platform.devices import without_autocast
from .._platform.words import did_you_mean
from ._class_scores import choose_target, linear_coefficients
from ._drawing import class_title, draw_over, draw_title
from ._feature_maps import maps_tap
from ._find_network import find_network

LABELS = {"grad_cam": "Grad-CAM", "gradient_x_input": "gradient × input"}


class SaliencyDisplay:
    """What in one image speaks for a class, by the gradient of the class's score.

    Grad-CAM weights the maps of a layer by the mean gradient of the score over each, adds them up
    and keeps what is positive; that may be nothing where a dense layer, and no pooling, follows
    the maps. Gradient × input is the gradient by each pixel, times the pixel as it stands in ``X``
    (so that 0 counts for nothing), added up over the channels.

    It is recommended to use `from_estimator` to create one.

    Parameters
    ----------
    image : ndarray of shape (C, H, W)
        The image.
    saliency : ndarray of shape (height, width)
        What counts how much for the class.
    extent : (float, float, float, float) or None, default=None
        Left, right, bottom and top of ``saliency``, in pixels of the image. None: all of it.
    method : {"grad_cam", "gradient_x_input"}, default="grad_cam"
        Where ``saliency`` comes from.
    target : object, default=None
        The class, for the title.
    layer : str or None, default=None
        The layer whose maps were weighted, for the title.

    Attributes
    ----------
    image_ : matplotlib.image.AxesImage
        The image, in grey.
    im_ : matplotlib.image.AxesImage
        The saliency over it: red speaks for the class, blue against it.
    colorbar_ : matplotlib.colorbar.Colorbar
        Its scale.
    ax_ : matplotlib.axes.Axes
        The axes.
    figure_ : matplotlib.figure.Figure
        The figure.

    See Also
    --------
    OcclusionDisplay : Goes through any classifier.

    References
    ----------
    R. R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", ICCV 2017. A. Shrikumar et al., "Not just a black box: learning important
    features through propagating activation differences", arXiv:1605.01713, 2016.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklconv import ConvFeatureExtractor, ConvNetClassifier
    >>> from sklconv.inspection import SaliencyDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0)
    >>> model = make_pipeline(ConvFeatureExtractor(net), LogisticRegression(max_iter=1000))
    >>> display = SaliencyDisplay.from_estimator(model.fit(X, y), X[0], layer="conv2")
    >>> display.saliency.shape
    (4, 4)
    >>> plt.show()
    """

    def __init__(
        self,
        image: NDArray[Any],
        saliency: NDArray[Any],
        *,
        extent: tuple[float, float, float, float] | None = None,
        method: Literal["grad_cam", "gradient_x_input"] = "grad_cam",
        target: Any = None,
        layer: str | None = None,
    ) -> None:
        self.image = image
        self.saliency = saliency
        self.extent = extent
        self.method = method
        self.target = target
        self.layer = layer

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ImagesLike,
        *,
        method: Literal["grad_cam", "gradient_x_input"] = "grad_cam",
        target: Any = None,
        layer: str | int | None = None,
        ax: Any = None,
        **im_kw: Any,
    ) -> Self:
        """Follow the score of a class back through a fitted model, and draw.

        Parameters
        ----------
        estimator : estimator
            A fitted `ConvNetClassifier`, or a Pipeline or search with a `ConvFeatureExtractor`
            and a linear classifier behind it, such as LogisticRegression or LinearSVC, also with
            linear steps between, such as StandardScaler or PCA. Steps in front of the network are
            applied to the image, and gradients go back to there.
        X : array-like
            One image in any form that ``predict`` takes, with or without its batch axis.
        method : {"grad_cam", "gradient_x_input"}, default="grad_cam"
            Which gradients, see above.
        target : object, default=None
            The class whose score is followed: its logit or decision function; of a support vector
            machine, which compares classes in pairs, the sum over its pairs. None: the predicted
            one.
        layer : str, int or None, default=None
            A layer's name or negative index, for Grad-CAM. None: the last one in front of the
            score with maps of at least 4×4 pixels or, without any, of more than one pixel.
        ax, **im_kw
            As `plot` takes them.

        Returns
        -------
        display : SaliencyDisplay

        Raises
        ------
        ValueError
            If a step behind the network is not linear, or the score does not follow from the maps
            of ``layer``.
        """
        if method not in LABELS:
            raise ValueError(
                f"method={method!r} is neither 'grad_cam' nor 'gradient_x_input'."
                f"{did_you_mean(str(method), LABELS)}"
            )
        if layer is not None and method != "grad_cam":
            raise ValueError(f"layer={layer!r}: only method='grad_cam' looks at a layer")
        found = find_network(estimator)
        X = found.one_image(X)
        target, column = choose_target(found, X, target)
        images, image = found.images(X), found.pictures(X)[0:1][0]
        if method == "grad_cam":
            name, saliency = _grad_cam(found, images, column, layer)
            extent = _seen_part(found.network, images.shape[2:])
        else:
            name = extent = None
            saliency = _gradient_x_input(found, images, column)
        display = cls(image, saliency, extent=extent, method=method, target=target, layer=name)
        return display.plot(ax, **im_kw)

    def plot(self, ax: Any = None, **im_kw: Any) -> Self:
        """Draw the saliency over the image.

        Parameters
        ----------
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None: in a new figure.
        **im_kw
            Keywords of :meth:`~matplotlib.axes.Axes.imshow`, for the saliency.

        Returns
        -------
        self
        """
        label = LABELS[self.method]
        drawn = draw_over(ax, self.image, self.saliency, [label], self.extent, **im_kw)
        self.ax_, self.image_, self.im_, self.colorbar_ = drawn
        self.figure_ = self.ax_.figure
        titles = [class_title(self.target)] * (self.target is not None)
        draw_title(self.ax_, titles + ([self.layer] if self.layer else []))
        return self


def _grad_cam(found, images, column, layer):
    """Return the layer's name and the sum of its maps, weighted, where positive."""
    scored = _scored_taps(found)
    taps, _ = maps_tap(found, layer, scored.deepest)
    (cam,) = taps.tapped
    pair = _with_gradient(found, images, column, scored, cam.tap)
    if pair is None:
        raise ValueError(
            f"the score does not follow from the maps of layer={cam.tap.name!r}, but from "
            f"{', '.join(scored.layers)}: take a layer in front of that"
        )
    maps, slopes = (tensor.float()[0].movedim(cam.reading.axis - 1, 0) for tensor in pair)
    weights = slopes.mean((1, 2), keepdim=True)  # (C, 1, 1)
    return cam.tap.name, (weights * maps).sum(0).clamp(min=0).cpu().numpy()


def _gradient_x_input(found, images, column):
    """Return the gradient by each pixel, times the pixel, over all channels."""
    pixels, slopes = _with_gradient(found, images, column, _scored_taps(found))
    return (pixels * slopes)[0].sum(0).cpu().numpy()


def _scored_taps(found):
    """Return the `TapSet` of what the score is made of."""
    return found.taps() if found.is_extractor else output_taps(len(found.classes))


def _with_gradient(found, images, column, scored, tap=None):
    """Return the pixels, or what ``tap`` takes, and the gradient of the score by them, if any."""
    network = found.network.eval()
    device, taps = network.device, list(dict.fromkeys([*scored.taps, *([tap] if tap else [])]))
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(device):
        batch = images.batch(slice(0, 1), device, type(found.estimator).__name__)
        # Leaves of the graph, so that there is one also where no weight has a gradient.
        pixels = batch.to(torch.float32, copy=True).requires_grad_()
        is_bytes = batch.dtype == torch.uint8
        x = network.prepare.unpack_bytes(pixels.clone()) if is_bytes else pixels
        activations = network.activations(taps, scored.deepest, x, found.precision)
        activations = dict(zip(taps, activations, strict=True))
        score = _score(found, scored.features(activations, 1)[0].float(), column)
        wanted = pixels if tap is None else activations[tap]
        (slopes,) = torch.autograd.grad(score, wanted, allow_unused=True)
    return None if slopes is None else (wanted.detach(), slopes)


def _score(found, features, column):
    """Return the score of a class as a function of the features, or of the logits."""
    if not found.behind:
        return features[column]
    coefficients = linear_coefficients(found.behind, column, features.detach().cpu().numpy())
    return features @ torch.from_numpy(coefficients).to(features)


def _seen_part(network, size):
    """Return the extent of what the network sees of images of ``size``; None: of all."""
    fitting = getattr(network.prepare, "fitting", None)
    if fitting is None:
        return None
    edges = []
    for span in fitting.spans(size, network.prepare.size):
        start = span.start - span.before
        ends = (start, start + span.target)
        edges.append([end * span.source / span.resized - 0.5 for end in ends])
    (top, bottom), (left, right) = edges
    return left, right, bottom, top
