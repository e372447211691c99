"""Features: of costly networks an image at a time, of others all that a call gives."""

import sqlite3
from contextlib import closing
from hashlib import blake2b

import numpy as np

from .._images.sources import slices
from .._platform.digests import digest_of
from .folder import CHECKSUM_BYTES, checksum_of, circumstances, say, versions

# Multiply-adds an image from which on a pass costs more than to look a row up.
WORTH_A_ROW = 2e7

# Rows looked up at a time.
LOOKED_UP = 256


def digest_of_network(network):
    """Return a digest of what decides on features: weights and code, and where it computes.

    Raises
    ------
    Undigestible
    """
    return digest_of((network.prepare, network.body, str(network.device)))


class KeptFeatures:
    """Features of a fitted network, computed where a folder does not have them.

    Parameters
    ----------
    folder : Folder
    network_digest : str
        As `digest_of_network` returns it.
    tap_set : TapSet
    precision : {"float32", "bfloat16"}
    engines : sequence of str
        Those whose features serve; the first is the one that computes.
    images : ImageSource

    Attributes
    ----------
    n_computed : int
        Images whose features were not there, of the last call.

    Raises
    ------
    Undigestible
    """

    def __init__(self, folder, network_digest, tap_set, precision, engines, images):
        self.folder, self.tap_set, self.images = folder, tap_set, images
        self.engines = engines
        base = digest_of((network_digest, precision, versions()))
        # Of each layer, by each engine.
        self.bases = [
            [digest_of((base, vars(layer.tap), layer.pool, engine)).encode() for engine in engines]
            for layer in tap_set.tapped
        ]

    def whole(self, compute):
        """Return features as an earlier call with equal images has left them, to the bit.

        Parameters
        ----------
        compute : callable
            Returns them.
        """
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

    def by_row(self, compute):
        """Return features of which each image's are kept by themselves, equal to rounding.

        Parameters
        ----------
        compute : callable
            Takes rows, an array of int; yields batches of their features, and which engine has
            computed each.
        """
        digests = self.images.digests()
        features = np.empty((len(digests), self.tap_set.n_features), np.float32)
        missing = self._in_table(self._read, digests, features)
        if missing is None:
            missing = np.arange(len(digests))
        self.n_computed, start = len(missing), 0
        for batch, engine in compute(missing) if len(missing) else ():
            rows = missing[start : start + len(batch)]
            features[rows] = batch
            for row, _, _ in self.images.bad or ():
                digests[row] = None  # it may be read another time
            self._in_table(self._write, [digests[row] for row in rows], batch, engine)
            start += len(batch)
        return features

    def _in_table(self, action, *args):
        def act():
            with closing(_Table(self.folder.path / "rows.sqlite")) as table:
                return action(table, *args)

        return self.folder.attempt(act)

    def _read(self, table, digests, features):
        """Fill in the rows that are kept; return the numbers of the others."""
        missing = np.zeros(len(digests), bool)
        for cut in slices(len(digests), LOOKED_UP):
            keys = self._keys(digests[cut])
            found = table.read([key for several in keys for of_row in several for key in of_row])
            for columns, several in zip(self._columns(features[cut]), keys, strict=True):
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
        for columns, several in zip(self._columns(features), keys, strict=True):
            for row, of_row in zip(columns, several, strict=True):
                if of_row:
                    rows[of_row[which]] = row.tobytes()
        table.write(rows)

    def _columns(self, features):
        """Yield the columns of each layer."""
        start = 0
        for layer in self.tap_set.tapped:
            yield features[:, start : start + layer.n_features]
            start += layer.n_features

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
            if not isinstance(error, sqlite3.OperationalError):  # it is damaged
                path.unlink(missing_ok=True)
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
