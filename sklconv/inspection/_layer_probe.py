"""layer_probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import Bunch

from .._activations.candidates import activation_key
from .._activations.pooling import POOLINGS
from .._activations.tap_set import both_ways, place_candidates, place_taps, tap_set
from .._activations.taps import NETWORK_OUTPUT, in_order, penultimate_tap
from .._estimators.targets import check_labels
from .._images import ImagesLike
from .._networks.building import blank_images
from .._networks.layer_choice import cross_validated_accuracies, sample_rows
from .._platform.sklearn import StrOptions, validate_parameter_constraints
from ._find_network import find_network


def layer_probe(
    estimator: Any,
    X: ImagesLike,
    y: ArrayLike,
    *,
    layer: str | int | Sequence[str | int] = "auto",
    pool: str | Callable[[Any], Any] | Sequence[str | Callable[[Any], Any]] = "auto",
    cv: Any = 5,
    verbose: int = 0,
) -> Bunch:
    """Cross-validated accuracy of a linear classifier on each layer of a fitted network.

    One pass over the images computes the features of all layers and poolings. The classifier is
    ridge regression on standardised features, in closed form [1]_; in each fold its strength is
    the one that does best on the fold's training rows, leave one out.

    Parameters
    ----------
    estimator : estimator
        A fitted `ConvNetClassifier` or `ConvFeatureExtractor`, or a Pipeline or search with one
        inside, whose steps in front of it are applied first. The network is not trained.
    X : array-like
        Images, in any of the forms that ``predict`` takes. Best those that the network was not
        trained on: on others, late layers look better than they are.
    y : array-like of shape (n_samples,)
        Labels.
    layer : str, int or list of these, default="auto"
        The layers, as `ConvFeatureExtractor` takes them. "auto": all stages and blocks, as there,
        and those that the estimator itself takes.
    pool : str, callable or list of these, default="auto"
        How their maps become vectors, as `ConvFeatureExtractor` takes it. "auto": the mean of
        each map and, of layers of at most 16,384 values, all values.
    cv : int, cross-validation generator or iterable, default=5
        The folds; an int means so many stratified ones.
    verbose : int, default=0
        1 or more: the pass over the images shows a progress bar on stderr, with the time left;
        see :ref:`progress`.

    Returns
    -------
    probe : Bunch
        With one entry a layer and pooling, in the order in which the layers run:

        layers : list of str
            The layers' names.
        pools : list of str or callable
            How each of them is pooled; "auto" for vectors, which stay as they are.
        n_features : ndarray of shape (n_candidates,)
            The number of features.
        accuracies : ndarray of shape (n_candidates, n_folds)
            The share of each fold's test rows that is classified rightly; NaN where features are
            infinite or NaN.
        accuracies_mean, accuracies_std : ndarray of shape (n_candidates,)
            Their mean and standard deviation.
        own : ndarray of bool of shape (n_candidates,)
            Whether an extractor takes these features; of a classifier, whether they are what
            goes into its last layer.
        n_samples : int
            The number of images that were looked at.

    Raises
    ------
    ValueError
        If y is None or continuous, or has one class, or a class with fewer members than there are
        stratified folds.

    See Also
    --------
    LayerProbeDisplay : The accuracies as a picture.
    sklconv.ConvFeatureExtractor : ``layer="auto"`` chooses layers in a pipeline.

    Notes
    -----
    Of many images, or large features, a part is looked at, as much of each class: at most 2,000
    images, and features of less than 512 MB. The part is drawn at random, but always the same.

    References
    ----------
    .. [1] R. M. Rifkin, R. A. Lippert (2007), "Notes on Regularized Least Squares", MIT
       CSAIL-TR-2007-025. Probes of layers: G. Alain, Y. Bengio (2016), "Understanding
       intermediate layers using linear classifier probes", arXiv:1610.01644.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklconv import ConvNetClassifier
    >>> from sklconv.inspection import layer_probe
    >>> X, y = load_digits(return_X_y=True)
    >>> net = ConvNetClassifier(max_epochs=1, random_state=0).fit(X[:1000], y[:1000])
    >>> probe = layer_probe(net, X[1000:], y[1000:], cv=3)
    >>> list(zip(probe.layers, probe.pools))[:3]
    [('conv1', 'flatten'), ('conv1', 'avg'), ('pool1', 'flatten')]
    >>> probe.accuracies.shape
    (10, 3)
    >>> bool(probe.accuracies_mean.max() > 0.8)
    True
    """
    found = find_network(estimator)
    if y is None:
        raise ValueError("layer_probe asks how well each layer tells the classes apart: pass y")
    images = found.images(X)
    y = check_labels(y, images, "y")
    labels, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(labels) < 2:
        raise ValueError(f"layer_probe needs two classes or more, not {labels.tolist()} alone")
    cv = _check_folds(cv, classes, labels, counts)
    candidates, own = _candidates(found, layer, pool)
    rows = sample_rows(classes, np.ones(len(classes)), candidates)
    folds = _folds(cv, classes, rows)
    features = found.features(images.take(rows), candidates, "layer_probe", verbose)
    blocks = candidates.split(features)
    accuracies = np.array(
        [cross_validated_accuracies(block, classes[rows], folds) for block in blocks]
    )
    if np.isnan(accuracies).all():
        raise ValueError("layer_probe: the features of each layer are infinite or NaN somewhere")
    return Bunch(
        layers=candidates.layers,
        pools=candidates.pools,
        n_features=np.array([layer.n_features for layer in candidates.tapped]),
        accuracies=accuracies,
        accuracies_mean=accuracies.mean(1),
        accuracies_std=accuracies.std(1),
        own=own,
        n_samples=len(rows),
    )


def _check_folds(cv, classes, labels, counts):
    cv = check_cv(cv, classes, classifier=True)
    if isinstance(cv, StratifiedKFold) and counts.min() < cv.n_splits:
        rarest = labels.tolist()[counts.argmin()]
        raise ValueError(
            f"cv: {cv.n_splits} folds need as many images of each class, but of {rarest!r} there "
            f"are {counts.min()}; take fewer folds"
        )
    return cv


def _folds(cv, classes, rows):
    """Return the folds of all images as places among the ``rows`` that are looked at."""
    place = np.full(len(classes), -1)
    place[rows] = np.arange(len(rows))
    folds = []
    for parts in cv.split(np.zeros(len(classes)), classes):
        train, test = (place[part][place[part] >= 0] for part in parts)
        if not len(test) or len(np.unique(classes[rows[train]])) < 2:
            raise ValueError(
                f"cv: of {len(rows)} images that are looked at, a fold trains on {len(train)}, of "
                f"{len(np.unique(classes[rows[train]]))} classes, and tests on {len(test)}; it "
                "needs two classes and a test image. More images are looked at if there are "
                "fewer features: name fewer layers, or pool='avg'"
            )
        folds.append((train, test))
    return folds


def _candidates(found, layer, pool):
    """Return the `TapSet` of what is probed, and which of it the estimator itself takes."""
    trace, network = found.trace(), found.network
    penultimate = penultimate_tap(trace, network)
    blank = blank_images(network, found.estimator.image_shape_)
    is_auto = isinstance(layer, str) and layer == "auto"
    ways: dict = {}
    for one in _check_pools(pool):
        placing = one, network, trace, blank, penultimate
        if is_auto:
            ways |= _by_way(place_candidates(*placing).tapped)
        else:
            tapped = place_taps(layer, *placing).tapped
            ways |= _by_way(chain(*map(both_ways, tapped)) if one == "auto" else tapped)
    own = {}
    if found.is_extractor or penultimate not in (None, NETWORK_OUTPUT):
        named = {activation_key(tap, trace.calls): tap for tap, _ in ways}
        own = _by_way(
            replace(layer, tap=named.get(activation_key(layer.tap, trace.calls), layer.tap))
            for layer in found.taps(trace=trace).tapped
        )
    if is_auto:
        ways |= own
    taps = in_order([tap for tap, _ in ways], trace.calls)
    ways = dict(sorted(ways.items(), key=lambda way: taps.index(way[0][0])))
    return tap_set(ways.values(), trace), np.array([way in own for way in ways])


def _check_pools(pool):
    pools = list(pool) if isinstance(pool, (list, tuple)) else [pool]
    for one in pools:
        constraints = {"pool": [StrOptions(POOLINGS), callable]}
        validate_parameter_constraints(constraints, {"pool": one}, "layer_probe")
    return pools


def _by_way(tapped):
    """Return `TappedLayer`s by tap and pooling, where "auto" stands for vectors only."""
    ways = {}
    for layer in tapped:
        is_vector = len(layer.reading.shape) == 1 and not callable(layer.pool)
        pool = "auto" if is_vector else "avg" if layer.pool == "auto" else layer.pool
        ways[layer.tap, pool] = replace(layer, pool=pool)
    return ways
