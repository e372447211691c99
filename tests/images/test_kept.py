"""Image files that a fit decodes once: the same fit, to the bit, as where it decodes them anew."""

import gc
import io
import threading
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sklconv import Backbone, ConvNetClassifier
from sklconv._images import sources
from sklconv._images.files import FileOptions, ImageFiles
from sklconv._images.sources import KeptImages
from sklconv._training import training
from sklconv.layers import Conv, Dense

N, EPOCHS = 40, 3
PIXELS = np.random.default_rng(0).integers(0, 256, (N + 10, 3, 6, 5), dtype=np.uint8)
Y = np.arange(N + 10) % 2
LAYERS = [("conv", Conv(4, 3, padding="same")), ("dense", Dense(8))]


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


FILES = [encoded(pixels) for pixels in PIXELS]


class Reader:
    """Reads the same images, and counts how often each."""

    def __init__(self, dtype=np.uint8):
        self.dtype, self.calls = dtype, Counter()

    def __call__(self, item):
        self.calls[FILES.index(item)] += 1
        return PIXELS[FILES.index(item)].transpose(1, 2, 0).astype(self.dtype)


def make_head():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 3, 2))


def classifier(module=LAYERS, **params):
    params = {"max_epochs": EPOCHS, "image_shape": (3, 6, 5), "batch_size": 8} | params
    return ConvNetClassifier(module, random_state=0, **params)


def add_noise(images):
    return images + torch.randn_like(images)


CASES = {
    "plain": ({}, {}),
    "augmented": ({"augment": add_noise}, {}),
    "early stopping": ({"early_stopping": True, "validation_fraction": 0.2}, {}),
    "validated": ({}, {"X_val": FILES[N:], "y_val": Y[N:]}),
    "not standardised": ({"standardize": False}, {}),
    "reader of bytes": ({"reader": Reader()}, {}),
    "reader of floats": ({"reader": Reader(np.float64)}, {"X_val": FILES[N:], "y_val": Y[N:]}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:each of 3 epochs decodes")
def test_a_fit_is_the_same_whether_files_are_kept_or_not(case, monkeypatch):
    params, others = CASES[case]
    fits = []
    for n_bytes in (2**30, 0):
        monkeypatch.setattr(sources, "MAX_KEPT_BYTES", n_bytes)
        clf = classifier(**params).fit(FILES[:N], Y[:N], **others)
        losses = [(row["train_loss"], row["valid_loss"]) for row in clf.history_]
        fits.append((losses, clf.decision_function(FILES)))
    assert fits[0][0] == fits[1][0]
    np.testing.assert_array_equal(fits[0][1], fits[1][1])


# The first file is read once more, to learn the dtype.
def test_each_file_is_read_once_in_a_fit():
    reader = Reader()
    classifier(reader=reader).fit(FILES[:N], Y[:N], X_val=FILES[N:], y_val=Y[N:])
    assert reader.calls == Counter(range(N + 10)) + Counter([0, N])


@pytest.mark.parametrize("epochs", [1, EPOCHS])
def test_files_that_do_not_fit_are_read_in_each_pass(epochs, monkeypatch, recwarn):
    monkeypatch.setattr(sources, "MAX_KEPT_BYTES", N * 90 - 1)
    reader = Reader()
    classifier(reader=reader, max_epochs=epochs).fit(FILES[:N], Y[:N])
    assert reader.calls[1] == 1 + epochs  # the statistics
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (epochs > 1)
    assert all("each of 3 epochs decodes 40 files anew" in text for text in said)


def test_a_first_partial_fit_reads_each_file_once_and_a_second_keeps_none(monkeypatch):
    reader, known = Reader(), spy_on_kept(monkeypatch)
    clf = classifier(reader=reader).partial_fit(FILES[:N], Y[:N], classes=[0, 1])
    assert reader.calls == Counter(range(N)) + Counter([0])
    assert len(known) == 1
    clf.partial_fit(FILES[:N], Y[:N])
    assert reader.calls[1] == 2
    assert len(known) == 1


def test_a_frozen_backbone_keeps_no_files(monkeypatch):
    reader, known = Reader(), spy_on_kept(monkeypatch)
    backbone = Backbone(make_head(), mean=[0.5] * 3, std=[0.5] * 3)
    classifier(backbone, reader=reader, freeze="backbone").fit(FILES[:N], Y[:N])
    assert reader.calls[1] == 1
    assert not known


def spy_on_kept(monkeypatch):
    known = []

    def keep(images):
        result = sources.keep(images)
        known.append(weakref.ref(result))
        return result

    monkeypatch.setattr(training, "keep", keep)
    return known


def test_nothing_is_kept_behind_a_fit(monkeypatch):
    known = spy_on_kept(monkeypatch)
    clf = classifier().fit(FILES[:N], Y[:N])
    gc.collect()
    assert len(known) == 1
    assert known[0]() is None
    assert clf.n_iter_ == EPOCHS


def test_arrays_are_not_kept():
    images = sources.ImageArray(PIXELS)
    assert sources.keep(images) is images


def test_each_image_is_read_once_in_whatever_order(monkeypatch):
    reader = Reader()
    images = KeptImages(ImageFiles(FILES, (3, 6, 5), FileOptions(reader=reader)))
    reader.calls.clear()
    np.testing.assert_array_equal(images[[7, 3, 7]], PIXELS[[7, 3, 7]])
    order = np.random.default_rng(1).permutation(N + 10)
    for _ in range(3):
        batches = images.batches([slice(0, 30), slice(30, N + 10)], order=order)
        np.testing.assert_array_equal(np.concatenate(list(batches)), PIXELS[order])
    np.testing.assert_array_equal(images.take(order[::2])[:], PIXELS[order[::2]])
    assert reader.calls == Counter(range(N + 10))


def test_a_batch_that_is_changed_leaves_what_is_kept():
    images = KeptImages(ImageFiles(FILES, (3, 6, 5)))
    for _ in range(2):
        (batch,) = images.batches([slice(0, N)], order=np.arange(N))
        batch.zero_()
    np.testing.assert_array_equal(images[:], PIXELS)


def test_an_image_that_could_not_be_read_is_read_again():
    files = [*FILES]
    files[30] = b"rubbish"
    images = KeptImages(ImageFiles(files, (3, 6, 5)))
    cuts = [slice(0, 20), slice(20, N)]
    for _ in range(2):
        batches = images.batches(cuts)
        np.testing.assert_array_equal(next(batches), PIXELS[:20])
        with pytest.raises(ValueError, match="bytes at position 30 can't be read"):
            next(batches)


@pytest.mark.parametrize("n_bytes", [2**30, 0])
def test_no_threads_are_left_by_a_fit_that_fails(n_bytes, monkeypatch):
    monkeypatch.setattr(sources, "MAX_KEPT_BYTES", n_bytes)

    def fail(images):
        raise RuntimeError("augment failed")

    with pytest.raises(RuntimeError, match="augment failed") as caught:
        classifier(augment=fail, max_epochs=1).fit(FILES[:N], Y[:N])
    assert caught.value.__traceback__ is not None  # which holds the frames
    assert not [t for t in threading.enumerate() if "sklconv-files" in t.name]
