"""skorch's callbacks as users give them: in a list, some as classes or with a name."""

# skorch's, by its name: skorch itself is imported in one file, that of the net.
SCHEDULER = "LRScheduler"


def check_callbacks(callbacks):
    """Raise unless each of ``callbacks`` is one of skorch's kind."""
    for callback in _unnamed(callbacks):
        if not hasattr(callback, "set_params"):
            raise TypeError(
                f"callbacks: {callback!r} is no callback of skorch's kind, a subclass of "
                "skorch.callbacks.Callback. scikit-learn's own are set by set_callbacks (since "
                "scikit-learn 1.9)"
            )


def sets_learning_rates(callbacks):
    """Whether there is one among ``callbacks`` that is for setting the learning rate."""
    kinds = (each if isinstance(each, type) else type(each) for each in _unnamed(callbacks))
    return any(base.__name__ == SCHEDULER for kind in kinds for base in kind.__mro__)


def lacks_validation(error, dataset_valid):
    """Whether a callback raised ``error`` because there are no validation data."""
    words = str(error)
    return dataset_valid is None and "valid_" in words and "not found in history" in words


def _unnamed(callbacks):
    given = [each[-1] if isinstance(each, (tuple, list)) else each for each in callbacks or []]
    return [each for each in given if each is not None]  # skorch leaves them out
