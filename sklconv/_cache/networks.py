"""Trained networks: an equal fit takes what an earlier one has left."""

import sys
from contextlib import suppress
from numbers import Integral
from operator import attrgetter

import numpy as np
from torch import nn

from .._images.files import FileOptions, ImageFiles, item_digest
from .._images.forms import check_images, holds_files
from .._images.sources import ImageArray
from .._platform.devices import resolve_device
from .._platform.digests import CODE, Undigestible, digest_of, digest_once
from .._pretrained.backbones import Backbone
from .._progress import print_line
from .folder import circumstances, say

# What a fit shows, and what computes the fitted network.
NOT_OF_TRAINING = ("verbose", "engine")


class KeptFit:
    """A fit of a classifier, or what an equal one has left in a folder.

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

    Attributes
    ----------
    name : str or None
        Under which the network is kept; None: it is not.
    """

    def __init__(self, folder, classifier, fit, is_watched, X, y, sample_weight, X_val, y_val):
        self.folder, self.classifier, self.name, self._fit = folder, classifier, None, fit
        if folder is not None:
            images, targets = (X, X_val), (y, sample_weight, y_val)
            try:
                self.name = _name_of_network(classifier, is_watched, images, targets)
            except Undigestible as error:
                say(f"this training is not kept: {error}")

    def fit(self):
        """Return the classifier fitted, or an equal one that was kept."""
        if self.name is None:
            return self._fit()
        kept = self.recall()
        if kept is None:
            with self.folder.alone(self.name):
                kept = self.recall()  # of who has had the lock before
                if kept is None:
                    self.folder.keep(self.name, self._fit())
                    return self.classifier
        return kept.get()

    def recall(self):
        """Return the `KeptNetwork` of an equal fit, or None."""
        content = None if self.name is None else self.folder.read(self.name)
        if content is None:
            return None
        kept = KeptNetwork(self.folder, self.name, content, self.classifier)
        # Once in each process it is known at once, not later, whether it can be unpickled.
        path = self.folder.path / self.name
        if path not in _unpickled and kept.get() is None:
            return None
        _unpickled.add(path)
        if self.classifier.verbose:
            print_line(f"{type(self.classifier).__name__}: an equal fit is taken from {path}")
        return kept


class KeptNetwork:
    """A fitted classifier that is unpickled when it is first asked for.

    Attributes
    ----------
    unfitted : ConvNetClassifier
        With the same parameters.
    digest : str
        As `digest_of_network` returns it; where `KeptNotes` had it.
    """

    digest: str

    def __init__(self, folder, name, content, unfitted):
        self.unfitted, self.precision = unfitted, unfitted.precision
        self._folder, self._name, self._content = folder, name, content
        self._fitted = None

    def get(self):
        """Return the classifier, or None if it can't be unpickled."""
        content = self._content  # before the question, for another thread may be about to drop it
        if self._fitted is None:
            fitted = self._folder.unpickled(self._name, content)
            if fitted is not None:
                self._fitted = fitted.set_params(**self.unfitted.get_params(deep=False))
                self._content = None  # else the weights would be in memory twice
        return self._fitted


class KeptNotes:
    """What is known of a trained network, so that an equal fit need not so much as unpickle it.

    Parameters
    ----------
    training : KeptFit
        Nothing is noted of one that prints, or is not kept itself.
    parameters : dict or None
        What else the notes depend on; None: they are not kept.
    """

    def __init__(self, training, parameters):
        self.training, self.name = training, None
        if None not in (training.name, parameters) and not training.classifier.verbose:
            with suppress(Undigestible):
                self.name = f"notes/{digest_of((training.name, parameters))}"

    def recall(self):
        """Return the `KeptNetwork` of an equal fit and its notes, or None."""
        kept = None if self.name is None else self.training.folder.load(self.name)
        if kept is None or (network := self.training.recall()) is None:
            return None
        network.digest, notes = kept
        return network, notes

    def keep(self, notes, network):
        """Keep ``notes``, which can be pickled, of an `ImageNetwork`."""
        if self.name is not None:
            with suppress(Undigestible):
                self.training.folder.keep(self.name, (digest_of_network(network), notes))


def digest_of_network(network):
    """Return a digest of what decides on features: weights and code, and where it computes.

    Raises
    ------
    Undigestible
    """
    if isinstance(network, KeptNetwork):
        return network.digest
    return digest_of((network.prepare, digest_once(network.body), str(network.device)))


# Files of networks that this process has unpickled.
_unpickled: set = set()


def _name_of_network(classifier, is_watched, images, targets):
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
    code: list = []
    key = digest_of((type(classifier), parameters, data, labels, circumstances()), code)
    _define_in_main(code)
    _check_found_by_name(code)
    return f"networks/{key}"


def _define_in_main(code):
    """Have a script's classes and functions be found by name where joblib has sent them.

    Its workers get them by value, but pickles of networks name them.
    """
    script = sys.modules["__main__"]
    for thing in code:
        name = thing.__qualname__
        of_script = thing.__module__ == "__main__" and name.isidentifier()
        if of_script and getattr(script, name, None) is _defined_in_main.get(name):
            _defined_in_main[name] = thing
            setattr(script, name, thing)


# What `_define_in_main` has defined there, by its name.
_defined_in_main: dict = {}


def _check_found_by_name(code):
    """Raise if a pickle would name something else: in notebooks, classes are written anew."""
    for thing in code:
        try:
            found = attrgetter(thing.__qualname__)(sys.modules[thing.__module__])
        except (AttributeError, KeyError):  # where it matters, it can't be pickled
            continue
        if isinstance(found, CODE) and not any(found is other for other in code):
            raise Undigestible(f"the name of {thing.__qualname__} stands for another one now")


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
    return names, str(X.shape), ImageArray(X).digest()


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
