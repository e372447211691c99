"""This checkout beside an earlier one: ``python -m benchmarks.before_after REVISION``.

Whole fits and transforms of R1, of R1 with activations as layers of their own, of R2 and of
EfficientNet-Lite0, one image, and photographs. Each side lives in a process of its own; rounds
alternate between them, in an order drawn anew. A ratio is the earlier revision's time divided by
this checkout's, round by round: below 1, this checkout is slower.

Ratios differ more from one pair of processes to the next (three runs of one row gave 0.98, 1.01
and 0.76) than from round to round within a pair. So each row is measured by several pairs, one
after another. The ratio is the median of all rounds, with the lowest and the highest; behind it
stand the lowest and the highest median of a pair. Where these lie far apart, the row says little:
ask for more ``--processes``.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .race import data, machine
from .race.field import compare, take_turns
from .race.worker import ROOT, Worker

N_TRAINED, N_TRANSFORMED, N_PHOTOS, N_TUNED = 6_400, 10_000, 128, 64

# Below it, where it holds for the whole interval of ratios, a row is slower.
LEAST_RATIO = 0.97


def rows(folder):
    """Return (row, module, function, task, calls a turn)."""
    mnist = data.save_mnist(folder, N_TRANSFORMED) | {"batch_size": 128, "epochs": 1}
    photos = data.save_random(folder, N_PHOTOS, side=112)
    for network in ("R1", "R1 apart", "R2"):
        task = mnist | {"network": network}
        yield f"fit {network}", "ours", "prepare_fit", task | {"n_images": N_TRAINED}, 1
        task |= {"n_images": N_TRANSFORMED}
        yield f"predict_proba {network}", "ours", "prepare_predict", task, 2
        yield f"transform {network}", "ours", "prepare_transform", task, 2
        for kind, name in (("uint8", ""), ("float32", "_float32")):
            yield f"one image {network}, {kind}", "ours", f"prepare_one_image{name}", task, 500
    tuned = photos | {"n_images": N_TUNED, "n_classes": 4}
    yield "fit EfficientNet-Lite0, whole", "lite0", "prepare_fit", tuned, 1
    task = photos | {"n_images": N_PHOTOS}
    yield "transform EfficientNet-Lite0", "lite0", "prepare_transform", task, 1
    yield from photo_rows(folder)


def photo_rows(folder):
    """What is resized and cropped on its way into EfficientNet-Lite0."""
    arrays = data.save_random(folder, N_PHOTOS // 2, side=320)
    arrays["n_images"] = N_PHOTOS // 2
    for kind in ("uint8", "float32"):
        task = arrays | {"kind": kind}
        yield f"photos, arrays, {kind}", "lite0", "prepare_transform_photos", task, 1
    for n, width, height in ((64, 640, 427), (32, 1600, 1067), (16, 4000, 3000)):
        task = data.save_photos(folder, n, width, height)
        row = f"photos, JPEG {width} x {height}"
        yield row, "lite0", "prepare_transform_photos", task, 1


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.before_after", description=__doc__)
    parser.add_argument("revision", help="a commit, such as HEAD~3")
    parser.add_argument("--processes", type=int, default=3, help="pairs of processes a row; 3")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each process; 5")
    parser.add_argument(
        "--rows",
        type=lambda text: [word.strip() for word in text.split(",")],
        default="",
        help="only those whose names hold any of these words, comma-separated",
    )
    options = parser.parse_args()
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    slower = []
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "before": check_out(Path(folder, "before"), options.revision),
            "after": check_out(Path(folder, "after"), None),
        }
        for row, *job in rows(Path(folder)):
            if any(word in row for word in options.rows):
                pairs = [race(sides, *job, options.rounds, i) for i in range(options.processes)]
                slower += [row] if show(row, pairs) < LEAST_RATIO else []
    print(f"wholly below {LEAST_RATIO}: {', '.join(slower) or 'none'}")
    return 1 if slower else 0


def check_out(folder, revision):
    """Put the package at a revision, or as it stands, and these benchmarks into ``folder``."""
    folder.mkdir()
    if revision is None:
        shutil.copytree(ROOT / "sklconv", folder / "sklconv")
    else:
        archive = subprocess.run(
            ["git", "archive", revision, "sklconv"], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
    return folder


def race(sides, module, function, task, repeats, rounds, seed):
    """Return the seconds of each round of a pair of processes, by side."""
    workers = {side: Worker(module, folder=folder) for side, folder in sides.items()}
    try:
        for worker in workers.values():
            worker.prepare(function, task)
        return take_turns(workers, rounds, repeats, seed)
    finally:
        for worker in workers.values():
            worker.close()


def show(row, pairs):
    """Print a row's best time and its ratios; return the highest of them."""
    before, after = ([s for pair in pairs for s in pair[side]] for side in ("before", "after"))
    ratio, low, high = compare(before, after)
    medians = [compare(pair["before"], pair["after"])[0] for pair in pairs]
    print(
        f"{row:32} {1e3 * min(after):9.3f} ms  {ratio:.3f} ({low:.3f} to {high:.3f})"
        f"  pairs' medians {min(medians):.3f} to {max(medians):.3f}",
        flush=True,
    )
    return high


if __name__ == "__main__":
    sys.exit(main())
