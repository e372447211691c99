"""Photographs from files to features: ``python -m benchmarks.files``.

JPEGs of 500 × 375 pixels through EfficientNet-Lite0 at 224, in batches of 128: decoding alone
(`load_images`), the network alone (`transform` of decoded arrays), a batch decoded and then
computed in turns, and `transform` of the files, which decodes the next batch meanwhile. Each has
all cores in its turn; rounds are in an order drawn anew. All run in this one process: what one
network takes in two processes differs by more than is measured here. A ratio is a contender's
time as a share of what decoding and the network take, each alone, in the same round: its median,
lowest and highest are shown. What it needs beside sklconv: benchmarks/requirements-engines.txt.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from .contenders import our_files
from .race import data, machine
from .race.field import compare, take_turns

ALONE = ("decoding", "network")
CONTENDERS = {
    "decoding": our_files.prepare_decoding,
    "network": our_files.prepare_network,
    "in turns": our_files.prepare_in_turns,
    "transform": our_files.prepare_transform,
}
WIDTH, HEIGHT = 500, 375


def main():
    options = _parse_arguments()
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    print(f"\n{'':12}{'engine':12}{'s':>8}   share of decoding + network (lowest to highest)")
    with tempfile.TemporaryDirectory() as folder:
        files = data.save_photos(Path(folder), options.images, WIDTH, HEIGHT)
        for engine in options.engines:
            show(engine, race(files | {"engine": engine}, options.rounds))


class Contender:
    """What is timed; once it has run."""

    def __init__(self, run):
        self._run = run
        run()

    def time(self, repeats):
        started = time.perf_counter()
        for _ in range(repeats):
            self._run()
        return (time.perf_counter() - started) / repeats


def race(task, rounds):
    """Return a dict: contender to the seconds of each round."""
    contenders = {name: Contender(prepare(task)) for name, prepare in CONTENDERS.items()}
    return take_turns(contenders, rounds)


def show(engine, seconds):
    """Print a line a contender."""
    both = [sum(turns) for turns in zip(*(seconds[name] for name in ALONE), strict=True)]
    for name, turns in seconds.items():
        ratio, low, high = compare(turns, both)
        median = statistics.median(turns)
        print(f"{name:12}{engine:12}{median:8.2f}   {ratio:.2f} ({low:.2f} to {high:.2f})")


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.files",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=1000, help="files; 1,000")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender; 5")
    parser.add_argument(
        "--engines", nargs="+", default=["torch", "onnxruntime"], choices=["torch", "onnxruntime"]
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
