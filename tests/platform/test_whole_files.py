"""Files that are whole or not there, and locks between processes."""

import errno
import subprocess
import sys
from contextlib import suppress

import pytest

from sklconv._platform.files import locked, replacing


@pytest.mark.parametrize("temporary", [None, "being written"])
def test_a_file_is_replaced_when_all_of_it_is_there(tmp_path, temporary):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path, temporary and tmp_path / temporary) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        (other,) = set(tmp_path.iterdir()) - {path}
        assert temporary in (None, other.name)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_leaves_the_old_file(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with suppress(KeyboardInterrupt), replacing(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if old is None else [old])


# Processes that say when they have the lock, and keep it until they are told to go on.
HOLDER = """
import sys
from pathlib import Path
from sklconv._platform.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNTER = """
import sys
from pathlib import Path
from sklconv._platform.files import locked
count, n_done = Path(sys.argv[1]).with_name("count"), 0
while n_done < 100:
    try:
        with locked(Path(sys.argv[1])):
            count.write_text(str(int(count.read_text()) + 1))
            n_done += 1
    except TimeoutError:
        pass
"""


def start(program, path, **options):
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def enters(path):
    try:
        with locked(path):
            return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("end", ["close", "kill"])
def test_lock_of_another_process(tmp_path, end):
    path = tmp_path / "lock"
    with start(HOLDER, path) as holder:
        assert holder.stdout.readline().strip() == b"held"
        assert not enters(path)
        assert not enters(path)
        if end == "kill":
            holder.kill()
        else:
            holder.stdin.close()
        holder.wait()
    assert enters(path)
    assert list(tmp_path.iterdir()) == []


def test_lock_is_released_by_an_error(tmp_path):
    path = tmp_path / "lock"
    with suppress(KeyboardInterrupt), locked(path):
        assert not enters(path)
        raise KeyboardInterrupt
    assert enters(path)


def test_no_two_processes_hold_a_lock_at_a_time(tmp_path):
    # Its file goes away each time: who has opened the old one must not take it for the lock.
    (tmp_path / "count").write_text("0")
    counters = [start(COUNTER, tmp_path / "lock") for _ in range(3)]
    for counter in counters:
        counter.communicate()
        assert counter.returncode == 0
    assert (tmp_path / "count").read_text() == "300"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)
    assert enters(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []
