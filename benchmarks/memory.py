"""Peak memory of ``transform`` with X a memory map: ``python -m benchmarks.memory IMAGES``.

It runs in a process of its own, so that the peak is its own. Two peaks are told: resident memory
as the system counts it (``ru_maxrss``), in which pages of X's file count as long as the system
cares to keep them mapped, and the memory that the process has allocated itself (Linux only).
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from .contenders import ours
from .race.process_memory import MIB, STATUS, Sampler, own_memory, peak_resident


def main(n_images):
    with tempfile.TemporaryDirectory() as folder:
        X = _images_on_disk(Path(folder) / "X.npy", n_images)
        labels = Path(folder) / "y.npy"
        np.save(labels, np.arange(n_images) % 10)
        task = {"network": "R1", "batch_size": 128, "epochs": 1, "side": 28, "n_classes": 10}
        task |= {"images": str(Path(folder) / "X.npy"), "labels": str(labels)}
        extractor = ours.frozen_extractor(task, X)
        extractor.transform(X[:1000])
        resident, own = peak_resident(), own_memory()
        with Sampler() as sampler:
            features = extractor.transform(X)
        print(
            json.dumps(
                {
                    "X": X.nbytes / MIB,
                    "output": features.nbytes / MIB,
                    "resident": peak_resident() - resident,
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


if __name__ == "__main__":
    main(int(sys.argv[1]))
