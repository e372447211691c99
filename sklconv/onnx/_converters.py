"""What skl2onnx is told of the estimators: their outputs, and the graphs that compute these."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._engines.graph import OPSET
from .._estimators.classifier import ConvNetClassifier
from .._estimators.feature_extractor import ConvFeatureExtractor
from ._images import image_graph, taps_of

# As scikit-learn's classifiers have them.
CLASSIFIER_OPTIONS = {
    "zipmap": [True, False, "columns"],
    "nocl": [True, False],
    "output_class_labels": [False, True],
    "raw_scores": [True, False],
}


def register():
    """Tell skl2onnx how to convert the estimators."""
    try:
        import onnxruntime  # noqa: F401
        from skl2onnx import update_registered_converter
    except Exception as error:  # a broken package raises anything
        raise ImportError(
            f'sklconv.onnx needs skl2onnx and onnxruntime: pip install "sklconv[onnx]" ({error})'
        ) from error

    update_registered_converter(
        ConvFeatureExtractor,
        "SklconvConvFeatureExtractor",
        _declare_features,
        _convert_extractor,
        parser=_parse_extractor,
    )
    update_registered_converter(
        ConvNetClassifier,
        "SklconvConvNetClassifier",
        _declare_predictions,
        _convert_classifier,
        options=CLASSIFIER_OPTIONS,
        parser=_parse_classifier,
    )


def _parse_extractor(scope, model, inputs, custom_parsers=None):
    # Without a parser, what follows would take features for float64 where images are.
    check_is_fitted(model)
    operator = scope.declare_local_operator("SklconvConvFeatureExtractor", model)
    operator.inputs = inputs
    operator.outputs.append(scope.declare_local_variable("features", _features_type(model)))
    return operator.outputs


def _features_type(extractor):
    from skl2onnx.common.data_types import FloatTensorType

    return FloatTensorType([None, taps_of(extractor).n_features])


def _declare_features(operator):
    operator.outputs[0].set_type(_features_type(operator.raw_operator))


def _convert_extractor(scope, operator, container):
    features = _add_network(scope, operator, container)
    container.add_node("Identity", features, operator.outputs[0].full_name)


def _parse_classifier(scope, model, inputs, custom_parsers=None):
    from skl2onnx._parse import _parse_sklearn, _parse_sklearn_classifier
    from skl2onnx.common.data_types import DoubleTensorType
    from skl2onnx.sklapi import CastTransformer

    check_is_fitted(model)
    if len(inputs) == 1 and isinstance(inputs[0].type, DoubleTensorType):
        # Probabilities would be float64 as well, of which skl2onnx can't make a list of dicts.
        inputs = _parse_sklearn(scope, CastTransformer(dtype=np.float32), inputs)
    return _parse_sklearn_classifier(scope, model, inputs, custom_parsers)


def _declare_predictions(operator):
    from skl2onnx.common.data_types import Int64TensorType, StringTensorType

    check_is_fitted(operator.raw_operator)
    labels = _labels(operator.scope_inst, operator.raw_operator)
    kind = Int64TensorType if labels.dtype.kind == "i" else StringTensorType
    operator.outputs[0].set_type(kind([None]))
    operator.outputs[1].type.shape = [None, len(labels)]


def _convert_classifier(scope, operator, container):
    from skl2onnx.common.data_types import guess_proto_type

    classifier, (label, scores) = operator.raw_operator, operator.outputs
    logits = _add_network(scope, operator, container)
    _add_labels(scope, _labels(scope, classifier), logits, label.full_name, container)
    if not container.get_options(classifier, {"raw_scores": False})["raw_scores"]:
        probabilities = scope.get_unique_variable_name("probabilities")
        container.add_node("Softmax", logits, probabilities, axis=1)
        logits = probabilities
    # Within other estimators they may be float64.
    container.add_node("Cast", logits, scores.full_name, to=guess_proto_type(scores.type))


def _labels(scope, classifier):
    """Return the classes as skl2onnx has them: int64 or strings."""
    from skl2onnx.common.utils_classifier import get_label_classes

    labels = get_label_classes(scope, classifier)
    return labels.astype(np.int64 if labels.dtype.kind in "biuf" else np.str_)


def _add_labels(scope, labels, logits, name, container):
    """Add the nodes that put out the label of the largest logit."""
    import onnx

    is_text = labels.dtype.kind == "U"
    kind = onnx.TensorProto.STRING if is_text else onnx.TensorProto.INT64
    values = [label.encode() for label in labels] if is_text else labels
    table, winner = map(scope.get_unique_variable_name, ("classes", "winner"))
    container.add_initializer(table, kind, labels.shape, values)
    container.add_node("ArgMax", logits, winner, axis=1, keepdims=0)
    container.add_node("Gather", [table, winner], name)


def _add_network(scope, operator, container):
    """Add the graph from images to features or logits; return the name of these."""
    import onnx
    from skl2onnx.common.data_types import UInt8TensorType

    estimator = operator.raw_operator
    kind = type(estimator).__name__
    check_is_fitted(estimator)
    if len(operator.inputs) != 1:
        raise ValueError(
            f"{kind} takes one input that holds whole images, not {len(operator.inputs)}: of a "
            "DataFrame give X.to_numpy()"
        )
    opset = container.target_opset_onnx
    if opset < OPSET:
        raise ValueError(f"target_opset={opset}: {kind} needs {OPSET} or a later one")
    (X,) = operator.inputs
    is_bytes = isinstance(X.type, UInt8TensorType)
    graph = image_graph(estimator, tuple(X.type.shape[1:]), np.uint8 if is_bytes else np.float32)
    graph = onnx.version_converter.convert_version(graph, opset)
    graph = onnx.compose.add_prefix(graph, scope.get_unique_operator_name(kind) + "/").graph
    images, outputs = graph.input[0], graph.output[0].name
    container.add_node("Cast", X.full_name, images.name, to=images.type.tensor_type.elem_type)
    container.nodes.extend(graph.node)
    container.initializers.extend(graph.initializer)
    container.node_domain_version_pair_sets.add(("", opset))
    container.ensure_topological_order = _sorting(container, container.ensure_topological_order)
    return outputs


def _sorting(container, sort):
    """Return a function that sorts a container's nodes by ``sort``, skl2onnx's own.

    That one looks in vain for what puts out an input that a node leaves out, whose name is "".
    """

    def sort_all():
        inputs = [node.input for node in container.nodes]
        holes = [(names, i) for names in inputs for i, name in enumerate(names) if not name]
        for names, i in holes:
            names[i] = container.inputs[0].name
        sort()
        for names, i in holes:
            names[i] = ""

    return sort_all
