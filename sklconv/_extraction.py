"""Photographs on disk to a file of features, in runs that can be stopped and resumed."""

import csv
import hashlib
import io
import json
import os
import zlib
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ._files import FORMATS, import_pillow
from ._images import CHUNK_BYTES, slices

# Largest difference of a probe's features, as a share of the largest.
PROBE_TOLERANCE = 1e-3


class ExtractionError(RuntimeError):
    """What stands in the way of an extraction, in a sentence for the user."""


class Photos(NamedTuple):
    """Image files in the order in which they were found."""

    paths: list
    classes: list  # "" where a file was named itself
    others: list  # files in the folders that are no images by their names

    @property
    def class_names(self):
        """Each class once."""
        return set(self.classes) - {""}


def find_photos(places):
    """Return the `Photos` that ``places``, paths of files and folders, name, each once.

    Folders are walked, sorted by name at every level; files and folders whose names begin with
    a dot are left out. The class of a photo is the folder it lies in, relative to the one given,
    or that one's own name.
    """
    photos, known = Photos([], [], []), set()
    for place in places:
        for path, name in _named_photos(place, photos.others):
            if (here := os.path.abspath(path)) not in known:
                known.add(here)
                photos.paths.append(path)
                photos.classes.append(name)
    return photos


def _named_photos(place, others):
    if not os.path.lexists(place):  # a broken link is a bad file, not none
        raise ExtractionError(f"{place}: no such file or folder")
    if not os.path.isdir(place):
        return [(place, "")]
    suffixes = image_suffixes()
    found: list[str] = []
    for path in _walk(place):
        is_photo = os.path.splitext(path)[1].lower() in suffixes
        (found if is_photo else others).append(path)
    if not found:
        endings = ", ".join(sorted(suffixes))
        raise ExtractionError(f"{place}: no photos in this folder: no files that end in {endings}")
    return [(path, _class_name(path, place)) for path in found]


def image_suffixes():
    """Return the endings of the files that can be read, in lower case."""
    Image = import_pillow()
    return {end for end, name in Image.EXTENSION.items() if name in FORMATS and name in Image.OPEN}


def _walk(folder, above=()):
    here = os.path.realpath(folder)
    if here in above:
        return  # a link back to a folder that this one lies in
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(entry.path, (*above, here))
        else:  # broken links and pipes, too: they are bad files, not none
            yield entry.path


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _class_name(path, place):
    inner = os.path.relpath(os.path.dirname(path), place)
    if inner == os.curdir:
        return os.path.basename(os.path.abspath(place))
    return inner.replace(os.sep, "/")


def photos_digest(photos):
    """Return a digest of the photos' names, classes, sizes and times of change."""
    digest = hashlib.sha256()
    for path, name in zip(photos.paths, photos.classes, strict=True):
        stamp: tuple = ()
        with suppress(OSError):
            status = os.stat(path)
            stamp = (status.st_size, status.st_mtime_ns)
        digest.update(json.dumps([path, name, *stamp]).encode())
    return digest.hexdigest()


class PartialResults:
    """The features that are there so far, kept in a folder beside the output.

    ``features`` holds the rows, one behind the other, and ``batches`` a line of JSON a batch:
    its number of rows, their checksum, and which photos in it could not be read. A line is
    written when its rows are; whatever a killed run or a power cut has left beyond the last
    batch that is whole is cut off. ``settings`` is what the rows depend on, and ``probe`` holds
    the features of images that are the same in each run.

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

    def begin(self, settings, probe):
        """Go on where the last run stopped if its settings were these, and its probe about this.

        Parameters
        ----------
        settings : dict
        probe : ndarray of shape (n, n_features)

        Returns
        -------
        changed : list of str
            Names of the settings for whose sake an earlier run's results were thrown away.
        """
        self.n_features = probe.shape[1]
        file, before = self.folder / "settings", {}
        with suppress(FileNotFoundError, ValueError):
            before = json.loads(file.read_text())
        changed = [name for name, value in settings.items() if before.get(name) != value]
        if not changed and not self._agrees(probe):
            changed = ["what the network computes"]
        if not changed:
            self._recover()
            return []
        was_empty = not self._features.seek(0, io.SEEK_END)
        self.clear()
        with _writing(self.folder):
            np.save(self.folder / "probe.npy", probe)
            file.write_text(json.dumps(settings, indent=1))
        return [] if was_empty else changed

    def _agrees(self, probe):
        before = None
        with suppress(OSError, ValueError, EOFError):
            before = np.load(self.folder / "probe.npy")
        if before is None or before.shape != probe.shape:
            return False
        # Other numbers of threads and other CPUs round otherwise.
        atol = PROBE_TOLERANCE * np.nanmax(np.abs(probe), initial=0)
        return np.allclose(before, probe, rtol=0, atol=atol, equal_nan=True)

    def _recover(self):
        self._features.seek(0)
        self._batches.seek(0)
        n_bytes = 0
        with suppress(ValueError):  # half a line
            for line in self._batches:
                n_rows, checksum, bad = json.loads(line)
                rows = self._features.read(n_rows * self.n_features * 4)
                if zlib.crc32(rows) != checksum:
                    break
                n_bytes += len(line)
                self.n_rows += n_rows
                self.bad |= dict(bad)
        self._features.truncate(self.n_rows * self.n_features * 4)
        self._batches.truncate(n_bytes)

    def append(self, rows, bad):
        """Keep a batch of features, float32, and the reasons of those rows that are ``bad``."""
        content = np.ascontiguousarray(rows, "<f4").tobytes()
        line = json.dumps([len(rows), zlib.crc32(content), list(bad.items())]) + "\n"
        with _writing(self.folder):
            self._features.write(content)
            self._features.flush()
            self._batches.write(line.encode())
            self._batches.flush()
        self.n_rows += len(rows)
        self.bad |= bad

    def features(self):
        """Return the rows as a memmap of shape (n_rows, n_features)."""
        shape = (self.n_rows, self.n_features)
        return np.memmap(self.folder / "features", "<f4", mode="r", shape=shape)

    def clear(self):
        """Throw the results away."""
        self.n_rows, self.bad = 0, {}
        self._features.truncate(0)
        self._batches.truncate(0)

    def close(self):
        """Close the files; leave no folder behind if nothing is in it."""
        is_empty = os.path.getsize(self._features.name) == 0
        with suppress(OSError):  # a full disk: that has been said by now
            self._files.close()
        if is_empty:
            # File by file: nobody knows what else somebody may have put there.
            for name in ("batches", "settings", "probe.npy", "features"):
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


@contextmanager
def _writing(place):
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ExtractionError(f"{place}: can't be written: {reason}") from error


def compute_rest(extractor, photos, results):
    """Compute what ``results`` has not yet; yield the number of rows after each batch."""
    first = results.n_rows
    if first == len(photos.paths):
        return
    with closing(extractor.transform_batches(photos.paths[first:])) as batches:
        for rows in batches:
            # Files are read ahead: bad ones may be listed that belong to batches to come.
            here = range(results.n_rows, results.n_rows + len(rows))
            bad = {first + row: reason for row, _, reason in extractor.bad_images_}
            results.append(rows, {row: reason for row, reason in bad.items() if row in here})
            yield len(rows)


class FeatureTable(NamedTuple):
    """What an output file holds: a row a photo."""

    features: np.ndarray
    names: list
    photos: Photos


def write_npz(file, table):
    """Write the arrays ``features``, ``names``, ``paths`` and ``classes``."""
    texts = {"names": table.names, "paths": table.photos.paths, "classes": table.photos.classes}
    arrays: dict[str, Any] = {key: np.array(values, np.str_) for key, values in texts.items()}
    np.savez(file, features=table.features, **arrays)


def write_csv(file, table):
    """Write a line a photo: path, class, features."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    _write_row(text, ["path", "class"], table.names)
    photos = table.photos
    for path, name, row in zip(photos.paths, photos.classes, table.features, strict=True):
        # As few digits as tell one float32 from all others.
        _write_row(text, [as_utf8(path), as_utf8(name)], row.astype(np.str_).tolist())
    text.detach()


def _write_row(file, texts, others=()):
    # Readers take a bare \r for the end of a row, but Python before 3.13 does not quote it.
    bare = any("\r" in text for text in texts)
    quoting: Literal[0, 1] = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
    csv.writer(file, lineterminator="\n", quoting=quoting).writerow([*texts, *others])


def write_parquet(file, table):
    """Write the columns path, class and one a feature."""
    pyarrow, parquet = import_pyarrow()
    text, number = pyarrow.string(), pyarrow.float32()
    columns = [("path", text), ("class", text), *((name, number) for name in table.names)]
    schema = pyarrow.schema(columns)
    group_size = max(1, CHUNK_BYTES // (4 * len(table.names)))
    with parquet.ParquetWriter(file, schema) as writer:
        for cut in slices(len(table.features), group_size):
            texts = [
                [as_utf8(value) for value in values[cut]]
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


def check_output(output):
    """Raise unless ``output`` is a path that features can be written to."""
    suffix = output.suffix.lower()
    if suffix not in WRITERS:
        raise ExtractionError(f"{output}: the output's name must end in {', '.join(WRITERS)}")
    if output.is_dir():
        raise ExtractionError(f"{output}: is a folder; give the name of a file")
    if suffix == ".parquet":
        import_pyarrow()


def write_output(output, results, photos, names):
    """Write the features to the path ``output``, which gets its name when all is on the disk."""
    table = FeatureTable(results.features(), names, photos)
    temporary = results.folder / "output"
    try:
        with _writing(output):
            with open(temporary, "wb") as file:
                WRITERS[output.suffix.lower()](file, table)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def write_bad_list(output, bad):
    """Write (path, reason) of the photos that could not be read; return where.

    An earlier run's list is removed if there are none.
    """
    place = Path(f"{output}.bad.csv")
    place.unlink(missing_ok=True)
    if bad:
        with _writing(place), open(place, "w", encoding="utf-8", newline="") as file:
            _write_row(file, ["path", "reason"])
            for path, reason in bad:
                _write_row(file, [as_utf8(path), reason])
    return place
