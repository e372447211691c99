"""Every source of images against naive indexing of the array that it stands for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skorch import callbacks

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv._images import sources, statistics
from sklconv._images.files import ImageFiles
from sklconv._images.forms import ImageFormat
from sklconv._images.sources import (
    ImageArray,
    ImageSource,
    ImageTensor,
    KeptImages,
    as_tensor,
    slices,
)
from sklconv._images.statistics import channel_statistics
from sklconv.layers import Conv, Dense

N = 50
SMALL = [("conv", Conv(4, 3, padding="same")), ("dense", Dense(8))]
ROWS = np.random.default_rng(0).permutation(N)


def pixels(*shape, dtype=np.uint8):
    return np.random.default_rng(1).integers(0, 256, size=shape).astype(dtype)


class Blocks(ImageSource):
    """All that a new source has to have: arrays one behind another, as Dask has them."""

    lazy = True

    def __init__(self, images):
        self.blocks = [images[cut] for cut in slices(len(images), 7)]
        self.shape, self.dtype = images.shape, images.dtype
        self.n_read = 0

    def __getitem__(self, index):
        rows = np.arange(len(self))[index]
        self.n_read += len(rows)
        return np.stack([self.blocks[row // 7][row % 7] for row in rows])


class Batches(ImageSource):
    """The same of a source that has tensors at hand."""

    def __init__(self, images):
        self.images = images
        self.shape, self.dtype = images.shape, images.dtype

    def batch(self, index, device=None, estimator_name=None):
        return as_tensor(self.images[index], device, estimator_name)


def as_files(images):
    contents = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        contents.append(file.getvalue())
    return ImageFiles(contents, images.shape[1:])


# What stands for the same images.
SOURCES = {
    "array": ImageArray,
    "channels last": lambda images: ImageArray(
        np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    ),
    "reversed": lambda images: ImageArray(
        np.ascontiguousarray(images[::-1, :, ::-1])[::-1, :, ::-1]
    ),
    "float64": lambda images: ImageArray(images.astype(np.float64)),
    "big-endian": lambda images: ImageArray(images.astype(">i4")),
    "rows": lambda images: ImageArray(images[ROWS]).take(np.argsort(ROWS)),
    "rows of rows": lambda images: (
        ImageArray(images[::-1]).take(ROWS[::-1]).take(np.argsort((N - 1 - ROWS)[::-1]))
    ),
    "kept files": lambda images: KeptImages(as_files(images)),
    "kept blocks": lambda images: KeptImages(Blocks(images)),
    "rows of files": lambda images: as_files(images[::-1]).take(slice(None, None, -1)),
    "tensor": lambda images: ImageTensor(torch.from_numpy(images)),
    "files": as_files,
    "blocks": Blocks,
    "batches": Batches,
}
INDICES = {
    "all": slice(None),
    "slice": slice(2, 9),
    "slice past the end": slice(40, 400),
    "rows": np.array([5, 0, 5, 49]),
    "rows from the end": np.array([-1, 3, -50]),
    "reversed rows": np.arange(N)[::-2],
    "mask": np.arange(N) % 3 == 0,
}


@pytest.fixture(scope="module", params=SOURCES)
def case(request):
    images = pixels(N, 3, 6, 5)
    return images, SOURCES[request.param](images)


def test_shape_dtype_and_length(case):
    images, source = case
    assert len(source) == N
    assert source.shape == images.shape
    assert source.dtype == source[:1].dtype
    assert isinstance(source.dtype, np.dtype)


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_rows_are_those_of_the_array(case, index):
    images, source = case
    rows = source[index]
    assert isinstance(rows, np.ndarray)
    np.testing.assert_array_equal(rows, images[index])
    batch = source.batch(index)
    assert batch.dtype == (torch.uint8 if source.dtype == np.uint8 else torch.float32)
    np.testing.assert_array_equal(batch, images[index])


@pytest.mark.parametrize("index", [*INDICES.values(), slice(None, None, -3)], ids=str)
def test_what_is_taken_is_a_source_itself(case, index):
    images, source = case
    taken = source.take(index)
    assert len(taken) == len(images[index])
    assert taken.lazy == source.lazy
    for inner in (slice(1, 3), np.array([2, 0]), np.arange(len(taken)) == 1):
        np.testing.assert_array_equal(taken[inner], images[index][inner])
        np.testing.assert_array_equal(taken.take(inner)[:], images[index][inner])


@pytest.mark.parametrize("cache_bytes", [1, 7 * 180, 2**20], ids=["none", "some", "all"])
@pytest.mark.parametrize("order", [None, ROWS, ROWS[::-1]], ids=["none", "rows", "reversed"])
def test_batches_gathered_together_are_those_gathered_apart(case, order, cache_bytes, monkeypatch):
    monkeypatch.setattr(sources, "CACHE_BYTES", cache_bytes)
    images, source = case
    cuts = [*slices(44, 4), slice(44, N)]
    batches = list(source.batches(cuts, order=order))
    assert len(batches) == len(cuts)
    for cut, batch in zip(cuts, batches, strict=True):
        np.testing.assert_array_equal(batch, images[cut if order is None else order[cut]])


def test_statistics_are_those_of_the_array(case):
    images, source = case
    assert channel_statistics(source) == channel_statistics(ImageArray(images))


@pytest.mark.parametrize("lazy", [False, True])
def test_statistics_of_a_lazy_source_are_those_of_a_sample(lazy, monkeypatch):
    monkeypatch.setattr(statistics, "MAX_LAZY_SUMMED", 10)
    images = pixels(N, 3, 6, 5)
    source = Blocks(images)
    source.lazy = lazy
    spread = np.linspace(0, N - 1, 10).astype(int)
    expected = ImageArray(images[spread] if lazy else images)
    assert channel_statistics(source) == channel_statistics(expected)
    assert source.n_read == (10 if lazy else N) + 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_are_checked_beforehand_or_as_they_are_read(value):
    images = pixels(N, 1, 6, 5, dtype=np.float32)
    images[30, 0, 2, 2] = value
    for source in (ImageArray(images), Batches(images), ImageArray(images).take(ROWS)):
        with pytest.raises(ValueError, match="Input X contains"):
            source.check_finite("ConvNetClassifier")
    lazy = Blocks(images)
    lazy.check_finite("ConvNetClassifier")
    assert lazy.n_read == 0
    with pytest.raises(ValueError, match="Input X contains"):
        list(lazy.batches(slices(N, 10), estimator_name="ConvNetClassifier"))


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("kind", [Blocks, Batches])
def test_a_new_source_is_trained_on_and_predicted_without_a_change(
    kind, early_stopping, monkeypatch
):
    X = pixels(300, 3, 6, 5)
    y = X.mean((1, 2, 3)) > X.mean()
    clf = ConvNetClassifier(SMALL, max_epochs=2, early_stopping=early_stopping, random_state=0)
    expected = clf.fit(X, y).decision_function(X)
    features = ConvFeatureExtractor(clf, random_state=0).fit(X, y).transform(X)

    read = ImageFormat.read
    monkeypatch.setattr(
        ImageFormat, "read", lambda self, X, name: kind(read(self, X, name).unwrap())
    )
    np.testing.assert_array_equal(clf.fit(X, y).decision_function(X), expected)
    extractor = ConvFeatureExtractor(clf, random_state=0).fit(X, y)
    np.testing.assert_array_equal(extractor.transform(X), features)
    assert not hasattr(extractor, "bad_images_")


def test_a_lazy_source_is_checked_in_training(monkeypatch):
    X = pixels(100, 1, 6, 5, dtype=np.float32)
    y = np.arange(100) % 2
    images = X.copy()
    images[60, 0, 0, 0] = np.nan
    monkeypatch.setattr(ImageFormat, "read", lambda self, X, name: Blocks(images))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        ConvNetClassifier(SMALL, standardize=False, max_epochs=1).fit(X, y)


class Look(callbacks.Callback):
    """Keeps the images that it is shown."""

    def on_train_begin(self, net, X=None, **kwargs):
        self.X_ = X


@pytest.mark.parametrize("kind", ["array", "files", "held out"])
def test_callbacks_get_arrays_themselves_and_what_can_be_indexed_of_others(kind):
    images = pixels(N, 3, 6, 5)
    y = np.arange(N) % 2
    clf = ConvNetClassifier(
        SMALL,
        image_shape=(3, 6, 5),
        early_stopping=kind == "held out",
        max_epochs=1,
        random_state=0,
        callbacks=[Look()],
    )
    clf.fit(as_files(images).items if kind == "files" else images, y)
    (shown,) = (look.X_ for _, look in clf.net_.callbacks_ if isinstance(look, Look))
    if kind == "array":
        assert type(shown) is np.ndarray
        assert np.shares_memory(shown, images)
    if kind != "held out":
        np.testing.assert_array_equal(shown[:], images)
    numbers = clf.net_.predict(shown)
    assert len(numbers) == len(shown)
    for form in (shown[:], torch.from_numpy(shown[:])):
        np.testing.assert_array_equal(clf.net_.predict(form), numbers)
        np.testing.assert_array_equal(clf.net_.forward(form).argmax(1), numbers)
