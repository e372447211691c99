"""The command: ``sklconv extract`` and ``sklconv layers``."""

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path

from ._command import extract, in_one_line, list_layers, warn
from ._extraction import ExtractionError

DESCRIPTION = """\
Features of photographs from pretrained convolutional networks.

  sklconv extract   a folder of photographs to a table of features
  sklconv layers    which layers a network has"""

EXTRACT = """\
Turn photographs into features: one row a photo, the activations of a network's layer.

Folders are walked in sorted order. The class of a photo is the name of the folder it lies in:
photos/cat/1.jpg is a "cat" if photos is given, and so it is if photos/cat is. What has been
computed is kept beside the output until that is written: stop the command whenever you like,
and start it again to go on."""

EXTRACT_EXAMPLES = """\
examples:
  sklconv extract photos --backbone timm/resnet18 -o features.npz
  sklconv extract photos --backbone timm/resnet18 --layer layer3 --layer layer4 -o features.csv
  sklconv extract scans/*.png --backbone torchvision/resnet50 --weights scans.pth -o scans.parquet
  sklconv extract photos --backbone mynets:make_net --image-size 96 -o features.npz

Rows of photos that can't be read are NaN; they are listed at the end and in OUTPUT.bad.csv.
exit codes: 0 done, 2 an error, 130 interrupted"""

LAYERS = """\
List the layers of a network that --layer of "sklconv extract" takes, in the order in which they
run: names, types, the shapes of what they put out for one image, and numbers of parameters.
No weights are downloaded."""

LAYERS_EXAMPLES = """\
examples:
  sklconv layers timm/resnet18
  sklconv layers timm/vit_tiny_patch16_224
  sklconv layers mynets:make_net --image-size 96"""

BACKBONE_HELP = (
    "timm/NAME, torchvision/NAME, or MODULE:NAME for a function of yours without arguments that "
    "returns a torch.nn.Module, from an installed module or one in this folder"
)


def main(argv=None):
    """Run the command with these arguments, by default the process's; return its exit code."""
    arguments = _make_parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        interrupt.args = ("interrupted",)
        warn(in_one_line(interrupt))
        return 130
    except BrokenPipeError:  # of sklconv layers … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ExtractionError, ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        warn(f"error: {in_one_line(error)}")
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _make_parser():
    parser = _Parser(
        prog="sklconv",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sklconv {version('sklconv')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_extract(commands)
    _add_layers(commands)
    return parser


def _add_command(commands, name, run, **texts):
    parser = commands.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.set_defaults(run=run)
    return parser


def _add_extract(commands):
    parser = _add_command(
        commands,
        "extract",
        extract,
        help="photographs to a table of features",
        description=EXTRACT,
        epilog=EXTRACT_EXAMPLES,
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", help="files and folders")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        help="file to write: .npz, .csv or .parquet; one of that name is replaced at the end",
    )
    parser.add_argument("--backbone", required=True, metavar="NETWORK", help=BACKBONE_HELP)
    parser.add_argument(
        "--layer",
        action="extend",
        type=_layers,
        help="name, glob or negative index of a layer, or several with commas between; may be "
        "repeated (default: penultimate, what feeds the last linear layer)",
    )
    parser.add_argument(
        "--pool",
        default="avg",
        choices=["avg", "max", "flatten"],
        help="what becomes of feature maps: their means, maxima, or all values "
        "(default: %(default)s)",
    )
    _add_backbone_options(parser, "pretrained")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            type=_numbers,
            metavar="R,G,B",
            help=f"{name} of each channel of pixels in [0, 1] (default: as the weights want it)",
        )
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=32,
        metavar="N",
        help="photos computed at a time (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--on-bad-image",
        default="nan",
        choices=["nan", "raise"],
        help="go on behind a photo that can't be read, or stop (default: %(default)s)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing but errors and warnings"
    )


def _add_layers(commands):
    parser = _add_command(
        commands,
        "layers",
        list_layers,
        help="which layers a network has",
        description=LAYERS,
        epilog=LAYERS_EXAMPLES,
    )
    parser.add_argument("backbone", metavar="NETWORK", help=BACKBONE_HELP)
    _add_backbone_options(parser, "none")
    parser.set_defaults(mean=None, std=None)


def _add_backbone_options(parser, weights):
    parser.add_argument(
        "--weights",
        default=weights,
        metavar="WEIGHTS",
        help="pretrained (downloaded once), a .safetensors or .pth file, or none for random ones "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=_positive,
        metavar="N",
        help="height and width in pixels to which photos are resized (default: as the weights "
        "want it)",
    )


def _positive(text):
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _numbers(text):
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers with commas between"
        ) from None


def _layers(text):
    """Names, globs and negative indices; "0" is a name, of a layer of nn.Sequential."""
    names = [name.strip() for name in text.split(",")]
    return [int(n) if n.startswith("-") and n[1:].isdecimal() else n for n in names]


if __name__ == "__main__":
    sys.exit(main())
