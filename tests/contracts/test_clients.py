"""scikit-learn's meta-estimators, searches and tools around both estimators; metadata routing."""

import copy
import pickle
from functools import cache

import joblib
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    learning_curve,
    validation_curve,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.svm import SVC
from skorch.callbacks import Callback

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.layers import Conv, Dense, MaxPool

IMAGES, DIGITS = load_digits(return_X_y=True)
FLAT, FLAT_NEW = IMAGES[:160], IMAGES[1000:1100]
X, X_new = FLAT.reshape(-1, 8, 8), FLAT_NEW.reshape(-1, 8, 8)
y, y_new = DIGITS[:160], DIGITS[1000:1100]


def net(**params):
    """A small network that learns the digits in a tenth of a second."""
    layers = [("conv1", Conv(8, 3)), ("pool1", MaxPool(2)), ("dense", Dense(24))]
    defaults = {"module": layers, "max_epochs": 4, "lr": 0.02, "random_state": 0}
    return ConvNetClassifier(**{**defaults, **params})


def extractor(**params):
    return ConvFeatureExtractor(net(), **{"layer": "dense", **params})


# Meta-estimators ------------------------------------------------------------------------------


def test_feature_union():
    union = FeatureUnion([("conv", extractor()), ("pca", PCA(5, random_state=0))])
    features = union.fit_transform(FLAT, y)
    assert_array_equal(features[:, :24], extractor().fit(FLAT, y).transform(FLAT))
    assert_allclose(features[:, 24:], PCA(5, random_state=0).fit_transform(FLAT), atol=1e-6)
    names = union.get_feature_names_out().tolist()
    assert names == [f"conv__dense_{i}" for i in range(24)] + [f"pca__pca{i}" for i in range(5)]
    model = make_pipeline(union, StandardScaler(), LogisticRegression(max_iter=200))
    assert model.fit(FLAT, y).score(FLAT_NEW, y_new) > 0.6


@pytest.mark.parametrize("container", ["array", "frame"])
def test_column_transformer(container):
    # Pixels next to other columns, in a table.
    size = np.arange(160.0)[:, None]
    table, pixels, others = np.hstack([size, FLAT, -size]), slice(1, 65), [0, 65]
    if container == "frame":
        pd = pytest.importorskip("pandas")
        names = ["size", *(f"p{i}" for i in range(64)), "minus"]
        table = pd.DataFrame(table, columns=names)
        pixels, others = names[1:65], ["size", "minus"]
    union = ColumnTransformer(
        [("conv", extractor(image_shape=(8, 8)), pixels), ("rest", StandardScaler(), others)]
    )
    features = union.fit_transform(table, y)
    expected = extractor().fit(FLAT, y).transform(FLAT)
    assert_array_equal(np.asarray(features)[:, :24].astype(np.float32), expected)
    assert features.shape == (160, 26)
    assert union.get_feature_names_out()[0] == "conv__dense_0"
    assert_array_equal(union.transform(table), features)


@pytest.mark.parametrize("ensemble", [True, False])
def test_calibrated_classifier(ensemble):
    model = CalibratedClassifierCV(net(), cv=2, ensemble=ensemble).fit(X, y)
    assert model.score(X_new, y_new) > 0.6
    assert_allclose(model.predict_proba(X_new).sum(1), 1)
    inner = model.calibrated_classifiers_[0].estimator
    rows = next(StratifiedKFold(2).split(X, y))[0] if ensemble else slice(None)
    expected = net().fit(X[rows], y[rows])
    assert_array_equal(inner.predict_proba(X_new), expected.predict_proba(X_new))


def test_calibrated_classifier_of_a_frozen_one():
    fitted = net().fit(X[:100], y[:100])
    before = fitted.predict_proba(X_new)
    model = CalibratedClassifierCV(FrozenEstimator(fitted), cv=2).fit(X[100:], y[100:])
    assert model.score(X_new, y_new) > 0.6
    assert_array_equal(fitted.predict_proba(X_new), before)


@pytest.mark.parametrize("method", ["predict_proba", "decision_function"])
def test_stacking_classifier(method):
    head = LogisticRegression(max_iter=500)
    parts = [("net", net()), ("logistic", LogisticRegression(max_iter=500))]
    model = StackingClassifier(parts, head, cv=2, stack_method=method).fit(FLAT, y)
    assert model.score(FLAT_NEW, y_new) > 0.6
    expected = getattr(net().fit(FLAT, y), method)(FLAT_NEW)
    assert_allclose(model.transform(FLAT_NEW)[:, :10], expected, rtol=1e-6)


def test_stacking_classifier_of_two_extractors():
    parts = [
        (layer, make_pipeline(extractor(layer=layer), LogisticRegression(max_iter=500)))
        for layer in ("dense", "conv1")
    ]
    model = StackingClassifier(parts, LogisticRegression(max_iter=500), cv=2).fit(FLAT, y)
    assert model.score(FLAT_NEW, y_new) > 0.6


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_voting_classifier(voting):
    nets = [(f"net{seed}", net(random_state=seed)) for seed in range(2)]
    model = VotingClassifier(nets, voting=voting).fit(X, y)
    assert model.score(X_new, y_new) > 0.6
    if voting == "soft":
        alone = [part.fit(X, y).predict_proba(X_new) for _, part in nets]
        assert_allclose(model.predict_proba(X_new), np.mean(alone, axis=0), rtol=1e-5)


def test_bagging_classifier():
    model = BaggingClassifier(net(image_shape=(8, 8)), n_estimators=2, random_state=0)
    model.fit(FLAT, y)
    assert model.score(FLAT_NEW, y_new) > 0.6
    for part, rows in zip(model.estimators_, model.estimators_samples_, strict=True):
        assert part.score(FLAT[rows], y[rows]) > 0.8


def test_ada_boost_classifier():
    weak = net(max_epochs=2)
    model = AdaBoostClassifier(weak, n_estimators=3, random_state=0).fit(X, y)
    assert len(model.estimators_) == 3
    assert model.score(X_new, y_new) > 0.5
    first, second = model.estimators_[:2]
    # Weights reach the networks: the second one sees others.
    rebuilt = clone(second).fit(X, y)
    assert not np.array_equal(rebuilt.predict_proba(X_new), second.predict_proba(X_new))
    assert first.score(X, y) > 0.3


def test_one_vs_rest_classifier():
    model = OneVsRestClassifier(net(max_epochs=3)).fit(X, y)
    assert model.score(X_new, y_new) > 0.6
    decision = model.decision_function(X_new)
    assert decision.shape == (100, 10)
    expected = net(max_epochs=3).fit(X, (y == 3).astype(int)).decision_function(X_new)
    assert_allclose(decision[:, 3], expected, rtol=1e-6)


def test_self_training_classifier():
    labels = y.copy()
    labels[80:] = -1
    model = SelfTrainingClassifier(net(image_shape=(8, 8)), threshold=0.7, max_iter=2)
    model.fit(FLAT, labels)
    assert model.score(FLAT_NEW, y_new) > 0.6
    added = model.labeled_iter_ > 0
    assert added.sum() > 10
    assert accuracy_score(y[added], model.transduction_[added]) > 0.8


# Cross-validation and searches ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_cross_val_predict(method):
    cv = StratifiedKFold(2, shuffle=True, random_state=0)
    found = cross_val_predict(net(), X, y, cv=cv, method=method)
    for train, test in cv.split(X, y):
        expected = getattr(net().fit(X[train], y[train]), method)(X[test])
        assert_allclose(found[test], expected, rtol=1e-6)


def test_cross_val_score_of_a_pipeline():
    model = make_pipeline(extractor(), StandardScaler(), SVC())
    assert cross_val_score(model, X, y, cv=2).mean() > 0.6


def test_learning_curve():
    sizes, train, test = learning_curve(
        net(), X, y, train_sizes=[20, 80], cv=2, shuffle=True, random_state=0
    )
    assert sizes.tolist() == [20, 80]
    assert test[1].mean() > test[0].mean()
    assert train[1].mean() > train[0].mean()


def test_learning_curve_that_goes_on_with_partial_fit():
    sizes, _, test = learning_curve(
        net(),
        X,
        y,
        train_sizes=[40, 80],
        cv=2,
        exploit_incremental_learning=True,
        error_score="raise",
    )
    assert sizes.tolist() == [40, 80]
    assert np.isfinite(test).all()


def test_validation_curve_over_a_layers_parameter():
    _, test = validation_curve(
        net(), X, y, param_name="conv1__filters", param_range=[1, 8], cv=2, error_score="raise"
    )
    assert test[1].mean() > test[0].mean()


def test_permutation_importance():
    fitted = net(image_shape=(8, 8)).fit(FLAT, y)
    found = permutation_importance(fitted, FLAT_NEW, y_new, n_repeats=2, random_state=0)
    always_empty = (FLAT_NEW == 0).all(axis=0)
    assert_array_equal(found.importances_mean[always_empty], 0)
    assert found.importances_mean.reshape(8, 8)[2:6, 2:6].mean() > 0.005


def test_halving_grid_search_over_epochs():
    search = HalvingGridSearchCV(
        net(),
        {"lr": [1e-5, 1e-4, 0.01]},
        resource="max_epochs",
        min_resources=1,
        max_resources=9,
        factor=3,
        cv=2,
        random_state=0,
        error_score="raise",
    ).fit(X, y)
    assert search.n_resources_ == [1, 3]
    assert search.cv_results_["n_resources"].tolist() == [1, 1, 1, 3]
    assert search.best_params_ == {"lr": 0.01, "max_epochs": 3}
    assert search.best_estimator_.n_iter_ == 3
    assert search.score(X_new, y_new) > 0.5


@pytest.mark.parametrize("search", [HalvingGridSearchCV, HalvingRandomSearchCV])
def test_halving_of_a_pipeline_over_its_networks_epochs(search):
    name = "convfeatureextractor__estimator__max_epochs"
    search = search(
        make_pipeline(extractor(), SVC()),
        {"convfeatureextractor__estimator__lr": [1e-6, 0.02], "svc__C": [1e-4, 10]},
        resource=name,
        min_resources=1,
        max_resources=4,
        factor=2,
        cv=2,
        random_state=0,
        error_score="raise",
    ).fit(X, y)
    assert search.n_resources_ == [1, 2, 4]
    assert search.n_candidates_ == [4, 2, 1]
    assert search.best_params_[name] == 4
    assert search.best_params_["svc__C"] == 10
    assert search.best_estimator_[0].estimator_.n_iter_ == 4
    assert search.score(X_new, y_new) > 0.5


def test_randomized_search():
    search = RandomizedSearchCV(
        make_pipeline(extractor(), SVC()),
        {
            "convfeatureextractor__estimator__lr": loguniform(1e-3, 1e-1),
            "convfeatureextractor__estimator__dense__units": [4, 24],
            "convfeatureextractor__layer": ["dense", "conv*"],
            "convfeatureextractor__pool": ["avg", "max", "flatten"],
            "svc__C": loguniform(1, 100),
        },
        n_iter=4,
        cv=2,
        random_state=0,
        error_score="raise",
    ).fit(X, y)
    assert search.best_score_ > 0.6
    chosen, params = search.best_estimator_[0], search.best_params_
    units = params["convfeatureextractor__estimator__dense__units"]
    assert chosen.module_.body.dense.out_features == units
    assert chosen.estimator_.lr == params["convfeatureextractor__estimator__lr"]


def test_grid_search_over_whole_layers_and_modules():
    grid = [
        {"conv1": [Conv(4, 3), Conv(4, 5, padding="same")], "pool1": ["passthrough", MaxPool(2)]},
        {"module": ["auto"], "max_epochs": [1]},
    ]
    search = GridSearchCV(net(), grid, cv=2, error_score="raise", refit=False).fit(X, y)
    assert len(search.cv_results_["params"]) == 5


# Copies ---------------------------------------------------------------------------------------


def through_pickle(estimator, path):
    return pickle.loads(pickle.dumps(estimator))


def through_joblib(estimator, path):
    joblib.dump(estimator, path / "estimator.joblib")
    return joblib.load(path / "estimator.joblib")


def through_joblib_compressed(estimator, path):
    joblib.dump(estimator, path / "estimator.joblib.gz", compress=3)
    return joblib.load(path / "estimator.joblib.gz")


def through_deepcopy(estimator, path):
    return copy.deepcopy(estimator)


COPIES = [through_pickle, through_joblib, through_joblib_compressed, through_deepcopy]


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_a_fitted_classifier(tmp_path, copied):
    fitted = net().fit(X, y, X_val=X_new, y_val=y_new)
    expected = fitted.predict_proba(X_new)
    other = copied(fitted, tmp_path)
    fitted.partial_fit(X, y)  # the copy has weights of its own
    assert_array_equal(other.predict_proba(X_new), expected)
    assert other.history_ == fitted.history_[:-1]
    assert other.classes_.tolist() == list(range(10))
    assert str(other.layer_table_) == str(fitted.layer_table_)
    assert_array_equal(other.partial_fit(X, y).predict_proba(X_new), fitted.predict_proba(X_new))


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_a_classifier_that_is_not_fitted(tmp_path, copied):
    other = copied(net(), tmp_path)
    assert repr(other) == repr(net())
    expected = net().fit(X, y).predict_proba(X_new)
    assert_array_equal(other.fit(X, y).predict_proba(X_new), expected)


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_a_fitted_pipeline(tmp_path, copied):
    model = make_pipeline(extractor(), SVC()).fit(X, y)
    other = copied(model, tmp_path)
    assert_array_equal(other.decision_function(X_new), model.decision_function(X_new))


def test_clone():
    fitted = net(class_weight={3: 2.0}, net_params={"criterion__label_smoothing": 0.1}).fit(X, y)
    copied = clone(fitted)
    assert not hasattr(copied, "classes_")
    assert repr(copied) == repr(fitted)
    # Nothing is shared that set_params could change.
    copied.set_params(conv1__filters=3, dense__units=5)
    assert fitted.get_params()["conv1__filters"] == 8
    assert copied.module[0][1].filters == 3
    pipeline = clone(make_pipeline(ConvFeatureExtractor(fitted, layer="conv1"), SVC()))
    pipeline.set_params(convfeatureextractor__estimator__conv1__filters=2)
    assert pipeline[:-1].fit_transform(X, y).shape == (160, 2)
    assert fitted.get_params()["conv1__filters"] == 8


def test_a_selector_behind_named_features():
    pytest.importorskip("pandas")
    model = make_pipeline(extractor(layer="conv1", pool="avg"), SelectKBest(k=3))
    model.set_output(transform="pandas")
    table = model.fit_transform(X, y)
    assert table.shape == (160, 3)
    assert set(table.columns) < {f"conv1_{i}" for i in range(8)}


# Metadata -------------------------------------------------------------------------------------


@pytest.fixture
def _routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


WEIGHTS = np.where(y < 5, 10.0, 0.1)
VALIDATION = {"X_val": X_new, "y_val": y_new}


class ValidationSizes(Callback):
    """Notes how many images each training validates on."""

    seen: list = []

    def on_train_begin(self, net, **kwargs):
        self.noted_ = False

    def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
        if not self.noted_:
            ValidationSizes.seen.append(None if dataset_valid is None else len(dataset_valid))
            self.noted_ = True


def losses(classifier):
    return [(row["train_loss"], row["valid_loss"]) for row in classifier.history_]


@cache
def expected_losses(kind):
    return losses(net().fit(X, y, **METADATA[kind]))


METADATA = {
    "nothing": {},
    "weights": {"sample_weight": WEIGHTS},
    "validation": VALIDATION,
    "both": {"sample_weight": WEIGHTS, **VALIDATION},
}


def test_weights_and_validation_data_change_the_history():
    # What the tests below show by comparison of histories.
    histories = [expected_losses(kind) for kind in METADATA]
    for i, one in enumerate(histories):
        for other in histories[:i]:
            assert one != other


@pytest.mark.usefixtures("_routing")
@pytest.mark.parametrize("kind", METADATA)
def test_a_pipeline_routes_to_a_classifier(kind):
    given = METADATA[kind]
    requests = {"sample_weight": True, "X_val": True, "y_val": True}
    # Behind a step that leaves the images as they are.
    model = make_pipeline("passthrough", net().set_fit_request(**requests)).fit(X, y, **given)
    assert losses(model[-1]) == expected_losses(kind)


@pytest.mark.usefixtures("_routing")
@pytest.mark.parametrize("kind", METADATA)
def test_a_pipeline_routes_to_an_extractor(kind):
    given = METADATA[kind]
    requests = {"sample_weight": True, "X_val": True, "y_val": True}
    head = SVC().set_fit_request(sample_weight=False)
    model = make_pipeline(extractor().set_fit_request(**requests), head).fit(X, y, **given)
    assert losses(model[0].estimator_) == expected_losses(kind)


@pytest.mark.usefixtures("_routing")
def test_what_is_not_requested_does_not_arrive():
    requests = {"sample_weight": False, "X_val": False, "y_val": False}
    head = SVC().set_fit_request(sample_weight=True)
    model = make_pipeline(extractor().set_fit_request(**requests), head)
    model.fit(X, y, sample_weight=WEIGHTS)
    assert losses(model[0].estimator_) == expected_losses("nothing")
    with pytest.raises(TypeError, match="X_val"):
        model.fit(X, y, **VALIDATION)
    unset = make_pipeline(extractor(), head)
    with pytest.raises(ValueError, match="sample_weight"):
        unset.fit(X, y, sample_weight=WEIGHTS)


@pytest.mark.usefixtures("_routing")
def test_requests_can_have_other_names():
    model = make_pipeline(net().set_fit_request(sample_weight="mine", X_val="held", y_val="out"))
    model.fit(X, y, mine=WEIGHTS, held=X_new, out=y_new)
    assert losses(model[-1]) == expected_losses("both")


@pytest.mark.usefixtures("_routing")
@pytest.mark.parametrize("wrapped", ["classifier", "pipeline"])
@pytest.mark.parametrize("kind", METADATA)
def test_a_grid_search_routes_to_both(wrapped, kind):
    given = METADATA[kind]
    requests = {"sample_weight": True, "X_val": True, "y_val": True}
    if wrapped == "classifier":
        model = net().set_fit_request(**requests)
        grid = {"max_epochs": [4]}
    else:
        head = SVC().set_fit_request(sample_weight=False)
        model = make_pipeline(extractor().set_fit_request(**requests), head)
        grid = {"svc__C": [1]}
    cv = StratifiedKFold(2)
    scoring = make_scorer(accuracy_score).set_score_request(sample_weight=False)
    search = GridSearchCV(model, grid, scoring=scoring, cv=cv, error_score="raise")
    best = search.fit(X, y, **given).best_estimator_
    refitted = best if wrapped == "classifier" else best[0].estimator_
    assert losses(refitted) == expected_losses(kind)
    # In each fold the weights of that fold and all of the validation data.
    for i, (train, test) in enumerate(cv.split(X, y)):
        fold = {**given}
        if "sample_weight" in fold:
            fold["sample_weight"] = WEIGHTS[train]
        alone = net() if wrapped == "classifier" else extractor()
        alone.fit(X[train], y[train], **fold)
        if wrapped == "pipeline":
            alone = make_pipeline(FrozenEstimator(alone), SVC()).fit(X[train], y[train])
        score = search.cv_results_[f"split{i}_test_score"][0]
        assert score == pytest.approx(accuracy_score(y[test], alone.predict(X[test])))


@pytest.mark.usefixtures("_routing")
@pytest.mark.parametrize(("n", "expected"), [(100, [100, 100, 100]), (160, [80, 80, 160])])
def test_grid_search_slices_validation_data_of_the_length_of_X(n, expected):
    # scikit-learn cannot know that they are not one row for each of X: the documentation warns.
    model = net(max_epochs=1, callbacks=[ValidationSizes()])
    model.set_fit_request(X_val=True, y_val=True)
    data = {"X_val": IMAGES[1000 : 1000 + n].reshape(-1, 8, 8), "y_val": DIGITS[1000 : 1000 + n]}
    ValidationSizes.seen.clear()
    GridSearchCV(model, {"lr": [0.01]}, cv=2, error_score="raise").fit(X, y, **data)
    assert ValidationSizes.seen == expected


@pytest.mark.usefixtures("_routing")
def test_scores_can_be_weighted():
    model = net().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    search = GridSearchCV(model, {"max_epochs": [4]}, cv=StratifiedKFold(2), error_score="raise")
    search.fit(X, y, sample_weight=WEIGHTS)
    train, test = next(StratifiedKFold(2).split(X, y))
    alone = net().fit(X[train], y[train], WEIGHTS[train])
    expected = alone.score(X[test], y[test], WEIGHTS[test])
    assert search.cv_results_["split0_test_score"][0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", METADATA)
def test_pipelines_without_routing(kind):
    given = METADATA[kind]
    model = make_pipeline(extractor(), SVC())
    model.fit(X, y, **{f"convfeatureextractor__{name}": value for name, value in given.items()})
    assert losses(model[0].estimator_) == expected_losses(kind)
    model = make_pipeline(net())
    model.fit(X, y, **{f"convnetclassifier__{name}": value for name, value in given.items()})
    assert losses(model[0]) == expected_losses(kind)


def test_ensembles_pass_sample_weight_on():
    model = CalibratedClassifierCV(net(), cv=2).fit(X, y, sample_weight=WEIGHTS)
    train, _ = next(StratifiedKFold(2).split(X, y))
    expected = net().fit(X[train], y[train], WEIGHTS[train])
    found = model.calibrated_classifiers_[0].estimator
    assert_array_equal(found.predict_proba(X_new), expected.predict_proba(X_new))
