"""From a recipe and images to a trained net."""

import copy
import warnings

import numpy as np
import torch

from .._activations.taps import Tap, penultimate_tap
from .._images.batches import ImageSet
from .._images.sources import MAX_KEPT_BYTES, ImageArray, keep
from .._images.statistics import channel_statistics
from .._networks.building import build_network, frozen_layers, trace_network
from .._networks.inference import collect_outputs
from .._networks.table import (
    EPOCH_HEADER,
    format_epoch,
    format_layers,
    layer_rows,
    stage_rows,
    without_containers,
)
from .._platform.devices import without_autocast
from .._platform.randomness import generator
from .._pretrained.heads import sole_head
from .._progress import print_line, progress
from .net import Training, learning_rates, make_net
from .pieces import images_a_piece
from .state import EarlyStopping

CLASSIFIER = "ConvNetClassifier"  # on progress bars, and in errors


def train(
    recipe,
    data,
    valid,
    state,
    *,
    old=None,
    partial=False,
    start=None,
    tasks=None,
    after_epoch=None,
):
    """Train a new net, or go on from the ``old`` one.

    Parameters
    ----------
    recipe : Recipe
    data, valid : (images, targets, weights)
        ``valid`` and the weights may be None.
    state : TrainingState
        A new one, carried on as training goes, also where an interrupt ends it; other errors undo
        what became of ``old``.
    old : LeanNet or None, default=None
    partial : bool, default=False
        Whether the old net itself is trained, not a copy of it.
    start : dict or None, default=None
        What `TrainingState.state_dict` returned in training with the same arguments: it goes on
        from there, to the same weights.
    tasks : FitTasks or None, default=None
        Hears of each epoch, and may end the training.
    after_epoch : callable or None, default=None
        Called with ``state`` after each epoch but one that stops training.
    """
    # Whatever modes of torch the caller is in.
    with torch.inference_mode(False), without_autocast(recipe.device):
        _train(recipe, data, valid, state, old, partial, start, (tasks, after_epoch))


def _train(recipe, data, valid, state, old, partial, start, listeners):
    n_before = 0 if old is None else len(old.history)
    seeds = np.random.SeedSequence([recipe.seed, n_before]).generate_state(4)
    data, valid = (_read_once(recipe, part, old) for part in (data, valid))
    before = old.snapshot() if partial and old is not None else None
    try:
        if before is not None:
            net = old
            net.set_rates(_rates(recipe, net.module_, data))
        else:
            net = _make_net(recipe, data, old, seeds[0])
        trace = _set_up(recipe, net.module_)
        if old is None and isinstance(net.criterion_, torch.nn.CrossEntropyLoss):
            _warn_of_probabilities(trace.output)
        penultimate = penultimate_tap(trace, net.module_)
        state.layer_rows = layer_rows(net.module_.body, *trace, penultimate=penultimate)
        report = None
        if recipe.verbose:
            report = _announce(recipe, net.module_, state.layer_rows, penultimate)
        part = _trained_part(recipe, net.module_, *trace)
        training = _training(recipe, net, part, data, valid, (report, *listeners))
        training.piece = images_a_piece(net.module_, net.criterion_, trace.calls)
        state.net, state.order = net, generator(seeds[1])
        if recipe.patience is not None:
            state.stopping = EarlyStopping(recipe.patience, recipe.tol)
        with net.module_.seeded(seeds[2], users_code=recipe.augment is not None) as state.masks:
            if start is not None:
                state.load_state_dict(start)
            n, done = (epochs * training.n_images for epochs in (recipe.epochs, state.n_epochs))
            with progress(CLASSIFIER, n, recipe.verbose, done) as training.bar:
                net.train(training, state)
    except BaseException as error:
        kept = isinstance(error, KeyboardInterrupt) and state.n_batches
        if before is not None and not kept:
            old.rollback(before)
        raise


def _read_once(recipe, data, old):
    """Return ``data`` so that no image file is decoded twice, if its images fit in memory."""
    n_passes = recipe.epochs + (recipe.standardize and old is None)
    if data is None or n_passes == 1 or _computes_once(recipe):
        return data
    images, *others = data
    kept = keep(images)
    if kept.lazy and kept is images and recipe.epochs > 1:
        warnings.warn(
            f"each of {recipe.epochs} epochs decodes {len(images):,} files anew: their pixels "
            f"take more than the {MAX_KEPT_BYTES / 2**30:.3g} GiB that fit keeps in memory. "
            'sklconv.datasets.load_images(..., out="X.npy") decodes them once, into a file that '
            "fit reads as an array",
            UserWarning,
            stacklevel=1,  # one place, so that Python shows it once
        )
    return kept, *others


def _computes_once(recipe):
    """Whether all but the head is the same from epoch to epoch."""
    return recipe.freeze == "backbone" and recipe.augment is None


def _set_up(recipe, network):
    """Freeze what ``recipe`` says, set its precision; return the `Trace` of a pass."""
    network.freeze(frozen_layers(network, recipe.freeze))
    if recipe.freeze is not None and not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"freeze={recipe.freeze!r} leaves nothing to train")
    network.precision = recipe.precision
    return trace_network(network, recipe.image_shape, recipe.n_classes)


def _warn_of_probabilities(output):
    """Warn if ``output``, of blank images, has rows that are no logits but sum to 1."""
    sums = output.sum(1)
    if bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), 0, 1e-4):
        warnings.warn(
            "module puts out probabilities, and a cross-entropy expects logits: it trains badly, "
            "and predict_proba is wrong. Leave the softmax out",
            UserWarning,
            stacklevel=1,  # one place, so that Python shows it once
        )


def _trained_part(recipe, network, calls, output):
    """Return the head, if what goes into it is the same from epoch to epoch; None: train all."""
    return sole_head(network, calls, output) if _computes_once(recipe) else None


def _training(recipe, net, part, data, valid, listeners):
    if part is not None:
        data = _before_head(recipe, net.module_, data)
        valid = None if valid is None else _before_head(recipe, net.module_, valid)
    report, tasks, after_epoch = listeners
    return Training(
        train=_image_set(data, recipe.device),
        valid=None if valid is None else _image_set(valid, recipe.device),
        part=part,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size_of(len(data[0])),
        schedule=recipe.schedule,
        augment=recipe.augment,
        report=report,
        tasks=tasks,
        after_epoch=after_epoch,
    )


def _before_head(recipe, network, data):
    """Return ``data`` with what goes into the head of ``network`` in the images' place."""
    images, *others = data
    tap = Tap("head", network.head[0], 1, of_input=True)
    features = collect_outputs(
        network,
        images,
        lambda x: network.activations([tap], tap, x, recipe.precision)[0],
        CLASSIFIER,
        verbose=recipe.verbose,
    )
    return ImageArray(features), *others


def _make_net(recipe, data, old, seed):
    network = _build_network(recipe, data[0], seed) if old is None else copy.deepcopy(old.module_)
    net = make_net(
        network,
        n_classes=recipe.n_classes,
        optimizer=recipe.optimizer,
        optimizer_params=recipe.optimizer_params,
        rates=_rates(recipe, network, data),
        weight_decay=recipe.weight_decay,
        batch_size=recipe.batch_size_of(len(data[0])),
        callbacks=recipe.callbacks,
        net_params=recipe.net_params,
        device=recipe.device,
        verbose=int(recipe.verbose > 0),
    )
    if old is not None:
        net.history = copy.deepcopy(old.history)
    return net


def _rates(recipe, network, data):
    lr = recipe.lr_of(len(data[0]))
    return learning_rates(network, lr, lr * recipe.backbone_lr_scale, recipe.net_params)


def _build_network(recipe, images, seed):
    network = build_network(
        recipe.module,
        recipe.image_shape,
        recipe.n_classes,
        statistics=channel_statistics(images) if recipe.standardize else None,
        seed=seed,
    )
    if recipe.is_final:
        network.prepare.leave_size()
    return network


def _announce(recipe, network, rows, penultimate):
    """Print the layer table; return what prints an epoch's row."""
    stages, n_layers = stage_rows(rows, network.body), len(without_containers(rows))
    lines = [format_layers(stages, recipe.image_shape, "learnable parameters", penultimate)]
    if len(stages) < n_layers:
        lines.append(f"{n_layers} layers, shown by stage; layer_table_ has them all")
    print_line("\n".join([*lines, EPOCH_HEADER]))
    return lambda row: print_line(format_epoch(row))


def _image_set(part, device):
    images, targets, weights = part
    if weights is not None and not weights.any():
        raise ValueError("all weights of the images held out for early_stopping are zero")
    if weights is not None:
        weights = torch.as_tensor(weights / weights.mean(), dtype=torch.float32, device=device)
    images = images.on_device(device)
    return ImageSet(images, torch.as_tensor(targets, device=device), weights)
