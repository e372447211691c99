"""Engines, sklconv's and bare ones: ``python -m benchmarks.engines [photos] [digits] [first]``.

photos: from images to what goes into the classifier of a frozen network; sklconv from uint8 arrays
that need no resizing, the bare network in torch and the bare session of ONNX Runtime from prepared
float32. digits: ``predict_proba`` of R1 for one digit and for 10,000, from uint8, and the bare
session from prepared float32. first: ``fit`` and ``transform`` of EfficientNet-Lite0 at 224 pixels
in a new process, by the engine "auto" and in torch, the export included.

Each contender is a process of its own, rounds are in an order drawn anew. A ratio is how often
ours fits into another's time, round by round: its median, lowest and highest are shown. What it
needs beside sklconv: benchmarks/requirements-engines.txt.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path

from .race import data, machine, photo_networks
from .race.field import compare, take_turns
from .race.worker import ROOT, Worker

OURS = "sklconv, onnxruntime"
# Engine -> its contender and the function that prepares it.
PHOTOS = {
    OURS: ("our_engines", "prepare_onnxruntime"),
    "bare session": ("bare_engines", "prepare_session"),
    "sklconv, torch": ("our_engines", "prepare_torch"),
    "channels-last torch": ("bare_engines", "prepare_channels_last"),
}
DIGITS = {
    OURS: ("ours", "prepare_predict_onnxruntime"),
    "bare session": ("bare_engines", "prepare_digits_session"),
    "sklconv, torch": ("ours", "prepare_predict"),
    "skorch": ("peers_skorch", "prepare_predict"),
}
N_DIGITS, ONE_DIGIT_REPEATS = 10_000, 500
FIRST_CALLS = ("1,000 images", "10 images", "search, 5 layers, 100 images")


def photos(options, folder):
    """Milliseconds an image."""
    print(f"\n{'network':20}{'side':>4}" + "".join(f"{engine + ', ms':>25}" for engine in PHOTOS))
    for network, side in product(options.networks, options.sides):
        task = data.save_random(folder, options.images, side)
        task |= {"network": network, "n_images": options.images}
        seconds = race(PHOTOS, task, options.rounds)
        show(f"{network:20}{side:4}", seconds, 1e3 / options.images)


def digits(options, folder):
    """Microseconds of one digit, milliseconds of 10,000."""
    task = data.save_mnist(folder, N_DIGITS) | {"network": "R1", "epochs": 1, "batch_size": 128}
    print(f"\n{'R1':24}" + "".join(f"{engine:>25}" for engine in DIGITS))
    one = race(DIGITS, task | {"n_images": 1}, 3 * options.rounds, ONE_DIGIT_REPEATS)
    show(f"{'one digit, µs':24}", one, 1e6)
    over = [1e6 * (a - b) for a, b in zip(one[OURS], one["bare session"], strict=True)]
    print(f"over the bare session: {statistics.median(over):+.0f} µs")
    all_of_them = race(DIGITS, task | {"n_images": N_DIGITS}, options.rounds)
    show(f"{'10,000 digits, ms':24}", all_of_them, 1e3)


def first(options, folder):
    """Seconds of first calls, each in a process of its own."""
    order = random.Random(0)
    print(f"\n{'in a new process':30}{'auto, s':>10}{'torch, s':>10}  torch's time to auto's")
    for job in FIRST_CALLS:
        seconds = {"auto": [], "torch": []}
        for _ in range(options.rounds):
            for engine in order.sample(list(seconds), 2):
                seconds[engine].append(_first_call(job, engine))
        medians = [statistics.median(seconds[engine]) for engine in seconds]
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*compare(seconds["torch"], seconds["auto"]))
        print(f"{job:30}{medians[0]:10.2f}{medians[1]:10.2f}  {ratio}", flush=True)


STUDIES = {"photos": photos, "digits": digits, "first": first}


def race(engines, task, rounds, repeats=1):
    """Return a dict: engine to the seconds of each round."""
    with ExitStack() as stack:
        workers = {}
        for engine, (contender, function) in engines.items():
            workers[engine] = stack.enter_context(closing(Worker(contender)))
            workers[engine].prepare(function, task)
        return take_turns(workers, rounds, repeats)


def show(label, seconds, scale):
    """Print times, and below them the ratios."""
    costs = [scale * statistics.median(times) for times in seconds.values()]
    ratios = [compare(times, seconds[OURS]) for times in seconds.values()]
    shown = [f"{ratio:.2f} ({low:.2f} to {high:.2f})" for ratio, low, high in ratios]
    print(label + "".join(f"{cost:25.2f}" for cost in costs))
    print(" " * (len(label) + 25) + "".join(f"{text:>25}" for text in shown[1:]), flush=True)


def _first_call(job, engine):
    command = [sys.executable, "-m", "benchmarks.contenders.first_calls", job, engine]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def main():
    options = _parse_arguments()
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as folder:
        for study in options.studies or STUDIES:
            STUDIES[study](options, Path(folder))


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="all by default")
    parser.add_argument("--images", type=int, default=64, help="photos a round; 64")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender; 5")
    parser.add_argument("--sides", type=int, nargs="+", default=[112, 224], metavar="PIXELS")
    parser.add_argument(
        "--networks", nargs="+", default=photo_networks.NAMES, choices=photo_networks.NAMES
    )
    options = parser.parse_args()
    unknown = set(options.studies) - set(STUDIES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: none of {', '.join(STUDIES)}")
    return options


if __name__ == "__main__":
    main()
