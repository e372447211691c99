"""A whole graph, tried with a few images: its outputs are those of the model."""

import copy
import warnings

import numpy as np
from sklearn.base import is_classifier

from .._engines.graph import first_line
from .._engines.runtime import start_session
from ._images import as_pixels

N_IMAGES = 32

# What is wrong is so for most images and by much; right are trees, which may part a few at a value
# to which features are rounded, and networks in bfloat16.
MAX_DIFFERING, TOLERANCE = 0.25, 0.05


def with_tried_outputs(graph, model, images):
    """Return the graph, whose outputs for ``images`` are those of the model; else raise.

    Mended is what is only arranged otherwise: labels in a column, and decision values of two
    classes, which are to be a column a class.
    """
    came, expected = _run(graph, images), _outputs_of(model, images)
    outputs = list(graph.graph.output)
    for output, value, wanted in zip(outputs, came, expected, strict=False):
        arrangements = _arrangements(value, wanted)
        right = (nodes for arranged, nodes in arrangements if _agree(arranged, wanted))
        if (nodes := next(right, None)) is None:
            raise ValueError(
                f"skl2onnx converts this {type(model).__name__} wrongly: for images of noise the "
                f"graph's output {output.name!r} is not what scikit-learn gives"
            )
        for node in nodes:
            _append(graph, output, *node)
    return graph


def noise(network, shape, dtype):
    """Return images of noise, of all contrasts, on the scale of those that ``network`` takes.

    Parameters
    ----------
    network : ImageNetwork or None
    shape : tuple of int
        Of an image.
    dtype : numpy.dtype
    """
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.integers(1, 255, (2, N_IMAGES, *[1] * len(shape))), axis=0)
    images = (low + rng.random((N_IMAGES, *shape)) * (high - low)).astype(np.uint8)
    if dtype.kind == "f" and network is not None:
        images = as_pixels(copy.deepcopy(network.prepare).cpu(), images, np.float32).numpy()
    return images.astype(dtype.newbyteorder("="))


def _outputs_of(model, images):
    """Return what the graph is to put out; nothing if the model refuses such images.

    Of models that are neither classifiers nor mere transformers, skl2onnx has outputs of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if is_classifier(model):
                return [model.predict(images), _scores(model, images)]
            return [] if hasattr(model, "predict") else [model.transform(images)]
        except (ValueError, TypeError):
            return []


def _scores(model, images):
    if hasattr(model, "predict_proba"):
        scores = model.predict_proba(images)
        return None if isinstance(scores, list) else scores  # of several targets, padded there
    if not hasattr(model, "decision_function"):
        return None
    scores = model.decision_function(images)
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def _run(graph, images):
    try:
        session = start_session(graph.SerializeToString())
        return session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:
        raise ValueError(
            f"skl2onnx's graph of this model does not run: {first_line(error)}"
        ) from error


def _arrangements(value, wanted):
    """Yield an output as it is, then otherwise, with the nodes that make it so."""
    yield value, []
    if np.ndim(wanted) == 1:
        yield np.ravel(value), [("Reshape", np.array([-1]))]
    elif np.shape(value) == (len(value), 1):
        yield np.hstack([-value, value]), [("MatMul", np.array([[-1, 1]], value.dtype))]
    elif np.shape(value) == (len(value), 2) and np.min(wanted) < 0:
        yield value[:, ::-1], [("MatMul", np.array([[0, 1], [1, 0]], value.dtype))]


def _agree(value, wanted):
    """Whether an output is as wanted, but for a few images. What is no array counts as such."""
    wanted = wanted.toarray() if hasattr(wanted, "toarray") else np.asarray(wanted)
    if wanted.ndim == 0 or not isinstance(value, np.ndarray):
        return True
    if value.shape != wanted.shape:
        return False
    if wanted.dtype.kind in "OUS":
        differs = value.astype(str) != wanted.astype(str)
    elif wanted.ndim == 1:
        differs = value != wanted
    else:
        largest = np.abs(wanted).max() or 1
        differs = ~np.isclose(value, wanted, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
    return differs.reshape(len(differs), -1).any(1).mean() <= MAX_DIFFERING


def _append(graph, output, operator, constant):
    """Have a node follow on an output, of which it makes another with a constant."""
    from onnx import helper, numpy_helper

    inner, name = f"{output.name}_of_skl2onnx", f"{output.name}_constant"
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [inner if its == output.name else its for its in names]
    graph.graph.initializer.append(numpy_helper.from_array(constant, name))
    graph.graph.node.append(helper.make_node(operator, [inner, name], [output.name]))
    shape = output.type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add()
    for n_columns in constant.shape[1:]:
        shape.dim.add().dim_value = n_columns
