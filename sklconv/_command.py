"""What the command does: ``sklconv extract`` and ``sklconv layers``."""

import importlib
import os
import sys
from collections import Counter
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tqdm import tqdm

from . import _extraction as extraction
from ._backbones import Backbone
from ._extraction import ExtractionError
from ._feature_extractor import ConvFeatureExtractor
from ._modules import ImageNetwork
from ._network import trace_network
from ._report import format_layers
from ._taps import layer_names

# What the features depend on besides the photos, the network and the options.
SOFTWARE = ("sklconv", "torch", "pillow", "timm", "torchvision")

MAX_BAD_LISTED = 20


def extract(arguments):
    """Write the features of photos; return the exit code."""
    output = arguments.output
    extraction.check_output(output)
    photos = extraction.find_photos(arguments.photos)
    if not arguments.quiet:
        _note(_found(photos))
    with closing(extraction.PartialResults(Path(f"{output}.partial"))) as results:
        try:
            extractor = _fit_extractor(arguments, photos)
            _begin(results, extractor, photos, arguments)
            _compute(results, extractor, photos, arguments)
            report = _write(results, extractor, photos, output)
        except BaseException as error:
            if results.n_rows:
                error.add_note(
                    f"{_count(results.n_rows, 'photo')} of {len(photos.paths):,} are kept in "
                    f"{results.folder}: the same command goes on from there"
                )
            raise
    if not arguments.quiet:
        _print(report, sys.stdout)
    return 0


def _found(photos):
    text = f"{_count(len(photos.paths), 'photo')}, {_n_classes(photos)}"
    if photos.n_others:
        text += f"; left out: {_count(photos.n_others, 'file')} not named like photos"
    return text


def _fit_extractor(arguments, photos):
    torch.manual_seed(0)  # a function of the user's may draw weights: the same when resumed
    extractor = ConvFeatureExtractor(
        _make_backbone(arguments),
        layer=arguments.layer or "penultimate",
        pool=arguments.pool,
        batch_size=arguments.batch_size,
        device=arguments.device,
        on_bad_image=arguments.on_bad_image,
        random_state=0,
    )
    return extractor.fit(photos.paths)


def _make_backbone(arguments):
    network = arguments.backbone
    if not network.startswith(("timm/", "torchvision/")) and ":" in network:
        network = _import_factory(network)
        if arguments.image_size is None:
            raise ExtractionError(
                f"--image-size is missing: nothing says what size {arguments.backbone} wants"
            )
    return Backbone(
        network,
        weights=None if arguments.weights == "none" else arguments.weights,
        mean=arguments.mean,
        std=arguments.std,
        image_size=arguments.image_size,
    )


def _import_factory(name):
    """Return the function that ``MODULE:NAME`` names, and have its errors in a line."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end: no module there takes another's place
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise ExtractionError(f"--backbone {name}: {in_one_line(error)}") from error
    if not callable(factory):
        raise ExtractionError(f"--backbone {name}: is {factory!r}, not a function")

    def call():
        try:
            return factory()
        except Exception as error:
            raise ExtractionError(
                f"--backbone {name}: raised {type(error).__name__}: {in_one_line(error)}"
            ) from error

    return call


def _begin(results, extractor, photos, arguments):
    settings = {
        "--backbone": arguments.backbone,
        "--layer": extractor.layers_,
        "--pool": arguments.pool,
        "--image-size": list(extractor.image_shape_),
        "--batch-size": arguments.batch_size,
        "the device": str(extractor.module_.device),
        "the software": {name: _version(name) for name in SOFTWARE},
        "the weights": extraction.network_digest(extractor.module_),
        "the photos": extraction.photos_digest(photos),
    }
    changed = results.begin(settings, len(extractor.get_feature_names_out()))
    if changed:
        warn(f"starting afresh, for since the run before changed: {', '.join(changed)}")
    elif results.n_rows and not arguments.quiet:
        _note(f"going on behind the {_count(results.n_rows, 'photo')} of the run before")


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compute(results, extractor, photos, arguments):
    if arguments.on_bad_image == "raise" and results.bad:
        row, reason = min(results.bad.items())
        raise ExtractionError(f"{photos.paths[row]} can't be read: {reason}")
    with tqdm(
        total=len(photos.paths),
        initial=results.n_rows,
        unit=" images",
        disable=arguments.quiet or None,  # None: where stderr is no terminal
    ) as progress:
        for n_rows in extraction.compute_rest(extractor, photos, results):
            progress.update(n_rows)


def _write(results, extractor, photos, output):
    """Write the output and the list of bad photos; return what to say of them."""
    bad = [(photos.paths[row], reason) for row, reason in sorted(results.bad.items())]
    _list_bad(bad)
    if len(bad) == len(photos.paths):
        results.clear()
        raise ExtractionError("none of the photos could be read; nothing is written")
    names = [str(name) for name in extractor.get_feature_names_out()]
    extraction.write_output(output, results, photos, names)
    extraction.write_bad_list(output, bad)
    results.clear()
    return "\n".join(
        [
            f"{output}: {_count(len(photos.paths) - len(bad), 'photo')}, "
            f"{_count(len(names), 'feature')} each, {_n_classes(photos)}",
            f"next, in Python: {next_step(output, photos.classes, bool(bad))}",
            _say_bad(len(bad), output),
        ]
    )


def _say_bad(n_bad, output):
    if not n_bad:
        return "not read: none, no photo is bad"
    listed = extraction.bad_list_path(output)
    return f"not read: {_count(n_bad, 'photo')}, listed in {listed}; their rows are NaN"


def _list_bad(bad):
    for path, reason in bad[:MAX_BAD_LISTED]:
        warn(f"not read: {path}: {reason}")
    if len(bad) > MAX_BAD_LISTED:
        warn(f"not read: {len(bad) - MAX_BAD_LISTED:,} more")


def next_step(output, classes, has_bad):
    """Return a line of Python that scores the features, or loads them where there is no class."""
    path = repr(str(output))
    if output.suffix.lower() == ".npz":
        load = f"import numpy as np; data = np.load({path})"
        X, y = 'data["features"]', 'data["classes"]'
        good = "good = ~np.isnan(X).any(axis=1); X, y = X[good], y[good]"
    else:
        reader = {".csv": "read_csv", ".parquet": "read_parquet"}[output.suffix.lower()]
        load = f"import pandas as pd; data = pd.{reader}({path})"
        X, y = "data.iloc[:, 2:]", 'data["class"]'
        good = "good = X.notna().all(axis=1); X, y = X[good], y[good]"
    smallest = min(Counter(classes).values())
    if len(set(classes)) < 2 or smallest < 2:
        return f"{load}; X = {X}"
    folds = f", cv={smallest}" if smallest < 5 else ""
    return "; ".join(
        [
            load,
            f"X, y = {X}, {y}",
            *([good] if has_bad else []),
            "from sklearn.linear_model import LogisticRegression",
            "from sklearn.model_selection import cross_val_score",
            f"print(cross_val_score(LogisticRegression(max_iter=1000), X, y{folds}))",
        ]
    )


def list_layers(arguments):
    """Print the layers of a network; return the exit code."""
    backbone = _make_backbone(arguments).resolve()
    body = backbone.load()
    prepare = backbone.preparation(body)
    image_shape = (prepare.channels or 3, *backbone.size)
    calls, _ = trace_network(ImageNetwork(prepare, body).eval(), image_shape)
    n_parameters = sum(parameter.numel() for parameter in body.parameters())
    _print(format_layers(_rows(calls), image_shape, n_parameters), sys.stdout)
    return 0


def _rows(calls):
    """A row a layer as `format_layers` takes it; layers made of others stand behind these."""
    last = {call.name: call for call in calls}
    return [
        {
            "name": name,
            "type": type(last[name].module).__name__,
            "output_shape": tuple(last[name].output.shape[1:]),
            "n_parameters": sum(p.numel() for p in last[name].module.parameters()),
        }
        for name in layer_names(calls)
    ]


def _n_classes(photos):
    return _count(len(set(photos.classes) - {""}), "class")


def _count(n, noun):
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{n:,} {noun if n == 1 else plural}"


def in_one_line(error):
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        text = place + error.strerror.lower()
    else:
        text = str(error) or type(error).__name__
    return " ".join("; ".join([text, *getattr(error, "__notes__", [])]).split())


def _note(text):
    _print(text, sys.stderr)


def warn(text):
    _print(f"sklconv: {text}", sys.stderr)


def _print(text, file):
    # File names hold what a terminal's encoding may not have.
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)
