"""Peak memory of ``transform`` with X a memory map: ``python -m benchmarks.memory IMAGES``.

It runs in a process of its own, so that the peak is its own. Two peaks are told: resident memory
as the system counts it (``ru_maxrss``), in which pages of X's file count as long as the system
cares to keep them mapped, and the memory that the process has allocated itself (Linux only).
"""

import json
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from .worker import ROOT

STATUS = Path("/proc/self/status")
MIB = 2**20


def measure(n_images):
    """Return `transform`'s memory, in MiB, as measured by a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", str(n_images)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _main(n_images):
    from . import ours

    with tempfile.TemporaryDirectory() as folder:
        X = _images_on_disk(Path(folder) / "X.npy", n_images)
        labels = Path(folder) / "y.npy"
        np.save(labels, np.arange(n_images) % 10)
        task = {"network": "R1", "batch_size": 128, "epochs": 1, "side": 28, "n_classes": 10}
        task |= {"images": str(Path(folder) / "X.npy"), "labels": str(labels)}
        extractor = ours.frozen_extractor(task, X)
        extractor.transform(X[:1000])
        resident, own = _peak_resident(), _own_memory()
        with _Sampler() as sampler:
            features = extractor.transform(X)
        print(
            json.dumps(
                {
                    "X": X.nbytes / MIB,
                    "output": features.nbytes / MIB,
                    "resident": _peak_resident() - resident,
                    "own": sampler.peak - own if STATUS.exists() else None,
                }
            )
        )


def _images_on_disk(path, n_images):
    X = np.lib.format.open_memmap(path, "w+", np.uint8, (n_images, 28, 28))
    rng = np.random.default_rng(0)
    for start in range(0, n_images, 10_000):
        block = X[start : start + 10_000]
        block[:] = rng.integers(0, 256, block.shape, dtype=np.uint8)
    X.flush()
    del X
    return np.load(path, mmap_mode="r")


def _peak_resident():
    # In KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def _own_memory():
    if not STATUS.exists():
        return 0.0
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


class _Sampler:
    """Reads the process' own memory every few milliseconds."""

    def __enter__(self):
        self.peak, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.002):
            self.peak = max(self.peak, _own_memory())


if __name__ == "__main__":
    _main(int(sys.argv[1]))
