"""What both estimators have from scikit-learn's inside, its private names among it."""

from contextlib import contextmanager

from sklearn.base import _clone_parametrized as clone_parametrized
from sklearn.base import _fit_context as fit_context
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metaestimators import _BaseComposition as BaseComposition
from sklearn.utils.validation import _check_feature_names_in as check_feature_names_in
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

__all__ = [
    "BaseComposition",
    "Interval",
    "InvalidParameterError",
    "StrOptions",
    "check_feature_names_in",
    "check_sample_weight",
    "clone_parametrized",
    "fit_context",
    "undone_if_it_fails",
    "validate_parameter_constraints",
]


@contextmanager
def undone_if_it_fails(estimator):
    """Leave ``estimator`` as it was if the block raises.

    An interrupt keeps a network that has begun to be trained: the new ``net_``.
    """
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException as error:
        trained = estimator.__dict__.get("net_") is not before.get("net_")
        if not (isinstance(error, KeyboardInterrupt) and trained):
            estimator.__dict__.clear()
            estimator.__dict__.update(before)
        raise
