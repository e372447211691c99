"""A folder in which results are kept under digests; whatever fails there, the work goes on."""

import functools
import hashlib
import os
import pickle
import sqlite3
import stat
import time
import warnings
import zlib
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from .._platform.digests import digest_of
from .._platform.files import replacing

# What bits depend on, beside what is computed.
PACKAGES = ("sklconv", "torch", "scikit-learn", "skorch", "numpy")
OPTIONAL = ("pillow", "onnxruntime", "timm", "torchvision", "efficientnet-lite-pytorch")

CHECKSUM_BYTES = 16

# Nanoseconds after which a change of a file shows in its time, however coarse the clock.
SETTLED = 3e9

# Files whose checksums this process has found right, as they were then.
_verified: dict = {}


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
        content = self.read(name)
        return None if content is None else self.unpickled(name, content)

    def keep(self, name, value):
        """Keep ``value`` under ``name``."""
        try:
            content = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # what a pickle raises is the affair of what it holds
            say(f"what can't be pickled is not kept: {error}")
        else:
            self.write(name, content)

    def unpickled(self, name, content):
        """Return the value that `keep` has made ``content`` of, or None."""
        try:
            return pickle.loads(content)
        except Exception as error:  # likewise
            self._say_unreadable(name, error)
            return None

    def read(self, name):
        """Return the bytes that are kept under ``name``, an array of uint8, or None."""
        try:
            self._check_owner()
            with open(self.path / name, "rb") as file:
                status = os.fstat(file.fileno())
                content = np.empty(status.st_size, np.uint8)
                n_read = file.readinto(content.data)
        except OSError:
            return None
        end = max(0, n_read - CHECKSUM_BYTES)
        path, stamp = self.path / name, (status.st_ino, status.st_size, status.st_ctime_ns)
        if _verified.get(path) != stamp:
            if content[end:].tobytes() != checksum_of(content[:end], name.encode()):
                self._say_unreadable(name, "it is damaged")
                return None
            # What is changed later than this has a later time, which nobody can set back.
            if os.name == "posix" and time.time_ns() - status.st_ctime_ns > SETTLED:
                _verified[path] = stamp
        return content[:end]

    def write(self, name, content):
        """Keep ``content``, bytes or an array, under ``name``."""
        self.attempt(self._write, name, content)

    def _write(self, name, content):
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            file.write(content)
            file.write(checksum_of(content, name.encode()))

    def _say_unreadable(self, name, why):
        say(f"{self.path / name} can't be read ({why}): it is computed anew")

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
            self.path.mkdir(0o700, parents=True, exist_ok=True)
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


def checksum_of(content, name):
    """Return a checksum of what is kept under ``name``, bytes, and no other name."""
    # Of damage a CRC tells as well as a digest, in a quarter of the time.
    summed = f"{memoryview(content).nbytes} {zlib.crc32(content)}".encode()
    return hashlib.blake2b(summed, digest_size=CHECKSUM_BYTES, key=name).digest()


@functools.cache
def versions():
    """Return those of all packages that results depend on."""
    found = [version(package) for package in PACKAGES]
    for package in OPTIONAL:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return tuple(found)


def circumstances():
    """Return what else bits depend on: packages, instructions, threads, torch's precisions."""
    instructions = torch.backends.cpu.get_cpu_capability(), os.environ.get("DNNL_MAX_CPU_ISA")
    precisions = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    return versions(), instructions, torch.get_num_threads(), *map(str, precisions)
