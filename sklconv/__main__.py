"""The command ``sklconv``: its arguments, its help and its exit codes."""

# Only the standard library here: help and usage errors come at once, and not after torch.
import argparse
import os
import sys
from inspect import getdoc
from pathlib import Path

from . import __version__
from ._command.console import in_one_line, say

EXTRACT_EXAMPLES = """\
examples:
  sklconv extract photos --backbone efficientnet_lite/efficientnet-lite0 -o features.npz
  sklconv extract photos --backbone timm/resnet18 --layer layer3,layer4 -o features.csv
  sklconv extract scans/*.png --backbone torchvision/resnet50 --weights own.pth -o scans.parquet
  sklconv extract photos --backbone mynets:make_net --image-size 96 -o features.npz

exit codes: 0 done, 2 an error, 130 interrupted"""

LAYERS_EXAMPLES = """\
examples:
  sklconv layers timm/resnet18
  sklconv layers mynets:make_net --image-size 96"""

BACKBONE_HELP = (
    "timm/NAME, torchvision/NAME, efficientnet_lite/NAME, or MODULE:NAME for a torch.nn.Module of "
    "yours or a function without arguments that returns one; MODULE is installed or is in the "
    "current folder"
)

WANTED = "(default: as the weights want it)"


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
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        say(f"sklconv: error: {in_one_line(error)}")
        return 2
    return 0


def extract(arguments):
    """Turn photographs into a table of features: one row a photo, a layer's activations.

    Folders are walked in sorted order. A photo's class is the name of the folder it is in:
    photos/cat/1.jpg is a "cat", whether photos is given or photos/cat. Rows of photos that can't
    be read are NaN; such photos are listed at the end and in OUTPUT.bad.csv.

    What is computed is kept beside the output until that is written. Stop the command whenever
    you like; the same command continues from there. An older OUTPUT is replaced at the end.
    """
    from ._command.extract import extract

    extract(arguments)


def list_layers(arguments):
    """List a network's layers in the order in which they run, as --layer of "extract" takes them.

    Names, types, shapes of the outputs for one image, and numbers of parameters. A number counts
    a layer's own parameters, not those of the layers inside it, which have rows of their own: the
    column adds up to the total. Rows without an output, "input" and "(network)" can't be given to
    --layer. No weights are needed, so none are downloaded.
    """
    from ._command.layers import list_layers

    list_layers(arguments)


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
        help="name, glob or negative index of a layer; separate several by commas, or repeat the "
        "option; or auto: those that tell the photos' classes apart (default: penultimate, what "
        "goes into the classifier)",
    )
    pool = (
        "how feature maps and tokens are reduced: means, maxima, all values kept, or the class "
        "token; auto: means, with --layer auto means or all values (default: auto)"
    )
    add("--pool", default="auto", choices=["auto", "avg", "max", "flatten", "cls"], help=pool)
    _add_network_options(add, "pretrained")
    for name in ("mean", "std"):
        text = f"{name} of each channel, for pixels in [0, 1] {WANTED}"
        add(f"--{name}", type=_numbers, metavar="R,G,B", help=text)
    text = "photos are resized to image size / X, and the middle is taken; 1 keeps the margins"
    add("--crop-pct", type=float, metavar="X", help=f"{text} {WANTED}")
    text = "which sides are resized so: center, the shorter; squash, both; border, the longer"
    add("--crop-mode", choices=["center", "squash", "border"], help=f"{text} {WANTED}")
    add("--batch-size", type=_positive, default=32, metavar="N", help="default: 32")
    text = (
        "what computes the features: torch; onnxruntime, on CPUs up to three times as fast; or "
        "auto, the latter where it is installed and there are enough photos (default: auto)"
    )
    add("--engine", default="auto", choices=["auto", "torch", "onnxruntime"], help=text)
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    bad = "unreadable photos: nan skips them, raise stops (default: nan)"
    add("--on-bad-image", default="nan", choices=["nan", "raise"], help=bad)
    add("-q", "--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_layers(commands):
    add = _add_command(commands, "layers", list_layers, LAYERS_EXAMPLES)
    add("backbone", metavar="NETWORK", help=BACKBONE_HELP)
    _add_network_options(add, "none")


def _add_network_options(add, weights):
    text = f"pretrained, a .safetensors or .pth file, or none: random (default: {weights})"
    add("--weights", default=weights, help=text)
    size = (
        "height and width of what the network gets: photos are resized and cropped to it as the "
        f"weights' library does {WANTED}"
    )
    add("--image-size", type=_positive, metavar="N", help=size)


def _positive(text):
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _numbers(text):
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        message = f"{text!r} is not a list of numbers separated by commas"
        raise argparse.ArgumentTypeError(message) from None


def _layers(text):
    """Names, globs and negative indices; "0" is a name, of a layer of nn.Sequential."""
    names = [name.strip() for name in text.split(",")]
    return [int(n) if n.startswith("-") and n[1:].isdecimal() else n for n in names]


if __name__ == "__main__":
    sys.exit(main())
