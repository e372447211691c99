"""Features: of costly networks an image at a time, of others all that a call gives."""

import sqlite3
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

import numpy as np

from .._engines.choice import engine_of
from .._images.sources import slices
from .._platform.digests import Undigestible, digest_of
from .._progress import print_line
from .folder import CHECKSUM_BYTES, checksum_of, circumstances, say, versions
from .networks import digest_of_network

# Multiply-adds an image from which on a pass costs more than to look a row up.
WORTH_A_ROW = 2e7

# Rows looked up at a time.
LOOKED_UP = 256


class KeptFeatures:
    """Features of a fitted network, computed where a folder does not have them.

    Parameters
    ----------
    folder : Folder
    network : ImageNetwork or KeptNetwork
    tap_set : TapSet
    precision : {"float32", "bfloat16"}
    engines : sequence of str
        Those whose features serve; the first is the one that computes.
    images : ImageSource
    """

    def __init__(self, folder, network, tap_set, precision, engines, images):
        self.folder, self.network, self.tap_set = folder, network, tap_set
        # A search over poolings asks for both, and a pass costs far more than a row.
        self.wider = tap_set.with_other_pooling()
        self.precision, self.engines, self.images = precision, engines, images

    def recall(self, compute, iterate, is_frozen, name):
        """Return the features, computed where they are not kept.

        Parameters
        ----------
        compute : callable
            Returns those of all images.
        iterate : callable
            Takes rows, an array of int, and a `TapSet`; returns what computes, as `choose_run`
            does, and an iterator over batches of their features.
        is_frozen : bool
            Whether the network may meet some of these images again, in other calls.
        name : str or None
            Who prints how many were kept; None: nobody.
        """
        by_row = is_frozen and self.tap_set.multiply_adds >= WORTH_A_ROW
        try:
            self.bases = self._bases(self.wider if by_row else self.tap_set)
            features = self._by_row(iterate) if by_row else self._whole(compute)
        except Undigestible as error:
            say(f"these features are not kept: {error}")
            return compute()
        if name is not None:
            n, n_computed = len(self.images), self.n_computed
            print_line(
                f"{name}: features of {n - n_computed:,} of {n:,} images are taken from "
                f"{self.folder.path}, {n_computed:,} are computed"
            )
        return features

    def _bases(self, tap_set):
        """Return for each layer, for each engine, a digest of all but the images."""
        base = digest_of((digest_of_network(self.network), self.precision, versions()))
        layers = [(base, vars(layer.tap), layer.pool) for layer in tap_set.tapped]
        return [[digest_of((*of, engine)).encode() for engine in self.engines] for of in layers]

    def _whole(self, compute):
        """Return features as an earlier call with equal images has left them, to the bit."""
        self.n_computed = len(self.images)
        digest = self.images.digest()
        if digest is None:
            return compute()
        made_by = [by_engine[0] for by_engine in self.bases]
        may_give_up = self.engines[0] != "torch" and len(self.engines) > 1
        name = f"features/{digest_of((made_by, may_give_up, digest, circumstances()))}"
        kept = self.folder.read(name)
        if kept is not None:
            self.n_computed = 0
            return kept.view(np.float32).reshape(len(self.images), self.tap_set.n_features)
        features = compute()
        if not self.images.bad:  # what can't be read now may be later
            self.folder.write(name, features)
        return features

    def _by_row(self, iterate):
        """Return features of which each image's are kept by themselves, equal to rounding."""
        digests = self.images.digests()
        features = np.empty((len(digests), self.tap_set.n_features), np.float32)
        missing = self._in_table(self._read, digests, features)
        if missing is None:
            missing = np.arange(len(digests))
        self.n_computed, start = len(missing), 0
        if not len(missing):
            return features
        run, batches = iterate(missing, self.wider)
        with closing(batches):
            for batch in batches:
                rows = missing[start : start + len(batch)]
                features[rows] = batch[:, : features.shape[1]]
                for row, _, _ in self.images.bad or ():
                    digests[row] = None  # it may be read another time
                known = [digests[row] for row in rows]
                self._in_table(self._write, known, batch, engine_of(run))
                start += len(batch)
        return features

    def _in_table(self, action, *args):
        path = self.folder.path / "rows.sqlite"

        def act():
            with closing(_Table(path)) as table:
                return action(table, *args)

        def act_though_damaged():
            try:
                return act()
            except sqlite3.DatabaseError as error:
                if type(error) is not sqlite3.DatabaseError:  # one of its kinds, such as locked
                    raise
                say(f"{path} is damaged ({error}): it is made anew")
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
                return act()

        return self.folder.attempt(act_though_damaged)

    def _read(self, table, digests, features):
        """Fill in the rows that are kept; return the numbers of the others."""
        missing = np.zeros(len(digests), bool)
        for cut in slices(len(digests), LOOKED_UP):
            keys = self._keys(digests[cut])[: len(self.tap_set.tapped)]
            found = table.read([key for several in keys for of_row in several for key in of_row])
            for columns, several in zip(self.tap_set.split(features[cut]), keys, strict=True):
                for row, of_row in enumerate(several):
                    kept = next((found[key] for key in of_row if key in found), None)
                    if kept is None or len(kept) != 4 * columns.shape[1]:
                        missing[cut.start + row] = True
                    else:
                        columns[row] = np.frombuffer(kept, np.float32)
        return np.flatnonzero(missing)

    def _write(self, table, digests, features, engine):
        rows, which = {}, self.engines.index(engine)
        keys = self._keys(digests)
        for columns, several in zip(self.wider.split(features), keys, strict=True):
            for row, of_row in zip(columns, several, strict=True):
                if of_row:
                    rows[of_row[which]] = row.tobytes()
        table.write(rows)

    def _keys(self, digests):
        """Return for each layer, for each image, the keys that serve."""
        return [
            [[_key(base, d) for base in by_engine if d is not None] for d in digests]
            for by_engine in self.bases
        ]


def _key(base, digest):
    return blake2b(base + digest, digest_size=16).digest()


class _Table:
    """Rows of bytes in a database that several processes read and write."""

    def __init__(self, path):
        self.path = path
        self.database = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            self.database.execute("PRAGMA journal_mode = WAL")
            self.database.execute("PRAGMA synchronous = NORMAL")
            # A table without row numbers would be written at a fifth of the speed.
            self.database.execute("CREATE TABLE IF NOT EXISTS kept (key BLOB, row BLOB)")
            self.database.execute("CREATE UNIQUE INDEX IF NOT EXISTS keys ON kept (key)")
        except sqlite3.DatabaseError as error:
            self.database.close()
            if not error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
                raise
            # Nobody can write here, nor so much as make the files that keep readers apart.
            uri = f"{path.absolute().as_uri()}?immutable=1"
            self.database = sqlite3.connect(uri, uri=True, isolation_level=None)

    def close(self):
        self.database.close()

    def read(self, keys):
        """Return a dict: those of ``keys`` that are there, and their rows."""
        found = {}
        for cut in slices(len(keys), LOOKED_UP):
            some = keys[cut]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, row FROM kept WHERE key IN ({marks})"
            for key, row in self.database.execute(query, some):
                is_whole = (
                    type(row) is bytes
                    and checksum_of(row[CHECKSUM_BYTES:], key) == row[:CHECKSUM_BYTES]
                )
                if is_whole:
                    found[key] = row[CHECKSUM_BYTES:]
                else:
                    say(f"{self.path} is damaged: a row of it is computed anew")
        return found

    def write(self, rows):
        """Keep ``rows``, a dict."""
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            self.database.executemany(
                "INSERT OR REPLACE INTO kept VALUES (?, ?)",
                [(key, checksum_of(row, key) + row) for key, row in rows.items()],
            )
