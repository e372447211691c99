"""Features that are there so far, so that a run can be stopped and resumed."""

import io
import json
import os
import zlib
from contextlib import ExitStack, suppress

import numpy as np

from .._platform.files import locked
from .errors import CommandError, writing

# Largest difference of a probe's features, as a share of the largest.
PROBE_TOLERANCE = 1e-3


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
        with writing(folder), ExitStack() as opened:
            folder.mkdir(exist_ok=True)
            try:
                opened.enter_context(locked(folder / "lock"))
            except TimeoutError:
                raise CommandError(f"{folder}: another run is writing to this output") from None
            opened.callback(self._remove_files)
            self._features = opened.enter_context(open(folder / "features", "a+b"))
            self._batches = opened.enter_context(open(folder / "batches", "a+b"))
            self._opened = opened.pop_all()

    def begin(self, settings, probe):
        """Continue where the last run stopped, if its settings are the same and its probe is near.

        Parameters
        ----------
        settings : dict
        probe : ndarray of shape (n, n_features)

        Returns
        -------
        changed : list of str
            Names of the settings whose change discarded an earlier run's results.
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
        with writing(self.folder):
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
        with writing(self.folder):
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
        with suppress(OSError):  # a full disk: that has been said by now
            self._opened.close()
        with suppress(OSError):  # the folder is not empty
            self.folder.rmdir()

    def _remove_files(self):
        with suppress(OSError):  # there are none: they could not be made
            if not os.path.getsize(self.folder / "features"):
                # File by file: nobody knows what else somebody may have put there.
                for name in ("batches", "settings", "probe.npy", "features"):
                    (self.folder / name).unlink(missing_ok=True)
