"""y and sample weights: labels to class numbers, weights checked, a hold-out drawn."""

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import assert_all_finite
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from .._platform.sklearn import check_sample_weight


def check_labels(y, images, name):
    """Return ``y`` as an array of one label an image."""
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name=name)
    check_consistent_length(images, y)
    check_classification_targets(y)
    return y


def check_choice(y, sample_weight, images, name, *, warn):
    """Return class numbers and weights of the images, for ``layer="auto"`` to choose by."""
    if y is None:
        raise ValueError(
            f"{name} requires y to be passed, but the target y is None: layer='auto' chooses the "
            "layers that tell the classes apart"
        )
    y = check_labels(y if warn else column_or_1d(y), images, "y")
    labels, classes = np.unique(y, return_inverse=True)
    weights = combined_weights(sample_weight, None, images, y, labels, "sample_weight")
    weights = np.ones(len(y)) if weights is None else weights
    if len(weighted := np.unique(y[weights > 0])) < 2:
        raise ValueError(f"layer='auto' needs two classes or more, not {weighted.tolist()} alone")
    return classes, weights


def encode_labels(y, classes, name):
    """Return the position of each label in ``classes``."""
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(
            f"{name} holds {unknown.tolist()}, not among the classes {classes.tolist()}"
        )
    return np.searchsorted(classes, y)


def combined_weights(sample_weight, class_weight, images, y, classes, name):
    """Return sample weights times class weights, or None where there are neither."""
    weights = None
    if sample_weight is not None:
        try:
            weights = check_sample_weight(
                sample_weight, images, dtype=np.float64, ensure_non_negative=True
            )
        except ValueError as error:
            raise ValueError(str(error).replace("sample_weight", name)) from None
    if class_weight is not None:
        of_class = _weights_by_class(class_weight, y, classes)
        weights = of_class if weights is None else weights * of_class
    if weights is not None and not weights.sum() > 0:
        name = "class_weight" if sample_weight is None else name
        raise ValueError(f"{name}: all weights are zero, so there is nothing to learn from")
    return weights


def _weights_by_class(class_weight, y, classes):
    if class_weight == "balanced":
        return compute_sample_weight(class_weight, y)
    # scikit-learn's function refuses a dict that does not name just the classes in y, of which a
    # chunk may lack some. The classes of a fold, though, are those in its y: a dict that names
    # them all may be for more.
    labels = classes.tolist()
    unknown = [label for label in class_weight if label not in labels]
    if unknown and not all(label in class_weight for label in labels):
        raise ValueError(f"class_weight has weights of {unknown}, not among the classes {labels}")
    of_classes = np.array([class_weight.get(label, 1) for label in labels], np.float64)
    if not np.isfinite(of_classes).all():
        raise ValueError(f"class_weight={class_weight}: weights must be finite numbers")
    if of_classes.min() < 0:
        raise ValueError(f"class_weight={class_weight} holds negative weights")
    return of_classes[encode_labels(y, classes, "y")]


def hold_out(targets, fraction, random_state):
    """Return the rows to train on and those to hold out, stratified by class.

    A class of a single member is trained on.
    """
    counts = np.bincount(targets)
    splittable = np.flatnonzero(counts[targets] > 1)
    n_held_out, n_strata = round(fraction * len(targets)), int((counts > 1).sum())
    if not n_strata <= n_held_out <= len(splittable) - n_strata:
        raise ValueError(
            f"early_stopping: validation_fraction={fraction} of {len(targets)} images is "
            f"{n_held_out}, but a stratified hold-out needs at least one image on either side "
            f"of each of the {n_strata} classes that have two or more. Change "
            "validation_fraction, or give X_val and y_val"
        )
    train, held_out = train_test_split(
        splittable,
        test_size=n_held_out,
        stratify=targets[splittable],
        random_state=random_state,
    )
    singles = np.flatnonzero(counts[targets] == 1)
    return np.sort(np.concatenate([train, singles])), np.sort(held_out)
