"""Published systems, reproduced: ``python -m benchmarks.reference [r1 r2 ...]``.

Each system in examples/reference is trained by its author's recipe, and by the default parameters
in a third of the epochs, with three seeds each: one row a run, added to
docs/reference_results.json when it is done, from which docs/reference_results.rst is made. Rows
that are there are not run again, so that what was interrupted goes on where it stopped. All of
them take some hours. --time measures an epoch of each, for an idle machine.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Checkpoint

from sklconv import ConvFeatureExtractor, ConvNetClassifier

from ..race import machine
from .results import RESULTS, SEEDS, VARIANTS, add, page, read, row_key
from .systems import ORDER, SYSTEMS, TITLES

# Labels may differ where two probabilities are as close as these.
MARGIN = 1e-5


def main():
    options = _parse_arguments()
    names = [name for name in ORDER if name.split("_")[0] in (options.systems or TITLES)]
    if options.page:
        options.results.with_suffix(".rst").write_text(page(read(options.results)), "utf-8")
    elif options.time:
        for name in names:
            times = measure_times(name)
            print(f"{name}: {times}", flush=True)
            add(options.results, "times", name, times)
    else:
        run(names, options.results)


def run(names, path):
    """Measure the rows of these systems that are not in the file, and add them one by one."""
    for seed in SEEDS:
        for variant in VARIANTS:
            for name in names:
                key = row_key(name, variant, seed)
                if key in read(path)["rows"]:
                    continue
                print(f"\n# {key}", flush=True)
                row = measure(name, variant, seed)
                add(path, "rows", key, row)
                system = SYSTEMS[name]
                ours, author = system.text(row["accuracy"]), system.text(system.author["accuracy"])
                print(f"{key}: {system.figure} {ours}; the author's {author}", flush=True)


def measure(name, variant, seed):
    """Train a system; return its row."""
    system = SYSTEMS[name]
    parts = system.split(seed)
    X_val, y_val = parts.watched
    with tempfile.TemporaryDirectory() as folder:
        saves = name == "r3" and variant == "recipe"
        clf = ConvNetClassifier(
            system.network,
            **system.parameters(variant),
            callbacks=[checkpoints(folder)] if saves else None,
            random_state=seed,
            verbose=1,
        )
        started = time.perf_counter()
        clf.fit(*parts.train, X_val=X_val, y_val=y_val)
        seconds = time.perf_counter() - started
        further = check_restores(system, clf, folder, parts) if saves else {}
    n_parameters = sum(p.numel() for p in clf.module_.parameters())
    if n_parameters != system.author["n_parameters"]:
        raise AssertionError(f"{name} has {n_parameters:,} parameters")
    watched = [epoch["valid_accuracy"] for epoch in clf.history_]
    others = {f"{part} accuracy": clf.score(*data) for part, data in parts.others.items()}
    return {
        "accuracy": others.pop(f"{parts.figure} accuracy") if parts.figure else watched[-1],
        "further": others | further,
        "epochs": clf.n_iter_,
        "watched": watched,
        "train_accuracy": [epoch["train_accuracy"] for epoch in clf.history_],
        "n_parameters": n_parameters,
        "seconds": round(seconds, 1),
        "machine": _machine(),
    }


def checkpoints(folder):
    """Return skorch's callback that saves weights and optimizer after each epoch."""
    return Checkpoint(
        dirname=folder,
        monitor=None,
        f_params="params_{last_epoch[epoch]}.pt",
        f_optimizer="optimizer_{last_epoch[epoch]}.pt",
    )


def check_restores(system, clf, folder, parts):
    """Restore from the last checkpoint and an ONNX graph; return accuracies and differences."""
    import onnxruntime

    from sklconv.onnx import to_onnx

    X, y = parts.train
    fresh = ConvNetClassifier(
        system.network, **{**system.recipe, "max_epochs": 1}, random_state=99
    ).fit(X[:256], y[:256])
    weights = torch.load(Path(folder, f"params_{clf.n_iter_}.pt"), weights_only=True)
    fresh.module_.load_state_dict(weights)
    graph = to_onnx(clf, X=X[:1]).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    labels_of = {
        "checkpoint": fresh.predict,
        "ONNX": lambda X: np.concatenate(
            [session.run(["label"], {"X": X[i : i + 500]})[0] for i in range(0, len(X), 500)]
        ),
    }
    found = {}
    for part, (X, y) in {"train": parts.train, "test": parts.watched}.items():
        top = np.sort(clf.predict_proba(X), axis=1)[:, -2:]
        close, expected = top[:, 1] - top[:, 0] <= MARGIN, clf.predict(X)
        found[f"{part} accuracy"] = float(np.mean(expected == y))
        for how, predict in labels_of.items():
            labels = predict(X)
            found[f"from {how}, {part}"] = float(np.mean(labels == y))
            found[f"labels that differ by {how}, {part}"] = int(
                np.sum((labels != expected) & ~close)
            )
    return found


def measure_times(name):
    """Return the seconds of an epoch by recipe and by defaults, and on what they were measured."""
    system = SYSTEMS[name]
    X, y = system.split(0).train
    times = {"machine": _machine()}
    for variant in VARIANTS:
        parameters = system.parameters(variant) | {"max_epochs": 1}
        clf = ConvNetClassifier(system.network, **parameters, random_state=0)
        clf.fit(X[:1000], y[:1000])
        times[variant] = clf.fit(X, y).history_[0]["duration"]
    if name == "r1":
        times["one_image_µs"] = _one_image(clf, X)
    return times


def _one_image(clf, X):
    """Return the microseconds that an image takes to R1's dense layer, of 500 calls, by engine."""
    found = {}
    for engine in ("torch", "onnxruntime"):
        extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer="dense", engine=engine)
        extractor.fit(X[:1])
        seconds = []
        for image in X[:550, None]:
            started = time.perf_counter()
            extractor.transform(image)
            seconds.append(time.perf_counter() - started)
        found[engine] = 1e6 * median(seconds[50:])
    return found


def _machine():
    facts = machine.describe()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else facts["CPU"]
    threads, instructions = facts["torch threads"], facts["torch's instructions"]
    return (
        f"{device}, {threads} of {os.cpu_count()} cores, {instructions}, torch {torch.__version__}"
    )


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(TITLES)}; all by default")
    parser.add_argument("--time", action="store_true", help="time an epoch of each, train no more")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.systems) - set(TITLES):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(TITLES)}")
    return options


if __name__ == "__main__":
    main()
