"""Fits and their parts as tasks of scikit-learn's callbacks."""

from contextlib import contextmanager

from .._networks.table import as_table, without_containers


def fitted_attributes(state, net):
    """Return what a `TrainingState` makes of a classifier: its attributes, with ``net``."""
    return {
        "net_": net,
        "n_iter_": state.n_epochs,
        "_layer_rows": state.layer_rows,
        "layer_table_": as_table(without_containers(state.layer_rows)),
    }


class FitTasks:
    """A fit, its epochs and the fits within it, of which callbacks hear.

    A fit that fails ends without hearing `end`; scikit-learn's decorator of `fit` tears down.

    Parameters
    ----------
    estimator : ConvNetClassifier or ConvFeatureExtractor
    name : str
        The method's.
    n_parts : int
        The largest number of parts.
    X, y, sample_weight
        As the method got them.
    """

    def __init__(self, estimator, name, n_parts, X, y, sample_weight):
        self.data = {"estimator": estimator, "X": X, "y": y}
        if sample_weight is not None:
            self.data["metadata"] = {"sample_weight": sample_weight}
        self.whole = estimator._init_callback_context(task_name=name, max_subtasks=n_parts)
        self.whole.call_on_fit_task_begin(**self.data)

    def end(self):
        """Note that all is done: the estimator is fitted."""
        self.whole.call_on_fit_task_end(**self.data, reconstruction_attributes={})

    def begin_epoch(self):
        """Note that an epoch begins."""
        self.epoch = self.whole.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(**self.data)

    def end_epoch(self, state):
        """Note that it has ended, with a `TrainingState`; return whether a callback stops the fit.

        What callbacks get as ``fitted_estimator`` has a copy of the net: it stays as it is.
        """
        return self.epoch.call_on_fit_task_end(
            **self.data,
            reconstruction_attributes=lambda: fitted_attributes(state, state.net.fitted_copy()),
        )

    @contextmanager
    def inner_fit(self, estimator):
        """Have ``estimator``, which is fitted in a ``with`` block, take part."""
        part = self.whole.subcontext(task_name="fit-estimator")
        with part.propagate_callback_context(estimator):
            part.call_on_fit_task_begin(**self.data)
            yield
            part.call_on_fit_task_end(**self.data)
