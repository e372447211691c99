"""The network within what a Display is given, and the steps in front of it and behind."""

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted, column_or_1d

from .._activations.tap_set import place_taps
from .._activations.taps import penultimate_tap
from .._estimators.classifier import ConvNetClassifier
from .._estimators.feature_extractor import ConvFeatureExtractor
from .._images.files import ImageFiles, is_image_files, is_pil_image
from .._images.forms import check_images, computed
from .._networks.building import blank_images, trace_network
from .._networks.inference import collect_outputs, read_images


@dataclass(frozen=True)
class FoundNetwork:
    """A fitted model taken apart.

    Attributes
    ----------
    model : estimator
        The whole, which predicts; of a search its best estimator.
    estimator : ConvNetClassifier or ConvFeatureExtractor
        The one with the network.
    before, behind : tuple of estimators
        The fitted steps in front of it, and those that take its features.
    """

    model: Any
    estimator: Any
    before: tuple = ()
    behind: tuple = ()

    @property
    def network(self):
        """The `ImageNetwork`."""
        return self.estimator.module_

    @property
    def precision(self):
        """In which the estimator computes."""
        return self.estimator._precision() if self.is_extractor else self.network.precision

    @property
    def is_extractor(self):
        return isinstance(self.estimator, ConvFeatureExtractor)

    def seen(self, X):
        """Return ``X`` as it comes to the network's estimator, behind the steps in front."""
        for step in self.before:
            X = step.transform(X)
        return X

    def images(self, X):
        """Return what the network sees of ``X`` as an `ImageSource` of shape (n, C, H, W)."""
        images = read_images(self.estimator, self.seen(X))
        if isinstance(images, ImageFiles):  # a bad one would be looked at as if it were black
            images.options = replace(images.options, on_bad_image="raise")
        return images

    def pictures(self, X):
        """Return ``X`` as an `ImageSource` to draw.

        As it was before the steps in front, which may have standardized each pixel; unless that
        are no images of the network's shape.
        """
        if self.before:
            try:
                # Of another estimator than ours, which may know other columns.
                plain = check_images(BaseEstimator(), X, reset=True)
                return self.estimator._format.read(plain, type(self.estimator).__name__)
            except (TypeError, ValueError):
                pass
        return self.images(X)

    def batch(self, X):
        """Return ``X`` with a batch axis: it may be one image without."""
        if isinstance(X, (str, bytes, PathLike)) or is_pil_image(X):
            return [X]
        is_row = hasattr(X, "to_frame")  # of a DataFrame
        if is_image_files(X) or not (is_row or self._obstacle(X)):
            return X
        X = _with_batch_axis(X)
        if error := self._obstacle(X):
            raise ValueError(
                f"X of shape {np.shape(X)[1:]} holds no images of shape "
                f"{self.estimator.image_shape_} as predict takes them: {error}"
            ) from error
        return X

    def one_image(self, X):
        """Return ``X``, one image with or without its batch axis, with it; raise for several."""
        X = self.batch(X)
        if len(X) != 1:
            raise ValueError(f"one image is shown, but X holds {len(X)}: pass one of them, X[:1]")
        return X

    def labelled(self, X, y, compared=False):
        """Return ``X`` with a batch axis, and ``y`` as an array of a label an image or None.

        Labels that are ``compared`` with predictions must not be strings where those are numbers.
        """
        X = self.batch(X)
        if y is None:
            return X, None
        y = column_or_1d(np.atleast_1d(np.asarray(y)), warn=True)
        if len(y) != len(X):
            raise ValueError(f"X holds {len(X)} images, but y {len(y)} labels")
        if compared and isinstance(y[0], str) != isinstance(self.classes[0], str):
            raise ValueError(
                f"y holds labels like {y.tolist()[0]!r}, but the model predicts labels like "
                f"{self.classes.tolist()[0]!r}"
            )
        return X, y

    def _obstacle(self, X):
        """Return the error that the first of ``X`` can't be read with, or None."""
        try:
            self.images(X[:1])
        # Also of users' steps.
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            return error
        return None

    def trace(self):
        """Return the `Trace` of a pass of blank images."""
        return trace_network(self.network, self.estimator.image_shape_)

    def taps(self, layer=None, pool="auto", trace=None):
        """Return the `TapSet` of ``layer``, as `ConvFeatureExtractor` takes it.

        None: that of the extractor; of a classifier the penultimate layer.
        """
        if layer is None and self.is_extractor:
            return self.estimator._taps
        trace, network = trace or self.trace(), self.network
        images = blank_images(network, self.estimator.image_shape_)
        layer = "penultimate" if layer is None else layer
        return place_taps(layer, pool, network, trace, images, penultimate_tap(trace, network))

    def features(self, images, taps, name=None, verbose=0):
        """Return the features of ``images``, an `ImageSource`, from one pass in batches.

        Errors and the progress bar name ``name``, or else the estimator.

        Returns
        -------
        ndarray of shape (n_samples, taps.n_features)
        """
        size = self.estimator.batch_size if self.is_extractor else None
        return collect_outputs(
            self.network,
            images,
            lambda x: taps.compute(self.network, x, self.precision),
            name or type(self.estimator).__name__,
            size,
            verbose,
        )

    def predict(self, X):
        """Return predicted labels and probabilities (None: the head has none), from one pass.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
        probabilities : ndarray of shape (n_samples, n_classes) or None
            Columns as ``classes``.
        """
        features, head = self.seen(X), self.head()
        if head is self.estimator:
            probabilities = computed(head.predict_proba(features))
            return head.classes_[probabilities.argmax(1)], probabilities
        for step in (self.estimator, *self.behind[:-1]):
            features = computed(step.transform(features))  # once, of what dask has yet to compute
        probabilities = head.predict_proba(features) if hasattr(head, "predict_proba") else None
        return head.predict(features), probabilities

    @property
    def classes(self):
        """The class labels; raise if the classifier has several outputs."""
        head = self.head()
        if isinstance(head.classes_, list):
            raise TypeError(
                f"{type(head).__name__} predicts several outputs; one class is looked at"
            )
        return head.classes_

    def head(self):
        """Return the classifier at the end; raise if there is none."""
        last = (self.estimator, *self.behind)[-1]
        if not hasattr(last, "classes_"):
            raise TypeError(
                f"{type(last).__name__} at the end predicts no classes: pass a ConvNetClassifier, "
                "or a fitted Pipeline of a ConvFeatureExtractor and a classifier"
            )
        return last


def find_network(estimator):
    """Return the `FoundNetwork` of a fitted model.

    Parameters
    ----------
    estimator : ConvNetClassifier, ConvFeatureExtractor, Pipeline, FrozenEstimator or search
        The latter with one of the former inside, at any depth.
    """
    found = _find(estimator)
    if found is None:
        raise TypeError(
            f"{type(estimator).__name__} holds no network that can be looked at: pass a fitted "
            "ConvNetClassifier or ConvFeatureExtractor, or a Pipeline, FrozenEstimator or search "
            "(GridSearchCV, …) with one of these inside"
        )
    check_is_fitted(
        found.estimator, msg="this %(name)s is not fitted: call fit first, then look at it"
    )
    return found


def _find(estimator):
    if isinstance(estimator, (ConvNetClassifier, ConvFeatureExtractor)):
        return FoundNetwork(estimator, estimator)
    if isinstance(estimator, FrozenEstimator):
        return _find(estimator.estimator)
    if isinstance(estimator, Pipeline):
        return _find_in_steps(estimator)
    if hasattr(estimator, "refit"):  # a search, also of other libraries
        return _find(_best(estimator))
    return None


def _find_in_steps(pipeline):
    steps = [step for _, step in pipeline.steps if step not in (None, "passthrough")]
    for position, step in enumerate(steps):
        if inner := _find(step):
            before = (*steps[:position], *inner.before)
            behind = (*inner.behind, *steps[position + 1 :])
            return FoundNetwork(pipeline, inner.estimator, before, behind)
    return None


def _best(search):
    if hasattr(search, "best_estimator_"):
        return search.best_estimator_
    name = type(search).__name__
    if not search.refit:
        raise ValueError(
            f"{name} with refit=False keeps no fitted model to look at: set refit=True, or fit "
            "its estimator with best_params_"
        )
    raise NotFittedError(f"this {name} is not fitted: call fit first, then look at it")


def _with_batch_axis(X):
    if hasattr(X, "to_frame"):  # whose columns stay known
        return X.to_frame().T
    return (X if isinstance(X, torch.Tensor) else np.asarray(X))[None]
