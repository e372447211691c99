"""The table at the end of each example: an author's figure beside ours."""

import json
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "reference_results.json"


def print_side_by_side(name, author, recipe, here):
    """Print an author's accuracy, ours on all images if they are there, and those of a script.

    Parameters
    ----------
    name : str
        Of the network in docs/reference_results.json, which ``python -m benchmarks.reference``
        writes.
    author, recipe : dict
        As the script defines them.
    here : list of (ConvNetClassifier, float)
        The script's own, by the author's recipe and by the defaults, with their accuracies.
    """
    full = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}, "times": {}}
    times = full["times"].get(name, {})
    lines = [("the author", author["accuracy"], recipe["max_epochs"], author.get("seconds"))]
    for variant, words in {"recipe": "author's recipe", "defaults": "our defaults"}.items():
        rows = [row for key, row in full["rows"].items() if key.startswith(f"{name}/{variant}/")]
        if rows:
            accuracy = mean(row["accuracy"] for row in rows)
            what = f"{words}, all images, {len(rows)} of 3 seeds"
            lines.append((what, accuracy, rows[0]["epochs"], times.get(variant)))
    for words, (clf, accuracy) in zip(("author's recipe", "our defaults"), here, strict=True):
        seconds = mean(epoch["duration"] for epoch in clf.history_)
        lines.append((f"{words}, this script", accuracy, clf.n_iter_, seconds))
    print(f"{'':42}accuracy  epochs  s an epoch")
    for what, accuracy, epochs, seconds in lines:
        print(f"{what:42}{accuracy:8.5f}{epochs:8}", end="")
        print(f"{seconds:12.1f}" if seconds else f"{'–':>12}")
