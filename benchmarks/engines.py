"""Engines of frozen networks, sklconv's and bare ones: ``python -m benchmarks.engines``.

From images to what goes into the classifier: sklconv from uint8 arrays that need no resizing, the
bare network in torch and the bare session of ONNX Runtime from prepared float32. Each is a process
of its own, rounds are in an order drawn anew. A ratio is how often sklconv's engine "onnxruntime"
fits into another's time, round by round: its median, lowest and highest are shown. What it needs
beside sklconv: benchmarks/requirements-engines.txt.
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

OURS = "sklconv, onnxruntime"
# Engine -> its contender and the function that prepares it.
ENGINES = {
    OURS: ("our_engines", "prepare_onnxruntime"),
    "bare session": ("bare_engines", "prepare_session"),
    "sklconv, torch": ("our_engines", "prepare_torch"),
    "channels-last torch": ("bare_engines", "prepare_channels_last"),
}


def main():
    options = _parse_arguments()
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    print(f"\n{'network':20}{'side':>4}" + "".join(f"{engine + ', ms':>25}" for engine in ENGINES))
    with tempfile.TemporaryDirectory() as folder:
        for network, side in product(options.networks, options.sides):
            task = data.save_random(Path(folder), options.images, side)
            task |= {"network": network, "n_images": options.images}
            show(network, side, options.images, race(task, options.rounds))


def race(task, rounds):
    """Return a dict: engine to the seconds of each round."""
    with ExitStack() as stack:
        workers = {}
        for engine, (contender, function) in ENGINES.items():
            workers[engine] = stack.enter_context(closing(Worker(contender)))
            workers[engine].prepare(function, task)
        return take_turns(workers, rounds)


def show(network, side, n_images, seconds):
    """Print milliseconds an image, and below them the ratios."""
    costs = [1e3 * statistics.median(seconds[engine]) / n_images for engine in ENGINES]
    ratios = [compare(seconds[engine], seconds[OURS]) for engine in ENGINES]
    shown = [f"{ratio:.2f} ({low:.2f} to {high:.2f})" for ratio, low, high in ratios]
    print(f"{network:20}{side:4}" + "".join(f"{cost:25.2f}" for cost in costs))
    print(" " * 49 + "".join(f"{text:>25}" for text in shown[1:]), flush=True)


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
