"""``sklconv extract``: features of photographs into a file."""

import sys
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path

import numpy as np

from .._engines.choice import pays
from .._engines.graph import NotExportable
from .._estimators.feature_extractor import ConvFeatureExtractor
from .._images.files import TAKE_A_READER
from .._platform.digests import Undigestible, digest_of
from .._pretrained.libraries import LIBRARIES
from .._progress import progress
from .backbone import make_backbone
from .console import count, say
from .errors import CommandError
from .outputs import check_output, next_step, write_bad_list, write_output
from .partial_results import PartialResults
from .photos import find_photos, photos_digest

# What the features depend on besides the photos, the network and the options.
SOFTWARE = ("sklconv", "torch", "pillow", *(library.package for library in LIBRARIES.values()))

MAX_BAD_LISTED = 20


def extract(arguments):
    """Run ``sklconv extract``."""
    output = arguments.output
    check_output(output)
    photos = find_photos(arguments.photos)
    if not arguments.quiet:
        say(
            f"{count(photos.paths, 'photo')}, {count(photos.class_names, 'class')}"
            + f"; left out: {count(photos.others, 'file')} not named like photos"
            * bool(photos.others)
        )
    with closing(PartialResults(Path(f"{output}.partial"))) as results:
        try:
            extractor = _fit_extractor(arguments, photos)
            probe = _settle_engine(extractor, len(photos.paths))
            _begin(results, extractor, photos, arguments, probe)
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
    layer, classes = arguments.layer or "penultimate", None
    if layer == ["auto"]:
        layer, classes = "auto", photos.classes
        if "" in classes or len(photos.class_names) < 2:
            raise CommandError(
                "--layer auto chooses the layers that tell classes apart, so it needs a folder of "
                "photos for each of two classes or more; name a layer instead"
            )
    extractor = ConvFeatureExtractor(
        make_backbone(arguments),
        layer=layer,
        pool=arguments.pool,
        batch_size=arguments.batch_size,
        engine=arguments.engine,
        device=arguments.device,
        on_bad_image="nan",
        random_state=0,  # random weights are the same in the run that goes on
        verbose=layer == "auto" and not arguments.quiet,
    )
    # The bar of the second pass is the command's own.
    return extractor.fit(photos.paths, classes).set_params(verbose=None)


def _settle_engine(extractor, n_photos):
    """Choose the engine for all photos, however many a later run has left; return the probe."""
    is_open = extractor.engine == "auto"
    if is_open:
        taps, network = extractor._taps, extractor.module_
        many = pays(network, taps, network.precision, n_photos)
        extractor.set_params(engine="onnxruntime" if many else "torch")
    try:
        return _probe(extractor)
    except NotExportable as error:
        if not is_open:
            raise CommandError(str(error)) from error
        say(f"sklconv: {error.__cause__}; torch computes the features")
        return _probe(extractor.set_params(engine="torch"))


def _begin(results, extractor, photos, arguments, probe):
    settings = {
        "--backbone": arguments.backbone,
        "--layer": extractor.layers_,
        "--pool": extractor.pools_,
        "--image-size": list(extractor.image_shape_),
        "--crop-pct": extractor.backbone_.crop_pct,
        "--crop-mode": extractor.backbone_.crop_mode,
        "--batch-size": arguments.batch_size,
        "--engine": extractor.engine,
        "the device": str(extractor.module_.device),
        "the software": {},
        "the network": None,
        "the photos": photos_digest(photos),
    }
    with suppress(Undigestible):  # the probe has to tell then
        settings["the network"] = digest_of(extractor.module_)
    for name in (*SOFTWARE, *(["onnxruntime"] if extractor.engine == "onnxruntime" else [])):
        with suppress(PackageNotFoundError):
            settings["the software"][name] = version(name)
    changed = results.begin(settings, probe)
    if changed:
        say(
            "sklconv: starting over, because these changed since the last run: "
            + ", ".join(changed)
        )
    elif results.n_rows and not arguments.quiet:
        say(f"resuming after {results.n_rows:,} photos")


def _probe(extractor):
    """Return the features of two images of noise."""
    shape = (2, *extractor.image_shape_)
    return extractor.transform(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _compute(results, extractor, photos, arguments):
    n_photos, n_done = len(photos.paths), results.n_rows
    with progress("sklconv extract", n_photos, not arguments.quiet, n_done) as bar:
        # First the bad ones that an earlier run has found.
        for n_rows in chain([0], _compute_rest(extractor, photos, results)):
            if arguments.on_bad_image == "raise" and results.bad:
                row, reason = min(results.bad.items())
                raise CommandError(f"{photos.paths[row]} can't be read: {reason}")
            bar.update(n_rows)


def _compute_rest(extractor, photos, results):
    """Compute what ``results`` has not yet; yield the number of rows after each batch."""
    first = results.n_rows
    if first == len(photos.paths):
        return
    with closing(extractor.transform_batches(photos.paths[first:])) as batches:
        for rows in batches:
            # Files are read ahead: bad ones may be listed that belong to batches to come.
            here = range(results.n_rows, results.n_rows + len(rows))
            bad = {first + row: reason for row, _, reason in extractor.bad_images_}
            # No option of the command takes a reader.
            own = {row: bad[row].removesuffix(TAKE_A_READER) for row in here if row in bad}
            results.append(rows, own)
            yield len(rows)


def _write(results, extractor, photos, output):
    """Write the output and the list of bad photos; return what to say of them."""
    bad = [(photos.paths[row], reason) for row, reason in sorted(results.bad.items())]
    for path, reason in bad[:MAX_BAD_LISTED]:
        say(f"sklconv: not read: {path}: {reason}")
    if len(bad) > MAX_BAD_LISTED:
        say(f"sklconv: not read: {len(bad) - MAX_BAD_LISTED:,} more")
    if len(bad) == len(photos.paths):
        results.clear()
        raise CommandError("none of the photos could be read; nothing was written")
    names = [str(name) for name in extractor.get_feature_names_out()]
    good_classes = [name for row, name in enumerate(photos.classes) if row not in results.bad]
    write_output(output, results, photos, names)
    bad_list = write_bad_list(output, bad)
    results.clear()
    sizes = (photos.paths, "photo"), (names, "feature"), (photos.class_names, "class")
    listed = f"{count(bad, 'photo')}, listed in {bad_list}; their rows are NaN"
    return (
        f"{output}: {', '.join(count(*size) for size in sizes)}\n"
        f"not read: {listed if bad else 'none, all photos are good'}\n"
        f"next, in Python:\n\n{next_step(output, good_classes, bool(bad))}"
    )
