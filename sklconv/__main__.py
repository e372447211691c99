"""The command: ``sklconv extract`` and ``sklconv layers``."""

import argparse
import importlib
import os
import sys
from collections import Counter
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from inspect import getdoc
from pathlib import Path

import torch
from tqdm import tqdm

from . import __version__
from . import _extraction as extraction
from ._backbones import Backbone
from ._extraction import ExtractionError
from ._feature_extractor import ConvFeatureExtractor
from ._modules import ImageNetwork
from ._network import trace_network
from ._report import format_layers, layer_rows

EXTRACT_EXAMPLES = """\
examples:
  sklconv extract photos --backbone timm/resnet18 -o features.npz
  sklconv extract photos --backbone timm/resnet18 --layer layer3,layer4 -o features.csv
  sklconv extract scans/*.png --backbone torchvision/resnet50 --weights own.pth -o scans.parquet
  sklconv extract photos --backbone mynets:make_net --image-size 96 -o features.npz

exit codes: 0 done, 2 an error, 130 interrupted"""

LAYERS_EXAMPLES = """\
examples:
  sklconv layers timm/resnet18
  sklconv layers mynets:make_net --image-size 96"""

BACKBONE_HELP = (
    "timm/NAME, torchvision/NAME, or MODULE:NAME for a torch.nn.Module of yours or a function "
    "without arguments that returns one; MODULE is installed or lies in the current folder"
)

# What the features depend on besides the photos, the network and the options.
SOFTWARE = ("sklconv", "torch", "pillow", "timm", "torchvision")

MAX_BAD_LISTED = 20


def main(argv=None):
    """Run the command with these arguments, by default the process's; return its exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        interrupt.args = ("interrupted",)
        say(f"sklconv: {in_one_line(interrupt)}")
        return 130
    except BrokenPipeError:  # of sklconv layers … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ExtractionError, ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        say(f"sklconv: error: {in_one_line(error)}")
        return 2
    return 0


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """Exit."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def make_parser():
    """Return the parser; ``run`` of what it parses is the function to call with that."""
    parser = Parser(
        prog="sklconv", description="Features of photographs from pretrained networks."
    )
    parser.add_argument("--version", action="version", version=f"sklconv {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_extract(commands)
    _add_layers(commands)
    return parser


def _add_command(commands, name, run, examples):
    description = getdoc(run) or ""
    parser = commands.add_parser(
        name,
        help=description.partition("\n")[0],
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser.add_argument


def _add_extract(commands):
    add = _add_command(commands, "extract", extract, EXTRACT_EXAMPLES)
    add("photos", nargs="+", metavar="PHOTOS", help="files and folders")
    add("-o", "--output", required=True, type=Path, help="file to write: .npz, .csv or .parquet")
    add("--backbone", required=True, metavar="NETWORK", help=BACKBONE_HELP)
    add(
        "--layer",
        action="extend",
        type=_layers,
        help="name, glob or negative index of a layer; several with commas between or by "
        "repetition (default: penultimate, what feeds the last linear layer)",
    )
    pool = "what becomes of feature maps: means, maxima, or all values (default: avg)"
    add("--pool", default="avg", choices=["avg", "max", "flatten"], help=pool)
    _add_network_options(add, "pretrained")
    for name in ("mean", "std"):
        text = f"{name} of each channel, pixels being in [0, 1] (default: as the weights want it)"
        add(f"--{name}", type=_numbers, metavar="R,G,B", help=text)
    add("--batch-size", type=_positive, default=32, metavar="N", help="default: 32")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    bad = "go on behind a photo that can't be read, or stop (default: nan)"
    add("--on-bad-image", default="nan", choices=["nan", "raise"], help=bad)
    add("-q", "--quiet", action="store_true", help="say nothing but warnings and errors")


def _add_layers(commands):
    add = _add_command(commands, "layers", list_layers, LAYERS_EXAMPLES)
    add("backbone", metavar="NETWORK", help=BACKBONE_HELP)
    _add_network_options(add, "none")


def _add_network_options(add, weights):
    text = f"pretrained, a .safetensors or .pth file, or none: random (default: {weights})"
    add("--weights", default=weights, help=text)
    size = "height and width to which photos are resized (default: as the weights want it)"
    add("--image-size", type=_positive, metavar="N", help=size)


def _positive(text):
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _numbers(text):
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        message = f"{text!r} is not a list of numbers with commas between"
        raise argparse.ArgumentTypeError(message) from None


def _layers(text):
    """Names, globs and negative indices; "0" is a name, of a layer of nn.Sequential."""
    names = [name.strip() for name in text.split(",")]
    return [int(n) if n.startswith("-") and n[1:].isdecimal() else n for n in names]


def extract(arguments):
    """Turn photographs into a table of features: one row a photo, a layer's activations.

    Folders are walked in sorted order. A photo's class is the name of the folder it lies in:
    photos/cat/1.jpg is a "cat", whether photos is given or photos/cat. Rows of photos that can't
    be read are NaN; such photos are listed at the end and in OUTPUT.bad.csv.

    What is computed is kept beside the output until that is written. Stop the command whenever
    you like; the same command goes on from there. An older OUTPUT is replaced at the end.
    """
    output = arguments.output
    extraction.check_output(output)
    photos = extraction.find_photos(arguments.photos)
    if not arguments.quiet:
        say(
            f"{count(photos.paths, 'photo')}, {count(photos.class_names, 'class')}"
            + f"; left out: {count(photos.others, 'file')} not named like photos"
            * bool(photos.others)
        )
    with closing(extraction.PartialResults(Path(f"{output}.partial"))) as results:
        try:
            extractor = _fit_extractor(arguments, photos)
            _begin(results, extractor, photos, arguments)
            _compute(results, extractor, photos, arguments)
            report = _write(results, extractor, photos, output)
        except BaseException as error:
            if results.n_rows:
                error.add_note(
                    f"{results.n_rows:,} of {count(photos.paths, 'photo')} are kept in "
                    f"{results.folder}: the same command goes on from there"
                )
            raise
    if not arguments.quiet:
        say(report, sys.stdout)


def _fit_extractor(arguments, photos):
    backbone = _make_backbone(arguments, mean=arguments.mean, std=arguments.std)
    extractor = ConvFeatureExtractor(
        backbone,
        layer=arguments.layer or "penultimate",
        pool=arguments.pool,
        batch_size=arguments.batch_size,
        device=arguments.device,
        on_bad_image=arguments.on_bad_image,
        random_state=0,  # random weights are the same in the run that goes on
    )
    return extractor.fit(photos.paths)


def _make_backbone(arguments, **preprocessing):
    network, size = arguments.backbone, arguments.image_size
    if not network.startswith(("timm/", "torchvision/")) and ":" in network:
        network = _import_network(network)
        if size is None:
            raise ExtractionError(
                f"--image-size is missing: nothing says what size {arguments.backbone} wants"
            )
    weights = None if arguments.weights == "none" else arguments.weights
    return Backbone(network, weights=weights, image_size=size, **preprocessing)


def _import_network(name):
    """Return the module that ``MODULE:NAME`` names, or a function that makes it."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end: no module there takes another's place
    with _errors_named(name):
        network = getattr(importlib.import_module(module_name), attribute)
    if isinstance(network, torch.nn.Module):
        return network
    if not callable(network):
        raise ExtractionError(f"--backbone {name}: is {network!r}, not a function")
    return _errors_named(name)(network)


@contextmanager
def _errors_named(network):
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
        raise ExtractionError(f"--backbone {network}: {kind}: {in_one_line(error)}") from error


def _begin(results, extractor, photos, arguments):
    settings = {
        "--backbone": arguments.backbone,
        "--layer": extractor.layers_,
        "--pool": arguments.pool,
        "--image-size": list(extractor.image_shape_),
        "--batch-size": arguments.batch_size,
        "the device": str(extractor.module_.device),
        "the software": {},
        "the weights": extraction.network_digest(extractor.module_),
        "the photos": extraction.photos_digest(photos),
    }
    for name in SOFTWARE:
        with suppress(PackageNotFoundError):
            settings["the software"][name] = version(name)
    changed = results.begin(settings, len(extractor.get_feature_names_out()))
    if changed:
        say(f"sklconv: starting afresh, for since the run before changed: {', '.join(changed)}")
    elif results.n_rows and not arguments.quiet:
        say(f"going on behind {results.n_rows:,} photos of the run before")


def _compute(results, extractor, photos, arguments):
    if arguments.on_bad_image == "raise" and results.bad:
        row, reason = min(results.bad.items())
        raise ExtractionError(f"{photos.paths[row]} can't be read: {reason}")
    n_photos, hidden = len(photos.paths), arguments.quiet or None  # None: but on a terminal
    with tqdm(total=n_photos, initial=results.n_rows, unit=" images", disable=hidden) as progress:
        for n_rows in extraction.compute_rest(extractor, photos, results):
            progress.update(n_rows)


def _write(results, extractor, photos, output):
    """Write the output and the list of bad photos; return what to say of them."""
    bad = [(photos.paths[row], reason) for row, reason in sorted(results.bad.items())]
    for path, reason in bad[:MAX_BAD_LISTED]:
        say(f"sklconv: not read: {path}: {reason}")
    if len(bad) > MAX_BAD_LISTED:
        say(f"sklconv: not read: {len(bad) - MAX_BAD_LISTED:,} more")
    if len(bad) == len(photos.paths):
        results.clear()
        raise ExtractionError("none of the photos could be read; nothing is written")
    names = [str(name) for name in extractor.get_feature_names_out()]
    extraction.write_output(output, results, photos, names)
    bad_list = extraction.write_bad_list(output, bad)
    results.clear()
    sizes = (photos.paths, "photo"), (names, "feature"), (photos.class_names, "class")
    listed = f"{count(bad, 'photo')}, listed in {bad_list}; their rows are NaN"
    return (
        f"{output}: {', '.join(count(*size) for size in sizes)}\n"
        f"next, in Python: {next_step(output, photos.classes)}\n"
        f"not read: {listed if bad else 'none, no photo is bad'}"
    )


def next_step(output, classes):
    """Return a line of Python that scores the features, or loads them if there are no classes."""
    path, suffix = repr(str(output)), output.suffix.lower()
    if suffix == ".npz":
        load = (
            f"import numpy as np; data = np.load({path}); X, y = data['features'], data['classes']"
        )
        good = "good = ~np.isnan(X).any(axis=1)"
    else:
        read = {".csv": "read_csv", ".parquet": "read_parquet"}[suffix]
        load = f"import pandas as pd; data = pd.{read}({path})"
        load += "; X, y = data.iloc[:, 2:], data['class']"
        good = "good = X.notna().all(axis=1)"
    sizes = Counter(classes).values()
    if len(sizes) < 2 or min(sizes) < 5:  # which are its folds
        return load
    return (
        f"{load}; {good}; from sklearn.linear_model import LogisticRegression; "
        "from sklearn.model_selection import cross_val_score; "
        "print(cross_val_score(LogisticRegression(max_iter=1000), X[good], y[good]))"
    )


def list_layers(arguments):
    """List a network's layers in the order in which they run, as --layer of "extract" takes them.

    Names, types, shapes of what they put out for one image, and numbers of parameters. No
    weights are needed, so none are downloaded.
    """
    backbone = _make_backbone(arguments).resolve()
    body = backbone.load()
    prepare = backbone.preparation(body)
    image_shape = (prepare.channels or 3, *backbone.size)
    traced = trace_network(ImageNetwork(prepare, body).eval(), image_shape)
    rows = layer_rows(body, *traced, learnable=False, containers=True)
    say(format_layers(rows, image_shape, "parameters"), sys.stdout)


def count(things, noun):
    """Return how many of ``noun`` there are: "1 class", "2,000 photos"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{len(things):,} {noun if len(things) == 1 else plural}"


def in_one_line(error):
    """Return an error's message and notes without line breaks."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: " * bool(error.filename) + error.strerror.lower()
    return " ".join("; ".join([text, *getattr(error, "__notes__", [])]).split())


def say(text, file=None):
    """Print to stderr, or ``file``."""
    file = file or sys.stderr
    # File names hold what a terminal's encoding may not have.
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


if __name__ == "__main__":
    sys.exit(main())
