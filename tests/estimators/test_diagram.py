"""Fitted networks in scikit-learn's diagrams of estimators, as notebooks show them."""

import html
import pickle
import re

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier
from sklconv._estimators.diagram import MAX_BOXES
from sklconv.layers import Conv, Dense, Dropout, MaxPool

X = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
y = [0, 1] * 6

STEPS = [("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("drop", Dropout(0.5)), ("dense", Dense(5))]
BOXES = [
    ("conv: Conv", "4×6×6, 40 {}"),
    ("pool: MaxPool", "4×3×3"),
    ("drop: Dropout", "4×3×3"),
    ("flatten: Flatten", "36"),
    ("dense: Dense", "5, 185 {}"),
    ("output: Dense", "2, 12 {}"),
]


def declarative(steps=STEPS, **params):
    return ConvNetClassifier(steps, max_epochs=1, random_state=0, **params)


def blocks():
    part = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    return nn.Sequential(part, nn.Flatten(), nn.Linear(108, 2))


def drawn(estimator):
    """The diagram without its styles and scripts."""
    page = estimator._repr_html_()
    return re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)


def boxes(estimator):
    """The names and captions of layers, in order."""
    found = re.findall(
        r'<div><div>([^<]*)</div><div class="caption">([^<]*)</div>', drawn(estimator)
    )
    return [(html.unescape(name), html.unescape(caption)) for name, caption in found]


def expected(counted, tapped=()):
    return [
        (name, caption.format(counted) + ", tapped" * (name.partition(":")[0] in tapped))
        for name, caption in BOXES
    ]


def test_a_fitted_classifier_shows_its_layers():
    clf = declarative()
    assert boxes(clf) == []
    assert boxes(clf.fit(X, y)) == expected("learnable parameters")
    assert boxes(pickle.loads(pickle.dumps(clf))) == boxes(clf)
    assert boxes(clone(clf)) == []


def test_a_box_opens_to_the_layer_table():
    lines = re.sub("<[^>]*>", "\n", drawn(declarative().fit(X, y))).splitlines()
    found = [line.split() for line in lines if line.startswith("pool  ")]
    assert found == [["pool", "MaxPool", "4×3×3", "0", "0.0%", "4×4"]]


@pytest.mark.parametrize("layer", ["dense", ["conv", "dense"], "penultimate"])
def test_an_extractor_marks_its_layers(layer):
    extractor = ConvFeatureExtractor(declarative(), layer=layer).fit(X, y)
    assert boxes(extractor) == expected("parameters", extractor.layers_)
    assert "estimator_: ConvNetClassifier" in drawn(extractor)


def test_the_network_is_shown_where_the_estimator_is_a_part():
    extractor = ConvFeatureExtractor(FrozenEstimator(declarative().fit(X, y)))
    model = make_pipeline(extractor, SVC())
    assert boxes(model) == expected("learnable parameters")  # of the classifier that it holds
    want = expected("parameters", ["dense"])
    assert boxes(model.fit(X, y)) == want
    search = GridSearchCV(model, {"svc__C": [1.0]}, cv=2).fit(X, y)
    assert boxes(search) == want


def test_an_estimator_that_is_not_fitted_is_shown_as_ever(monkeypatch):
    def without_numbers(estimator):
        return re.sub(r"sk-(\w+)-id-\d+", r"sk-\1-id", drawn(estimator))

    unfitted = [
        declarative(),
        ConvFeatureExtractor(declarative()),
        make_pipeline(ConvFeatureExtractor(blocks()), SVC()),
    ]
    pages = [without_numbers(estimator) for estimator in unfitted]
    for estimator in (ConvNetClassifier, ConvFeatureExtractor):
        monkeypatch.delattr(estimator, "_sk_visual_block_")
    assert pages == [without_numbers(estimator) for estimator in unfitted]


def test_names_are_escaped():
    steps = [("<script>&", Conv(2, 3)), ('"conv"', Conv(2, 3))]
    clf = declarative(steps).fit(X, y)
    page = clf._repr_html_()
    assert [name for name, _ in boxes(clf)][:2] == ["<script>&: Conv", '"conv": Conv']
    assert page.count("<script>") == declarative()._repr_html_().count("<script>")


def test_modules_are_boxes_with_all_that_is_inside():
    for fitted, counted in [
        (ConvNetClassifier(blocks(), max_epochs=1).fit(X, y), "learnable parameters"),
        (ConvFeatureExtractor(blocks()).fit(X), "parameters"),
    ]:
        shown = [(name, caption.removesuffix(", tapped")) for name, caption in boxes(fitted)]
        assert shown == [
            ("0: Sequential", f"3×6×6, 36 {counted}"),
            ("1: Flatten", "108"),
            ("2: Linear", f"2, 218 {counted}"),
        ]


def test_a_backbone():
    pytest.importorskip("efficientnet_lite_pytorch")
    backbone = Backbone("efficientnet_lite/efficientnet-lite0", weights=None, image_size=32)
    extractor = ConvFeatureExtractor(backbone, layer="_blocks.3").fit(np.repeat(X, 3, 1))
    shown = dict(boxes(extractor))
    rows = {row["name"]: row for row in extractor._layer_rows}
    n = sum(row["n_parameters"] or 0 for name, row in rows.items() if name.startswith("_blocks."))
    shape = "×".join(map(str, rows["_blocks.15"]["output_shape"]))
    (blocks,) = (name for name in shown if name.startswith("_blocks"))
    assert blocks.endswith(" layers")  # a list of modules does not run itself
    assert shown[blocks] == f"{shape}, {n:,} parameters, tapped"
    assert len(shown) <= 12


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_of_a_hundred_parts_is_one_box(frozen):
    steps = [(f"conv{i}", Conv(2, 1)) for i in range(100)]
    clf = declarative(steps).fit(X, y)
    fitted = ConvFeatureExtractor(FrozenEstimator(clf)).fit(X) if frozen else clf
    ((name, caption),) = boxes(fitted)
    assert name == "network: 102 layers"  # those that are added at the end count
    assert caption.startswith("2, 856 ")
    steps = steps[: MAX_BOXES - 2]
    assert len(boxes(declarative(steps).fit(X, y))) == MAX_BOXES


def test_no_module_is_printed():
    body = nn.Sequential(*(nn.ReLU() for _ in range(700)), *blocks())
    assert len(str(body)) > 9900
    for fitted in (
        ConvNetClassifier(body, max_epochs=1).fit(X, y),
        ConvFeatureExtractor(body).fit(X),
        ConvFeatureExtractor(Backbone(body)).fit(X),
    ):
        assert drawn(fitted).count("ReLU()") < 100
