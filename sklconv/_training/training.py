"""From a classifier's parameters and data to its trained net."""

import copy
import sys

import numpy as np
import torch
from tqdm import tqdm

from .._activations.taps import Tap, penultimate_tap, run_taps
from .._images.batches import ImageSet
from .._images.sources import on_device
from .._images.statistics import channel_statistics
from .._networks.building import (
    build_network,
    check_layers,
    frozen_layers,
    seeded_draws,
    trace_network,
)
from .._networks.inference import collect_outputs
from .._networks.table import (
    EPOCH_HEADER,
    as_table,
    format_epoch,
    format_layers,
    layer_rows,
    stage_rows,
)
from .._platform.devices import check_precision, resolve_device, without_autocast
from .._platform.randomness import draw_seed, generator
from .._pretrained.backbones import Backbone
from .._pretrained.heads import sole_head
from .net import ProgressBar, Training, learning_rates, make_net
from .optimizers import SCHEDULES, auto_batch_size


def train_classifier(classifier, train, valid, epochs, *, old=None, partial=False):
    """Train a new net, or go on from the ``old`` one, and set the fitted attributes."""
    device = resolve_device(classifier.device)
    check_precision(classifier.precision, device)
    # Whatever modes of torch the caller is in.
    with torch.inference_mode(False), without_autocast(device):
        _train(classifier, train, valid, epochs, old, partial, device)


def _train(classifier, train, valid, epochs, old, partial, device):
    n_before = 0 if old is None else len(old.history)
    seed = draw_seed(classifier.random_state)
    seeds = np.random.SeedSequence([seed, n_before]).generate_state(4)
    before = old.snapshot() if partial and old is not None else None
    training = None
    try:
        if before is not None:
            net = old
            net.set_rates(_rates(classifier, net.module_))
        else:
            net = _make_net(classifier, train, old, seeds[0], device)
        trace = _set_up(classifier, net.module_)
        penultimate = penultimate_tap(trace, net.module_)
        rows = layer_rows(net.module_.body, *trace, penultimate=penultimate)
        report = None
        if classifier.verbose:
            report = _announce(classifier, net.module_, rows, trace.calls, penultimate)
        part = _trained_part(classifier, net.module_, *trace)
        order = generator(seeds[1])
        training = _training(
            classifier, net, part, train, valid, epochs, order, device, report, partial
        )
        with seeded_draws(net.module_, seeds[2], users_code=classifier.augment is not None):
            net.train(training)
    except BaseException as error:
        kept = isinstance(error, KeyboardInterrupt) and training and training.n_batches
        if before is not None and not kept:
            old.rollback(before)
        raise
    finally:
        if training and training.n_batches:
            classifier.net_, classifier.n_iter_ = net, training.n_epochs
            classifier.layer_table_ = as_table(rows)


def _set_up(classifier, network):
    """Freeze what ``classifier`` says, set its precision; return the `Trace` of a pass."""
    network.freeze(frozen_layers(network, classifier.freeze))
    if classifier.freeze is not None and not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"freeze={classifier.freeze!r} leaves nothing to train")
    network.precision = classifier.precision
    return trace_network(network, classifier.image_shape_, len(classifier.classes_))


def _trained_part(classifier, network, calls, output):
    """Return the head, if what goes into it is the same from epoch to epoch; None: train all."""
    if classifier.freeze != "backbone" or classifier.augment is not None:
        return None
    return sole_head(network, calls, output)


def _training(classifier, net, part, train, valid, epochs, order, device, report, partial):
    if part is not None:
        train = _before_head(classifier, net.module_, train)
        valid = None if valid is None else _before_head(classifier, net.module_, valid)
    stops = classifier.early_stopping and not partial
    return Training(
        train=_image_set(train, device),
        valid=None if valid is None else _image_set(valid, device),
        part=part,
        epochs=epochs,
        batch_size=_batch_size(classifier, len(train[0])),
        order=order,
        schedule=None if partial else _schedule(classifier),
        augment=classifier.augment,
        patience=classifier.n_iter_no_change if stops else None,
        tol=classifier.tol,
        report=report,
    )


def _before_head(classifier, network, data):
    """Return ``data`` with what goes into the head of ``network`` in the images' place."""
    images, *others = data
    tap = Tap("head", network.head[0], 1, of_input=True)
    features = collect_outputs(
        network,
        images,
        lambda x: run_taps(network, [tap], tap, x, classifier.precision)[0],
        type(classifier).__name__,
    )
    return features, *others


def _make_net(classifier, train, old, seed, device):
    if old is None:
        network = _build_network(classifier, train[0], seed)
    else:
        network = copy.deepcopy(old.module_)
    net = make_net(
        network,
        n_classes=len(classifier.classes_),
        optimizer=classifier.optimizer,
        optimizer_params=classifier.optimizer_params,
        rates=_rates(classifier, network),
        weight_decay=classifier.weight_decay,
        batch_size=_batch_size(classifier, len(train[0])),
        callbacks=[*(classifier.callbacks or []), *_progress_bars(classifier.verbose)],
        net_params=classifier.net_params,
        device=device,
        verbose=int(classifier.verbose > 0),
    )
    if old is not None:
        net.history = copy.deepcopy(old.history)
    return net


def _rates(classifier, network):
    backbone_lr = classifier.lr * classifier.backbone_lr_scale
    return learning_rates(network, classifier.lr, backbone_lr, classifier.net_params)


def _progress_bars(verbose):
    """Return a bar over the batches in a list, or none where it could not redraw itself."""
    bar = ProgressBar()
    return [bar] if verbose > 1 and (sys.stderr.isatty() or bar.in_ipynb()) else []


def _build_network(classifier, images, seed):
    standardize = classifier.standardize
    if standardize == "auto":
        standardize = not isinstance(classifier.module, (torch.nn.Module, Backbone))
    if isinstance(classifier.module, list):
        check_layers(classifier.module)
        classifier._validate_names([name for name, _ in classifier._named_layers()])
    network = build_network(
        classifier.module,
        classifier.image_shape_,
        len(classifier.classes_),
        statistics=channel_statistics(images) if standardize else None,
        seed=seed,
    )
    if classifier._format.is_final:
        network.prepare.leave_size()
    return network


def _batch_size(classifier, n):
    return auto_batch_size(n) if classifier.batch_size == "auto" else classifier.batch_size


def _schedule(classifier):
    if classifier.lr_schedule == "auto":
        return None if classifier.early_stopping else SCHEDULES["onecycle"]
    return SCHEDULES.get(classifier.lr_schedule)


def _announce(classifier, network, rows, calls, penultimate):
    """Print the layer table; return what prints an epoch's row."""
    stages = stage_rows(rows, network.body, calls)
    print(format_layers(stages, classifier.image_shape_, "learnable parameters", penultimate))
    if len(stages) < len(rows):
        print(f"{len(rows)} layers, shown by stage; layer_table_ has them all")
    print(EPOCH_HEADER)
    return _print_epoch


def _print_epoch(row):
    # A progress bar on the terminal gives way: the row would be glued to it.
    with tqdm.external_write_mode(nolock=True):
        print(format_epoch(row))


def _image_set(part, device):
    images, targets, weights = part
    if weights is not None and not weights.any():
        raise ValueError("all weights of the images held out for early_stopping are zero")
    if weights is not None:
        weights = torch.as_tensor(weights / weights.mean(), dtype=torch.float32, device=device)
    images = on_device(images, device)
    return ImageSet(images, torch.as_tensor(targets, device=device), weights)
