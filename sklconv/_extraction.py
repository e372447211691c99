"""Photographs on disk to a file of features, in runs that can be stopped and resumed."""

import csv
import hashlib
import io
import json
import os
import zlib
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ._files import FORMATS, import_pillow
from ._images import slices

# What a parquet file's group of rows takes in memory, at most.
GROUP_BYTES = 64 * 2**20


class ExtractionError(Exception):
    """What stands in the way of an extraction, in a sentence for the user."""


class Photos(NamedTuple):
    """Image files in the order in which they were found."""

    paths: list
    classes: list  # "" where a file was named itself
    n_others: int  # files in the folders that are no images by their names


def find_photos(places):
    """Return the `Photos` that ``places``, paths of files and folders, name, each once.

    Folders are walked, sorted by name at every level; files and folders whose names begin with
    a dot are left out. The class of a photo is the folder it lies in, relative to the one given,
    or that one's own name.
    """
    suffixes = image_suffixes()
    found: dict = {}
    n_others = 0
    for place in places:
        files = [place] if not os.path.isdir(place) else list(_walk(place))
        if os.path.isdir(place):
            photos = [path for path in files if os.path.splitext(path)[1].lower() in suffixes]
            n_others += len(files) - len(photos)
            if not photos:
                raise ExtractionError(
                    f"{place}: no photos in this folder, which holds {len(files):,} other files; "
                    f"photos are those that end in {', '.join(sorted(suffixes))}"
                )
            named = [(path, _class_name(path, place)) for path in photos]
        elif os.path.exists(place):
            named = [(place, "")]
        else:
            raise ExtractionError(f"{place}: no such file or folder")
        for path, name in named:
            found.setdefault(os.path.abspath(path), (path, name))
    paths, classes = zip(*found.values(), strict=True)
    return Photos(list(paths), list(classes), n_others)


def image_suffixes():
    """Return the endings of the files that can be read, in lower case."""
    Image = import_pillow()
    return {
        suffix
        for suffix, name in Image.EXTENSION.items()
        if name in FORMATS and name in Image.OPEN
    }


def _walk(folder, above=()):
    here = os.path.realpath(folder)
    if here in above:
        return  # a link back to a folder that this one lies in
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, (*above, here))
        elif entry.is_file() or entry.is_symlink():  # a broken link is a bad file, not none
            yield entry.path


def _class_name(path, place):
    inner = os.path.relpath(os.path.dirname(path), place)
    if inner == os.curdir:
        return os.path.basename(os.path.abspath(place))
    return inner.replace(os.sep, "/")


def photos_digest(photos):
    """Return a digest of the photos' names, classes, sizes and times of change."""
    digest = hashlib.sha256()
    for path, name in zip(photos.paths, photos.classes, strict=True):
        try:
            status = os.stat(path)
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = None
        digest.update(json.dumps([path, name, stamp]).encode())
    return digest.hexdigest()


def network_digest(network):
    """Return a digest of a torch module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class PartialResults:
    """The features that are there so far, kept in a folder beside the output.

    ``features`` holds the rows, one behind the other, and ``batches`` a line of JSON a batch:
    its number of rows, their checksum, and which photos in it could not be read. A line is
    written when its rows are; whatever a killed run or a power cut has left beyond the last
    batch that is whole is cut off. ``settings`` is what the rows depend on.

    Parameters
    ----------
    folder : Path
        Made if it is not there. Another run that uses it is an error.

    Attributes
    ----------
    n_rows : int
    bad : dict of int to str
        Row of each photo that could not be read, and the reason.
    """

    def __init__(self, folder):
        self.folder = folder
        self.n_rows, self.bad = 0, {}
        with _writing(folder), ExitStack() as files:
            folder.mkdir(exist_ok=True)
            self._features = files.enter_context(open(folder / "features", "a+b"))
            _lock(self._features, folder)
            self._batches = files.enter_context(open(folder / "batches", "a+b"))
            self._files = files.pop_all()

    def begin(self, settings, n_features):
        """Go on where the last run stopped if its settings were these.

        Returns
        -------
        changed : list of str
            Names of the settings for whose sake an earlier run's results were thrown away.
        """
        self.n_features = n_features
        before = self._read_settings()
        changed = [name for name, value in settings.items() if before.get(name) != value]
        if not changed:
            self._recover()
            return []
        thrown_away = self._features.seek(0, io.SEEK_END) > 0
        self._cut(0, 0)
        temporary = self.folder / "settings.new"
        temporary.write_text(json.dumps(settings, indent=1))
        temporary.replace(self.folder / "settings")
        return changed if thrown_away else []

    def _read_settings(self):
        try:
            settings = json.loads((self.folder / "settings").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return settings if isinstance(settings, dict) else {}

    def _recover(self):
        self._features.seek(0)
        self._batches.seek(0)
        n_bytes = 0
        for line in self._batches:
            batch = self._whole_batch(line)
            if batch is None:
                break
            n_bytes += len(line)
            self.n_rows += batch["n_rows"]
            self.bad |= dict(batch["bad"])
        self._cut(self.n_rows * self.n_features * 4, n_bytes)

    def _whole_batch(self, line):
        try:
            batch = json.loads(line)
        except ValueError:
            return None
        rows = self._features.read(batch["n_rows"] * self.n_features * 4)
        return batch if zlib.crc32(rows) == batch["crc32"] else None

    def _cut(self, *sizes):
        for file, size in zip((self._features, self._batches), sizes, strict=True):
            file.truncate(size)

    def append(self, rows, bad):
        """Keep a batch of features, float32, and the reasons of those rows that are ``bad``."""
        content = np.ascontiguousarray(rows, "<f4").tobytes()
        batch = {"n_rows": len(rows), "crc32": zlib.crc32(content), "bad": list(bad.items())}
        line = json.dumps(batch).encode() + b"\n"
        with _writing(self.folder):
            for file, written in ((self._features, content), (self._batches, line)):
                file.write(written)
                file.flush()
        self.n_rows += len(rows)
        self.bad |= bad

    def features(self):
        """Return the rows as a memmap of shape (n_rows, n_features)."""
        shape = (self.n_rows, self.n_features)
        return np.memmap(self.folder / "features", "<f4", mode="r", shape=shape)

    def close(self):
        """Close the files; leave no folder behind if nothing is in it."""
        is_empty = os.path.getsize(self._features.name) == 0
        with suppress(OSError):  # a full disk: that has been said by now
            self._files.close()
        if is_empty:
            self._delete()

    def clear(self):
        """Throw the results away."""
        self.n_rows, self.bad = 0, {}
        self._cut(0, 0)

    def _delete(self):
        # File by file: nobody knows what else somebody may have put there.
        for name in ("batches", "settings", "settings.new", "output", "features"):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def _lock(file, folder):
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExtractionError(f"{folder}: another run is at work on this output") from None
    except OSError:
        pass  # a file system without locks


def compute_rest(extractor, photos, results):
    """Compute what ``results`` has not yet; yield the number of rows after each batch."""
    first = results.n_rows
    if first == len(photos.paths):
        return
    with closing(extractor.transform_batches(photos.paths[first:])) as batches:
        for rows in batches:
            bad = _bad_rows(rows, results.n_rows, first, extractor)
            results.append(rows, bad)
            yield len(rows)


def _bad_rows(rows, row, first, extractor):
    unread = row + np.flatnonzero(np.isnan(rows).all(axis=1))
    if not len(unread):
        return {}
    reasons = {first + position: reason for position, _, reason in extractor.bad_images_}
    return {int(row): reasons[row] for row in unread if row in reasons}


class FeatureTable(NamedTuple):
    """What an output file holds: a row a photo."""

    features: np.ndarray
    names: list
    photos: Photos


def write_npz(file, table):
    """Write the arrays ``features``, ``names``, ``paths`` and ``classes``."""
    paths, classes, _ = table.photos
    arrays = {"names": table.names, "paths": paths, "classes": classes}
    texts: dict[str, Any] = {
        name: np.array(values, dtype=np.str_) for name, values in arrays.items()
    }
    np.savez(file, features=table.features, **texts)


def write_csv(file, table):
    """Write a line a photo: path, class, features."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", *table.names])
    paths, classes, _ = table.photos
    for path, name, row in zip(paths, classes, table.features, strict=True):
        # As few digits as tell one float32 from all others.
        writer.writerow([as_utf8(path), as_utf8(name), *row.astype(np.str_).tolist()])
    text.detach()


def write_parquet(file, table):
    """Write the columns path, class and one a feature."""
    pyarrow, parquet = import_pyarrow()
    text, number = pyarrow.string(), pyarrow.float32()
    columns = [("path", text), ("class", text), *((name, number) for name in table.names)]
    schema = pyarrow.schema(columns)
    group_size = max(1, GROUP_BYTES // (4 * len(table.names)))
    with parquet.ParquetWriter(file, schema) as writer:
        for cut in slices(len(table.features), group_size):
            texts = [
                pyarrow.array([as_utf8(value) for value in values[cut]], text)
                for values in (table.photos.paths, table.photos.classes)
            ]
            features = [pyarrow.array(column) for column in table.features[cut].T.copy()]
            writer.write_table(pyarrow.table([*texts, *features], schema=schema))


WRITERS = {".npz": write_npz, ".csv": write_csv, ".parquet": write_parquet}


def import_pyarrow():
    """Return pyarrow and its module for parquet files."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            '.parquet files are written by pyarrow: pip install "sklconv[parquet]"'
        ) from None
    return pyarrow, pyarrow.parquet


def as_utf8(path):
    """Return ``path`` with bytes that are not UTF-8, as file names may hold, as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def _replaced_when_whole(output, folder):
    """Yield a file to write in; it gets the name ``output`` when all of it is on the disk."""
    temporary = folder / "output"
    try:
        with _writing(output), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _writing(output):
            temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(output.parent)


def write_output(output, results, photos, names):
    """Write the features of all photos to the path ``output``, in the format that it ends in."""
    table = FeatureTable(results.features(), names, photos)
    with _replaced_when_whole(output, results.folder) as file:
        WRITERS[output.suffix.lower()](file, table)


def write_bad_list(output, bad):
    """Write (path, reason) of the photos that could not be read; remove an earlier run's list."""
    place = bad_list_path(output)
    if not bad:
        place.unlink(missing_ok=True)
        return
    with _writing(place), open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("path", "reason"), *((as_utf8(path), why) for path, why in bad)])


@contextmanager
def _writing(place):
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ExtractionError(f"{place}: can't be written: {reason}") from error


def _sync(folder):
    # Windows opens no folders, and not every file system can do it.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(output):
    """Raise unless ``output`` is a path that features can be written to."""
    suffix = output.suffix.lower()
    if suffix not in WRITERS:
        raise ExtractionError(
            f"{output}: the output's name must end in {', '.join(WRITERS)}, which says what it "
            "is written as"
        )
    if output.is_dir():
        raise ExtractionError(f"{output}: is a folder; give the name of a file")
    if not output.parent.is_dir():
        raise ExtractionError(f"{output}: there is no folder {output.parent}")
    if suffix == ".parquet":
        import_pyarrow()


def bad_list_path(output):
    """Return where the list of photos that could not be read is written."""
    return Path(f"{output}.bad.csv")
