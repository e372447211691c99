"""X as a dask array, or as a dask column of image files: computed later, block by block."""

import copy
import math

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted


def by_blocks(estimator, method, X, no_rows):
    """Return ``estimator.method(X)`` as a dask array, of which nothing is computed yet.

    Parameters
    ----------
    estimator : ConvNetClassifier or ConvFeatureExtractor
        What is done to it afterwards does not change the result.
    method : str
    X : dask array, Series or DataFrame of n rows
    no_rows : callable
        Returns what the method returns for no rows: an ndarray of shape (0,) or (0, n_columns).

    Returns
    -------
    dask array of shape (n,) or (n, n_columns), in as many chunks as X has along its rows
    """
    check_is_fitted(estimator)
    is_array = hasattr(X, "map_blocks")
    if is_array:
        _check_array(estimator, X)
    empty, sent = no_rows(), _sent_once(_without_training(estimator))
    if not is_array:
        return X.map_partitions(_apply, sent, method, empty, meta=empty)
    return X.rechunk(dict.fromkeys(range(1, X.ndim), -1)).map_blocks(
        _apply,
        sent,
        method,
        empty,
        chunks=(X.chunks[0], *((n,) for n in empty.shape[1:])),
        drop_axis=list(range(empty.ndim, X.ndim)),
        new_axis=list(range(X.ndim, empty.ndim)),
        dtype=empty.dtype,
        meta=empty,
    )


def empty_table(n_columns):
    return np.empty((0, n_columns), np.float32)


def _apply(block, estimator, method, empty):
    return np.asarray(getattr(estimator, method)(block)) if len(block) else empty


def _check_array(estimator, X):
    """Raise for what is known not to work; what a block holds is seen when it is computed."""
    if X.dtype.kind in "biuf":
        estimator._format.way_to_channels_first(X.shape, type(estimator).__name__)
    elif math.prod(X.shape[1:]) != 1:
        raise ValueError(
            f"X, a dask array of shape {X.shape}, must hold numbers, not {X.dtype}: "
            "X.astype('float32') converts what holds numbers. Image files are one column"
        )


class _Fitted:
    """In the place of skorch's net: the network alone, pickled for machines without a GPU."""

    def __init__(self, module):
        self.module_ = module

    def __getstate__(self):
        network = self.module_
        on_cpu = network.device.type == "cpu"
        return {"module_": network if on_cpu else copy.deepcopy(network).cpu()}


def _without_training(estimator):
    """Return a copy with the weights once, and no optimizer's state: half to a sixth of it."""
    lean = object.__new__(type(estimator))
    lean.__dict__.update(vars(estimator))
    if hasattr(lean, "net_"):
        # A copy, for `partial_fit` trains the network itself.
        lean.module, lean.net_ = "auto", _Fitted(copy.deepcopy(lean.module_))
        return lean
    lean.estimator = None if lean._trains() else FrozenEstimator(None)
    lean.__dict__.pop("backbone_", None)
    if hasattr(lean, "estimator_"):
        lean.estimator_ = _without_training(lean.estimator_)
    return lean


def _sent_once(estimator):
    """Return ``estimator`` as dask takes it: each worker of a cluster has it before it starts."""
    import dask
    from dask.base import get_scheduler

    client = getattr(get_scheduler(), "__self__", None)
    if client is None:  # threads or processes of this machine
        return dask.delayed(estimator, pure=True)
    # Under a key of its own: an equal one may be about to be released.
    return client.scatter(estimator, broadcast=True, hash=False)
