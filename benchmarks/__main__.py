"""Speed and memory of sklconv beside its peers: ``python -m benchmarks --help``."""

import argparse
import json
import tempfile
from pathlib import Path

from .race import machine, networks, report
from .race.field import KERAS_VARIABLE, Field
from .race.rows import ROWS

DESCRIPTION = """\
Measure sklconv side by side with the textbook PyTorch loop, a hand-tuned one, skorch and Keras.

Every contender lives in a process of its own; rounds alternate between them. A ratio is the
contender's time divided by sklconv's, round by round: its median, lowest and highest are shown.
"""
EPILOG = f"""\
Keras takes part if {KERAS_VARIABLE} names the python of an environment that was made from
benchmarks/requirements-keras.txt. MNIST is found as sklconv.datasets.load_mnist finds it.
"""


def main():
    options = _parse_arguments()
    results = {"records": []}
    with Field() as field, tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        results["machine"] = machine.describe(field.keras_python)
        for name, value in results["machine"].items():
            print(f"{name}: {value}")
        print()
        for row in options.rows:
            print(f"# {ROWS[row].__doc__.strip()}\n")
            records = list(ROWS[row](field, options))
            report.show(row, records)
            results["records"] += records
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _parse_arguments():
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer images and rounds: a look, not a result"
    )
    parser.add_argument(
        "--rows",
        type=_names(ROWS),
        default=list(ROWS),
        help=f"comma-separated, of {','.join(ROWS)}; all by default",
    )
    parser.add_argument(
        "--networks",
        type=_names(networks.NAMES),
        default=list(networks.NAMES),
        help=f"comma-separated, of {','.join(networks.NAMES)}; all by default",
    )
    parser.add_argument("--rounds", type=int, help="turns of each contender; 7, or 3 if --quick")
    parser.add_argument(
        "--batch-sizes", help="comma-separated, of training; 128,32, or 128 if --quick"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all records there, too")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 7)
    default = "128" if options.quick else "128,32"
    options.batch_sizes = [int(size) for size in (options.batch_sizes or default).split(",")]
    return options


def _names(allowed):
    def parse(text):
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return parse


if __name__ == "__main__":
    main()
