"""A folder in which results are kept under digests; whatever fails there, the work goes on."""

import functools
import hashlib
import os
import pickle
import sqlite3
import stat
import warnings
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from .._platform.digests import digest_of
from .._platform.files import replacing

# What bits depend on, beside what is computed.
PACKAGES = ("sklconv", "torch", "scikit-learn", "skorch", "numpy")

CHECKSUM_BYTES = 16


class Folder:
    """A folder of results.

    Parameters
    ----------
    path : Path
        It is made when something is to be kept.
    """

    def __init__(self, path):
        self.path = path

    @classmethod
    def of(cls, memory):
        """Return the folder that ``memory`` means: a path, a `joblib.Memory`, or None."""
        location = getattr(memory, "location", memory)
        return None if location is None else cls(Path(location) / "sklconv")

    def load(self, name):
        """Return what is kept under ``name``, or None. What is damaged is as good as not there."""
        try:
            content = (self.path / name).read_bytes()
        except OSError:
            return None
        kept, checksum = content[CHECKSUM_BYTES:], content[:CHECKSUM_BYTES]
        try:
            if checksum != checksum_of(kept):
                raise ValueError("it is damaged")
            return pickle.loads(kept)
        except Exception as error:  # what a pickle raises is the affair of what it holds
            say(f"{self.path / name} can't be read ({error}): it is computed anew")
            return None

    def keep(self, name, value):
        """Keep ``value`` under ``name``."""
        try:
            kept = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # likewise
            say(f"what can't be pickled is not kept: {error}")
        else:
            self.attempt(self._write, self.path / name, kept)

    def _write(self, path, kept):
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            file.write(checksum_of(kept) + kept)

    @contextmanager
    def alone(self, name):
        """Wait until no other process or thread is in this block for the same name."""
        lock = self.attempt(self._lock, name)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _lock(self, name):
        from filelock import FileLock

        lock = FileLock(self.path / f"{digest_of(name)}.lock", fallback_to_soft=False)
        lock.acquire()
        return lock

    def attempt(self, action, *args):
        """Return ``action(*args)``, which works in the folder; None if that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_owner()
            return action(*args)
        except (OSError, sqlite3.Error) as error:
            say(f"{self.path} can't be used ({error}): what it should keep is computed each time")
            return None

    def _check_owner(self):
        if not hasattr(os, "getuid"):
            return
        status = self.path.stat()
        others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if others or status.st_uid not in (os.getuid(), 0):
            say(
                f"{self.path} can be written to by other users, whose files would be run as code; "
                "take a folder of your own"
            )


def say(words):
    """Warn, from one place, so that Python shows it once."""
    warnings.warn(f"memory: {words}", UserWarning, stacklevel=1)


def checksum_of(content):
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).digest()


@functools.cache
def versions():
    """Return those of all packages that results depend on."""
    return tuple(version(package) for package in PACKAGES)


def circumstances():
    """Return what else bits depend on: packages, instructions, threads."""
    instructions = torch.backends.cpu.get_cpu_capability(), os.environ.get("DNNL_MAX_CPU_ISA")
    return versions(), instructions, torch.get_num_threads()
