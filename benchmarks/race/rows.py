"""The measurements: each function returns records, one a contender or a point."""

import json
import statistics
import subprocess
import sys

from . import data, networks
from .field import compare
from .worker import ROOT

N_IMAGES, N_IMAGES_QUICK = 12_800, 2_560
N_PREDICTED, N_PREDICTED_QUICK = 10_000, 2_000

# (job, network, contender) -> the least ratio of its time to ours, at batch size 128.
TARGETS = {
    ("fit", "R1", "textbook"): 1.5,
    ("fit", "R2", "textbook"): 2.5,
    ("fit", "linear", "textbook"): 1.0,
    ("fit", "R1", "textbook, DataLoader"): 1.5,
    ("fit", "R2", "textbook, DataLoader"): 2.5,
    ("fit", "linear", "textbook, DataLoader"): 1.0,
    ("fit", "R1", "skorch"): 1.7,
    ("fit", "R2", "skorch"): 2.5,
    ("fit", "linear", "skorch"): 3.0,
    ("fit", "R1", "Keras"): 1.3,
    ("fit", "R2", "Keras"): 1.5,
    ("fit", "R1", "tuned"): 0.95,
    ("fit", "R2", "tuned"): 0.95,
    ("predict", "R1", "skorch"): 3.0,
    ("predict", "R2", "skorch"): 3.0,
    ("predict", "R1", "tuned"): 0.95,
    ("predict", "R2", "tuned"): 0.95,
    ("transform", "R1", "skorch"): 3.0,
    ("transform", "R2", "skorch"): 3.0,
    ("transform", "R1", "tuned"): 0.95,
    ("transform", "R2", "tuned"): 0.95,
}
# (side, contender) -> the same for three convolutions, in batches of 64.
TARGETS_LARGER = {
    (64, "textbook"): 2.2,
    (64, "channels-last"): 1.4,
    (128, "textbook"): 2.5,
    (128, "channels-last"): 1.6,
}
FINE_TUNING_TARGET = 1.05
MOST_MICROSECONDS_OVER_RAW_CALL = 60
ONE_IMAGE_REPEATS = 200


def fit(field, options):
    """Two epochs: our whole `fit` from uint8 against the bare loops on ready float32 tensors."""
    n_images = N_IMAGES_QUICK if options.quick else N_IMAGES
    dataset = data.save_mnist(options.folder, n_images)
    for name in options.networks:
        for batch_size in options.batch_sizes:
            task = _task(dataset, name, n_images, batch_size)
            yield from _against_ours("fit", task, field.race("fit", task, options.rounds))


def larger_images(field, options):
    """The same on random colour images of 64 and 128 pixels, three convolutions."""
    n_images = 128 if options.quick else 512
    for side in (64, 128):
        dataset = data.save_random(options.folder, n_images, side, channels=3)
        task = _task(dataset, "C3", n_images, batch_size=64)
        seconds = field.race("fit", task, options.rounds, ["sklconv", "textbook", "channels-last"])
        ours, shown = seconds.pop("sklconv"), task | {"network": f"C3, {side} pixels"}
        for name, times in seconds.items():
            target = TARGETS_LARGER[side, name]
            yield _record("fit", shown, name, times, "sklconv", ours, target)


def fine_tune(field, options):
    """One epoch of all of EfficientNet-Lite0, 112 pixels: `fit`, which builds the network too."""
    n_images = 64 if options.quick else 320
    dataset = data.save_random(options.folder, n_images, side=112, n_classes=4)
    task = _task(dataset, "EfficientNet-Lite0", n_images, batch_size=32) | {"epochs": 1}
    seconds = field.race("fine-tune", task, options.rounds)
    ours, name = seconds["sklconv, Backbone"], "channels-last"
    yield _record("fine-tune", task, name, seconds[name], "sklconv", ours, FINE_TUNING_TARGET)


def transform(field, options):
    """``predict_proba``, and ``transform`` to what feeds the last layer, of 10,000 images."""
    n_images = N_PREDICTED_QUICK if options.quick else N_PREDICTED
    dataset = data.save_mnist(options.folder, n_images)
    for job in ("predict", "transform"):
        for name in options.networks:
            if job == "transform" and name not in networks.FEATURE_LAYERS:
                continue
            task = _task(dataset, name, n_images)
            yield from _against_ours(job, task, field.race(job, task, options.rounds))


def one_image(field, options):
    """One image: microseconds, and how many more than the network's plain call takes."""
    dataset = data.save_mnist(options.folder, 1000)
    repeats = ONE_IMAGE_REPEATS // 10 if options.quick else ONE_IMAGE_REPEATS
    for name in options.networks:
        names = [n for n in field.entrants("one image") if _suits_one_image(n, name)]
        task = _task(dataset, name, 1000)
        seconds = field.race("one image", task, 3 * options.rounds, names, repeats)
        raw = seconds["textbook"]
        for contender, times in seconds.items():
            over = [1e6 * (a - b) for a, b in zip(times, raw, strict=True)]
            yield {
                "row": "one image",
                "network": name,
                "contender": contender.replace("textbook", "the network's plain call"),
                "microseconds": 1e6 * statistics.median(times),
                "over_plain_call": statistics.median(over),
                "low": min(over),
                "high": max(over),
                "target": MOST_MICROSECONDS_OVER_RAW_CALL
                if name == "R1" and contender.startswith("sklconv")
                else None,
                "seconds": times,
            }


def memory_peak(field, options):
    """Peak memory of ``transform`` with X a memory map."""
    n_images = 20_000 if options.quick else 200_000
    # A process of its own, so that the peak is its own.
    command = [sys.executable, "-m", "benchmarks.memory", str(n_images)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    yield {"row": "memory", "network": "R1", "n_images": n_images, **measured}


def scaling(field, options):
    """Cost of `fit` against work: number of images, side of the images, number of classes."""
    quick = options.quick
    n_most = 3_000 if quick else 60_000
    mnist = data.save_mnist(options.folder, n_most)
    for n in (1_000, 3_000, 10_000, 30_000, 60_000):
        if n <= n_most:
            yield from _point(field, options, "images", n, _task(mnist, "R1", n))
    n = 256 if quick else 1_280
    for side in (8, 16, 32, 64, 128):
        dataset = data.save_random(options.folder, n, side=side)
        yield from _point(field, options, "side", side, _task(dataset, "R2", n))
    n = 2_560 if quick else 5_120
    for n_classes in (2, 10, 100, 1_000):
        dataset = data.save_random(options.folder, n, n_classes=n_classes)
        yield from _point(field, options, "classes", n_classes, _task(dataset, "R1", n))


ROWS = {
    "fit": fit,
    "larger": larger_images,
    "fine_tune": fine_tune,
    "transform": transform,
    "one_image": one_image,
    "memory": memory_peak,
    "scaling": scaling,
}


def _task(dataset, network, n_images, batch_size=128):
    shared = {"network": network, "n_images": n_images, "batch_size": batch_size, "epochs": 2}
    return dataset | shared


def _against_ours(job, task, seconds):
    ours = seconds["sklconv"]
    pairs = [(name, times, ours) for name, times in seconds.items() if name != "sklconv"]
    for name, times, reference in pairs:
        target = TARGETS.get((job, task["network"], name)) if task["batch_size"] == 128 else None
        yield _record(job, task, name, times, "sklconv", reference, target)
    if job == "fit" and {"tuned", "textbook"} <= set(seconds):
        # The hand-tuned loop counts only if it is itself as fast as we want to be.
        target = TARGETS.get((job, task["network"], "textbook"))
        tuned = seconds["tuned"]
        yield _record(job, task, "textbook", seconds["textbook"], "tuned", tuned, target)


def _record(job, task, contender, times, reference_name, reference, target):
    ratio, low, high = compare(times, reference)
    return {
        "row": job,
        "network": task["network"],
        "batch_size": task["batch_size"],
        "n_images": task["n_images"],
        "contender": contender,
        "against": reference_name,
        "ratio": ratio,
        "low": low,
        "high": high,
        "target": target,
        "seconds": times,
        "reference_seconds": reference,
    }


def _suits_one_image(contender, network):
    return "transform" not in contender or network in networks.FEATURE_LAYERS


def _point(field, options, axis, value, task):
    seconds = field.race("fit", task, 1 if options.quick else 2, ["sklconv", "textbook"])
    ours = seconds["sklconv"]
    ratio, low, high = compare(seconds["textbook"], ours)
    images = task["epochs"] * task["n_images"]
    yield {
        "row": "scaling",
        "axis": axis,
        "value": value,
        "network": task["network"],
        "n_images": task["n_images"],
        "seconds": ours,
        "microseconds_an_image": 1e6 * statistics.median(ours) / images,
        "ratio": ratio,
        "low": low,
        "high": high,
    }
