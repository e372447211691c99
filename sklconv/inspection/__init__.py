"""Pictures of what a network learnt, in scikit-learn's Display manner.

Drawing takes matplotlib, the extra ``plot``.
"""

from ._activations import ActivationsDisplay
from ._confidence import ConfidenceDisplay
from ._embedding import EmbeddingDisplay
from ._feature_maps import FeatureMapsDisplay
from ._filters import FiltersDisplay
from ._occlusion import OcclusionDisplay
from ._predictions import PredictionsDisplay
from ._saliency import SaliencyDisplay
from ._training_history import TrainingHistoryDisplay

__all__ = [
    "ActivationsDisplay",
    "ConfidenceDisplay",
    "EmbeddingDisplay",
    "FeatureMapsDisplay",
    "FiltersDisplay",
    "OcclusionDisplay",
    "PredictionsDisplay",
    "SaliencyDisplay",
    "TrainingHistoryDisplay",
]

# Where users import them from is what pickles say, and the documentation.
for _name in __all__:
    globals()[_name].__module__ = __name__
