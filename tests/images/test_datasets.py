import gzip
import hashlib
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sklconv import datasets
from sklconv.datasets import load_images, load_mnist

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
# Uncompressed, as published with the database.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def to_idx(array):
    """Write an array of uint8 as an IDX file would hold it."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    """Five training and three test images, in the order of the files."""
    rng = np.random.default_rng(0)
    parts = []
    for n in (5, 3):
        parts.append(rng.integers(0, 256, size=(n, 28, 28), dtype=np.uint8))
        parts.append(rng.integers(0, 10, size=n, dtype=np.uint8))
    return dict(zip(NAMES, parts, strict=True))


@pytest.fixture
def folder(arrays, tmp_path):
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(to_idx(array))
    return tmp_path


def gzip_files(folder, suffix):
    for name in NAMES:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content))


def check_equals_arrays(loaded, arrays):
    X_train, X_test, y_train, y_test = loaded
    for values, name in zip((X_train, y_train, X_test, y_test), NAMES, strict=True):
        np.testing.assert_array_equal(values, arrays[name])
    for X in (X_train, X_test):
        assert X.dtype == np.uint8
        assert X.flags.writeable
        assert X.flags.c_contiguous
    for y in (y_train, y_test):
        assert y.dtype == np.int64
        assert y.flags.writeable


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_reads_plain_files_from_data_home(folder, arrays, as_type):
    check_equals_arrays(load_mnist(as_type(folder)), arrays)


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_reads_gzipped_files_with_or_without_the_ending(folder, arrays, suffix):
    gzip_files(folder, suffix)
    check_equals_arrays(load_mnist(folder), arrays)


def test_reads_a_mixture_of_plain_and_gzipped_files(folder, arrays):
    name = NAMES[0]
    (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    (folder / name).unlink()
    check_equals_arrays(load_mnist(folder), arrays)


def test_reads_the_folder_of_the_environment_variable(folder, arrays, tmp_path, monkeypatch):
    root = tmp_path / "data"
    (root / "mnist").mkdir(parents=True)
    for name in NAMES:
        (folder / name).rename(root / "mnist" / name)
    monkeypatch.setenv("SKLCONV_DATA", str(root))
    check_equals_arrays(load_mnist(), arrays)


def test_data_home_goes_before_the_environment_variable(folder, arrays, monkeypatch):
    monkeypatch.setenv("SKLCONV_DATA", str(folder / "nowhere"))
    check_equals_arrays(load_mnist(folder), arrays)


@pytest.mark.parametrize("name", NAMES)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing, and so is {name}.gz"):
        load_mnist(folder)


def test_empty_folder_of_the_environment_variable_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SKLCONV_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "fetch_openml", None)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_mnist()


DAMAGES = {
    "empty": (lambda content: b"", "begins with ''"),
    "text": (lambda content: b"<html>no such page</html>", "begins with '3c 68 74 6d'"),
    "of another type": (lambda content: b"\0\0\x0d" + content[3:], "begins with '00 00 0d 0"),
    "of other dimensions": (lambda content: b"\0\0\x08\x02" + content[4:], "with '00 00 08 02'"),
    "only a magic number": (lambda content: content[:4], "is truncated: 4 bytes"),
    "cut in the header": (lambda content: content[:7], "is truncated: 7 bytes"),
    "cut in the data": (lambda content: content[:-1], "is truncated or too long"),
    "too long": (lambda content: content + b"\0", "is truncated or too long"),
    "huge header": (lambda content: content[:4] + b"\xff" * 12, "is truncated or too long"),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_foreign_and_truncated_files_are_named(folder, name, damage, compress):
    spoil, message = DAMAGES[damage]
    content = spoil((folder / name).read_bytes())
    (folder / name).write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(ValueError, match=f"{name} .*{message}"):
        load_mnist(folder)


def test_length_error_states_what_was_expected(folder):
    name = NAMES[0]
    (folder / name).write_bytes((folder / name).read_bytes()[:-784])
    with pytest.raises(ValueError, match=r"shape \(5, 28, 28\), 3920 bytes, but 3136 follow"):
        load_mnist(folder)


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-4],
        lambda content: content[:3],
        lambda content: flip(content, 2),  # the method of compression
        lambda content: flip(content, len(content) // 2),  # the compressed data
        lambda content: flip(content, len(content) - 6),  # the checksum
        lambda content: content + b"rubbish",
    ],
    ids=["half", "no length", "3 bytes", "method", "data", "checksum", "trailing"],
)
def test_damaged_gzip_files_are_named(folder, spoil):
    gzip_files(folder, ".gz")
    path = folder / f"{NAMES[0]}.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{NAMES[0]}.gz is a truncated or damaged gzip file"):
        load_mnist(folder)


def test_images_and_labels_must_be_of_one_length(folder, arrays):
    name = "t10k-labels-idx1-ubyte"
    (folder / name).write_bytes(to_idx(arrays[name][:2]))
    with pytest.raises(ValueError, match=f"{name} holds 2 labels, but .* 3 images"):
        load_mnist(folder)


def test_images_of_another_size_are_refused(folder, arrays):
    name = "train-images-idx3-ubyte"
    (folder / name).write_bytes(to_idx(arrays[name][:, :14]))
    with pytest.raises(ValueError, match=f"{name} holds images of 14×28 pixels; expected 28×28"):
        load_mnist(folder)


def test_images_and_labels_may_not_be_swapped(folder):
    images, labels = folder / NAMES[0], folder / NAMES[1]
    content = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    labels.write_bytes(content)
    with pytest.raises(ValueError, match=f"{NAMES[0]} is not an IDX file .* in 3 dimensions"):
        load_mnist(folder)


class FakeOpenML:
    """Answers as ``fetch_openml("mnist_784", as_frame=False, return_X_y=True)`` does."""

    def __init__(self, n_samples, X_dtype):
        rng = np.random.default_rng(0)
        self.X = rng.integers(0, 256, size=(n_samples, 784), dtype=np.uint8).astype(X_dtype)
        self.y = rng.integers(0, 10, size=n_samples).astype(str).astype(object)
        self.calls = []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.X, self.y


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(
    ("pandas", "parser", "X_dtype"),
    [(True, "pandas", np.int64), (False, "liac-arff", np.float64)],
)
def test_downloads_where_no_folder_is_named(monkeypatch, value, pandas, parser, X_dtype):
    fake = FakeOpenML(70_000, X_dtype)
    monkeypatch.setattr(datasets, "fetch_openml", fake)
    monkeypatch.setattr(datasets, "find_spec", lambda name: object() if pandas else None)
    if value is None:
        monkeypatch.delenv("SKLCONV_DATA", raising=False)
    else:
        monkeypatch.setenv("SKLCONV_DATA", value)
    X_train, X_test, y_train, y_test = load_mnist()

    ((args, kwargs),) = fake.calls
    assert args == ("mnist_784",)
    assert kwargs == {"version": 1, "as_frame": False, "parser": parser, "return_X_y": True}
    assert X_train.shape == (60_000, 28, 28)
    assert X_test.shape == (10_000, 28, 28)
    assert X_train.dtype == X_test.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    np.testing.assert_array_equal(np.concatenate([X_train, X_test]).reshape(-1, 784), fake.X)
    np.testing.assert_array_equal(np.concatenate([y_train, y_test]), fake.y.astype(int))


def test_incomplete_download_is_an_error(monkeypatch):
    monkeypatch.delenv("SKLCONV_DATA", raising=False)
    monkeypatch.setattr(datasets, "fetch_openml", FakeOpenML(100, np.int64))
    with pytest.raises(ValueError, match=r"shape \(100, 784\).* expected \(70000, 784\)"):
        load_mnist()


def test_without_a_network_the_error_says_what_else_would_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no such host")

    monkeypatch.delenv("SKLCONV_DATA", raising=False)
    monkeypatch.setattr(datasets, "fetch_openml", refuse)
    with pytest.raises(ConnectionError, match=r"OpenML \(no such host\).*data_home"):
        load_mnist()


def test_mnist_is_the_published_one(mnist):
    X_train, X_test, y_train, y_test = mnist
    for name, array in zip(NAMES, (X_train, y_train, X_test, y_test), strict=True):
        assert hashlib.md5(to_idx(array)).hexdigest() == MNIST_MD5[name]
    assert X_train.shape == (60_000, 28, 28)
    assert X_test.shape == (10_000, 28, 28)
    assert X_train.dtype == X_test.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    assert np.bincount(y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture
def photos(tmp_path):
    """Paths of seven images, and a folder for what is made of them."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"foto {number} ä.png" for number in range(7)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    (tmp_path / "made").mkdir()
    return paths, tmp_path / "made"


def decoded(paths, mode, size):
    """The same by Pillow, as (n, C, H, W)."""
    images = []
    for path in paths:
        image = Image.open(path).convert(mode).resize(size[::-1], Image.Resampling.BILINEAR)
        images.append(np.asarray(image).reshape(*size, -1).transpose(2, 0, 1))
    return np.stack(images)


IMAGE_SHAPES = [((6, 5), "L"), ([6, 5], "L"), ((1, 6, 5), "L"), ((3, 12, 10), "RGB")]


@pytest.mark.parametrize(("image_shape", "mode"), IMAGE_SHAPES)
def test_images_are_those_of_pillow(photos, image_shape, mode):
    paths, _ = photos
    X = load_images(paths, image_shape)
    assert type(X) is np.ndarray
    assert X.dtype == np.uint8
    assert X.flags.c_contiguous
    np.testing.assert_array_equal(X, decoded(paths, mode, image_shape[-2:]))


@pytest.mark.parametrize(
    "container",
    [
        lambda paths: [str(path) for path in paths],
        lambda paths: np.array([str(path) for path in paths]),
        lambda paths: pd.DataFrame({"file": [str(path) for path in paths]}),
        lambda paths: [path.read_bytes() for path in paths],
        lambda paths: [Image.open(path) for path in paths],
    ],
    ids=["str", "array", "DataFrame", "bytes", "PIL"],
)
def test_images_of_each_kind(photos, container):
    paths, _ = photos
    X = load_images(container(paths), (3, 6, 5))
    np.testing.assert_array_equal(X, decoded(paths, "RGB", (6, 5)))


@pytest.mark.parametrize("max_batch", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("to", ["new array", "array", "memmap", "file"])
def test_images_in_batches(photos, monkeypatch, max_batch, to):
    paths, folder = photos
    monkeypatch.setattr(datasets, "_MAX_BATCH", max_batch)
    out = {
        "new array": lambda: None,
        "array": lambda: np.empty((7, 3, 6, 5), np.uint8),
        "memmap": lambda: np.lib.format.open_memmap(
            folder / "X.npy", "w+", dtype=np.uint8, shape=(7, 3, 6, 5)
        ),
        "file": lambda: folder / "X.npy",
    }[to]()
    X = load_images(paths, (3, 6, 5), out=out)
    np.testing.assert_array_equal(X, decoded(paths, "RGB", (6, 5)))
    if isinstance(out, np.ndarray):
        assert X is out


def test_batches_are_bounded_in_bytes(photos, monkeypatch):
    paths, _ = photos
    sizes = []
    batches = datasets.ImageFiles.batches

    def spy(self, indices):
        for batch in batches(self, indices):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(datasets.ImageFiles, "batches", spy)
    monkeypatch.setattr(datasets, "CHUNK_BYTES", 3 * 6 * 5 * 3)
    load_images(paths, (3, 6, 5))
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("as_type", [str, lambda path: path])
@pytest.mark.parametrize("name", ["X.npy", "ohne Endung"])
def test_images_in_a_file(photos, as_type, name):
    paths, folder = photos
    X = load_images(paths, (3, 6, 5), out=as_type(folder / name))
    assert isinstance(X, np.memmap)
    assert not X.flags.writeable
    assert [path.name for path in folder.iterdir()] == [name]
    np.testing.assert_array_equal(np.load(folder / name), decoded(paths, "RGB", (6, 5)))


def test_a_file_is_replaced(photos):
    paths, folder = photos
    (folder / "X.npy").write_bytes(b"old")
    load_images(paths, (6, 5), out=folder / "X.npy")
    np.testing.assert_array_equal(np.load(folder / "X.npy"), decoded(paths, "L", (6, 5)))


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_bad_image_leaves_no_file(photos, monkeypatch, old):
    paths, folder = photos
    monkeypatch.setattr(datasets, "_MAX_BATCH", 2)
    paths[5].write_bytes(paths[5].read_bytes()[:100])
    if old is not None:
        (folder / "X.npy").write_bytes(old)
    with pytest.raises(ValueError, match=r"foto 5 ä\.png can't be read: .*truncated"):
        load_images(paths, (6, 5), out=folder / "X.npy")
    assert [path.read_bytes() for path in folder.iterdir()] == ([] if old is None else [old])


def test_a_full_disk_leaves_no_file(photos, monkeypatch):
    resource = pytest.importorskip("resource")  # not on Windows
    paths, folder = photos
    monkeypatch.setattr(datasets, "_MAX_BATCH", 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            load_images(paths, (3, 60, 50), out=folder / "X.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []


def test_reader_decides_the_dtype(photos):
    paths, folder = photos

    def reader(path):
        return np.full((2, 3), int(Path(path).stem.split()[1]), dtype=np.uint16) * 1000

    X = load_images(paths, (2, 3), reader=reader)
    assert X.dtype == np.float32
    assert X[:, 0, 0, 0].tolist() == [1000 * number for number in range(7)]
    Y = load_images(paths, (2, 3), reader=reader, out=folder / "X.npy")
    assert Y.dtype == np.float32
    np.testing.assert_array_equal(X, Y)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((7, 6, 5), np.uint8), ValueError, r"shape \(7, 6, 5\) .* need \(7, 1, 6, 5\)"),
        (np.empty((6, 1, 6, 5), np.uint8), ValueError, r"need \(7, 1, 6, 5\) and uint8"),
        (np.empty((7, 1, 6, 5)), ValueError, "dtype float64; the images need .* and uint8"),
        (np.broadcast_to(np.uint8(0), (7, 1, 6, 5)), ValueError, "read-only"),
        ([], TypeError, "out must be an array, a path or None, not list"),
    ],
)
def test_wrong_out(photos, out, error, message):
    with pytest.raises(error, match=message):
        load_images(photos[0], (6, 5), out=out)


def test_out_is_no_folder(photos):
    paths, folder = photos
    with pytest.raises(IsADirectoryError, match=r"is a folder; give the name of a \.npy file"):
        load_images(paths, (6, 5), out=folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_images(paths, (6, 5), out=folder / "nowhere" / "X.npy")


@pytest.mark.parametrize("image_shape", [None, 28, (28,), (3, 0, 4), (3, 4.5, 4), "28x28"])
def test_wrong_image_shape(photos, image_shape):
    with pytest.raises(ValueError, match=r"image_shape=.*height, width"):
        load_images(photos[0], image_shape)


@pytest.mark.parametrize("paths", ["a.png", np.zeros((3, 4)), [1, 2], [["a.png"]]])
def test_wrong_paths(paths):
    with pytest.raises(TypeError, match="image files"):
        load_images(paths, (6, 5))


def test_no_paths():
    with pytest.raises(ValueError, match="paths is empty"):
        load_images([], (6, 5))
