"""What the command computes: features of photographs into a file, and a network's layers."""

import importlib
import os
import sys
from collections import Counter
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from . import _extraction as extraction
from ._backbones import Backbone
from ._console import count, in_one_line, say
from ._digests import Undigestible, network_digest
from ._extraction import ExtractionError
from ._feature_extractor import ConvFeatureExtractor
from ._modules import ImageNetwork
from ._network import trace_network
from ._pretrained import LIBRARIES
from ._report import format_layers, layer_rows
from ._taps import penultimate_tap

# What the features depend on besides the photos, the network and the options.
SOFTWARE = ("sklconv", "torch", "pillow", *(library.package for library in LIBRARIES.values()))

MAX_BAD_LISTED = 20

# What to import, how to load an output, and which of its rows are those of good photos.
TABLE = 'X, y = data.iloc[:, 2:], data["class"]'
LOADING = {
    ".npz": (
        "numpy as np",
        ["data = np.load(PATH)", 'X, y = data["features"], data["classes"]'],
        "~np.isnan(X).any(axis=1)",
    ),
    ".csv": (
        "pandas as pd",
        # Else a class that is called "NA" would be a missing value.
        ['data = pd.read_csv(PATH, keep_default_na=False, na_values="nan")', TABLE],
        "X.notna().all(axis=1)",
    ),
    ".parquet": ("pandas as pd", ["data = pd.read_parquet(PATH)", TABLE], "X.notna().all(axis=1)"),
}
SCORING_IMPORTS = [
    "from sklearn.linear_model import LogisticRegression",
    "from sklearn.model_selection import cross_val_score",
]
SCORE = "print(cross_val_score(LogisticRegression(max_iter=1000), X, y))"

# Where there is no terminal, at most so many lines say how far a run is, and these apart.
PROGRESS_LINES, PHOTOS_BETWEEN_LINES = 10, 100


def extract(arguments):
    """Run ``sklconv extract``."""
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
                    f"{results.folder}: the same command continues from there"
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
    if network.partition("/")[0] not in LIBRARIES and ":" in network:
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
        "the network": _network_digest(extractor.module_),
        "the photos": extraction.photos_digest(photos),
    }
    for name in SOFTWARE:
        with suppress(PackageNotFoundError):
            settings["the software"][name] = version(name)
    changed = results.begin(settings, _probe(extractor))
    if changed:
        say(f"sklconv: starting over: changed since the last run: {', '.join(changed)}")
    elif results.n_rows and not arguments.quiet:
        say(f"resuming after {results.n_rows:,} photos")


def _network_digest(network):
    try:
        return network_digest(network)
    except Undigestible:
        return None  # the probe has to tell


def _probe(extractor):
    """Return the features of two images of noise."""
    shape = (2, *extractor.image_shape_)
    return extractor.transform(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _compute(results, extractor, photos, arguments):
    if arguments.on_bad_image == "raise" and results.bad:
        row, reason = min(results.bad.items())
        raise ExtractionError(f"{photos.paths[row]} can't be read: {reason}")
    n_photos, on_terminal = len(photos.paths), sys.stderr.isatty()
    bar = tqdm(
        total=n_photos,
        initial=results.n_rows,
        unit=" images",
        disable=arguments.quiet or not on_terminal,
    )
    with bar:
        for n_rows in extraction.compute_rest(extractor, photos, results):
            bar.update(n_rows)
            if not (arguments.quiet or on_terminal):
                _say_progress(results.n_rows - n_rows, results.n_rows, n_photos)


def _say_progress(n_before, n_done, n_photos):
    """Print how far the run is, unless too few photos have been done since the last line."""
    step = max(n_photos // PROGRESS_LINES, PHOTOS_BETWEEN_LINES)
    if n_before // step < n_done // step and n_done < n_photos:
        say(f"{n_done:,} of {n_photos:,} photos")


def _write(results, extractor, photos, output):
    """Write the output and the list of bad photos; return what to say of them."""
    bad = [(photos.paths[row], reason) for row, reason in sorted(results.bad.items())]
    for path, reason in bad[:MAX_BAD_LISTED]:
        say(f"sklconv: not read: {path}: {reason}")
    if len(bad) > MAX_BAD_LISTED:
        say(f"sklconv: not read: {len(bad) - MAX_BAD_LISTED:,} more")
    if len(bad) == len(photos.paths):
        results.clear()
        raise ExtractionError("none of the photos could be read; nothing was written")
    names = [str(name) for name in extractor.get_feature_names_out()]
    good_classes = [name for row, name in enumerate(photos.classes) if row not in results.bad]
    extraction.write_output(output, results, photos, names)
    bad_list = extraction.write_bad_list(output, bad)
    results.clear()
    sizes = (photos.paths, "photo"), (names, "feature"), (photos.class_names, "class")
    listed = f"{count(bad, 'photo')}, listed in {bad_list}; their rows are NaN"
    return (
        f"{output}: {', '.join(count(*size) for size in sizes)}\n"
        f"not read: {listed if bad else 'none, all photos are good'}\n"
        f"next, in Python:\n\n{next_step(output, good_classes, bool(bad))}"
    )


def next_step(output, classes, has_bad):
    """Return lines of Python that load the features, and score them where there are classes.

    ``classes`` are those of the photos that could be read.
    """
    package, load, good = LOADING[output.suffix.lower()]
    sizes = Counter(classes).values()
    can_score = len(sizes) > 1 and min(sizes) >= 5  # the number of folds
    lines = [
        f"import {package}",
        *(SCORING_IMPORTS if can_score else []),
        "",
        *(line.replace("PATH", repr(str(output))) for line in load),
        *([f"good = {good}", "X, y = X[good], y[good]"] if has_bad else []),
        *([SCORE] if can_score else []),
    ]
    return "\n".join(lines)


def list_layers(arguments):
    """Run ``sklconv layers``."""
    backbone = _make_backbone(arguments).resolve()
    body = backbone.load()
    prepare = backbone.preparation(body)
    image_shape = (prepare.channels or 3, *backbone.size)
    network = ImageNetwork(prepare, body).eval()
    trace = trace_network(network, image_shape)
    penultimate = penultimate_tap(trace, network)
    rows = layer_rows(body, *trace, penultimate=penultimate, learnable=False, containers=True)
    say(format_layers(rows, image_shape, "parameters", penultimate), sys.stdout)
