"""scikit-learn's own checks on both estimators, and those that stand beside its battery."""

import pytest
from sklearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_global_output_transform_pandas,
    check_global_set_output_transform_polars,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_set_output_transform_polars,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    parametrize_with_checks,
)
from torch import nn

from sklconv import ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv.layers import Conv, Dense, Dropout, MaxPool


class SmallNet(nn.Module):
    """A user's own network, for images of any size."""

    def __init__(self, in_channels, num_classes, width=16):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.dense = nn.Linear(width, 32)
        self.output = nn.Linear(32, num_classes)

    def forward(self, x):
        maps = self.conv(x).relu()
        return self.output(self.dense(maps.flatten(2).mean(2)).relu())


LAYERS = [
    ("conv1", Conv(16, 3, padding="same")),
    ("pool1", MaxPool("auto")),
    ("dense", Dense(64)),
    ("drop", Dropout(0.1)),
]
CLASSIFIERS = [
    ConvNetClassifier(),
    ConvNetClassifier(LAYERS),
    ConvNetClassifier(TorchModule(SmallNet, width=32)),
]
EXTRACTORS = [ConvFeatureExtractor(classifier) for classifier in CLASSIFIERS]

# Excused checks, each with its reason.
MINIBATCHES = (
    "a weight is not a repetition for a learner that sees the data in minibatches: repeated rows "
    "make more batches, which scikit-learn excuses in its own SGDClassifier as well"
)
EXCUSED = {
    "check_sample_weight_equivalence_on_dense_data": MINIBATCHES,
}


@parametrize_with_checks(
    [*CLASSIFIERS, *EXTRACTORS], expected_failed_checks=lambda estimator: EXCUSED
)
def test_estimator_checks(estimator, check):
    check(estimator)


# These checks fit on a DataFrame and transform an array, and the other way round.
@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:X has feature names, but:UserWarning")
@pytest.mark.parametrize(
    "check",
    [
        check_dataframe_column_names_consistency,
        check_set_output_transform,
        check_set_output_transform_pandas,
        check_set_output_transform_polars,
        check_global_output_transform_pandas,
        check_global_set_output_transform_polars,
        check_transformer_get_feature_names_out,
        check_transformer_get_feature_names_out_pandas,
    ],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("extractor", EXTRACTORS, ids=["auto", "layers", "module"])
def test_checks_of_transformers_beside_the_battery(extractor, check):
    check("ConvFeatureExtractor", extractor)


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=["auto", "layers", "module"])
def test_column_names_of_classifiers(classifier):
    check_dataframe_column_names_consistency("ConvNetClassifier", classifier)
