"""ConvFeatureExtractor(layer="auto"): what it chooses, and everything that it works with."""

import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import DataConversionWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._networks import layer_choice

IMAGES, DIGITS = load_digits(n_class=4, return_X_y=True)
IMAGES = np.pad(IMAGES.reshape(-1, 8, 8).astype(np.uint8), ((0, 0), (0, 1), (0, 1)))
X, y = IMAGES[:60], DIGITS[:60]
X_new, y_new = IMAGES[300:340], DIGITS[300:340]


class Stages(nn.Module):
    """Maps of three sizes and a hidden layer."""

    def __init__(self, in_channels=1, num_classes=5, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU())
        self.stage1 = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU())
        self.dense = nn.Linear(8, 9)
        self.output = nn.Linear(9, num_classes)

    def forward(self, x):
        maps = self.stage2(self.stage1(self.stem(x)))
        return self.output(self.dense(maps.mean((2, 3))).relu())


class Counting(Stages):
    """Counts the images that are not blank."""

    n_seen = 0

    def forward(self, x):
        self.n_seen += int((x.flatten(1).abs().sum(1) > 0).sum())
        return super().forward(x)


def auto(estimator=None, **params):
    return ConvFeatureExtractor(estimator or Stages(), layer="auto", **params)


def table_of(extractor):
    table = extractor.layer_scores_
    return list(zip(table["layer"], table["pool"], table["score"], table["features"], strict=True))


# What is chosen -------------------------------------------------------------------------------


class Products(nn.Module):
    """Products of the pixels of the left half with those of the right."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        left, right = x.flatten(1).chunk(2, dim=1)
        return self.scale * left * right


class Blur(nn.Linear):
    """Forgets the first value."""

    def forward(self, x):
        return super().forward(torch.cat([0 * x[:, :1], x[:, 1:]], dim=1))


def test_a_layer_that_alone_tells_the_classes_apart_is_found():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 8, 2)).astype(np.float32)
    pixels = images.reshape(200, 16)
    labels = np.where(pixels[:, 0] * pixels[:, 8] > 0, "same", "other")
    module = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), Products(), Blur(8, 6), nn.Tanh(), nn.Linear(6, 5)
    )
    extractor = auto(module).fit(images, labels)
    best, *others = table_of(extractor)
    assert (best[0], best[3]) == ("1", 8)
    assert best[2] > 0.3
    assert all(score < 0.1 for _, _, score, _ in others)
    assert extractor.layers_ == ["0", "1", "3"]


def test_four_layers_stand_side_by_side_as_if_they_were_named():
    extractor = auto().fit(X, y)
    assert len(extractor.layers_) == len(set(extractor.layers_)) == 4
    assert set(extractor.pools_) <= {"avg", "flatten", "auto"}
    blocks = [
        ConvFeatureExtractor(Stages(), layer=layer, pool=pool).fit(X)
        for layer, pool in zip(extractor.layers_, extractor.pools_, strict=True)
    ]
    features = extractor.transform(X_new)
    assert_array_equal(features, np.concatenate([b.transform(X_new) for b in blocks], axis=1))
    names = np.concatenate([block.get_feature_names_out() for block in blocks])
    assert_array_equal(extractor.get_feature_names_out(), names)
    # In the order of the table are the best four of different names.
    ranked = list(dict.fromkeys(layer for layer, *_ in table_of(extractor)))
    assert set(extractor.layers_) == set(ranked[:4])
    order = [row for row in ("stem", "stage1", "stage2", "dense") if row in extractor.layers_]
    assert [name for name in extractor.layers_ if name in order] == order


def test_a_network_that_was_trained_on_the_rows_gives_one_layer():
    extractor = auto(ConvNetClassifier(max_epochs=2, random_state=0)).fit(X, y)
    assert extractor.layers_ == [table_of(extractor)[0][0]]
    assert "output" not in [layer for layer, *_ in table_of(extractor)]
    frozen = auto(FrozenEstimator(extractor.estimator_)).fit(X, y)
    assert len(frozen.layers_) == 4
    assert table_of(frozen) == table_of(extractor)


@pytest.mark.parametrize("pool", ["avg", "max", "flatten"])
def test_another_pool_is_kept(pool):
    extractor = auto(pool=pool).fit(X, y)
    assert set(extractor.pools_) == {pool}
    assert {row[1] for row in table_of(extractor)} == {pool}


def test_a_callable_pool_is_for_the_layers_that_it_can_pool():
    def corners(maps):
        return maps[:, :, 0, 0]

    extractor = auto(pool=corners).fit(X, y)
    assert extractor.layers_ == ["stem", "stage1", "stage2"]
    assert extractor.transform(X_new).shape == (40, 18)


def test_a_layer_of_the_name_auto_is_that_layer():
    module = nn.Sequential()
    module.add_module("auto", nn.Flatten())
    module.add_module("output", nn.Linear(81, 3))
    extractor = auto(module).fit(X)
    assert extractor.layers_ == ["auto"]
    assert not hasattr(extractor, "layer_scores_")


def test_in_a_list_auto_is_no_layer():
    with pytest.raises(ValueError, match=r"layer=\['auto'\]: 'auto' stands alone"):
        ConvFeatureExtractor(Stages(), layer=["auto"]).fit(X, y)


def test_the_choice_is_of_another_kind_after_another_fit():
    extractor = auto().fit(X, y)
    extractor.set_params(layer="dense").fit(X)
    assert not hasattr(extractor, "layer_scores_")
    assert (extractor.layers_, extractor.pools_) == (["dense"], ["auto"])


# How it is chosen -----------------------------------------------------------------------------


def test_each_image_passes_once():
    extractor = auto(Counting(), engine="torch", batch_size=25).fit(X, y)
    assert extractor.module_.body.n_seen == len(X)


def test_of_many_images_a_part_passes(monkeypatch):
    monkeypatch.setattr(layer_choice, "MAX_ROWS", 20)
    extractor = auto(Counting()).fit(X, y)
    assert extractor.module_.body.n_seen == 20
    assert table_of(extractor) == table_of(auto().fit(X, y))


def test_the_same_fit_gives_the_same_bits():
    first, second = auto().fit(X, y), auto().fit(X, y)
    assert table_of(first) == table_of(second)
    assert_array_equal(first.transform(X_new), second.transform(X_new))


def test_labels_of_any_kind_give_the_same_choice():
    expected = table_of(auto().fit(X, y))
    for labels in (y.astype(str), y.astype(str).astype(object), y - 2.0, (y * 7).tolist()):
        assert table_of(auto().fit(X, labels)) == expected


def test_y_as_a_column_is_taken_with_one_warning():
    expected = table_of(auto().fit(X, y))
    with pytest.warns(DataConversionWarning, match="column-vector") as caught:
        assert table_of(auto().fit(X, y[:, None])) == expected
    assert len(caught) == 1
    with pytest.warns(DataConversionWarning) as caught:
        auto(ConvNetClassifier(max_epochs=1)).fit(X, y[:, None])
    assert len(caught) == 1


def test_weights_weigh_the_choice():
    weights = np.ones(60)
    weights[40:] = 0
    part = auto().fit(X[:40], y[:40])
    assert_allclose(
        [row[2] for row in sorted(table_of(auto().fit(X, y, weights)))],
        [row[2] for row in sorted(table_of(part))],
        atol=0.1,
    )
    plain = table_of(auto().fit(X, y))
    assert table_of(auto().fit(X, y, np.full(60, 7.0)))[0][2] == pytest.approx(plain[0][2])
    assert table_of(auto().fit(X, y, np.linspace(0.1, 3, 60))) != plain
    with pytest.raises(ValueError, match="sample_weight"):
        auto().fit(X, y, weights[:30])
    with pytest.raises(ValueError, match=r"two classes or more, not \[2\] alone"):
        auto().fit(X, y, (y == 2).astype(float))


def test_weights_are_routed():
    with config_context(enable_metadata_routing=True):
        weights = np.linspace(0.1, 3, 60)
        extractor = auto().set_fit_request(sample_weight=True)
        head = LogisticRegression(max_iter=1000).set_fit_request(sample_weight=False)
        model = make_pipeline(extractor, head).fit(X, y, sample_weight=weights)
    assert table_of(model[0]) == table_of(auto().fit(X, y, weights))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "requires y to be passed, but the target y is None.*layer='auto'"),
        (np.zeros(60), r"two classes or more, not \[0.0\] alone"),
        (np.linspace(0, 1, 60), "Unknown label type: continuous"),
        (np.arange(59), "inconsistent numbers of samples"),
        (np.eye(4)[y], "1d array"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(ValueError, match=message):
        auto().fit(X, labels)


@pytest.mark.parametrize("n", [2, 5])
def test_classes_of_one_member(n):
    extractor = auto().fit(X[:n], np.arange(n))
    assert len(extractor.layers_) == 4
    assert np.isfinite([row[2] for row in table_of(extractor)]).all()


def test_images_that_are_all_the_same():
    extractor = auto().fit(np.full((10, 9, 9), 7, np.uint8), np.arange(10) % 2)
    assert 1 <= len(extractor.layers_) <= 4


def test_y_is_required_says_the_tag():
    assert get_tags(auto()).target_tags.required
    assert not get_tags(ConvFeatureExtractor(Stages())).target_tags.required


def test_a_failed_choice_leaves_the_extractor_as_it_was():
    extractor = auto().fit(X, y)
    expected = extractor.transform(X_new)
    with pytest.raises(ValueError, match="two classes"):
        extractor.fit(X_new, y_new * 0)
    assert_array_equal(extractor.transform(X_new), expected)


def test_what_was_found_is_printed(capsys):
    extractor = auto(verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "pool", "score", "features"]
    chosen = [line.split()[1:3] for line in lines if line.startswith("*")]
    assert sorted(chosen) == sorted(
        map(list, zip(extractor.layers_, extractor.pools_, strict=True))
    )
    assert len(lines) == 1 + len(extractor.layer_scores_)
    auto().fit(X, y)
    assert capsys.readouterr().out == ""
    auto(ConvNetClassifier(max_epochs=1, verbose=1)).fit(X, y)
    assert "features\n" in capsys.readouterr().out


# What it works with -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        None,
        ConvNetClassifier(TorchModule(Stages), max_epochs=1, random_state=0),
        Backbone(Stages, weights=None),
    ],
    ids=["default", "torch module", "backbone"],
)
def test_other_networks(estimator):
    if estimator is None:
        estimator = ConvNetClassifier(max_epochs=1, random_state=0)
    extractor = auto(estimator, random_state=0)
    features = extractor.fit_transform(X, y)
    assert features.shape == (60, len(extractor.get_feature_names_out()))
    assert_array_equal(features, extractor.fit(X, y).transform(X))


@pytest.mark.parametrize("through", [pickle, joblib])
def test_copies(through, tmp_path):
    extractor = auto().fit(X, y)
    if through is joblib:
        joblib.dump(extractor, tmp_path / "extractor")
        copy = joblib.load(tmp_path / "extractor")
    else:
        copy = pickle.loads(pickle.dumps(extractor))
    assert_array_equal(copy.transform(X_new), extractor.transform(X_new))
    assert copy.layers_ == extractor.layers_
    assert clone(copy).layer == "auto"
    assert not hasattr(clone(copy), "layer_scores_")


def test_batches_and_containers():
    extractor = auto(batch_size=16).fit(X, y)
    expected = extractor.transform(X_new)
    batches = np.concatenate(list(extractor.transform_batches(X_new)))
    assert_allclose(batches, expected, rtol=1e-5, atol=1e-5)
    frame = extractor.set_output(transform="pandas").transform(X_new)
    assert list(frame.columns) == list(extractor.get_feature_names_out())


def test_a_search_over_ways_to_choose():
    model = make_pipeline(auto(), LogisticRegression(max_iter=1000))
    grid = {"convfeatureextractor__layer": ["auto", "penultimate"]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_params_ == {"convfeatureextractor__layer": "auto"}
    assert search.score(X_new, y_new) > 0.8


@pytest.mark.parametrize("worth_a_row", [0, 1e30])
def test_memory_keeps_each_pooling_by_itself(worth_a_row, tmp_path, monkeypatch):
    monkeypatch.setattr("sklconv._cache.features.WORTH_A_ROW", worth_a_row)
    ways = [
        {"layer": "auto"},
        *({"layer": "stage1", "pool": p} for p in ("avg", "max", "flatten")),
    ]
    for way in ways * 2:
        expected = ConvFeatureExtractor(Stages(), **way).fit(X, y).transform(X_new)
        kept = ConvFeatureExtractor(Stages(), memory=tmp_path, **way).fit(X, y)
        assert_allclose(kept.transform(X_new), expected, rtol=1e-5, atol=1e-5)


def test_onnxruntime_computes_what_was_chosen():
    pytest.importorskip("onnxruntime")
    extractor = auto(device="cpu", engine="onnxruntime").fit(X, y)
    in_torch = auto(device="cpu", engine="torch").fit(X, y)
    assert table_of(extractor) == table_of(in_torch)
    expected = in_torch.transform(X_new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_allclose(extractor.transform(X_new), expected, atol=1e-4 * expected.max())


def test_files_that_can_not_be_read_are_left_out_of_the_choice(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    paths = []
    for i, image in enumerate(X):
        paths.append(str(tmp_path / f"{i:02}.png"))
        image_module.fromarray(image * 15).save(paths[-1])
    options = {"image_shape": (1, 9, 9), "on_bad_image": "nan"}
    expected = auto(**options).fit(paths[1:], y[1:])
    (tmp_path / "00.png").write_bytes(b"no image")
    assert table_of(auto(**options).fit(paths, y)) == table_of(expected)
    with pytest.raises(ValueError, match="no more than one class could be read"):
        auto(**options).fit(paths, np.arange(60) == 0)
    with pytest.raises(ValueError, match=r"00\.png"):
        auto(image_shape=(1, 9, 9)).fit(paths, y)
