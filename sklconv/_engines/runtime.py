"""ONNX Runtime: sessions are made when they are first needed; equal networks share them."""

import os
import threading
import warnings
import weakref
from collections import deque

import torch

from .._platform.digests import Undigestible, digest_of
from .graph import PIXELS, Graph, NotExportable

# Of the largest value: as far as its results may be from torch's.
TOLERANCE = 1e-4

# Each session is tried with so many images.
TRIED = (1, 3)


class _Sessions:
    """The graphs of a network, one for each size of its pixels, and the sessions that run them."""

    def __init__(self):
        self.graphs = {}  # (size, by_tracing) -> Graph
        self.made = {}  # what is asked for -> session, or the NotExportable that there is instead


class _Registry:
    """The sessions of all networks that are alive, and of the last one that was asked for."""

    def __init__(self):
        self.lock = threading.RLock()
        self.known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # (stamp, sessions)
        self.shared: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by digest
        # In a search each network is gone before the next one, its equal, is fitted.
        self.last: deque = deque(maxlen=1)

    def sessions_of(self, network):
        """Return the `_Sessions` of a network as it is now."""
        stamp, known = _stamp(network.body), self.known.get(network)
        if known is None or known[0] != stamp:
            with self.lock:
                self.known[network] = known = stamp, self._find(network)
                self.last.append(known[1])
        return known[1]

    def _find(self, network):
        try:
            return self.shared.setdefault(digest_of(network.body), _Sessions())
        except Undigestible:
            return _Sessions()


_registry = _Registry()
_parents: list[_Registry] = []


def _begin_anew():
    """In a forked child: the threads of its parent's sessions are missing, even to close them."""
    global _registry
    _parents.append(_registry)
    _registry = _Registry()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def import_onnxruntime():
    """Return the module; raise `ImportError` if it, or what exporting needs, can't be imported."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except Exception as error:  # a broken package raises anything
        raise ImportError(
            "engine='onnxruntime' needs onnx and onnxruntime: pip install \"sklconv[onnxruntime]\""
            f" ({error})"
        ) from error
    return onnxruntime


def forget(network):
    """Drop what is known of a network whose weights have been trained since."""
    with _registry.lock:
        _registry.known.pop(network, None)


class SessionRun:
    """Batches of images to features, computed by ONNX Runtime.

    Parameters
    ----------
    network : ImageNetwork
    tap_set : TapSet
    pool : str or None
    in_torch : callable
        Computes the same in torch.
    is_required : bool
        Whether to raise if ONNX Runtime can't compute it. Else torch does, and a warning says so.
    """

    # Its threads and torch's, which prepare the pixels, wait for each other at each change.
    piece_values = 2**22

    def __init__(self, network, tap_set, pool, in_torch, is_required):
        self.network, self.tap_set, self.pool = network, tap_set, pool
        self.in_torch, self.is_required = in_torch, is_required

    def __call__(self, x):  # (N, C, H, W) -> (N, n_features)
        pixels = self.network.prepare(x)
        session = self._session(x, pixels.shape[1:])
        if isinstance(session, NotExportable):
            return self._instead(session, x)
        return _run(session, pixels)

    def _session(self, x, size):
        sessions = _registry.sessions_of(self.network)
        key = size, self.tap_set, self.pool, self.is_required, torch.get_num_threads()
        session = sessions.made.get(key)
        if session is None:
            with _registry.lock:
                session = sessions.made.get(key)
                if session is None:
                    few = x[torch.arange(max(TRIED)) % len(x)]
                    session = sessions.made[key] = self._find(sessions.graphs, size, few)
        return session

    def _find(self, graphs, size, images):
        """Return a new session; or why there is none."""
        # The second exporter takes too long to be of use unasked.
        for by_tracing in (True, False) if self.is_required else (True,):
            try:
                return self._make(graphs, (size, by_tracing), images)
            except NotExportable as error:
                failure = error
        return failure

    def _make(self, graphs, key, images):
        """Return a new session that has been tried with ``images``."""
        if key not in graphs:
            pixels = self.network.prepare(images)
            graphs[key] = Graph(self.network, pixels, by_tracing=key[1])
        taps, deepest = self.tap_set.taps, self.tap_set.deepest
        activations = self.network.activations(taps, deepest, images)
        session = _start(graphs[key].cut(self.tap_set, self.pool, activations))
        for n in TRIED:
            self._try(session, images[:n])
        return session

    def _try(self, session, images):
        wanted, came = self.in_torch(images), _run(session, self.network.prepare(images))
        if came.shape != wanted.shape:
            raise NotExportable(f"its graph gives {tuple(came.shape)}, not {tuple(wanted.shape)}")
        largest = float(wanted.abs().max())
        difference = float((came - wanted).abs().max())
        if not difference <= TOLERANCE * largest:  # nor if it is NaN
            raise NotExportable(
                f"for {len(images)} images its graph differs from torch by {difference:.3g}, "
                f"where the largest value is {largest:.3g}"
            )

    def _instead(self, error, x):
        if self.is_required:
            raise NotExportable(
                f"engine='onnxruntime': ONNX Runtime can't compute this network: {error}. Take "
                "engine='torch'"
            ) from error
        warnings.warn(
            f"ONNX Runtime can't compute this network, so torch does: {error}. With "
            "engine='torch' it is not tried",
            UserWarning,
            stacklevel=1,  # one place, so that Python shows it once
        )
        return self.in_torch(x)


def _stamp(module):
    """What changes where weights are replaced, or written into other than through ``.data``."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    stamp = [(id(t), -1 if t.is_inference() else t._version) for t in tensors if t is not None]
    for child in module._modules.values():
        if child is not None:
            stamp += _stamp(child)
    return stamp


def _start(model):
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NotExportable(str(error).partition("\n")[0]) from error


def _run(session, pixels):
    (features,) = session.run(None, {PIXELS: pixels.contiguous().numpy()})
    return torch.from_numpy(features)
