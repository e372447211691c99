import copy
import io
import os
import pickle
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from joblib import Parallel, delayed
from PIL import Image, ImageOps, features

from sklconv import ConvNetClassifier
from sklconv._images import files
from sklconv._images.files import (
    BadImageError,
    FileOptions,
    ImageFiles,
    as_file_list,
    is_image_files,
)
from sklconv.datasets import load_images

BILINEAR = Image.Resampling.BILINEAR


def pixels(*shape, dtype=np.uint8, seed=0):
    high = 256 if dtype == np.uint8 else 65536
    return np.random.default_rng(seed).integers(0, high, size=shape).astype(dtype)


def smooth(height, width, channels=3):
    """Colours that lossy formats keep nearly as they are."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * y / height, 255 * x / width, 128 + 0 * x, 255 - 255 * y / height]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def encoded(image, format, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def chw(image):
    """A PIL image or an array of shape (H, W) or (H, W, C), as (C, H, W)."""
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def reference(content, shape):
    """What Pillow's own steps, one after the other, make of a file's content."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[shape[0]])
    return chw(image.resize(shape[:0:-1], BILINEAR))


def read(item, shape, **options):
    return ImageFiles([item], shape, FileOptions(**options))[:][0]


def paletted(transparency=None):
    image = Image.fromarray(pixels(9, 7, 3)).quantize(16)
    content = encoded(
        image, "PNG", **({} if transparency is None else {"transparency": transparency})
    )
    assert Image.open(io.BytesIO(content)).mode == "P"
    return content


def animated():
    frames = [Image.new("RGB", (9, 8), colour) for colour in ("red", "lime", "blue")]
    return frames, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


CONTENTS = {
    "RGB PNG": lambda: encoded(pixels(9, 7, 3), "PNG"),
    "RGBA PNG": lambda: encoded(pixels(9, 7, 4), "PNG"),
    "LA PNG": lambda: encoded(Image.fromarray(pixels(9, 7, 2), "LA"), "PNG"),
    "L PNG": lambda: encoded(pixels(9, 7), "PNG"),
    "1-bit PNG": lambda: encoded(Image.fromarray(pixels(9, 7)).convert("1"), "PNG"),
    "L PNG with a transparent value": lambda: encoded(pixels(9, 7), "PNG", transparency=3),
    "RGB PNG with a transparent value": lambda: encoded(
        pixels(9, 7, 3), "PNG", transparency=(1, 2, 3)
    ),
    "palette": paletted,
    "palette, one transparent": lambda: paletted(3),
    "JPEG": lambda: encoded(smooth(15, 20), "JPEG"),
    "grey JPEG": lambda: encoded(smooth(15, 20, 1)[..., 0], "JPEG"),
    "progressive JPEG": lambda: encoded(smooth(15, 20), "JPEG", progressive=True),
    "CMYK JPEG": lambda: encoded(Image.fromarray(smooth(15, 20)).convert("CMYK"), "JPEG"),
    "MPO": lambda: encoded(
        Image.fromarray(smooth(15, 20)),
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (20, 15))],
    ),
    "CMYK TIFF": lambda: encoded(Image.fromarray(pixels(9, 7, 3)).convert("CMYK"), "TIFF"),
    "LZW TIFF": lambda: encoded(pixels(9, 7, 3), "TIFF", compression="tiff_lzw"),
    "BMP": lambda: encoded(pixels(9, 7, 3), "BMP"),
    "GIF": lambda: encoded(Image.fromarray(pixels(9, 7)), "GIF"),
    "PPM": lambda: encoded(pixels(9, 7, 3), "PPM"),
    "WebP": lambda: encoded(pixels(9, 7, 3), "WEBP", lossless=True),
    "WebP with alpha": lambda: encoded(pixels(9, 7, 4), "WEBP", lossless=True, exact=True),
    "JPEG 2000": lambda: encoded(pixels(9, 7, 3), "JPEG2000"),
}
if "avif" in features.get_supported():
    CONTENTS["AVIF"] = lambda: encoded(smooth(15, 20), "AVIF")


@pytest.mark.parametrize("size", [(9, 7), (5, 12)])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", CONTENTS)
def test_reads_what_pillow_reads(kind, channels, size):
    content = CONTENTS[kind]()
    shape = (channels, *size)
    images = ImageFiles([content], shape)[:]
    assert images.shape == (1, *shape)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert images.flags.writeable
    np.testing.assert_array_equal(images[0], reference(content, shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_palette_with_alpha_in_each_entry_drops_it(channels):
    content = paletted(bytes(range(0, 256, 16)))
    opaque = paletted()
    expected = reference(opaque, (channels, 9, 7))
    np.testing.assert_array_equal(read(content, (channels, 9, 7)), expected)
    assert read(content, (4, 9, 7))[3].max() > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_dropped_not_blended(channels):
    rgba = pixels(9, 7, 4)
    expected = reference(encoded(rgba[..., :3], "PNG"), (channels, 5, 6))
    np.testing.assert_array_equal(read(encoded(rgba, "PNG"), (channels, 5, 6)), expected)


def test_first_frame_of_an_animation_is_read():
    frames, content = animated()
    np.testing.assert_array_equal(read(content, (3, 8, 9)), chw(frames[0]))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, format):
    content = encoded(smooth(60, 80), format, exif=exif(orientation))
    upright = (60, 80) if orientation < 5 else (80, 60)
    shape = (3, *upright)
    np.testing.assert_array_equal(read(content, shape), reference(content, shape))
    # Resized before it is turned: rounding may differ by one.
    small = read(content, (3, 21, 33)).astype(int)
    assert np.abs(small - reference(content, (3, 21, 33))).max() <= 1


def test_an_orientation_that_is_none_is_ignored():
    content = encoded(smooth(60, 80), "JPEG", exif=exif(9))
    np.testing.assert_array_equal(read(content, (3, 60, 80)), reference(content, (3, 60, 80)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(format):
    content = encoded(smooth(60, 80), format, exif=b"Exif\0\0no such thing")
    expected = reference(encoded(smooth(60, 80), format), (3, 60, 80))
    np.testing.assert_array_equal(read(content, (3, 60, 80)), expected)
    np.testing.assert_array_equal(read(Image.open(io.BytesIO(content)), (3, 60, 80)), expected)


def big_endian_tiff(values):
    return encoded(
        Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()), "TIFF"
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "write",
    [
        lambda values: encoded(values, "PNG"),
        lambda values: encoded(values, "TIFF"),
        lambda values: encoded(values, "PPM"),
        lambda values: encoded(values, "JPEG2000"),
        big_endian_tiff,
        Image.fromarray,
    ],
    ids=["PNG", "TIFF", "PGM", "JPEG2000", "big-endian TIFF", "PIL image"],
)
def test_sixteen_bits_keep_their_range(write, channels):
    values = pixels(11, 13, dtype=np.uint16)
    values[0, :5] = [0, 128, 129, 65406, 65535]
    expected = np.rint(values / 257)
    image = read(write(values), (channels, 11, 13))
    assert image[0, 0, :5].tolist() == [0, 0, 1, 254, 255]
    for channel in image[:3]:
        np.testing.assert_array_equal(channel, expected)
    if channels == 4:
        assert (image[3] == 255).all()


@pytest.mark.parametrize(("dtype", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_values_without_a_range_take_a_reader(dtype, mode):
    values = pixels(5, 6).astype(dtype)
    content = encoded(values, "TIFF")
    with pytest.raises(BadImageError, match=rf"mode {mode}\) have no fixed range; take a reader"):
        read(content, (1, 5, 6))
    image = read(content, (1, 5, 6), reader=lambda item: np.asarray(Image.open(io.BytesIO(item))))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[0], values)


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("side", [20, 50])
def test_large_jpegs_are_read_at_a_fraction_nearly_exactly(side, orientation, subsampling):
    rng = np.random.default_rng(0)
    texture = np.clip(smooth(427, 639) + rng.normal(0, 10, (427, 639, 3)), 0, 255)
    content = encoded(
        texture.astype(np.uint8), "JPEG", subsampling=subsampling, exif=exif(orientation)
    )
    shape = (3, side, side)
    difference = np.abs(read(content, shape) - reference(content, shape).astype(int))
    assert 0 < difference.mean() < 0.5
    assert np.quantile(difference, 0.99) <= 2


def test_a_draft_is_at_least_four_times_the_size_wanted(monkeypatch):
    sizes = []
    convert = files._convert

    def spy(image, channels):
        sizes.append(image.size)
        return convert(image, channels)

    monkeypatch.setattr(files, "_convert", spy)
    content = encoded(smooth(400, 600), "JPEG")
    for height, width in [(50, 50), (51, 10), (25, 25), (12, 12), (500, 500)]:
        read(content, (3, height, width))
    assert sizes == [(300, 200), (600, 400), (150, 100), (75, 50), (600, 400)]


# What may be given, and in which form.


@pytest.fixture
def folder(tmp_path):
    """Twelve images with names that are awkward."""
    for number in range(12):
        name = f"bild {number} – Größe 日本.png"
        Image.fromarray(pixels(10, 8, 3, seed=number)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def paths(folder):
    return sorted(folder.iterdir())


def expected_of(paths, shape):
    return np.stack([reference(Path(path).read_bytes(), shape) for path in paths])


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "array of objects": lambda files: np.array([*files, None], dtype=object)[:-1],
    "column": lambda files: np.array([*files, None], dtype=object)[:-1, None],
    "Series": lambda files: pd.Series(files, index=np.arange(len(files), 0, -1) / 2, dtype=object),
    "DataFrame": lambda files: pd.DataFrame({"file": pd.Series(files, dtype=object)}),
}
STRINGS = {
    "array of str": np.array,
    "column of str": lambda files: np.array(files)[:, None],
    "StringDType": lambda files: np.array(files, dtype=np.dtypes.StringDType()),
    "DataFrame of str": lambda files: pd.DataFrame({"file": files}),
    "Series of str": pd.Series,
    "Series of pyarrow": lambda files: pd.Series(files, dtype="string[pyarrow]"),
    "Series of categories": lambda files: pd.Series(files, dtype="category"),
    "polars Series": pl.Series,
    "polars DataFrame": lambda files: pl.DataFrame({"file": files}),
}
KINDS = {
    "str": lambda paths: [str(path) for path in paths],
    "Path": lambda paths: paths,
    "bytes": lambda paths: [path.read_bytes() for path in paths],
    "PIL": lambda paths: [Image.open(path) for path in paths],
    "mixed": lambda paths: [str(paths[0]), paths[1], paths[2].read_bytes(), Image.open(paths[3])],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_files_of_each_kind_in_each_container(paths, container, kind):
    files = KINDS[kind](paths)
    X = CONTAINERS[container](files)
    assert is_image_files(X)
    assert as_file_list(X) == files
    images = ImageFiles(as_file_list(X), (3, 10, 8))[:]
    np.testing.assert_array_equal(images, expected_of(paths[: len(files)], (3, 10, 8)))


@pytest.mark.parametrize("container", STRINGS)
def test_containers_of_strings(paths, container):
    files = [str(path) for path in paths]
    X = STRINGS[container](files)
    assert is_image_files(X)
    assert as_file_list(X) == files
    assert all(type(file) is str for file in as_file_list(X))


NO_FILES = {
    "empty list": [],
    "empty tuple": (),
    "empty array": np.array([], dtype=object),
    "empty Series": pd.Series([], dtype="str"),
    "numbers": [1.5, 2],
    "lists of numbers": [[1, 2], [3, 4]],
    "arrays": [np.zeros((4, 4))],
    "lists of paths": [["a.png"], ["b.png"]],
    "numeric array": np.zeros((4, 4)),
    "numeric column": np.zeros((4, 1)),
    "numbers as objects": np.zeros(4, dtype=object),
    "two columns": np.array([["a.png", "b.png"]]),
    "three axes": np.array([[["a.png"]]]),
    "no axis": np.array("a.png"),
    "bytes array, which drops zeros": np.array([b"content"]),
    "numeric DataFrame": pd.DataFrame({"a": [1, 2]}),
    "DataFrame of two columns": pd.DataFrame({"a": ["x"], "b": ["y"]}),
    "one path": "a.png",
    "one Path": Path("a.png"),
    "one content": b"abc",
    "dict": {"a": "b"},
    "number": 3,
    "None": None,
}


@pytest.mark.parametrize("name", NO_FILES)
def test_anything_else_is_not_image_files(name):
    assert not is_image_files(NO_FILES[name])


@pytest.mark.parametrize("name", [name for name in NO_FILES if "empty" not in name])
def test_anything_else_raises(name):
    with pytest.raises(TypeError, match="image files"):
        as_file_list(NO_FILES[name])


def test_nothing_is_an_empty_list():
    assert as_file_list([]) == []
    assert as_file_list(pd.Series([], dtype="str")) == []


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (["a.png", 3.5], "entry 1 of the image files is 3.5, of type float"),
        (["a.png", b"", None], "entry 2 .* None, of type NoneType"),
        ([np.zeros(2), "a.png"], "entry 0 .* of type ndarray"),
        (pd.Series(["a.png", None], dtype="str"), "entry 1 .* nan, of type float"),
        (["a.png", list(range(1000))], r"entry 1 .* is \[0, 1, 2, .{1,30}\.\.\., of type list"),
    ],
)
def test_a_wrong_entry_is_named(X, message):
    with pytest.raises(TypeError, match=message):
        as_file_list(X)


def test_a_single_path_is_no_list():
    with pytest.raises(TypeError, match=r"as a list, .* not as str$"):
        as_file_list("a.png")


def test_looks_at_the_first_entry_only():
    class Rows(list):
        def __iter__(self):
            raise AssertionError("all entries were looked at")

    assert is_image_files(Rows(["a.png"]))


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.setattr(files, "_n_threads", lambda: 4)


# Bad files.


def bad_files(folder):
    """Files that can't be read, with the reason expected."""
    jpeg = encoded(pixels(60, 80, 3), "JPEG")
    png = encoded(pixels(60, 80, 3), "PNG")
    contents = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "header.jpg": (jpeg[:30], "none of AVIF, BMP|can't be decoded"),
        "flipped.png": (png[:200] + bytes([png[200] ^ 255]) + png[201:], "can't be decoded"),
        "empty.jpg": (b"", r"it is empty \(0 bytes\)"),
        "text.jpg": (b"This is no photograph.\n" * 9, "it is none of AVIF, BMP, .* take a reader"),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of"),
        "icon.png": (encoded(pixels(16, 16, 3), "ICO"), "it is none of"),
    }
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name, reason
    (folder / "folder.jpg").mkdir()
    yield folder / "folder.jpg", r"is a directory: list its files, .*glob.*load_files"
    yield folder / "nicht da.jpg", "no such file or directory"
    yield folder / ("long" * 100), "name too long"
    yield f"{folder}/null\0byte.jpg", "can't be decoded .*null"


BAD = [
    "truncated.jpg",
    "truncated.png",
    "header.jpg",
    "flipped.png",
    "empty.jpg",
    "text.jpg",
    "postscript.png",
    "icon.png",
    "folder",
    "missing",
    "long name",
    "null byte",
]


@pytest.mark.parametrize("number", range(len(BAD)), ids=BAD)
def test_bad_files_are_named(tmp_path, number):
    bad = list(bad_files(tmp_path))
    assert len(bad) == len(BAD)
    path, reason = bad[number]
    with pytest.raises(BadImageError, match=f"can't be read: .*({reason})") as caught:
        read(path, (3, 8, 8))
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(str(path))
    assert caught.value.__cause__ is not None


def test_the_first_bad_file_is_raised(tmp_path, paths):
    bad = [path for path, _ in bad_files(tmp_path)]
    for _ in range(5):
        with pytest.raises(BadImageError, match=r"truncated\.png"):
            ImageFiles([*paths, *bad[1:], *paths], (3, 8, 8))[:]


def test_bad_images_leave_zeros_and_a_list(tmp_path, paths):
    bad = [path for path, _ in bad_files(tmp_path)]
    items = [bad[0], *paths, *bad[1:], paths[0], bad[0]]
    files = ImageFiles(items, (3, 10, 8), FileOptions(on_bad_image="nan"))
    assert files.bad == []
    images = files[:]
    positions = [0, *range(13, 24), 25]
    assert [position for position, _, _ in files.bad] == positions
    assert [item for _, item, _ in files.bad] == [items[position] for position in positions]
    assert "truncated" in files.bad[0][2]
    assert (images[positions] == 0).all()
    good = np.delete(images, positions, axis=0)
    np.testing.assert_array_equal(good, expected_of([*paths, paths[0]], (3, 10, 8)))
    before = files.bad
    assert not files[::-1][0].any()
    assert files.bad == before  # each stands there once


@pytest.mark.parametrize("strip_pixels", [1, 40, 2**18])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_converted_strip_by_strip(monkeypatch, strip_pixels, channels):
    values = pixels(30, 13, dtype=np.uint16)
    monkeypatch.setattr(files, "STRIP_PIXELS", strip_pixels)
    expected = np.rint(values / 257)
    for image in read(encoded(values, "PNG"), (channels, 30, 13)):
        np.testing.assert_array_equal(image, expected)


def test_large_images_of_sixteen_bits_take_no_more_than_they_need():
    content = encoded(np.zeros((2000, 1000), np.uint16), "PNG")
    tracemalloc.start()
    try:
        read(content, (3, 8, 8))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.6 * 2000 * 1000  # one of 8 bits, and strips; Pillow's memory is not counted


def make_fifo(path):
    os.mkfifo(path)
    return path


def make_link(path, target):
    path.symlink_to(target)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes in folders")
@pytest.mark.parametrize(
    "make",
    [
        lambda folder: make_fifo(folder / "pipe.png"),
        lambda folder: make_link(folder / "link.png", make_fifo(folder / "pipe")),
        lambda folder: make_link(folder / "link.png", "/dev/zero"),
        lambda folder: make_link(folder / "link.png", "/dev/tty"),
        lambda folder: "/dev/zero",
    ],
    ids=["pipe", "link to a pipe", "link to /dev/zero", "link to /dev/tty", "/dev/zero"],
)
def test_pipes_and_devices_are_bad_images_at_once(paths, make, tmp_path):
    special = make(tmp_path)
    # Where there is no terminal, /dev/tty can't be opened at all.
    reason = "it is not a regular file|no such device or address"
    with pytest.raises(BadImageError, match=f"can't be read: ({reason})$"):
        ImageFiles([paths[0], special], (3, 8, 8))[:]
    with pytest.raises(BadImageError, match=reason):
        load_images([special], (3, 8, 8))
    files = ImageFiles([special, paths[0]], (3, 8, 8), FileOptions(on_bad_image="nan"))
    np.testing.assert_array_equal(files[:][1], read(paths[0], (3, 8, 8)))
    assert [row for row, *_ in files.bad] == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no descriptors to count")
def test_pipes_leave_no_descriptor_open(tmp_path):
    pipe = make_fifo(tmp_path / "pipe.png")
    files = ImageFiles([pipe] * 20, (3, 8, 8), FileOptions(on_bad_image="nan"))
    before = os.dup(0)
    os.close(before)
    files[:]
    after = os.dup(0)
    os.close(after)
    assert after == before


@pytest.mark.parametrize(
    ("item", "name"), [(b"rubbish", "bytes at position 1"), (None, "PIL image at position 1")]
)
def test_what_has_no_name_is_named_by_its_position(tmp_path, paths, item, name):
    if item is None:
        with Image.open(paths[0]) as item:
            pass  # closed before it was loaded
    with pytest.raises(BadImageError, match=f"^{name} can't be read: "):
        ImageFiles([paths[0], item], (3, 8, 8))[:]


# Pillow warns at the first limit, which is an error here, and raises at the second.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [50 * 60, 20])
def test_decompression_bombs_are_errors(monkeypatch, limit):
    content = encoded(pixels(50, 61, 3), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImageError, match=f"more pixels than PIL.*MAX_IMAGE_PIXELS = {limit} "):
        read(content, (3, 8, 8))


def test_decompression_bombs_are_errors_where_warnings_are(monkeypatch):
    content = encoded(pixels(50, 61, 3), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 60)
    with pytest.raises(BadImageError, match="more pixels than"):
        read(content, (3, 8, 8))


@pytest.mark.parametrize("limit", [50 * 61, None])
def test_the_pixel_limit_is_pillows_own(monkeypatch, limit):
    content = encoded(pixels(50, 61, 3), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    np.testing.assert_array_equal(read(content, (3, 8, 8)), reference(content, (3, 8, 8)))


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_exhaustion_is_no_bad_image(error):
    def reader(item):
        raise error

    files = ImageFiles([b"a"], (1, 4, 4), FileOptions(reader=reader, on_bad_image="nan"))
    with pytest.raises(type(error)):
        files[:]


def test_bad_image_error_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImageError("a.png", "it is empty")))
    assert str(error) == "a.png can't be read: it is empty"
    assert (error.name, error.reason) == ("a.png", "it is empty")


# As an array.


def test_shape_dtype_and_length(paths):
    files = ImageFiles(paths, (1, 4, 6))
    assert files.shape == (12, 1, 4, 6)
    assert files.dtype == np.uint8
    assert len(files) == 12


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(2, 5),
        slice(100, 200),
        slice(None, None, -3),
        np.array([5, 0, 5, -1]),
        [3, 1],
        np.array([], dtype=int),
        np.arange(12) % 3 == 0,
        7,
        np.int64(-1),
    ],
    ids=str,
)
def test_indexing_is_that_of_an_array(paths, index):
    files = ImageFiles(paths, (3, 10, 8))
    expected = expected_of(paths, (3, 10, 8))[index]
    images = files[index]
    assert images.shape == expected.shape
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("index", [12, [0, -13], (0, 1), np.ones(3, dtype=bool), "a"])
def test_wrong_indices_are_errors(paths, index):
    with pytest.raises(IndexError):
        ImageFiles(paths, (3, 4, 4))[index]


def test_each_access_returns_a_new_array(paths):
    files = ImageFiles(paths, (3, 10, 8))
    files[:][...] = 0
    np.testing.assert_array_equal(files[:], expected_of(paths, (3, 10, 8)))


def test_no_files():
    files = ImageFiles([], (3, 4, 4))
    assert files[:].shape == (0, 3, 4, 4)
    assert files[:].dtype == np.uint8
    assert ImageFiles([], (3, 4, 4), FileOptions(reader=print)).dtype == np.uint8


def test_duplicate_files(paths):
    items = [paths[0], paths[1], paths[0], paths[0]]
    np.testing.assert_array_equal(ImageFiles(items, (3, 5, 5))[:], expected_of(items, (3, 5, 5)))


@pytest.mark.parametrize("index", [[4, 2, 4], slice(3, 6), np.arange(12) > 9])
def test_take_makes_a_subset(paths, index):
    files = ImageFiles(paths, (3, 10, 8), FileOptions(on_bad_image="nan"))
    subset = files.take(index)
    assert isinstance(subset, ImageFiles)
    assert subset.options.on_bad_image == "nan"
    np.testing.assert_array_equal(subset[:], expected_of(paths, (3, 10, 8))[index])


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_channels_that_files_do_not_have(channels):
    with pytest.raises(ValueError, match=rf"image_shape=\({channels}, 4, 4\) has {channels} chan"):
        ImageFiles([], (channels, 4, 4))


def test_files_are_read_at_each_access(paths):
    files = ImageFiles(paths, (3, 10, 8))
    files[:]
    Image.fromarray(pixels(10, 8, 3, seed=99)).save(paths[4])
    np.testing.assert_array_equal(files[4], chw(pixels(10, 8, 3, seed=99)))


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_read_the_same(paths, duplicate):
    items = [*paths[:2], paths[2].read_bytes(), Image.open(paths[3])]
    files = ImageFiles(items, (3, 10, 8))
    expected = files[:]
    np.testing.assert_array_equal(duplicate(files)[:], expected)
    np.testing.assert_array_equal(files[:], expected)


# Python 3.12 warns of any fork beside threads, of which torch has some.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_under_joblib(paths, backend):
    files = ImageFiles(paths, (3, 10, 8))
    expected = files[:]
    parts = Parallel(n_jobs=2, backend=backend)(
        delayed(ImageFiles.__getitem__)(files, slice(start, start + 4)) for start in (0, 4, 8)
    )
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_a_pil_image_is_left_as_it_was(paths):
    content = encoded(smooth(60, 80), "JPEG", exif=exif(6))
    image = Image.open(io.BytesIO(content))
    read(image, (1, 5, 6))
    assert image.size == (80, 60)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(image, Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(read(image, (3, 80, 60)), reference(content, (3, 80, 60)))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.usefixtures("four_threads")
def test_one_lazy_pil_image_in_many_threads(format):
    content = encoded(smooth(200, 300), format, exif=exif(8))
    expected = np.stack([reference(content, (3, 300, 200))] * 8)
    for _ in range(20):
        image = Image.open(io.BytesIO(content))
        np.testing.assert_array_equal(ImageFiles([image] * 8, (3, 300, 200))[:], expected)


def test_without_pillow_the_extra_is_named(monkeypatch):
    files.import_pillow.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    try:
        with pytest.raises(ImportError, match=r'pip install "sklconv\[images\]"'):
            ImageFiles(["a.png"], (3, 4, 4))
        assert is_image_files(["a.png"])
        assert not is_image_files([3])
    finally:
        files.import_pillow.cache_clear()


# Threads and prefetching.


class Recorder:
    """A reader that notes what it is called with; items are numbers as bytes."""

    def __init__(self, delay=0.0, bad=()):
        self.calls, self.threads = [], set()
        self.delay, self.bad = delay, bad

    def __call__(self, item):
        number = int(item)
        self.calls.append(number)
        self.threads.add(threading.get_ident())
        time.sleep(self.delay * (number % 3))
        if number in self.bad:
            raise ValueError(f"number {number} is bad")
        return np.full((2, 2), number, dtype=np.uint8)


def numbered(n, bad=(), delay=0.0):
    """As many images, each full of its number, whose dtype is known; and their reader."""
    reader = Recorder(delay)
    files = ImageFiles(
        [b"0", *(str(i).encode() for i in range(n))], (1, 2, 2), FileOptions(reader=reader)
    )
    assert files.dtype == np.uint8
    reader.calls.clear()
    reader.bad = bad
    return files.take(slice(1, None)), reader


def cuts(n, size):
    return [slice(start, start + size) for start in range(0, n, size)]


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.usefixtures("four_threads")
def test_rows_are_in_order_whichever_thread_is_first():
    files, reader = numbered(60, delay=0.001)
    assert files[:][:, 0, 0, 0].tolist() == list(range(60))
    assert 1 < len(reader.threads - {threading.get_ident()}) <= 4


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_batches_are_in_order(size):
    files, _ = numbered(20, delay=0.0005)
    batches = list(files.batches(cuts(20, size)))
    assert [batch[:, 0, 0, 0].tolist() for batch in batches] == [
        list(range(20))[cut] for cut in cuts(20, size)
    ]


def test_batches_takes_arrays_and_masks():
    files, _ = numbered(9)
    indices = [np.array([8, 0, 0]), np.arange(9) == 4, []]
    batches = [batch[:, 0, 0, 0].tolist() for batch in files.batches(indices)]
    assert batches == [[8, 0, 0], [4], []]


def test_the_next_batch_is_read_meanwhile_and_no_further():
    files, reader = numbered(20)
    batches = files.batches(iter(cuts(20, 4)))
    assert reader.calls == []
    for number, _ in enumerate(batches):
        ahead = min(4 * (number + 2), 20)
        wait_until(lambda ahead=ahead: len(reader.calls) == ahead)
        time.sleep(0.002)
        assert sorted(reader.calls) == list(range(ahead))


@pytest.mark.parametrize(
    ("n_threads", "device", "ahead"), [(1, "cpu", 0), (2, "cpu", 4), (1, "cuda", 4)]
)
def test_one_thread_takes_turns_with_a_network_on_the_cpu(n_threads, device, ahead, monkeypatch):
    monkeypatch.setattr(files, "_n_threads", lambda: n_threads)
    images, reader = numbered(20)
    for number, batch in enumerate(images.arrays(cuts(20, 4), device)):
        assert batch[:, 0, 0, 0].tolist() == list(range(20))[4 * number : 4 * number + 4]
        n_read = min(4 * (number + 1) + ahead, 20)
        wait_until(lambda n_read=n_read: len(reader.calls) == n_read)
        time.sleep(0.002)
        assert len(reader.calls) == n_read


@pytest.mark.parametrize(("torchs", "cores", "n"), [(1, 8, 1), (8, 1, 1), (2, 8, 2), (9, 9, 4)])
def test_there_are_no_more_threads_than_torch_has_and_cores_are_there(
    torchs, cores, n, monkeypatch
):
    monkeypatch.setattr(files.torch, "get_num_threads", lambda: torchs)
    monkeypatch.setattr(files.joblib, "cpu_count", lambda: cores)
    images, reader = numbered(40, delay=0.001)
    list(images.arrays(cuts(40, 20)))
    assert 1 <= len(reader.threads - {threading.get_ident()}) <= n


def test_an_error_is_raised_at_its_own_batch():
    files, _ = numbered(20, bad=[9, 10])
    batches = files.batches(cuts(20, 4))
    assert next(batches)[0, 0, 0, 0] == 0
    time.sleep(0.01)
    assert next(batches)[0, 0, 0, 0] == 4
    with pytest.raises(BadImageError, match=r"bytes at position 9 .* ValueError: number 9 is bad"):
        next(batches)


def test_bad_files_are_listed_when_their_batch_is_returned():
    files, _ = numbered(12, bad=[1, 5])
    files.options = replace(files.options, on_bad_image="nan")
    batches = files.batches(cuts(12, 4))
    next(batches)
    time.sleep(0.01)
    assert [row for row, _, _ in files.bad] == [1]
    next(batches)
    assert [row for row, _, _ in files.bad] == [1, 5]


def file_threads():
    return [thread for thread in threading.enumerate() if "sklconv-files" in thread.name]


@pytest.mark.parametrize("end", ["exhausted", "closed", "dropped", "failed"])
def test_threads_end_with_the_batches(end):
    files, reader = numbered(40, bad=[0] if end == "failed" else [], delay=0.001)
    batches = files.batches(cuts(40, 8))
    if end == "failed":
        with pytest.raises(BadImageError):
            next(batches)
    elif end == "exhausted":
        list(batches)
    else:
        next(batches)
        assert file_threads()
        batches.close() if end == "closed" else None
        del batches
    assert not file_threads()
    if end != "exhausted":
        assert len(reader.calls) <= 16


def test_an_error_in_an_access_stops_the_reading():
    files, reader = numbered(500, bad=[0])
    reader.delay = 0.001
    with pytest.raises(BadImageError):
        files[:]
    assert len(reader.calls) < 500
    assert not file_threads()


# A reader of one's own.


def of(array):
    """A reader that returns ``array``, whatever it is called with."""
    return lambda item: array


def test_reader_gets_the_item_as_it_stands(paths):
    items = [paths[0], str(paths[1]), b"content", Image.new("L", (4, 4))]
    seen = []

    def reader(item):
        seen.append(item)
        return np.zeros((4, 4), np.uint8)

    ImageFiles(items, (1, 4, 4), FileOptions(reader=reader))[:]
    assert {id(item) for item in seen} == {id(item) for item in items}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.uint8, np.uint8),
        (np.uint16, np.float32),
        (np.int64, np.float32),
        (np.float64, np.float32),
        (np.float16, np.float32),
        (bool, np.float32),
    ],
)
def test_reader_dtype(dtype, expected):
    values = pixels(5, 6).astype(dtype)
    files = ImageFiles([b""], (1, 5, 6), FileOptions(reader=of(values)))
    assert files.dtype == expected
    image = files[0]
    assert image.dtype == expected
    np.testing.assert_array_equal(image[0], values.astype(expected))


def test_take_keeps_the_dtype_without_reading():
    files, reader = numbered(4)
    assert files.take([1, 2]).dtype == np.uint8
    assert reader.calls == []


def test_dtype_is_that_of_the_first_good_file():
    items = [b"0", b"1", b"2", b"3"]
    files = ImageFiles(
        items, (1, 2, 2), FileOptions(reader=Recorder(bad=[0, 1]), on_bad_image="nan")
    )
    assert files.dtype == np.uint8
    assert files.options.reader.calls == [0, 1, 2]
    all_bad = ImageFiles(
        [b"0"], (1, 2, 2), FileOptions(reader=Recorder(bad=[0]), on_bad_image="nan")
    )
    assert all_bad.dtype == np.uint8
    with pytest.raises(BadImageError):
        ImageFiles([b"0"], (1, 2, 2), FileOptions(reader=Recorder(bad=[0]))).dtype  # noqa: B018


@pytest.mark.parametrize("on_bad_image", ["raise", "nan"])
def test_reader_must_return_one_dtype(on_bad_image):
    values = {"a": np.zeros((2, 2), np.uint8), "b": np.zeros((2, 2))}
    files = ImageFiles(
        ["a", "b"], (1, 2, 2), FileOptions(reader=values.get, on_bad_image=on_bad_image)
    )
    with pytest.raises(TypeError, match="read as float32 for b, and as uint8 before"):
        files[:]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_reader_arrays_are_resized_channel_by_channel(channels, dtype):
    values = pixels(20, 31, channels).astype(dtype)
    expected = [
        np.asarray(Image.fromarray(values[..., c]).resize((9, 7), BILINEAR))
        for c in range(channels)
    ]
    image = read(b"", (channels, 7, 9), reader=of(values))
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_reader_channels_are_converted(dtype):
    rgba = pixels(6, 5, 4).astype(dtype)
    grey, rgb = rgba[..., 0], rgba[..., :3]
    luma = rgb.astype(float) @ [0.299, 0.587, 0.114]
    luma = np.rint(luma) if dtype == np.uint8 else luma
    for values, channels, expected in [
        (grey, 1, grey[None]),
        (grey[..., None], 1, grey[None]),
        (grey, 3, np.stack([grey] * 3)),
        (grey[..., None], 3, np.stack([grey] * 3)),
        (rgb, 3, chw(rgb)),
        (rgb, 1, luma[None]),
        (rgba, 4, chw(rgba)),
        (rgba, 3, chw(rgb)),
        (rgba, 1, luma[None]),
    ]:
        image = read(b"", (channels, 6, 5), reader=of(values))
        assert image.dtype == dtype
        np.testing.assert_allclose(image, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "channels", "message"),
    [
        (np.zeros((4, 4, 2)), 3, "returned 2 channels, which can't become 3"),
        (np.zeros((4, 4, 4)), 5, "returned 4 channels, which can't become 5"),
        (np.zeros((3, 4, 40)), 3, "returned 40 channels, which can't become 3: arrays are read"),
        (np.zeros(4), 1, r"shape \(4,\) and dtype float64, not numbers of shape \(H, W\)"),
        (np.zeros((4, 0)), 1, r"shape \(4, 0\)"),
        (np.zeros((1, 2, 4, 4)), 1, r"shape \(1, 2, 4, 4\)"),
        (np.array([["a"]]), 1, "dtype <U1"),
        (np.zeros((4, 4), complex), 1, "dtype complex128"),
        (None, 1, r"shape \(\) and dtype object"),
        (Image.new("RGB", (4, 4)), 5, "mode RGB has no 5 channels"),
    ],
)
def test_what_a_reader_may_not_return(values, channels, message):
    with pytest.raises(BadImageError, match=rf"^a\.dcm can't be read: .*{message}"):
        read("a.dcm", (channels, 4, 4), reader=of(values))


def test_reader_may_return_a_pil_image():
    content = CONTENTS["palette"]()
    image = read(content, (3, 5, 6), reader=lambda item: Image.open(io.BytesIO(item)))
    np.testing.assert_array_equal(image, reference(content, (3, 5, 6)))


def test_reader_may_return_memory_that_it_must_not_change():
    values = pixels(6, 5, 3)
    values.flags.writeable = False
    image = read(b"", (3, 6, 5), reader=of(values[::-1]))
    np.testing.assert_array_equal(image, chw(values[::-1]))


def test_values_beyond_float32_become_infinity():
    assert np.isposinf(read(b"", (1, 4, 4), reader=of(np.full((4, 4), 1e300)))).all()


def test_errors_of_a_reader_are_named():
    def reader(item):
        return {}["pixels"]

    with pytest.raises(BadImageError, match=r"^a can't be read: the reader raised KeyError: 'pi"):
        read("a", (1, 4, 4), reader=reader)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_pil_image_without_pixels(size):
    with pytest.raises(BadImageError, match=r"it has no pixels \(\d × \d\)$"):
        read(Image.new("L", size), (1, 4, 4))


@pytest.mark.parametrize(
    "single", ["a.jpg", b"\xff\xd8", Path("a.jpg"), Image.new("RGB", (8, 8))], ids=type
)
def test_a_single_image_is_no_list_of_images(single):
    with pytest.raises(TypeError, match=r"single image: put it into a list, \[X\]"):
        ConvNetClassifier(image_shape=(3, 8, 8)).fit(single, [0, 1])
