"""Files of features, and how to go on from them in Python."""

import csv
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._images.sources import CHUNK_BYTES, slices
from .._platform.files import replacing
from .errors import CommandError, writing

# What to import, how to load an output, and which of its rows are those of good photos.
TABLE = 'X, y = data.iloc[:, 2:], data["class"]'
LOADING = {
    ".npz": (
        "numpy as np",
        ["data = np.load(PATH)", 'X, y = data["features"], data["classes"]'],
        "~np.isnan(X).any(axis=1)",
    ),
    ".csv": (
        "pandas as pd",
        # Else a class that is called "NA" would be a missing value.
        ['data = pd.read_csv(PATH, keep_default_na=False, na_values="nan")', TABLE],
        "X.notna().all(axis=1)",
    ),
    ".parquet": ("pandas as pd", ["data = pd.read_parquet(PATH)", TABLE], "X.notna().all(axis=1)"),
}
SCORING_IMPORTS = [
    "from sklearn.linear_model import LogisticRegression",
    "from sklearn.model_selection import cross_val_score",
]
SCORE = "print(cross_val_score(LogisticRegression(max_iter=1000), X, y))"


def write_npz(file, features, names, photos):
    """Write the arrays ``features``, ``names``, ``paths`` and ``classes``."""
    texts = {"names": names, "paths": photos.paths, "classes": photos.classes}
    arrays: dict[str, Any] = {key: np.array(values, np.str_) for key, values in texts.items()}
    np.savez(file, features=features, **arrays)


def write_csv(file, features, names, photos):
    """Write a line a photo: path, class, features."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    _write_row(text, ["path", "class"], names)
    for path, name, row in zip(photos.paths, photos.classes, features, strict=True):
        # As few digits as tell one float32 from all others.
        _write_row(text, [as_utf8(path), as_utf8(name)], row.astype(np.str_).tolist())
    text.detach()


def _write_row(file, texts, others=()):
    # Readers take a bare \r for the end of a row, but Python before 3.13 does not quote it.
    bare = any("\r" in text for text in texts)
    quoting: Literal[0, 1] = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
    csv.writer(file, lineterminator="\n", quoting=quoting).writerow([*texts, *others])


def write_parquet(file, features, names, photos):
    """Write the columns path, class and one a feature."""
    pyarrow, parquet = import_pyarrow()
    text, number = pyarrow.string(), pyarrow.float32()
    columns = [("path", text), ("class", text), *((name, number) for name in names)]
    schema = pyarrow.schema(columns)
    group_size = max(1, CHUNK_BYTES // (4 * len(names)))
    with parquet.ParquetWriter(file, schema) as writer:
        for cut in slices(len(features), group_size):
            texts = [
                [as_utf8(value) for value in values[cut]]
                for values in (photos.paths, photos.classes)
            ]
            numbers = [pyarrow.array(column) for column in features[cut].T.copy()]
            writer.write_table(pyarrow.table([*texts, *numbers], schema=schema))


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
        raise CommandError(f"{output}: the output's name must end in {', '.join(WRITERS)}")
    if output.is_dir():
        raise CommandError(f"{output}: is a folder; give the name of a file")
    if not output.parent.is_dir():
        raise CommandError(f"{output.parent}: no such folder to write {output.name} to")
    if suffix == ".parquet":
        import_pyarrow()


def write_output(output, results, photos, names):
    """Write the features to the path ``output``, which gets its name when all is on the disk."""
    with writing(output), replacing(output, temporary=results.folder / "output") as file:
        WRITERS[output.suffix.lower()](file, results.features(), names, photos)


def write_bad_list(output, bad):
    """Write (path, reason) of the photos that could not be read; return where.

    An earlier run's list is removed if there are none.
    """
    place = Path(f"{output}.bad.csv")
    place.unlink(missing_ok=True)
    if bad:
        with writing(place), open(place, "w", encoding="utf-8", newline="") as file:
            _write_row(file, ["path", "reason"])
            for path, reason in bad:
                _write_row(file, [as_utf8(path), reason])
    return place


def next_step(output, classes, has_bad):
    """Return lines of Python that load the features, and score them where there are classes.

    ``classes`` are those of the photos that could be read.
    """
    package, load, good = LOADING[output.suffix.lower()]
    sizes = Counter(classes).values()
    can_score = len(sizes) > 1 and min(sizes) >= 5  # the number of folds
    lines = [
        f"import {package}",
        *(SCORING_IMPORTS if can_score else []),
        "",
        *(line.replace("PATH", repr(str(output))) for line in load),
        *([f"good = {good}", "X, y = X[good], y[good]"] if has_bad else []),
        *([SCORE] if can_score else []),
    ]
    return "\n".join(lines)
