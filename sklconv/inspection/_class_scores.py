"""The score that a model gives to one class: of images, and how it follows from features."""

import copy
from itertools import combinations

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC

from .._images.forms import CHANNELS_LAST
from .._images.sources import CHUNK_BYTES, slices
from .._platform.words import did_you_mean

RESPONSES = ("predict_proba", "decision_function")

# Features beside each other in memory while their coefficients are found.
MAX_ROWS = 256


def choose_target(found, X, target):
    """Return the class ``target``, or the predicted one for None, and its column in scores."""
    classes = list(found.classes)
    target = found.predict(X)[0][0] if target is None else target
    if target not in classes:
        raise ValueError(f"target={target!r} is none of the classes: {found.classes.tolist()}")
    return target, classes.index(target)


def choose_responses(head, response_method):
    """Return the names of the methods that ``response_method`` means, the first of them first."""
    there = [method for method in RESPONSES if hasattr(head, method)]
    name = type(head).__name__
    if not there:
        raise TypeError(
            f"{name} has neither predict_proba nor decision_function; a classifier with one of "
            "them would do"
        )
    if response_method not in ("auto", *RESPONSES):
        raise ValueError(
            f"response_method={response_method!r} is none of 'auto', 'predict_proba' and "
            f"'decision_function'.{did_you_mean(str(response_method), ['auto', *RESPONSES])}"
        )
    if response_method != "auto" and response_method not in there:
        raise ValueError(f"{name} has no {response_method}; response_method={there[0]!r} would do")
    chosen = there if response_method == "auto" else [response_method]
    if chosen[0] == "decision_function" and _has_pairs(head):
        raise ValueError(
            "decision_function_shape='ovo' scores pairs of classes, none alone; 'ovr', which can "
            "be set on the fitted classifier, would do"
        )
    return chosen[:1] if _has_pairs(head) else chosen


def score_images(found, images, method, column):
    """Return the score of the class in ``column`` for each of ``images``, through all steps.

    Parameters
    ----------
    found : FoundNetwork
    images : ndarray of shape (n, C, H, W)
        As the network's estimator sees them.
    method : {"predict_proba", "decision_function"}
    column : int

    Returns
    -------
    ndarray of shape (n,)
    """
    rows = as_rows(images, found.estimator)
    if hasattr(found.estimator, "feature_names_in_"):
        rows = _named(rows.reshape(len(rows), -1), found.estimator)
    steps = (found.estimator, *found.behind)
    for step in steps[:-1]:
        rows = step.transform(rows)
    return _column(getattr(steps[-1], method)(rows), column)


def as_rows(images, estimator):
    """Return images (n, C, H, W) with their axes as the estimator was given them."""
    is_last = estimator._format.layout == CHANNELS_LAST
    return images.transpose(0, 2, 3, 1) if is_last else images


def linear_coefficients(steps, column, features):
    """Return the coefficients with which features enter a class's score, a linear function.

    Found as the differences that each feature makes, so whatever the steps are, and confirmed at
    ``features``, behind and beyond them.

    Parameters
    ----------
    steps : sequence of estimators
        The last one a classifier.
    column : int
        Of the class in its scores.
    features : ndarray of shape (n_features,)

    Returns
    -------
    ndarray of shape (n_features,), float64
    """
    steps = unwrapped(steps)
    head = steps[-1]
    if not hasattr(head, "decision_function"):
        raise _not_linear(steps)

    def score(rows):
        for step in steps[:-1]:
            rows = step.transform(_named(rows, step))
            rows = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
        return _linear_scores(head, _named(rows, head), column)

    n = len(features)
    features = features.astype(np.float64)
    at_zero = score(np.zeros((1, n)))
    size = max(1, min(MAX_ROWS, CHUNK_BYTES // (8 * n)))
    units = (np.eye(cut.stop - cut.start, n, k=cut.start) for cut in slices(n, size))
    coefficients = np.concatenate([score(rows) for rows in units]) - at_zero
    probes = np.outer([1, 2, -1], features)
    expected, came = at_zero + probes @ coefficients, score(probes)
    if not np.allclose(came, expected, rtol=0, atol=1e-6 * max(np.abs(expected).max(), 1)):
        raise _not_linear(steps)
    return coefficients


def unwrapped(steps):
    """Return the steps with those that inner pipelines, searches and FrozenEstimators hold."""
    inner: list = []
    for step in steps:
        if isinstance(step, Pipeline):
            inner += unwrapped(one for _, one in step.steps if one not in (None, "passthrough"))
        elif isinstance(step, FrozenEstimator):
            inner += unwrapped([step.estimator])
        elif hasattr(step, "best_estimator_"):
            inner += unwrapped([step.best_estimator_])
        else:
            inner.append(step)
    return inner


def _not_linear(steps):
    names = ", ".join(type(step).__name__ for step in steps)
    return ValueError(
        f"SaliencyDisplay follows gradients through the network and linear steps; {names} behind "
        "it is not linear. OcclusionDisplay would do: it asks any classifier"
    )


def _linear_scores(head, rows, column):
    """Return a class's score; of several a support vector machine squashes its own."""
    n = len(head.classes_)
    if not (isinstance(head, (SVC, NuSVC)) and n > 2):
        return _column(head.decision_function(rows), column)
    head = copy.copy(head)
    head.decision_function_shape = "ovo"
    signs = [(pair[0] == column) - float(pair[1] == column) for pair in combinations(range(n), 2)]
    return head.decision_function(rows) @ np.array(signs)


def _column(scores, column):
    if scores.ndim == 1:  # of two classes: that of the second
        return scores if column == 1 else -scores
    return scores[:, column]


def _has_pairs(head):
    last = unwrapped([head])[-1]
    return getattr(last, "decision_function_shape", "ovr") == "ovo" and len(head.classes_) > 2


def _named(rows, estimator):
    """Return ``rows`` as a DataFrame if the estimator was fitted on columns with names."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return rows
    import pandas as pd

    return pd.DataFrame(rows, columns=names)
