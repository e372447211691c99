"""scikit-learn's private names, and estimators whose errors suggest the right name."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

from sklearn.base import BaseEstimator, _fit_context
from sklearn.base import _clone_parametrized as clone_parametrized
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    StrOptions,
)
from sklearn.utils._param_validation import (
    validate_parameter_constraints as validate_plainly,
)
from sklearn.utils.metaestimators import _BaseComposition as BaseComposition
from sklearn.utils.validation import _check_feature_names_in as check_feature_names_in
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

from .words import did_you_mean

Method = TypeVar("Method", bound=Callable[..., Any])


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[Method], Method]:
    """scikit-learn's decorator, which has no types and would hide those of the method."""
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)


class SuggestingEstimator(BaseEstimator):
    """An estimator whose errors of parameters say what may have been meant."""

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of nested objects included.

        Parameters
        ----------
        **params
            ``name=value``, or ``name__inner=value`` for a parameter of a parameter.

        Returns
        -------
        self
        """
        valid = [name for name in self.get_params() if "__" not in name] if params else []
        for name in (key.partition("__")[0] for key in params):
            if name not in valid:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}. Valid "
                    f"parameters are: {', '.join(valid)}.{did_you_mean(name, valid)}"
                )
        return super().set_params(**params)

    def _validate_params(self):
        validate_parameter_constraints(
            self._parameter_constraints, self.get_params(deep=False), type(self).__name__
        )


def validate_parameter_constraints(constraints, params, caller_name):
    """Raise scikit-learn's error of a wrong parameter; of a wrong word say the nearest."""
    try:
        validate_plainly(constraints, params, caller_name)
    except InvalidParameterError as error:
        message = str(error)
        wrong = next((name for name in params if message.startswith(f"The {name!r} ")), None)
        if isinstance(params.get(wrong), str):
            message += did_you_mean(params[wrong], _options(constraints[wrong]))
        raise InvalidParameterError(message) from None


def _options(constraints):
    return [
        option
        for constraint in constraints
        if isinstance(constraint, StrOptions)
        for option in sorted(constraint.options)
    ]
