"""This checkout beside an earlier one: ``python -m benchmarks.before_after REVISION``.

Whole fits and transforms of R1, R2 and EfficientNet-Lite0, one image, and photographs. Each side
lives in a process of its own; rounds alternate between them, in an order drawn anew. A ratio is
the earlier revision's time divided by this checkout's, round by round: below 1, this checkout is
slower.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .race import data, machine
from .race.field import compare
from .race.worker import ROOT, Worker

N_TRAINED, N_TRANSFORMED, N_PHOTOS, N_TUNED = 6_400, 10_000, 128, 64

# Below it, where it holds for the whole interval of ratios, a row is slower.
LEAST_RATIO = 0.97


def rows(folder):
    """Return (row, module, function, task, calls a turn)."""
    mnist = data.save_mnist(folder, N_TRANSFORMED) | {"batch_size": 128, "epochs": 1}
    photos = data.save_random(folder, N_PHOTOS, side=112)
    for network in ("R1", "R2"):
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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", default="", help="only those whose names hold this")
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
            if options.rows in row:
                seconds = race(sides, *job, options.rounds)
                ratio, low, high = compare(seconds["before"], seconds["after"])
                best = min(seconds["after"])
                print(f"{row:32} {1e3 * best:9.3f} ms  {ratio:.3f} ({low:.3f} to {high:.3f})")
                slower += [row] if high < LEAST_RATIO else []
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


def race(sides, module, function, task, repeats, rounds):
    """Return the seconds of each round, by side."""
    workers = {side: Worker(module, folder=folder) for side, folder in sides.items()}
    order, seconds = random.Random(0), {side: [] for side in sides}
    try:
        for worker in workers.values():
            worker.prepare(function, task)
        for _ in range(rounds):
            for side in order.sample(list(workers), len(workers)):
                seconds[side].append(workers[side].time(repeats))
    finally:
        for worker in workers.values():
            worker.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
