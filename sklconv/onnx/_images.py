"""The network of a fitted estimator as a graph that begins at images as X holds them."""

import copy

import numpy as np
import torch
from torch import nn

from .._activations.pooling import POOLINGS
from .._activations.tap_set import output_taps
from .._engines.graph import Graph, NotExportable, by_either_exporter, exporting, with_front
from .._engines.runtime import not_exportable, start_session, try_session
from .._estimators.feature_extractor import ConvFeatureExtractor
from .._platform.devices import without_autocast

N_EXAMPLES = 3


def image_graph(estimator, shape, dtype):
    """Return the `onnx.ModelProto` from images to features or logits, tried with a few images.

    Parameters
    ----------
    estimator : ConvFeatureExtractor or ConvNetClassifier
        Fitted.
    shape : tuple of int
        Of an image in X.
    dtype : {np.uint8, np.float32}
        Of X.

    Raises
    ------
    ValueError
        If images of that shape are not those of the fit.
    NotExportable
        If the network can't become a graph.
    """
    tap_set = taps_of(estimator)
    name = type(estimator).__name__
    way = estimator._format.way_to_channels_first((1, *shape), name)
    network = copy.deepcopy(estimator.module_).cpu().eval()
    # Not of the extremes, which rounding could put out of a backbone's range.
    noise = np.random.default_rng(0).integers(1, 255, (N_EXAMPLES, *shape), dtype=np.uint8)
    images = as_pixels(network.prepare, noise, dtype)
    try:
        with exporting, torch.inference_mode(), without_autocast(images.device):
            return by_either_exporter(
                lambda by_tracing: _tried_graph(network, tap_set, way, images, by_tracing)
            )
    except NotExportable as error:
        raise NotExportable(
            f"The network of this {name} can't become an ONNX graph: {error}"
        ) from error


def taps_of(estimator):
    """Return the `TapSet` of an estimator's features or logits."""
    if isinstance(estimator, ConvFeatureExtractor):
        if any(map(callable, estimator.pools_)):
            raise ValueError(
                "pool is a function, which can't be part of an ONNX graph: take one of "
                f"{', '.join(map(repr, sorted(POOLINGS)))}"
            )
        return estimator._taps
    return output_taps(len(estimator.classes_))


class _ImagesToPixels(nn.Module):
    """Images as X holds them to prepared pixels."""

    def __init__(self, prepare, way):
        super().__init__()
        self.prepare = prepare
        self.axes, self.order = way

    def channels_first(self, x):
        return x.reshape(-1, *self.axes).permute(self.order)

    def forward(self, x):
        return self.prepare(self.channels_first(x))


@not_exportable()
def _tried_graph(network, tap_set, way, images, by_tracing):
    import onnx

    front = _ImagesToPixels(network.prepare, way)
    x = front.channels_first(images)
    graph = Graph(network, network.prepare(x), by_tracing)
    activations = network.activations(tap_set.taps, tap_set.deepest, x)
    model = with_front(front, images, graph.cut(tap_set, activations))
    try_session(
        start_session(model),
        tap_set,
        images,
        prepare=lambda images: images,
        in_torch=lambda images: tap_set.compute(network, front.channels_first(images), "float32"),
    )
    return onnx.load_from_string(model)


def as_pixels(prepare, images, dtype):
    """Return bytes as a tensor of ``dtype``, of floats on the scale of those at fit."""
    images = torch.from_numpy(images)
    if dtype == np.uint8:
        return images
    images = prepare.unpack_bytes(images)
    return images * (prepare.largest / 255) if prepare.largest else images
