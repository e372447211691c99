"""The file of results, row by row, and the page of the documentation that is made of it."""

import json
import os
from pathlib import Path
from statistics import mean

from .systems import SYSTEMS, TITLES

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "reference_results.json"
SEEDS = (0, 1, 2)
VARIANTS = {"recipe": "the author's recipe", "defaults": "the package's defaults"}

PAGE = """\
.. This page is written by python -m benchmarks.reference: change it there.

Published systems, reproduced
=============================

Five systems that others have published, on MNIST, with :class:`~sklconv.ConvNetClassifier`: the
same networks, parameter for parameter, trained by their authors' recipes, and by the package's
default parameters in a third of the epochs. :doc:`auto_examples/index` has each system as a short
script, with its pictures.

Seeds 0, 1 and 2 were fixed beforehand, the last epoch counts, nothing is chosen on the images that
are counted, and every run is shown. A figure is reached if the mean of the three runs is no worse
than the author's by more than one standard error of it, √(p(1 − p)/n). Where an author trains for
fewer than six epochs, the defaults are not asked for it.
"""

RESTORED = [
    "accuracy, the network restored",
    *("as trained", "from a checkpoint", "from ONNX"),
    # Where the two likeliest classes are further apart than the margin, 1e-5.
    *("labels that differ: checkpoint", "ONNX"),
]


def read(path):
    """Return the results so far: ``rows``, ``times`` and ``in_keras``, dicts by key."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"rows": {}, "times": {}, "in_keras": {}} | found


def add(path, kind, key, entry):
    """Add an entry to the file, which is whole at every moment, and renew the page beside it."""
    results = read(path)  # others may have written meanwhile
    results[kind][key] = entry
    _replace(path, json.dumps(results, indent=1, sort_keys=True) + "\n")
    _replace(path.with_suffix(".rst"), page(results))


def _replace(path, text):
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def row_key(name, variant, seed):
    return f"{name}/{variant}/{seed}"


def rows_of(results, name, variant):
    """Return the rows of a system there are, by seed."""
    found = {seed: results["rows"].get(row_key(name, variant, seed)) for seed in SEEDS}
    return {seed: row for seed, row in found.items() if row is not None}


def page(results):
    """Return the documentation's page as reStructuredText."""
    sections = [_section(system, results) for system in TITLES]
    return "\n".join([PAGE, *sections, _times(results), _machines(results)])


def _section(family, results):
    """Return the heading, the table and the remarks of the networks of an author."""
    head = ["", "epochs", *(f"seed {seed}" for seed in SEEDS), "mean", "to reach", "reached"]
    table, remarks, restored = [head], [], []
    for name in (n for n in SYSTEMS if n.split("_")[0] == family):
        system = SYSTEMS[name]
        n_parameters, n_images = system.author["n_parameters"], system.author["n_images"]
        what = f"**{system.words}**, {n_parameters:,} parameters, {system.figure} of {n_images:,}"
        figure = system.text(system.author["accuracy"])
        author = [f"{what}: the author", system.recipe["max_epochs"], *[""] * len(SEEDS), figure]
        table.append([*author, "", ""])
        for variant, words in VARIANTS.items():
            rows = rows_of(results, name, variant)
            values = [system.text(rows[s]["accuracy"]) if s in rows else "" for s in SEEDS]
            epochs = system.parameters(variant)["max_epochs"]
            table.append([words, epochs, *values, *_verdict(system, variant, rows)])
            for seed, row in rows.items():
                if "from ONNX, test" in row["further"]:
                    restored += _restored(seed, row["further"])
                elif row["further"]:
                    remarks.append(_remark(words, seed, row))
        if name in results["in_keras"]:
            remarks.append(_remark_on_keras(system, **results["in_keras"][name]))
    if restored:
        remarks.append(_list_table([RESTORED, *restored]))
    return _titled(TITLES[family], _list_table(table), *remarks)


def _restored(seed, further):
    """Yield rows on how a network that was restored agrees with itself."""
    for part in ("train", "test"):
        hows = ("checkpoint", "ONNX")
        accuracies = [f"{part} accuracy", *(f"from {how}, {part}" for how in hows)]
        differing = [further[f"labels that differ by {how}, {part}"] for how in hows]
        values = [f"{further[what]:.5f}" for what in accuracies]
        yield [f"recipe, seed {seed}, {part}", *values, *differing]


def _verdict(system, variant, rows):
    """Return the mean, the bound, and whether it is reached."""
    accuracy = mean(row["accuracy"] for row in rows.values()) if rows else None
    text = system.text(accuracy) if rows else ""
    if variant == "defaults" and system.is_exempt:
        return text, "", ""
    reached = ""
    if len(rows) == len(SEEDS):
        reached = "yes" if accuracy >= system.bound else "no"
    sign = "≤" if "error" in system.figure else "≥"
    return text, f"{sign}\N{NO-BREAK SPACE}{system.text(system.bound)}", reached


def _remark(words, seed, row):
    figures = ", ".join(f"{what} {value:.6g}" for what, value in row["further"].items())
    return f"- {words}, seed {seed}: {figures}"


def _remark_on_keras(system, version, accuracies):
    texts = [system.text(accuracy) for accuracy in (*accuracies, mean(accuracies))]
    return (
        f"- the author's recipe in Keras {version} itself, seeds 0, 1 and 2: "
        f"{', '.join(texts[:-1])}, mean {texts[-1]}"
    )


def _times(results):
    table = [["seconds an epoch", "the author", "the author's recipe", "our defaults", "machine"]]
    for name, system in SYSTEMS.items():
        times = results["times"].get(name, {})
        ours = [f"{times[v]:.2f}" if v in times else "" for v in VARIANTS]
        what = f"{name[:2].upper()}, {system.words}"
        table.append([what, system.author.get("seconds", ""), *ours, times.get("machine", "")])
    by_engine = results["times"].get("r1", {}).get("one_image_µs", {})
    ours = ", ".join(f"{value:.0f} µs by {engine}" for engine, value in by_engine.items())
    return _titled(
        "Time",
        "The authors' are of their machines, ours of an idle one. One image to R1's dense layer:",
        f"858 µs by its author, {ours or 'not yet measured'} by us.\n",
        _list_table(table),
    )


def _machines(results):
    machines = sorted({row["machine"] for row in results["rows"].values()})
    return _titled("Machines", *(f"- {machine}" for machine in machines))


def _titled(title, *lines):
    return "\n".join([title, "-" * len(title), "", *lines, ""])


def _list_table(rows):
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [
            f"   {'* -' if column == 0 else '  -'} {cell}".rstrip()
            for column, cell in enumerate(row)
        ]
    return "\n".join([*lines, ""])
