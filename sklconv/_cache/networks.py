"""Trained networks: an equal fit takes what an earlier one has left."""

from numbers import Integral

import numpy as np
import torch

from .._images.files import as_file_list, is_image_files, item_digest
from .._images.sources import ImageArray
from .._platform.devices import resolve_device
from .._platform.digests import Undigestible, digest_of
from .folder import circumstances, say

# What a fit shows, and what computes the fitted network.
NOT_OF_TRAINING = ("verbose", "engine")


def fit_once(folder, classifier, X, y, sample_weight, X_val, y_val):
    """Return ``classifier`` fitted, or an equal one that was kept.

    Parameters
    ----------
    folder : Folder or None
    classifier : ConvNetClassifier
    X, y, sample_weight, X_val, y_val
        As its ``fit`` takes them.
    """

    def fit():
        return classifier.fit(X, y, sample_weight, X_val=X_val, y_val=y_val)

    if folder is None:
        return fit()
    try:
        name = _name(classifier, (X, X_val), (y, sample_weight, y_val))
    except Undigestible as error:
        say(f"this training is not kept: {error}")
        return fit()
    with folder.alone(name):
        kept = folder.load(name)
        if kept is None:
            folder.keep(name, fit())
            return classifier
    if classifier.verbose:
        print(f"{type(classifier).__name__}: an equal fit is taken from {folder.path / name}")
    own = {parameter: getattr(classifier, parameter) for parameter in NOT_OF_TRAINING}
    return kept.set_params(**own)


def _name(classifier, images, targets):
    parameters = classifier.get_params(deep=False)
    for parameter in NOT_OF_TRAINING:
        del parameters[parameter]
    if parameters["callbacks"]:
        raise Undigestible("its callbacks may do anything else")
    if not isinstance(parameters["random_state"], (Integral, type(None))):
        raise Undigestible("its random_state is a generator, which each fit changes")
    parameters["device"] = str(resolve_device(classifier.device))
    data = [None if X is None else _digest_of_images(X) for X in images]
    labels = [None if target is None else _plain(target) for target in targets]
    # Of our own class the package's version tells enough; that of its code takes long.
    kind = None if type(classifier).__module__ == "sklconv" else type(classifier)
    key = digest_of((kind, parameters, data, labels, circumstances()))
    return f"networks/{key}"


def _digest_of_images(X):
    names = list(getattr(X, "columns", ()))
    if is_image_files(X):
        return [item_digest(item) for item in as_file_list(X)]
    X = X.detach().cpu() if isinstance(X, torch.Tensor) else X
    array = np.asarray(X)
    if array.dtype.hasobject or array.ndim < 2:
        raise Undigestible("X is no array of numbers")
    return names, str(array.shape), b"".join(ImageArray(array).digests())


def _plain(target):
    """Return labels or weights as something of which a digest is soon made."""
    target = np.asarray(target)
    return target.tolist() if target.dtype.hasobject else target
