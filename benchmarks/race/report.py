"""Records as tables of text."""

import statistics


def show(row, records):
    """Print the records of one row as a table."""
    headings, lines = TABLES[row]
    _print_table(headings, [lines(record) for record in records])


def _ratio(r):
    met = "" if r["target"] is None else f"≥ {r['target']:.2f}"
    if met:
        met += " yes" if r["ratio"] >= r["target"] else " NO"
    return (
        r["row"],
        r["network"],
        r["batch_size"],
        r["contender"],
        _seconds(r["seconds"]),
        r["against"],
        _seconds(r["reference_seconds"]),
        _spread(r, "{:.2f}"),
        met,
    )


def _one_image(r):
    met = "" if r["target"] is None else f"≤ +{r['target']}"
    if met:
        met += " yes" if r["over_plain_call"] <= r["target"] else " NO"
    over = f"{r['over_plain_call']:+.0f} ({r['low']:+.0f} to {r['high']:+.0f})"
    return r["network"], r["contender"], f"{r['microseconds']:.0f}", over, met


def _memory(r):
    own = "unknown" if r["own"] is None else f"{r['own']:.0f}"
    return r["n_images"], f"{r['X']:.0f}", f"{r['output']:.0f}", own, f"{r['resident']:.0f}"


def _scaling(r):
    cost = f"{r['microseconds_an_image']:.0f}"
    return r["axis"], r["value"], r["network"], _seconds(r["seconds"]), cost, _spread(r, "{:.2f}")


_RATIO_HEADINGS = ("row", "network", "batch", "contender", "seconds", "against", "seconds") + (
    "ratio of the rounds' times",
    "to reach",
)
TABLES = {
    "fit": (_RATIO_HEADINGS, _ratio),
    "larger": (_RATIO_HEADINGS, _ratio),
    "fine_tune": (_RATIO_HEADINGS, _ratio),
    "transform": (_RATIO_HEADINGS, _ratio),
    "one_image": (
        ("network", "one image through", "µs", "µs over the plain call", "to reach"),
        _one_image,
    ),
    "memory": (
        ("images", "X, MiB", "output, MiB", "own memory's growth, MiB", "ru_maxrss' growth, MiB"),
        _memory,
    ),
    "scaling": (
        ("axis", "value", "network", "seconds a fit", "µs an image", "textbook's time to ours"),
        _scaling,
    ),
}


def _seconds(times):
    return f"{statistics.median(times):.3f}"


def _spread(record, form):
    low, high = form.format(record["low"]), form.format(record["high"])
    return f"{form.format(record['ratio'])} ({low} to {high})"


def _print_table(headings, lines):
    cells = [headings, *[[str(cell) for cell in line] for line in lines]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        text = "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
        print(text.rstrip())
    print()
