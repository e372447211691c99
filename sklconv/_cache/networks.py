"""Trained networks: an equal fit takes what an earlier one has left."""

from numbers import Integral

import numpy as np
from torch import nn

from .._images.files import FileOptions, ImageFiles, item_digest
from .._images.forms import check_images, holds_files
from .._images.sources import ImageArray
from .._platform.devices import resolve_device
from .._platform.digests import Undigestible, digest_of
from .._pretrained.backbones import Backbone
from .._progress import print_line
from .folder import circumstances, say

# What a fit shows, and what computes the fitted network.
NOT_OF_TRAINING = ("verbose", "engine")


def fit_once(folder, classifier, fit, is_watched, X, y, sample_weight, X_val, y_val):
    """Return ``classifier`` fitted, or an equal one that was kept.

    Parameters
    ----------
    folder : Folder or None
    classifier : ConvNetClassifier
    fit : callable
        Fits ``classifier`` and returns it.
    is_watched : bool
        Whether scikit-learn's callbacks take part, which may do anything.
    X, y, sample_weight, X_val, y_val
        What it is fitted on.
    """
    if folder is None:
        return fit()
    try:
        name = _name(classifier, is_watched, (X, X_val), (y, sample_weight, y_val))
    except Undigestible as error:
        say(f"this training is not kept: {error}")
        return fit()
    with folder.alone(name):
        kept = folder.load(name)
        if kept is None:
            folder.keep(name, fit())
            return classifier
    if classifier.verbose:
        print_line(f"{type(classifier).__name__}: an equal fit is taken from {folder.path / name}")
    return kept.set_params(**classifier.get_params(deep=False))


def _name(classifier, is_watched, images, targets):
    parameters = classifier.get_params(deep=False)
    for parameter in NOT_OF_TRAINING:
        del parameters[parameter]
    if parameters["callbacks"] or is_watched:
        raise Undigestible("its callbacks may do anything else")
    if not isinstance(parameters["random_state"], (Integral, type(None))):
        raise Undigestible("its random_state is a generator, which each fit changes")
    parameters["device"] = str(resolve_device(classifier.device))
    module = classifier.module
    if isinstance(module, Backbone):
        parameters["weights"] = _digest_of_weights(module.weights)
        module = module.network
    if isinstance(module, nn.Module):
        parameters["learns"] = [parameter.requires_grad for parameter in module.parameters()]
    X, X_val = images
    data = [_digest_of_images(classifier, X, reset=True)]
    if X_val is not None:
        data.append(_digest_of_images(classifier, X_val, reset=False))
    labels = [None if target is None else _plain(target) for target in targets]
    # Of our own class the package's version tells enough; that of its code takes long.
    kind = None if type(classifier).__module__ == "sklconv" else type(classifier)
    key = digest_of((kind, parameters, data, labels, circumstances()))
    return f"networks/{key}"


def _digest_of_weights(weights):
    """Return a digest of a file of weights, which may be another one tomorrow."""
    if weights in ("pretrained", None):
        return weights
    try:
        return item_digest(weights)
    except Exception as error:  # a fit says what is wrong
        raise Undigestible(f"weights={weights!r} can't be read ({error})") from None


def _digest_of_images(classifier, X, *, reset):
    X = check_images(classifier, X, reset=reset)
    if holds_files(X):
        return _digest_of_files(X, classifier.reader)
    names = list(getattr(classifier, "feature_names_in_", ()))
    return names, str(X.shape), b"".join(ImageArray(X).digests())


def _digest_of_files(items, reader):
    files = ImageFiles(items, (1, 1, 1), FileOptions(reader))
    digests = files.digests()
    if None in digests:
        if reader is None:
            files[digests.index(None)]  # the error that a fit would raise
        raise Undigestible("of what only its reader can read there is no digest")
    return digests


def _plain(target):
    """Return labels or weights as something of which a digest is soon made."""
    try:
        target = np.asarray(target)
    except Exception as error:  # a fit says what is wrong
        raise Undigestible(f"labels or weights are no array ({error})") from None
    return target.tolist() if target.dtype.hasobject else target
