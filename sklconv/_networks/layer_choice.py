"""Layers by how well ridge regression on their features tells classes apart."""

import math

import numpy as np
from sklearn.preprocessing import StandardScaler

# The four best side by side were never behind the penultimate layer, and sometimes ahead of the
# best single one; three or six do as well, two less.
N_BEST = 4

# Of the rows that are looked at: features and what is computed of them stay below so many bytes,
# and the time, which grows with the cube of the rows, within seconds a layer.
MAX_BYTES, MAX_ROWS = 2**29, 2000

# Strengths of the ridge, where a row's features have a mean square of 1.
STRENGTHS = np.logspace(-3, 3, 13)

# R² of less difference is a draw.
DIGITS = 3


class LeaveOneOutRidge:
    """Ridge regression on standardised features, which knows how well it does on rows left out.

    Each row's targets are predicted by a regression on all other rows; in closed form [1]_, and
    on the kernel of the rows where there are more features. The strength of the ridge is that
    one of `STRENGTHS` which does best.

    Parameters
    ----------
    features : ndarray of shape (n_samples, n_features)
        Finite ones.
    targets : ndarray of shape (n_samples, n_targets)
    weights : ndarray of shape (n_samples,)
        Of the rows, in the regression and in the score.

    Attributes
    ----------
    score : float
        R², leave one out: 1 if every row is predicted exactly, about 0 if no better than by the
        mean.

    References
    ----------
    .. [1] R. M. Rifkin, R. A. Lippert (2007), "Notes on Regularized Least Squares", MIT
       CSAIL-TR-2007-025.
    """

    def __init__(self, features, targets, weights):
        n_samples, n_features = features.shape
        shares = weights / weights.sum()
        roots = np.sqrt(shares)[:, None]
        self._scaler = StandardScaler()
        rows = self._scaler.fit_transform(features, sample_weight=shares)
        rows *= (roots / np.sqrt(n_features)).astype(rows.dtype)
        self._mean = shares @ targets
        targets = roots * (targets - self._mean)
        vectors, values = _spectrum(rows)
        projections = vectors.T @ targets
        errors = []
        for strength in STRENGTHS:
            kept = values / (values + strength / n_samples)
            residuals = targets - vectors @ (kept[:, None] * projections)
            leverages = shares + vectors**2 @ kept
            errors.append(np.sum((residuals / (1 - leverages)[:, None]) ** 2))
        best = int(np.argmin(errors))
        self.score = float(1 - errors[best] / np.sum(targets**2))
        dual = vectors @ (projections / (values + STRENGTHS[best] / n_samples)[:, None])
        self._coefficients = rows.T @ dual.astype(rows.dtype) / math.sqrt(n_features)

    def predict(self, features):
        """Return the targets, (n_samples, n_targets), of other rows."""
        return self._mean + self._scaler.transform(features) @ self._coefficients


def leave_one_out_score(features, targets, weights):
    """Return the score of `LeaveOneOutRidge`; -inf if features are infinite or NaN."""
    if not np.isfinite(features).all():
        return -np.inf
    return LeaveOneOutRidge(features, targets, weights).score


def cross_validated_accuracies(features, classes, folds):
    """Return the accuracy of `LeaveOneOutRidge` as a classifier on each fold's test rows.

    Parameters
    ----------
    features : ndarray of shape (n_samples, n_features)
    classes : ndarray of int of shape (n_samples,)
    folds : list of (ndarray, ndarray)
        Rows to train on, and to test on.

    Returns
    -------
    list of float
        NaN if features are infinite or NaN.
    """
    if not np.isfinite(features).all():
        return [np.nan] * len(folds)
    targets, accuracies = np.eye(classes.max() + 1)[classes], []
    for train, test in folds:
        ridge = LeaveOneOutRidge(features[train], targets[train], np.ones(len(train)))
        accuracies.append(np.mean(ridge.predict(features[test]).argmax(1) == classes[test]))
    return accuracies


def _spectrum(rows):
    """Return eigenvectors and eigenvalues of ``rows @ rows.T``, of the latter those not zero."""
    if rows.shape[1] < len(rows):
        vectors, roots, _ = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
        return vectors, roots**2
    values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    return vectors, values.clip(0)


def sample_rows(classes, weights, candidates):
    """Return the rows that are looked at: all, or so many that memory and time stay bounded.

    Of each class as large a part, at random but always the same; none without weight.

    Parameters
    ----------
    classes : ndarray of int of shape (n_samples,)
    weights : ndarray of shape (n_samples,)
    candidates : TapSet
        Whose features the rows are to have.
    """
    rows = np.flatnonzero(weights)
    widest = max(layer.n_features for layer in candidates.tapped)
    n_bytes = 4 * candidates.n_features + 32 * widest  # a row: all features, copies of a layer's
    n_rows = max(2, min(MAX_ROWS, MAX_BYTES // n_bytes))
    if len(rows) <= n_rows:
        return rows
    rows = np.random.default_rng(0).permutation(rows)
    _, inverse, counts = np.unique(classes[rows], return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    places = np.empty(len(rows))  # of each row within its class, from 0 to below 1
    places[order] = np.concatenate([np.arange(n) / n for n in counts])
    return np.sort(rows[np.argsort(places, kind="stable")[:n_rows]])


def choose_layers(candidates, features, classes, weights, n_best):
    """Return the `TappedLayer`s with the best features, and what is known of all candidates.

    Parameters
    ----------
    candidates : TapSet
    features : ndarray of shape (n_samples, n_features)
        What it computes.
    classes : ndarray of int of shape (n_samples,)
    weights : ndarray of shape (n_samples,)
    n_best : int
        Number of layers, all different, and as many of them as there are.

    Returns
    -------
    best : list of TappedLayer
        In the order in which they run.
    rows : list of dict
        Layer, pool, score and number of features of each candidate, the best first.
    """
    if len(np.unique(classes)) < 2:
        raise ValueError("layer='auto': images of no more than one class could be read")
    targets = np.eye(classes.max() + 1)[classes]
    blocks = candidates.split(features)
    scores = [leave_one_out_score(block, targets, weights) for block in blocks]
    # Of equals the deeper one, which takes in more of the network.
    order = sorted(range(len(blocks)), key=lambda i: (round(scores[i], DIGITS), i), reverse=True)
    layers = _layers_of(candidates.taps, blocks)
    chosen: dict = {}
    for i in order:
        if len(chosen) < n_best and scores[i] > -np.inf:
            chosen.setdefault(layers[i], i)
    if not chosen:
        raise ValueError("layer='auto': the features of each layer are infinite or NaN somewhere")
    tapped = candidates.tapped
    rows = [
        {
            "layer": tapped[i].tap.name,
            "pool": tapped[i].pool,
            "score": scores[i],
            "features": tapped[i].n_features,
        }
        for i in order
    ]
    return [tapped[i] for i in sorted(chosen.values())], rows


def _layers_of(taps, blocks):
    """Return the layer of each block; one that hands on what an earlier one puts out is no other.

    Flattening and dropout do so, and pooling down to one pixel.
    """
    layers: dict = {}
    for i, tap in enumerate(taps):
        twin = next((j for j in range(i) if _same(blocks[j], blocks[i])), i)
        layers.setdefault(tap, layers.get(taps[twin], tap))
    return [layers[tap] for tap in taps]


def _same(one, other):
    few = slice(100)  # rows tell different layers apart
    return one.shape == other.shape and np.allclose(one[few], other[few])
