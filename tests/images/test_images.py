"""X as images: every form that means the same images is read alike, and none is written."""

import math
import re
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._images import sources, statistics
from sklconv._images.forms import ImageFormat
from sklconv._images.sources import ImageArray, as_tensor
from sklconv._images.statistics import channel_statistics
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, GlobalAvgPool

SMALL = [("conv", Conv(4, 3, padding="same")), ("dense", Dense(8))]


def classifier(**params):
    return ConvNetClassifier(SMALL, **{"max_epochs": 1, "random_state": 0, **params})


def fit(X, **params):
    return classifier(**params).fit(X, np.arange(len(X)) % 2)


def pixels(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 256, size=shape).astype(dtype)


# Which images are read


@pytest.mark.parametrize(
    ("x_shape", "params", "image_shape"),
    [
        # three axes: grey
        ((12, 5, 7), {}, (1, 5, 7)),
        ((12, 3, 3), {}, (1, 3, 3)),
        ((12, 1, 1), {}, (1, 1, 1)),
        ((12, 5, 7), {"image_shape": (5, 7)}, (1, 5, 7)),
        ((12, 5, 7), {"image_shape": (1, 5, 7)}, (1, 5, 7)),
        ((12, 5, 7), {"data_format": "channels_last"}, (1, 5, 7)),
        # four axes: by the axis of size 1 to 4
        *[((12, c, 6, 5), {}, (c, 6, 5)) for c in (1, 2, 3, 4)],
        *[((12, 6, 5, c), {}, (c, 6, 5)) for c in (1, 2, 3, 4)],
        ((12, 3, 1, 7), {}, (3, 1, 7)),
        ((12, 1, 1, 1), {}, (1, 1, 1)),
        # ... by image_shape where it fits one reading
        ((12, 3, 4, 2), {"image_shape": (3, 4, 2)}, (3, 4, 2)),
        ((12, 3, 4, 2), {"image_shape": (2, 3, 4)}, (2, 3, 4)),
        ((12, 9, 8, 6), {"image_shape": (6, 9, 8)}, (6, 9, 8)),
        ((12, 6, 5, 1), {"image_shape": (6, 5)}, (1, 6, 5)),
        ((12, 1, 6, 5), {"image_shape": [6, 5]}, (1, 6, 5)),
        ((12, 3, 4, 2), {"image_shape": (2, 3, 4), "data_format": "channels_first"}, (2, 3, 4)),
        # ... by data_format
        ((12, 3, 4, 2), {"data_format": "channels_first"}, (3, 4, 2)),
        ((12, 3, 4, 2), {"data_format": "channels_last"}, (2, 3, 4)),
        ((12, 9, 8, 6), {"data_format": "channels_last"}, (6, 9, 8)),
        ((12, 2, 2, 2), {"image_shape": (2, 2, 2), "data_format": "channels_last"}, (2, 2, 2)),
        # two axes: by image_shape, a grey square from 4×4 up, or one row
        ((12, 35), {"image_shape": (5, 7)}, (1, 5, 7)),
        ((12, 70), {"image_shape": (2, 5, 7)}, (2, 5, 7)),
        ((12, 64), {"image_shape": (4, 4, 4)}, (4, 4, 4)),
        ((12, 16), {}, (1, 4, 4)),
        ((12, 64), {}, (1, 8, 8)),
        ((12, 784), {}, (1, 28, 28)),
        ((12, 1), {}, (1, 1, 1)),
        ((12, 4), {}, (1, 1, 4)),
        ((12, 9), {}, (1, 1, 9)),
        ((12, 63), {}, (1, 1, 63)),
    ],
    ids=str,
)
def test_image_shape_that_is_read(x_shape, params, image_shape):
    X = pixels(*x_shape)
    extractor = ConvFeatureExtractor(nn.Flatten(), **params)
    for estimator in (fit(X, **params), extractor.fit(X)):
        assert estimator.image_shape_ == image_shape
        assert estimator.n_features_in_ == math.prod(image_shape)


@pytest.mark.parametrize(
    ("x_shape", "params", "words"),
    [
        ((12, 3, 4, 2), {}, ["(3, 4, 2)", "(2, 3, 4)", "both", "data_format", "image_shape"]),
        ((12, 9, 8, 6), {}, ["(9, 8, 6)", "(6, 9, 8)", "neither", "data_format", "image_shape"]),
        ((12, 3, 9, 3), {}, ["(3, 9, 3)", "(3, 3, 9)", "both", "data_format"]),
        ((12, 2, 2, 2), {"image_shape": (2, 2, 2)}, ["both", "data_format"]),
        (
            (12, 3, 4, 2),
            {"image_shape": (3, 2, 4)},
            ["image_shape=(3, 2, 4)", "(3, 4, 2)", "(2, 3, 4)"],
        ),
        ((12, 5, 7), {"image_shape": (7, 5)}, ["image_shape=(1, 7, 5)", "(12, 5, 7)"]),
        ((12, 5, 7), {"image_shape": (3, 5, 7)}, ["image_shape=(3, 5, 7)", "(12, 5, 7)"]),
        ((12, 35), {"image_shape": (5, 8)}, ["image_shape=(1, 5, 8)", "40", "35"]),
        ((12, 3072), {}, ["3072 features", "image_shape=(3, 32, 32)"]),
        ((12, 108), {}, ["108 features", "image_shape=(3, 6, 6)"]),
        ((12, 200), {}, ["200 features", "image_shape=(2, 10, 10)"]),
        ((12, 120), {}, ["120 features", "image_shape=(10, 12)"]),
        ((12, 67), {}, ["67 features", "image_shape=(1, 67)"]),
        ((12, 1, 1, 8, 8), {}, ["(12, 1, 1, 8, 8)", "(n, C, H, W)", "(n, H, W)"]),
        ((12,), {}, ["(12,)", "X[None]"]),
    ],
    ids=str,
)
def test_shapes_that_are_not_read(x_shape, params, words):
    X = pixels(*x_shape)
    for estimator in (classifier(**params), ConvFeatureExtractor(nn.Flatten(), **params)):
        with pytest.raises(ValueError) as raised:
            estimator.fit(X, np.arange(12) % 2)
        assert all(word in str(raised.value) for word in words), raised.value


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 4000))
def test_what_is_proposed_for_flat_images_fits(n_features):
    X = np.zeros((2, n_features), dtype=np.uint8)
    try:
        shape = ImageFormat.infer(X, None, "auto").shape
    except ValueError as error:
        proposal = re.search(r"image_shape=\(([\d, ]+)\)", str(error))[1]
        proposed = tuple(int(length) for length in proposal.split(","))
        shape = ImageFormat.infer(X, proposed, "auto").shape
        assert shape in (proposed, (1, *proposed))
    assert math.prod(shape) == n_features


@pytest.mark.parametrize(
    "image_shape",
    [64, "8x8", (8.0, 8), (0, 8), (8, -1), (8,), (1, 1, 8, 8), (), (8, "8"), np.array([8, 8])],
    ids=repr,
)
def test_image_shapes_that_are_none(image_shape):
    with pytest.raises(ValueError, match=r"image_shape=.*height, width.*channels, height, width"):
        fit(pixels(12, 64), image_shape=image_shape)


# The same images in every form


def flat(X):
    return X.reshape(len(X), -1)


def memmap(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


def locked(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def field(X):
    """X as a field of packed records, whose values lie at any address."""
    records = np.zeros(len(X), [("label", "u1"), ("image", X.dtype, X.shape[1:])])
    records["image"] = X
    return records["image"]


# Each takes uint8 images (n, C, H, W) and a folder.
FORMS = {
    "(n, C, H, W)": lambda X, _: X,
    "(n, H, W, C)": lambda X, _: np.ascontiguousarray(X.transpose(0, 2, 3, 1)),
    "(n, H, W, C) view": lambda X, _: X.transpose(0, 2, 3, 1),
    "flat": lambda X, _: flat(X),
    "flat F order": lambda X, _: np.asfortranarray(flat(X)),
    "DataFrame": lambda X, _: pd.DataFrame(flat(X)),
    "DataFrame of floats": lambda X, _: pd.DataFrame(flat(X).astype(float)),
    "DataFrame of many dtypes": lambda X, _: pd.DataFrame(flat(X)).astype(
        {0: float, 1: np.int16, 2: "Int64", 3: "Float32"}
    ),
    "list of lists": lambda X, _: flat(X).tolist(),
    "nested lists": lambda X, _: X.tolist(),
    "list of arrays": lambda X, _: list(X),
    "tuple of arrays": lambda X, _: tuple(X),
    "list of tensors": lambda X, _: list(torch.from_numpy(X)),
    "tensor": lambda X, _: torch.from_numpy(X),
    "flat tensor": lambda X, _: torch.from_numpy(flat(X)),
    "tensor that wants gradients": lambda X, _: torch.from_numpy(X).float().requires_grad_(),
    "channels-last tensor": lambda X, _: torch.from_numpy(X).to(memory_format=torch.channels_last),
    "read-only memmap": memmap,
    "flat memmap": lambda X, folder: memmap(flat(X), folder),
    "read-only": lambda X, _: locked(X),
    "read-only floats": lambda X, _: locked(X.astype(np.float32)),
    "F order": lambda X, _: np.asfortranarray(X),
    "reversed rows": lambda X, _: np.ascontiguousarray(X[::-1])[::-1],
    "reversed columns": lambda X, _: np.ascontiguousarray(X[..., ::-1])[..., ::-1],
    "reversed floats": lambda X, _: np.ascontiguousarray(X[..., ::-1, :], np.float32)[
        ..., ::-1, :
    ],
    "every second": lambda X, _: np.repeat(X, 2, axis=0)[::2],
    "field of records": lambda X, _: field(X),
    "field of floats": lambda X, _: field(X.astype(np.float32)),
    "flat field of float64": lambda X, _: field(flat(X).astype(np.float64)),
    "object": lambda X, _: X.astype(object),
    "big-endian float64": lambda X, _: X.astype(">f8"),
    "big-endian float32": lambda X, _: X.astype(">f4"),
    "big-endian int32": lambda X, _: X.astype(">i4"),
    **{
        dtype: lambda X, _, dtype=dtype: X.astype(dtype)
        for dtype in ("float16", "float32", "float64", "longdouble", "int16", "uint16", "int64")
    },
}
GREY_FORMS = {
    "(n, H, W)": lambda X, _: X[:, 0],
    "(n, H, W) F order": lambda X, _: np.asfortranarray(X[:, 0]),
    "(n, H, W) memmap": lambda X, folder: memmap(X[:, 0], folder),
    "(n, H, W) lists": lambda X, _: X[:, 0].tolist(),
    "(n, H, W) list of arrays": lambda X, _: list(X[:, 0]),
    "(n, H, W) tensor": lambda X, _: torch.from_numpy(X[:, 0]),
}
CASES = [
    *[("grey", form) for form in [*FORMS, *GREY_FORMS]],
    *[("colour", form) for form in FORMS],
]
IMAGE_SHAPES = {"grey": (1, 6, 5), "colour": (3, 6, 5)}


@pytest.fixture(scope="module")
def reference():
    """By kind of image: images, labels, a network fitted on them, and its decision function."""
    y, result = np.arange(40) % 2, {}
    for kind, shape in IMAGE_SHAPES.items():
        X = pixels(40, *shape)
        clf = classifier(image_shape=shape).fit(X, y)
        result[kind] = SimpleNamespace(X=X, y=y, clf=clf, expected=clf.decision_function(X))
        assert np.ptp(result[kind].expected) > 0
    return result


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_predictions_are_those_of_any_other_form(kind, form, reference, tmp_path):
    case = reference[kind]
    X = {**FORMS, **GREY_FORMS}[form](case.X, tmp_path)
    np.testing.assert_array_equal(case.clf.decision_function(X), case.expected)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_fit_is_that_of_any_other_form(kind, form, reference, tmp_path):
    case = reference[kind]
    X = {**FORMS, **GREY_FORMS}[form](case.X, tmp_path)
    clf = classifier(image_shape=IMAGE_SHAPES[kind]).fit(X, case.y)
    assert clf.image_shape_ == IMAGE_SHAPES[kind]
    assert clf.n_features_in_ == math.prod(IMAGE_SHAPES[kind])
    np.testing.assert_array_equal(clf.decision_function(case.X), case.expected)
    np.testing.assert_array_equal(clf.decision_function(X), case.expected)


@pytest.mark.parametrize("fitted_on", ["(n, H, W, C)", "(n, H, W)", "flat", "DataFrame"])
def test_grey_images_fitted_in_one_form_are_predicted_in_all(fitted_on, reference, tmp_path):
    case, all_forms = reference["grey"], {**FORMS, **GREY_FORMS}
    clf = classifier(image_shape=(6, 5)).fit(all_forms[fitted_on](case.X, tmp_path), case.y)
    for form, convert in all_forms.items():
        outputs = clf.decision_function(convert(case.X, tmp_path))
        np.testing.assert_array_equal(outputs, case.expected, err_msg=form)


@pytest.mark.parametrize("image_shape", [(1, 1, 1), (2, 1, 1), (3, 1, 7), (3, 7, 1), (4, 3, 2)])
def test_forms_of_images_with_axes_of_length_one(image_shape, tmp_path):
    X, y = pixels(30, *image_shape), np.arange(30) % 2
    params = {"image_shape": image_shape}
    if image_shape in (X.shape[1:], X.shape[2:]):
        params["data_format"] = "channels_first"
    expected = classifier(**params).fit(X, y).decision_function(X)
    for form in ("flat", "float64", "F order", "tensor", "channels-last tensor"):
        converted = FORMS[form](X, tmp_path)
        outputs = classifier(**params).fit(converted, y).decision_function(converted)
        np.testing.assert_array_equal(outputs, expected, err_msg=form)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def add_noise(images):
    return images + torch.randn_like(images)


FIRST = {
    "dropout": {"module": [("drop", Dropout(0.5)), *SMALL]},
    "batch-norm": {"module": [("norm", BatchNorm()), *SMALL]},
    "pool": {"module": [("pool", GlobalAvgPool())]},
    "noise": {"augment": add_noise},
    "module": {"module": nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), Mean())},
}


@pytest.mark.parametrize("image_shape", [(3, 6, 5), (3, 7, 1), (3, 1, 1)])
@pytest.mark.parametrize("first", FIRST)
def test_what_comes_first_does_not_follow_the_layout_of_x(first, image_shape, tmp_path):
    # Masks and noise are drawn, and sums formed, in the order of memory.
    X, y = pixels(30, *image_shape, dtype=np.float32) / 255, np.arange(30) % 2
    params = {"image_shape": image_shape, "data_format": "channels_first", "random_state": 0}

    def outputs(X):
        clf = ConvNetClassifier(**{"module": SMALL, "max_epochs": 1, **params, **FIRST[first]})
        return clf.fit(X, y).decision_function(X)

    expected = outputs(X)
    for form in ("F order", "channels-last tensor", "big-endian float32"):
        np.testing.assert_array_equal(outputs(FORMS[form](X, tmp_path)), expected, err_msg=form)


def test_bool_images_are_zeros_and_ones():
    X = pixels(30, 6, 5) > 128
    outputs = fit(X).decision_function(X)
    for dtype in (np.uint8, np.float32):
        numbers = X.astype(dtype)
        np.testing.assert_array_equal(fit(numbers).decision_function(numbers), outputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors_are_images(dtype):
    X = torch.rand(12, 6, 5).to(dtype)
    clf = fit(X)
    np.testing.assert_array_equal(clf.predict(X), clf.predict(X.float()))
    np.testing.assert_array_equal(clf.predict(list(X)), clf.predict(X.float()))


def test_features_are_those_of_any_other_form(reference, tmp_path):
    X = reference["colour"].X
    extractor = ConvFeatureExtractor(nn.Flatten(), image_shape=X.shape[1:])
    features = extractor.fit(X).transform(X)
    np.testing.assert_allclose(features, flat(X) / 255, rtol=1e-6)
    for form in ("(n, H, W, C)", "flat", "DataFrame", "list of arrays", "tensor", "F order"):
        np.testing.assert_array_equal(extractor.transform(FORMS[form](X, tmp_path)), features)


# Pixel order of flat images


def test_flat_images_are_channels_first_unless_data_format_says_otherwise():
    X = pixels(30, 3, 6, 5)
    y = np.arange(30) % 2
    last = flat(X.transpose(0, 2, 3, 1))
    params = {"image_shape": (3, 6, 5)}
    expected = classifier(**params).fit(X, y).decision_function(X)
    for data_format in ("auto", "channels_first"):
        clf = classifier(**params, data_format=data_format).fit(flat(X), y)
        np.testing.assert_array_equal(clf.decision_function(X), expected)
    clf = classifier(**params, data_format="channels_last").fit(last, y)
    np.testing.assert_array_equal(clf.decision_function(X), expected)
    np.testing.assert_array_equal(clf.decision_function(last), expected)


def test_flat_images_have_the_order_of_those_fitted():
    X = pixels(30, 6, 5, 3)
    clf = fit(X)
    np.testing.assert_array_equal(clf.decision_function(flat(X)), clf.decision_function(X))


def test_a_layout_that_was_ambiguous_stays_as_it_was_decided():
    X = pixels(30, 3, 3, 3)
    last = X.transpose(0, 2, 3, 1)
    fitted_on_first = fit(X, data_format="channels_first")
    fitted_on_last = fit(last, data_format="channels_last")
    expected = fitted_on_first.decision_function(X)
    np.testing.assert_array_equal(fitted_on_last.decision_function(last), expected)
    assert (fitted_on_last.decision_function(X) != expected).any()


# A later X of another shape


@pytest.mark.parametrize(
    ("x_shape", "words"),
    [
        ((9, 3, 6, 6), ["(9, 3, 6, 6)"]),
        ((9, 1, 6, 5), ["(9, 1, 6, 5)"]),
        ((9, 4, 6, 5), ["(9, 4, 6, 5)"]),
        ((9, 5, 6, 3), ["(9, 5, 6, 3)"]),
        ((9, 6, 5), ["(9, 6, 5)"]),
        ((9, 91), ["X has 91 features", "expecting 90 features"]),
        ((9, 30), ["X has 30 features", "expecting 90 features"]),
        ((3, 6, 5), ["(3, 6, 5)", "single image", "X[None]"]),
        ((6, 5, 3), ["(6, 5, 3)", "single image", "X[None]"]),
        ((6, 5), ["(6, 5)", "single image", "X[None]"]),
        ((90,), ["(90,)", "single image", "X[None]"]),
        ((9, 3, 6, 5, 1), ["(9, 3, 6, 5, 1)"]),
    ],
    ids=str,
)
def test_later_images_of_another_shape(x_shape, words, reference):
    clf = reference["colour"].clf
    extractor = ConvFeatureExtractor(nn.Flatten()).fit(reference["colour"].X)
    X = pixels(*x_shape)
    calls = {
        "predict": lambda: clf.predict(X),
        "predict_proba": lambda: clf.predict_proba(X),
        "decision_function": lambda: clf.decision_function(X),
        "partial_fit": lambda: clf.partial_fit(X, np.arange(len(X)) % 2),
        "transform": lambda: extractor.transform(X),
        "transform_batches": lambda: next(extractor.transform_batches(X)),
    }
    if X.ndim not in (1, 5):
        words = [*words, "(3, 6, 5)"]
    for method, call in calls.items():
        with pytest.raises(ValueError) as raised:
            call()
        assert all(word in str(raised.value) for word in words), f"{method}: {raised.value}"


# Feature names


def test_feature_names():
    X = pixels(30, 16)
    y = np.arange(30) % 2
    frame = pd.DataFrame(X, columns=[f"p{i}" for i in range(16)])
    clf = classifier().fit(frame, y)
    assert list(clf.feature_names_in_) == list(frame)
    expected = clf.decision_function(frame)
    np.testing.assert_array_equal(expected, classifier().fit(X, y).decision_function(X))
    np.testing.assert_array_equal(clf.decision_function(pl.from_pandas(frame)), expected)
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(frame[list(frame)[::-1]])
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(frame.drop(columns="p3"))
    for unnamed in (X, X.reshape(30, 4, 4)):
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            np.testing.assert_array_equal(clf.decision_function(unnamed), expected)
    assert not hasattr(clf.fit(X, y), "feature_names_in_")
    with pytest.warns(UserWarning, match="fitted without feature names"):
        clf.predict(frame)


# What a network gets to see


class Recorder(nn.Module):
    """Keeps the pixels of its last pass."""

    def __init__(self, image_shape=(2, 4, 6), n_classes=2):
        super().__init__()
        self.dense = nn.Linear(math.prod(image_shape), n_classes)
        self.seen = []

    def forward(self, x):
        self.seen[:] = [x.clone()]
        return self.dense(x.flatten(1))


def pixels_seen(module, X, **params):
    clf = ConvNetClassifier(module, max_epochs=1, random_state=0, **params)
    clf.fit(X, np.arange(len(X)) % 2).predict(X)
    (seen,) = clf.module_.body.seen
    assert seen.dtype == torch.float32
    return seen.detach().numpy()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64", "bool"])
@pytest.mark.parametrize("module", ["instance", "TorchModule"])
@pytest.mark.parametrize("standardize", ["auto", True, False])
def test_pixels_that_a_network_sees(standardize, module, dtype):
    X = (pixels(40, 2, 4, 6) + np.array([0, 50], dtype=np.uint8)[:, None, None]).astype(dtype)
    made = Recorder() if module == "instance" else TorchModule(Recorder)
    seen = pixels_seen(made, X, standardize=standardize)
    if standardize is True or (standardize == "auto" and module == "TorchModule"):
        numbers = X.astype(np.float64)
        expected = numbers - numbers.mean((0, 2, 3), keepdims=True)
        expected /= numbers.std((0, 2, 3), keepdims=True)
    else:
        expected = X / 255 if dtype == "uint8" else X
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_is_divided_by_one():
    X = pixels(40, 2, 4, 6, dtype=np.float32)
    X[:, 1] = 7.7
    seen = pixels_seen(TorchModule(Recorder), X)
    np.testing.assert_array_equal(seen[:, 1], 0)
    assert seen[:, 0].std() == pytest.approx(1, rel=1e-4)


def test_statistics_are_those_of_the_first_data():
    X, y = pixels(30, 6, 5, dtype=np.float32), np.arange(30) % 2
    expected = fit(X).module_.prepare.state_dict()
    for clf in (classifier().partial_fit(X, y, classes=[0, 1]), fit(X, warm_start=True)):
        (clf.fit if clf.warm_start else clf.partial_fit)(3 * X + 100, y)
        assert clf.module_.prepare.state_dict() == expected


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("uint8", torch.uint8),
        *[
            (d, torch.float32)
            for d in ("bool", "int8", "int64", "float16", "float32", ">f4", "f8")
        ],
    ],
)
@pytest.mark.parametrize("index", [slice(2, 5), np.array([4, 0, 2])], ids=["slice", "rows"])
def test_batches_are_uint8_or_float32(dtype, expected, index):
    images = pixels(6, 2, 3, 4).astype(dtype)
    batch = as_tensor(images[index])
    assert batch.dtype == expected
    np.testing.assert_array_equal(batch.numpy(), images[index])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_values_that_are_not_finite_are_found_wherever_they_are(dtype, value):
    X = pixels(300, 6, 5).astype(dtype)
    clf = fit(X)
    with np.errstate(over="ignore"):
        X[290, 5, 3] = value
    message = "Input X contains NaN" if np.isnan(value) else "Input X contains infinity"
    for call in (lambda: fit(X), lambda: clf.predict(X), lambda: clf.predict(X[290:291])):
        with pytest.raises(ValueError, match=message):
            call()


def test_large_values_are_finite():
    X = np.full((30, 6, 5), 3e38, dtype=np.float32)
    X[::2] = 1e38
    assert np.isfinite(fit(X).decision_function(X)).all()


# X is not written, and a file is not copied whole


def write(x):
    return x.mul_(0).add_(1)


class Writer(nn.Module):
    """Writes into its input."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(96, 2)

    def forward(self, x):
        return self.dense(write(x).flatten(1))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["(n, C, H, W)", "(n, H, W, C)"])
@pytest.mark.parametrize("shape", [(2, 8, 6), (1, 8, 12)], ids=str)
def test_images_are_never_written(shape, layout, dtype, tmp_path):
    X = FORMS[layout](pixels(20, *shape, dtype=dtype), tmp_path)
    y = np.arange(20) % 2
    before = X.copy()
    for module in (Writer(), SMALL):
        clf = ConvNetClassifier(module, max_epochs=1, augment=write)
        clf.fit(X, y, X_val=X, y_val=y).partial_fit(X, y).predict(X)
        np.testing.assert_array_equal(X, before)
    ConvFeatureExtractor(Writer()).fit(X).transform(X)
    np.testing.assert_array_equal(X, before)
    features = ConvFeatureExtractor(nn.Identity(), pool="flatten").fit(X).transform(X)
    features[:] = 0
    np.testing.assert_array_equal(X, before)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_BYTES", 2**18)
    monkeypatch.setattr(sources, "CACHE_BYTES", 2**14)
    monkeypatch.setattr(statistics, "CACHE_BYTES", 2**14)


@pytest.mark.parametrize("n", [1, 2])
def test_few_records_of_a_packed_field(n):
    X = pixels(20, 3, 6, 5, dtype=np.float32)
    clf = fit(X)
    for start in range(4):  # some of them lie at aligned addresses
        came = clf.decision_function(field(X)[start : start + n])
        np.testing.assert_array_equal(came, clf.decision_function(X[start : start + n]))


def allocated(call):
    """The most bytes that numpy and Python held at once during ``call``."""
    call()  # once beforehand, for what is imported and cached at the first call
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def packed_records(n):
    """Records of float32 images of 32×32 pixels behind a label each."""
    return np.zeros(n, [("label", "u1"), ("image", "f4", (32, 32))])


FILES = {
    "records": lambda: packed_records(2000),
    "uint8": lambda: pixels(8000, 32, 32),
    "float32": lambda: pixels(2000, 32, 32, dtype=np.float32),
    "float64 F order": lambda: np.asfortranarray(pixels(1000, 32, 32, dtype=np.float64)),
    "flat float64": lambda: pixels(1000, 1024, dtype=np.float64),
    "channels last": lambda: pixels(2000, 32, 32, 4),
}


@pytest.fixture(params=FILES)
def file(request, tmp_path):
    file = memmap(FILES[request.param](), tmp_path)
    return file if file.dtype.names is None else file["image"]


@pytest.mark.parametrize(
    "use",
    [
        "fit",
        "fit with X_val",
        "partial_fit",
        "early stopping",
        "predict",
        "transform",
        "transform_batches",
    ],
)
def test_a_file_is_never_copied_whole(use, file, small_chunks):
    # One linear layer, so that nothing but X takes much memory.
    clf = ConvNetClassifier([], max_epochs=1, batch_size=128, random_state=0)
    y = np.arange(len(file)) % 2
    if use in ("predict", "transform", "transform_batches"):
        clf.fit(file[:10], y[:10])
        extractor = ConvFeatureExtractor(nn.AvgPool2d(8)).fit(file[:10])
    calls = {
        "fit": lambda: clf.fit(file, y),
        "fit with X_val": lambda: clf.fit(file[:20], y[:20], X_val=file, y_val=y),
        "partial_fit": lambda: clf.partial_fit(file, y, classes=[0, 1]),
        "early stopping": lambda: clf.set_params(early_stopping=True).fit(file, y),
        "predict": lambda: clf.predict(file),
        "transform": lambda: extractor.transform(file),
        "transform_batches": lambda: sum(len(rows) for rows in extractor.transform_batches(file)),
    }
    assert allocated(calls[use]) < file.nbytes / 2


# Statistics of the channels


def check_statistics(images, rtol=1e-9):
    mean, std, largest = channel_statistics(ImageArray(images))
    values = images.astype(np.float64)
    axes = (0, 2, 3)
    expected = values.std(axes)
    constant = np.ptp(values, axis=axes) == 0
    np.testing.assert_allclose(mean, values.mean(axes), rtol=rtol, atol=rtol * np.ptp(values))
    np.testing.assert_allclose(std, np.where(constant, 1, expected), rtol=max(rtol, 1e-6))
    assert all(type(number) is float for number in [*mean, *std, largest])
    assert largest == np.abs(values).max()


@pytest.mark.parametrize(
    "dtype", ["uint8", "bool", "int8", "int64", "float16", "float32", "float64", ">f4"]
)
@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (1, 1, 2, 2), (200, 2, 1, 1)], ids=str)
def test_channel_statistics_are_numpys(shape, dtype):
    check_statistics((pixels(*shape) % 100).astype(dtype))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([np.uint8, np.int16, np.float32, np.float64]).flatmap(
        lambda dtype: st_numpy.arrays(
            dtype,
            st_numpy.array_shapes(min_dims=4, max_dims=4, max_side=4),
            elements=(
                st.integers(0, 255)
                if np.issubdtype(dtype, np.integer)
                else st.integers(-(10**6), 10**6).map(lambda n: float(np.float32(n / 128)))
            ),
        )
    )
)
def test_channel_statistics_of_any_images(images):
    check_statistics(images)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *[(np.uint8, value) for value in (0, 7, 255)],
        *[(dtype, v) for dtype in (np.float32, np.float64) for v in (0, 7, 0.1, -1e-20, 1e20)],
    ],
)
def test_the_standard_deviation_of_a_constant_channel_is_one(dtype, value):
    images = pixels(50, 2, 9, 9).astype(dtype)
    images[:, 1] = value
    mean, std, _ = channel_statistics(ImageArray(images))
    assert std[1] == 1
    assert mean[1] == images[0, 1, 0, 0]
    assert std[0] == pytest.approx(images[:, 0].astype(float).std())


@pytest.mark.parametrize("offset", [-1e6, 1e9])
def test_channel_statistics_under_a_large_offset(offset):
    images = np.random.default_rng(0).normal(size=(100, 2, 5, 6)) + offset
    check_statistics(images)


def test_channel_statistics_of_a_first_pixel_unlike_the_others():
    images = np.random.default_rng(0).normal(size=(100, 1, 5, 6))
    images[0, 0, 0, 0] = 1e6
    check_statistics(images)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_channel_statistics_do_not_depend_on_memory_layout(dtype, small_chunks):
    images = (pixels(500, 3, 10, 9) / 7).astype(dtype)
    expected = channel_statistics(ImageArray(images))
    views = {
        "F order": np.asfortranarray(images),
        "channels last": np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "reversed": np.ascontiguousarray(images[::-1, :, ::-1])[::-1, :, ::-1],
        "big-endian": images.astype(np.dtype(dtype).newbyteorder(">")),
        "field of records": field(images),
        "float64": images.astype(np.float64),
    }
    for name, view in views.items():
        assert channel_statistics(ImageArray(view)) == expected, name


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_channel_statistics_in_chunks(dtype, monkeypatch):
    images = (pixels(100, 2, 5, 6, dtype=np.float64) / 7).astype(dtype)
    whole = channel_statistics(ImageArray(images))
    monkeypatch.setattr(statistics, "CACHE_BYTES", 1)
    for came, expected in zip(channel_statistics(ImageArray(images)), whole, strict=True):
        np.testing.assert_allclose(came, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(12, 16, 3), (12, 16, 4)])
def test_a_single_colour_photo_is_no_batch_of_narrow_ones(shape, timm):
    photo = np.zeros(shape, np.uint8)
    backbone = Backbone("timm/resnet10t", weights=None)
    with pytest.raises(ValueError, match=r"looks like a single colour image: pass X\[None\]"):
        ConvFeatureExtractor(backbone).fit(photo)
    extractor = ConvFeatureExtractor(backbone, image_shape=shape[1:]).fit(photo)
    assert extractor.image_shape_ == (1, *shape[1:])
    # Other networks may be made for such.
    extractor = ConvFeatureExtractor(nn.Sequential(nn.Conv2d(1, 4, 3)), layer="0").fit(photo)
    assert extractor.image_shape_ == (1, *shape[1:])
