"""ONNX Runtime beside channels-last torch, both bare: ``python -m benchmarks.engines``.

Frozen networks, float32, from prepared images to what goes into the classifier; each engine in a
process of its own, rounds in an order drawn anew. A ratio is torch's time divided by ONNX
Runtime's, round by round: its median, lowest and highest are shown. What it needs beside
sklconv: benchmarks/requirements-engines.txt.
"""

import argparse
import statistics
import tempfile
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path

from .race import data, machine, photo_networks
from .race.field import compare, take_turns
from .race.worker import Worker

ENGINES = {"ONNX Runtime": "prepare_session", "channels-last torch": "prepare_channels_last"}


def main():
    options = _parse_arguments()
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    print(f"\n{'network':20}{'side':>4}" + "".join(f"{e + ', ms':>25}" for e in ENGINES), " ratio")
    with tempfile.TemporaryDirectory() as folder:
        for network, side in product(options.networks, options.sides):
            task = data.save_random(Path(folder), options.images, side)
            task |= {"network": network, "n_images": options.images}
            show(network, side, options.images, race(task, options.rounds))


def race(task, rounds):
    """Return a dict: engine to the seconds of each round."""
    with ExitStack() as stack:
        workers = {e: stack.enter_context(closing(Worker("bare_engines"))) for e in ENGINES}
        for engine, worker in workers.items():
            worker.prepare(ENGINES[engine], task)
        return take_turns(workers, rounds)


def show(network, side, n_images, seconds):
    """Print milliseconds an image, and the ratio."""
    costs = [1e3 * statistics.median(seconds[engine]) / n_images for engine in ENGINES]
    onnx, torch = (seconds[engine] for engine in ENGINES)
    ratio, low, high = compare(torch, onnx)
    print(
        f"{network:20}{side:4}" + "".join(f"{cost:25.2f}" for cost in costs),
        f" {ratio:.2f} ({low:.2f} to {high:.2f})",
        flush=True,
    )


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=64, help="images a round; 64")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine; 5")
    parser.add_argument("--sides", type=int, nargs="+", default=[112, 224], metavar="PIXELS")
    parser.add_argument(
        "--networks", nargs="+", default=photo_networks.NAMES, choices=photo_networks.NAMES
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
