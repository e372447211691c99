"""Fitted models as ONNX graphs, which run without scikit-learn and torch.

Once this module is imported, skl2onnx converts `ConvFeatureExtractor` and `ConvNetClassifier`,
alone and within Pipelines.
"""

from ._converters import register
from ._to_onnx import to_onnx

__all__ = ["to_onnx"]

register()
