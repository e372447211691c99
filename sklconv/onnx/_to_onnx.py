"""A fitted model to an ONNX graph and its file."""

from __future__ import annotations

import textwrap
import traceback
import warnings
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils.validation import check_is_fitted

from .._engines.graph import OPSET, exporting, first_line
from .._estimators.classifier import ConvNetClassifier
from .._estimators.feature_extractor import ConvFeatureExtractor
from .._platform.files import replacing
from ._trial import noise, with_tried_outputs

if TYPE_CHECKING:
    import onnx

OWN = ConvNetClassifier, ConvFeatureExtractor


def to_onnx(
    model: Any, path: str | PathLike[str] | None = None, X: ArrayLike | None = None
) -> onnx.ModelProto:
    """Convert a fitted model to an ONNX graph that takes images as the model does.

    Parameters
    ----------
    model : estimator
        A fitted `ConvNetClassifier` or `ConvFeatureExtractor`, or a Pipeline of these and of
        what skl2onnx converts: scalers, SVC, LogisticRegression and many more. Of a search its
        best estimator is converted, of a `FrozenEstimator` what it holds.
    path : str, path-like or None, default=None
        File to write the graph to, usually with the suffix ``.onnx``. None: none is written.
    X : array-like or None, default=None
        An array in the form and of the dtype that the graph is to take: ``X[:1]`` does, for
        values and number of images do not matter. None: float32, in the form of the X that the
        first step was fitted on.

    Returns
    -------
    onnx.ModelProto
        Its input is ``X``. Of a classifier it puts out ``label``, int64 or strings, and
        ``probabilities``, a column a class, which are decision values where scikit-learn's
        classifier has no probabilities (of two classes, −d and d); of an extractor ``features``.

    Raises
    ------
    ValueError
        If the model can't become a graph: its ``pool`` is a function, its network computes
        something else for each value or number of images, ``X`` is of another shape than at fit,
        it was fitted on image files and ``X`` is None, or skl2onnx can't convert a step, or
        converts it wrongly.

    See Also
    --------
    skl2onnx.to_onnx : The same with skl2onnx's options, once this module has been imported.

    Notes
    -----
    The network is computed in float32, and within 1e-4 of its largest value as by torch: this is
    tried with a few images. So is the whole graph of a classifier or transformer, whose outputs
    for 32 images of noise must be the model's, but for a few images that trees may part by
    rounding. What estimators check at each call (the range of pixels, NaN) a graph does not.

    Examples
    --------
    >>> import onnxruntime
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.onnx import to_onnx
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=2, random_state=0).fit(X, y)
    >>> graph = to_onnx(net, X=X)
    >>> session = onnxruntime.InferenceSession(graph.SerializeToString())
    >>> labels, probabilities = session.run(None, {"X": X})
    >>> probabilities.shape
    (1797, 10)
    >>> bool((labels == net.predict(X)).all())
    True
    """
    check_is_fitted(model)
    if isinstance(path, np.ndarray):
        raise TypeError("path is an array, not a file to write the graph to: pass images as X=")
    path = None if path is None else Path(path)
    if path is not None and not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}")
    model = _without_wrappers(model)
    shape, dtype = _form_at_fit(model) if X is None else _form_of(X, model)
    graph = _converted(model, shape, dtype)
    network = getattr(_first_step(model), "module_", None)
    graph = with_tried_outputs(graph, model, noise(network, shape[1:], np.dtype(dtype)))
    if path is not None:
        with replacing(path) as file:
            file.write(graph.SerializeToString())
    return graph


def _without_wrappers(model):
    """Return what skl2onnx knows in place of searches, frozen estimators and idle steps."""
    if hasattr(model, "best_threshold_"):
        raise ValueError(
            f"{type(model).__name__}: skl2onnx converts no threshold. Convert its estimator_, and "
            "compare the probabilities of the graph with its best_threshold_"
        )
    if hasattr(model, "best_estimator_"):
        return _without_wrappers(model.best_estimator_)
    if isinstance(model, FrozenEstimator):
        return _without_wrappers(model.estimator)
    if isinstance(model, Pipeline):
        steps = [(name, step) for name, step in model.steps if step not in (None, "passthrough")]
        return Pipeline([(name, _without_wrappers(step)) for name, step in steps])
    return model


def _converted(model, shape, dtype):
    """Return the graph of a model that takes X of this shape and dtype.

    Within it, images are uint8 or float32: skl2onnx can't convert all models for others.
    """
    import skl2onnx
    from skl2onnx.common.utils import InvalidInputTypeException

    def convert(kind):
        example = np.zeros(shape, kind)
        with exporting, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of attributes that skl2onnx reads
            with _errors_of_skl2onnx(model):
                options = _options(model)
                return skl2onnx.to_onnx(model, example, target_opset=OPSET, options=options)

    if dtype == np.uint8:
        try:
            return convert(np.uint8)
        except InvalidInputTypeException:  # of a scaler, say
            first = _first_step(model)
            if any(isinstance(part, OWN) for part in (first, *first.get_params().values())):
                raise  # to these, bytes mean something else than floats
    graph = convert(np.float32)
    if dtype != np.float32:
        _cast_input(graph, dtype)
    return graph


@contextmanager
def _errors_of_skl2onnx(model):
    """Say what failed, where the error is not our own and may be a page of attributes."""
    from skl2onnx.common.utils import InvalidInputTypeException

    try:
        yield
    except InvalidInputTypeException:
        raise
    except Exception as error:
        *_, raising = traceback.walk_tb(error.__traceback__)
        if raising[0].f_globals["__name__"].partition(".")[0] in ("skl2onnx", "onnx"):
            reason = textwrap.shorten(first_line(error), 200, placeholder=" …")
            raise ValueError(
                f"skl2onnx can't convert this {type(model).__name__}: {reason}"
            ) from error
        raise


def _form_at_fit(model):
    """Return the shape and the dtype of an X like that of the fit, but float32."""
    first = _first_step(model)
    if not isinstance(first, OWN):
        return (1, first.n_features_in_), np.float32
    if (form := first._format.form) is None:
        raise ValueError(
            "The model was fitted on image files, which no graph can read. Say what it is to take "
            f"instead, such as X=np.zeros((1, *{first.image_shape_}), dtype=np.uint8)"
        )
    return (1, *form), np.float32


def _first_step(model):
    """Return the first step; of a FeatureUnion one with a network, if there is any."""
    if isinstance(model, Pipeline):
        return _first_step(model.steps[0][1])
    if isinstance(model, FeatureUnion):
        parts = [_first_step(part) for _, part in model.transformer_list]
        return next((part for part in parts if isinstance(part, OWN)), model)
    return model


def _form_of(X, model):
    """Return the shape of an image in ``X``, as a batch of one, and the dtype."""
    if not hasattr(X, "shape"):
        raise TypeError(
            f"X must be an array of images, such as X[:1], not {type(X).__name__}: files and "
            "lists can't be the input of a graph"
        )
    X = np.asarray(X)
    if X.dtype.kind not in "biuf":
        raise TypeError(f"X must hold numbers, not {X.dtype}: files can't be the input of a graph")
    first = _first_step(model)
    if isinstance(first, OWN):
        first._format.way_to_channels_first(X.shape, type(first).__name__)  # raises unless it can
    return (1, *X.shape[1:]), X.dtype


def _cast_input(graph, dtype):
    """Have the input of ``graph`` be of another dtype."""
    from onnx import helper

    (images,) = graph.graph.input
    cast = helper.make_node(
        "Cast", [images.name], ["cast_input"], to=images.type.tensor_type.elem_type
    )
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            if name == images.name:
                node.input[i] = "cast_input"
    graph.graph.node.insert(0, cast)
    images.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype.newbyteorder("="))


def _options(model):
    """Return options of skl2onnx by which probabilities are an array, not a list of dicts."""
    from skl2onnx import get_model_alias
    from skl2onnx.common._registration import get_converter

    while isinstance(model, Pipeline):
        model = model.steps[-1][1]
    if not is_classifier(model):
        return None
    known = get_converter(get_model_alias(type(model))).get_allowed_options() or ()
    # Without an entry, skl2onnx passes an option to LinearSVC that it does not know.
    return {id(model): {"zipmap": False} if "zipmap" in known else {}}
