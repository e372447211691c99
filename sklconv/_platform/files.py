"""Files that are whole or not there at all, and folders that one process has to itself."""

import os
import secrets
from contextlib import contextmanager, suppress


@contextmanager
def replacing(path, temporary=None):
    """Open a binary file that takes the place of ``path`` when the block is done, all on the disk.

    Until then, and if the block raises, an older file stays.

    Parameters
    ----------
    path : Path
    temporary : Path or None, default=None
        Where it is written, on the same disk. None: a hidden file of a new name beside ``path``.
    """
    temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path):
    """Hold a lock for the block; raise `TimeoutError` at once if another process holds it.

    ``path``, a Path, is the lock's file, which is there for no longer. If the process is killed,
    the file stays, but locks nobody out. Where the file system has no locks, there is none.
    """
    from filelock import FileLock  # not in datasets' imports: it takes 30 ms

    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except TimeoutError:
        raise
    except OSError:
        pass
    try:
        yield
    finally:
        # First the file: who opened it before notices, once it is theirs, that it is gone.
        with suppress(OSError):  # Windows lets nobody remove it; filelock does, behind the release
            path.unlink()
        lock.release()
