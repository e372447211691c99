"""Features of photographs, 224 × 224 pixels: ``python -m benchmarks.transfer``.

Throughput of `transform` on EfficientNet-Lite0 beside the loop of the usual scripts (eval mode,
no gradients, float32, channels first) and beside img2vec_pytorch and embetter, if
SKLCONV_BENCH_FEATURES names the python of an environment that was made from
benchmarks/requirements-features.txt. Every contender lives in a process of its own; rounds
alternate between them. A ratio is the contender's time divided by sklconv's, round by round: its
median, lowest and highest are shown.

Then the memory of `transform_batches` from a memory map into another, for some images and for ten
times as many: what the process has allocated itself, the pages of the two files not counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from .race import machine
from .race.field import take_turns
from .race.process_memory import Sampler, own_memory
from .race.worker import ROOT, Worker

VARIABLE = "SKLCONV_BENCH_FEATURES"
SIDE, BATCH = 224, 32


def main():
    options = _parse_arguments()
    if options.memory_of:
        print(json.dumps(peak_memory(options.memory_of)))
        return
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as folder:
        show_throughput(race(Path(folder), options.images, options.rounds), options.images)
    for n_images in (options.memory_images, 10 * options.memory_images):
        print(f"transform_batches on {n_images} images: {_measure_memory(n_images):.0f} MiB")


def race(folder, n_images, rounds):
    """Return a dict: contender to the seconds of each round."""
    X = np.random.default_rng(0).integers(0, 256, (n_images, SIDE, SIDE, 3), dtype=np.uint8)
    np.save(folder / "X.npy", X)
    task = {"images": str(folder / "X.npy"), "batch_size": BATCH}
    contenders = {
        "sklconv": (Worker("features"), "prepare_sklconv"),
        "usual script": (Worker("features"), "prepare_script"),
    }
    if os.environ.get(VARIABLE):
        for name in ("img2vec", "embetter"):
            worker = Worker("peers_features", os.environ[VARIABLE])
            contenders[name] = worker, f"prepare_{name}"
    else:
        print(f"img2vec_pytorch and embetter are left out: {VARIABLE} is not set")
    workers = {}
    for name, (worker, function) in contenders.items():
        try:
            worker.prepare(function, task)
            workers[name] = worker
        except RuntimeError as error:
            print(f"{name} is left out: {error}")
    times = take_turns(workers, rounds)
    for worker, _ in contenders.values():
        worker.close()
    return times


def show_throughput(times, n_images):
    own = np.array(times["sklconv"])
    print(f"\n{'':14}{'images/s':>10}{'ratio':>8}  lowest to highest")
    for name, seconds in times.items():
        ratios = np.array(seconds) / own
        print(
            f"{name:14}{n_images / np.median(seconds):10.1f}{np.median(ratios):8.2f}"
            f"  {ratios.min():.2f} to {ratios.max():.2f}"
        )
    print()


def peak_memory(n_images):
    """Return the MiB that `transform_batches` takes at most, the network not counted."""
    from sklconv import ConvFeatureExtractor

    from .contenders.lite0 import backbone

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.npy"
        X = np.lib.format.open_memmap(path, "w+", np.uint8, (n_images, SIDE, SIDE, 3))
        for row in X:
            row[:] = rng.integers(0, 256, row.shape, dtype=np.uint8)
        X.flush()
        del X
        X = np.load(path, mmap_mode="r")
        extractor = ConvFeatureExtractor(backbone(SIDE), batch_size=BATCH).fit(X[:1])
        shape = (n_images, len(extractor.get_feature_names_out()))
        out = np.lib.format.open_memmap(Path(folder) / "F.npy", "w+", np.float32, shape)
        before, start = own_memory(), 0
        with Sampler() as sampler:
            for rows in extractor.transform_batches(X):
                out[start : start + len(rows)] = rows
                start += len(rows)
        return sampler.peak - before


def _measure_memory(n_images):
    command = [sys.executable, "-m", "benchmarks.transfer", "--memory-of", str(n_images)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.transfer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=128, help="images a round")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--memory-images", type=int, default=128, metavar="N")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
