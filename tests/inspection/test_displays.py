"""What all Displays have in common: a row each of models, images and refusals."""

import inspect
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from sklconv import ConvFeatureExtractor, ConvNetClassifier, inspection

plt = pytest.importorskip("matplotlib.pyplot")

N = 120


@dataclass(frozen=True)
class Row:
    """A Display, what it takes beside the model, and which models it refuses with what words."""

    display: type
    takes: str = ""  # "one" image, "images", or "labelled" ones
    params: dict = field(default_factory=dict)
    refuses: dict = field(default_factory=dict)

    def draw(self, model, X, y, **params):
        data = {"": (), "one": (X[:1],), "images": (X,), "labelled": (X, y)}[self.takes]
        return self.display.from_estimator(model, *data, **self.params, **params)


ROWS = [
    Row(inspection.ActivationsDisplay, "one"),
    Row(
        inspection.ConfidenceDisplay,
        "labelled",
        refuses=dict.fromkeys(
            ["pipeline", "search", "frozen"], r"SVC has no predict_proba: .* LogisticRegression"
        ),
    ),
    Row(inspection.EmbeddingDisplay, "labelled"),
    Row(inspection.FeatureMapsDisplay, "one"),
    Row(inspection.FiltersDisplay),
    Row(inspection.LayerProbeDisplay, "labelled", {"cv": 3}),
    Row(inspection.OcclusionDisplay, "one"),
    Row(inspection.PredictionsDisplay, "labelled"),
    Row(
        inspection.SaliencyDisplay,
        "one",
        refuses=dict.fromkeys(
            ["pipeline", "search", "frozen"], "SVC behind it is not linear. OcclusionDisplay would"
        ),
    ),
    Row(inspection.TrainingHistoryDisplay),
]

SIGNATURES = {
    row.display: inspect.signature(row.display.from_estimator).parameters for row in ROWS
}
MODELS = ["classifier", "pipeline", "search", "frozen"]


def halved(X):
    return X / 2


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:N], y[:N]


@pytest.fixture(scope="module")
def models(digits):
    X, y = digits
    net = ConvNetClassifier(max_epochs=2, random_state=0)
    extractor = ConvFeatureExtractor(net, layer="dense")
    pipeline = make_pipeline(FunctionTransformer(halved), extractor, SVC()).fit(X, y)
    search = GridSearchCV(pipeline, {"svc__C": [1.0]}, cv=2).fit(X, y)
    return {
        "classifier": net.fit(X, y),
        "pipeline": pipeline,
        "search": search,
        "frozen": FrozenEstimator(make_pipeline(FrozenEstimator(search))),
    }


def picture(display):
    """The pixels of a Display's figure."""
    display.figure_.canvas.draw()
    return np.asarray(display.figure_.canvas.buffer_rgba()).copy()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.display.__name__)
def test_from_every_kind_of_model(row, model, models, digits):
    if model in row.refuses:
        with pytest.raises((TypeError, ValueError), match=row.refuses[model]):
            row.draw(models[model], *digits)
        return
    display = row.draw(models[model], *digits)
    assert isinstance(display, row.display)
    axes = np.ravel(getattr(display, "axes_", None) if hasattr(display, "axes_") else display.ax_)
    assert all(ax.figure is display.figure_ for ax in axes)
    drawn = picture(display)  # once: a second time the layout would be refined
    assert drawn.std() > 0
    # The constructor takes what was computed, and draws the same.
    computed = {name: getattr(display, name) for name in inspect.signature(row.display).parameters}
    again = row.display(**computed)
    assert again.plot() is again
    assert again.figure_ is not display.figure_
    if not row.params:
        np.testing.assert_array_equal(picture(again), drawn)


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if "search" not in row.refuses],
    ids=lambda row: row.display.__name__,
)
def test_a_search_is_its_best_estimator(row, models, digits):
    one, other = models["search"], models["search"].best_estimator_
    np.testing.assert_array_equal(
        picture(row.draw(one, *digits)), picture(row.draw(other, *digits))
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.display.__name__)
def test_where_it_is_drawn_is_the_callers_choice(row, models, digits):
    figure = plt.figure(figsize=(8, 4))
    display = row.draw(models["classifier"], *digits, ax=figure.subplots())
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.display.__name__)
def test_axes_that_are_none_are_refused(row, models, digits):
    with pytest.raises(ValueError, match=r"ax must be (one|2) axes here, not 4"):
        row.draw(models["classifier"], *digits, ax=plt.figure().subplots(2, 2))
    with pytest.raises(TypeError, match="ax must be matplotlib axes, not Figure"):
        row.draw(models["classifier"], *digits, ax=plt.figure())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.display.__name__)
def test_what_holds_no_fitted_network_is_refused(row, models, digits):
    X, y = digits
    with pytest.raises(TypeError, match=r"LogisticRegression holds no network .* pass a fitted"):
        row.draw(LogisticRegression(), X, y)
    for model in (
        ConvNetClassifier(),
        make_pipeline(ConvFeatureExtractor(), SVC()),
        GridSearchCV(ConvNetClassifier(), {"lr": [0.1]}),
    ):
        with pytest.raises(NotFittedError, match="is not fitted: call fit first"):
            row.draw(model, X, y)
    search = GridSearchCV(models["pipeline"], {"svc__C": [1.0]}, cv=2, refit=False)
    with pytest.raises(ValueError, match=r"refit=False keeps no fitted model .* set refit=True"):
        row.draw(search, X, y)


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.takes == "one"],
    ids=lambda row: row.display.__name__,
)
def test_one_image_in_every_form(row, models, digits):
    X, _ = digits
    first = X[0]
    pictures = [
        picture(row.display.from_estimator(models["classifier"], image, **row.params))
        for image in (
            *(first, first[None], first.reshape(8, 8), first.reshape(1, 8, 8)),
            *(first.reshape(8, 8, 1), first.reshape(1, 1, 8, 8), first.tolist()),
        )
    ]
    for other in pictures[1:]:
        np.testing.assert_array_equal(other, pictures[0])
    with pytest.raises(ValueError, match=r"one image is shown, but X holds 2.*X\[:1\]"):
        row.display.from_estimator(models["classifier"], X[:2], **row.params)
    with pytest.raises(ValueError, match=r"X of shape \(9, 9\) holds no images of shape"):
        row.display.from_estimator(models["classifier"], np.zeros((9, 9)), **row.params)


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if "y" in SIGNATURES[row.display]],
    ids=lambda row: row.display.__name__,
)
def test_labels_in_several_columns_are_refused(row, models, digits):
    X, y = digits
    with pytest.raises(ValueError, match="1d array"):
        row.display.from_estimator(models["classifier"], X, np.stack([y, y], axis=1))


@pytest.mark.parametrize("name", ["ConfidenceDisplay", "PredictionsDisplay"])
def test_labels_that_no_prediction_can_equal_are_refused(name, models, digits):
    X, y = digits
    draw = getattr(inspection, name).from_estimator
    with pytest.raises(ValueError, match=r"y holds labels like '0', but the model predicts .* 0"):
        draw(models["classifier"], X, y.astype(str))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("PredictionsDisplay", {"n_images": 0}),
        ("PredictionsDisplay", {"n_columns": 0}),
        ("PredictionsDisplay", {"n_columns": 1.5}),
        ("ConfidenceDisplay", {"bins": 0}),
        ("EmbeddingDisplay", {"n_images": -1}),
    ],
)
def test_numbers_that_count_nothing_are_refused(name, params, models, digits):
    (param,) = params
    with pytest.raises(ValueError, match=f"The {param!r} parameter of .* must be an int in"):
        getattr(inspection, name).from_estimator(models["classifier"], *digits, **params)


def test_labels_are_drawn_as_they_are(digits):
    X, y = digits
    names = np.array([rf"${{digit}}\frac$ <{i}>" for i in range(10)])[y]
    model = ConvNetClassifier(max_epochs=1, random_state=0).fit(X, names)
    for row in ROWS:
        picture(row.draw(model, X, names))  # else matplotlib fails to parse them as mathematics
    many = np.array([f"${i}" for i in range(30)])[np.arange(N) % 30]
    picture(
        inspection.EmbeddingDisplay(np.zeros((N, 2)), [rf"{name}\frac$" for name in many]).plot()
    )


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.takes], ids=lambda row: row.display.__name__
)
def test_dask_arrays_are_images_as_well(row, models, digits):
    da = pytest.importorskip("dask.array")
    X, y = digits
    blocks = da.from_array(X, chunks=(50, 64))
    for model in models["classifier"], models["search"]:
        if model is models["search"] and row.refuses:
            continue
        np.testing.assert_array_equal(
            picture(row.draw(model, blocks, y)), picture(row.draw(model, X, y))
        )


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.display.__name__[:4] in ("Conf", "Occl", "Pred", "Sali")],
    ids=lambda row: row.display.__name__,
)
def test_heads_of_several_outputs_are_refused(row, models, digits):
    X, y = digits
    extractor = ConvFeatureExtractor(FrozenEstimator(models["classifier"]), layer="dense")
    head = MultiOutputClassifier(LogisticRegression(max_iter=1000))
    model = make_pipeline(extractor, head).fit(X, np.stack([y, y > 4], axis=1))
    with pytest.raises(TypeError, match="MultiOutputClassifier predicts several outputs"):
        row.draw(model, X, y)


def test_every_display_has_its_row():
    displays = {name for name in inspection.__all__ if name.endswith("Display")}
    assert {row.display.__name__ for row in ROWS} == displays


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.display.__name__)
def test_without_matplotlib_the_extra_is_named(row, models, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "sklconv\[plot\]"'):
        row.draw(models["classifier"], *digits)
