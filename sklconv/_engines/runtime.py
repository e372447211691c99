"""ONNX Runtime: sessions are made when they are first needed; equal networks share them."""

import os
import threading
import warnings
import weakref
from collections import deque
from contextlib import contextmanager

import numpy as np
import torch

from .._platform.digests import Stamp, Undigestible, digest_of, digest_once
from .graph import PIXELS, Graph, NotExportable, by_either_exporter, first_line, with_front

# Of a layer's largest value: as far as its results may be from torch's.
TOLERANCE = 1e-4

# Each session is tried with so many images.
TRIED = (1, 3)

# Of one network; each takes several times its weights' memory.
MAX_SESSIONS = 4


class _Sessions:
    """The graphs of a network, one for each size of its pixels, and the sessions that run them."""

    def __init__(self):
        self.graphs = {}  # (size, by_tracing) -> Graph
        self.made = {}  # what is asked for -> session, or the NotExportable that there is instead

    def keep(self, key, session):
        """Keep a session, in place of the oldest if there are many."""
        while len(self.made) >= MAX_SESSIONS:
            del self.made[next(iter(self.made))]
        self.made[key] = session
        return session


class _Known:
    """What is known of a network as it was when ``stamp`` was taken."""

    def __init__(self, stamp, sessions):
        self.stamp, self.sessions = stamp, sessions
        self.tried = set()  # keys of sessions: those of an equal network are tried anew


class _Registry:
    """The sessions of all networks that are alive, and of the last one that was asked for."""

    def __init__(self):
        self.lock = threading.RLock()
        self.known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # network -> _Known
        self.shared: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by digest
        # In a search each network is gone before the next one, its equal, is fitted.
        self.last: deque = deque(maxlen=1)

    def find(self, network):
        """Return what is known of a network as it is now."""
        known = self.known.get(network)
        if known is None or not known.stamp.still_holds():
            with self.lock:
                stamp = Stamp(network)
                known = self.known[network] = _Known(stamp, self._sessions_of(network))
                self.last.append(known.sessions)
        return known

    def _sessions_of(self, network):
        try:
            return self.shared.setdefault(
                digest_of((network.prepare, digest_once(network.body))), _Sessions()
            )
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
    in_torch : callable
        Computes the same in torch.
    is_required : bool
        Whether to raise if ONNX Runtime can't compute it. Else torch does, and a warning says so.
    """

    engine = "onnxruntime"  # torch, once it has computed in its stead

    # Its threads and torch's wait for each other at each change.
    piece_values = 2**22

    def __init__(self, network, tap_set, in_torch, is_required):
        self.network, self.tap_set = network, tap_set
        self.in_torch, self.is_required = in_torch, is_required

    def __call__(self, x):  # (N, C, H, W) -> (N, n_features)
        pixels = self._input(x)
        session = self._session(x, (pixels.shape[1:], pixels.dtype))
        if isinstance(session, NotExportable):
            return self._instead(session, x)
        try:
            return _run(session, pixels)
        except NotExportable as error:
            return self._instead(error, x)

    def _input(self, x):
        """Return what sessions take: images as they come, unless these are resized or cropped."""
        prepare = self.network.prepare
        if prepare.fitting is not None:
            return prepare(x)
        prepare.check(x)
        return x

    def _session(self, x, form):
        key = form, self.tap_set, self.is_required, torch.get_num_threads()
        known = _registry.find(self.network)
        session = known.sessions.made.get(key) if key in known.tried else None
        if session is None:
            with _registry.lock:
                few = x[torch.arange(max(TRIED)) % len(x)]
                session = self._tried(known, key, few) or self._made(known, key, few)
                known.tried.add(key)
                known.stamp = Stamp(self.network)  # a pass may have changed its buffers
        return session

    def _tried(self, known, key, images):
        """Return the session of an equal network, if there is one that fits this one, too."""
        session = known.sessions.made.get(key)
        if session is None or isinstance(session, NotExportable):
            return session
        try:
            self._try(session, images)
        except NotExportable:
            known.sessions = _Sessions()  # what a digest does not cover is different
            return None
        return session

    def _made(self, known, key, images):
        """Return a new session; or why there is none."""
        graphs = known.sessions.graphs
        try:
            session = by_either_exporter(
                lambda by_tracing: self._make(graphs, by_tracing, images),
                both=self.is_required,
            )
        except NotExportable as error:
            # Without a traceback, which would keep the network.
            session = NotExportable(str(error))
        return known.sessions.keep(key, session)

    def _make(self, graphs, by_tracing, images):
        """Return a new session that has been tried with ``images``."""
        with not_exportable():
            pixels = self.network.prepare(images)
            key = pixels.shape[1:], by_tracing
            if key not in graphs:
                graphs[key] = Graph(self.network, pixels, by_tracing)
            taps, deepest = self.tap_set.taps, self.tap_set.deepest
            model = graphs[key].cut(self.tap_set, self.network.activations(taps, deepest, images))
            if self._input(images) is images:
                model = with_front(self.network.prepare, images, model)
            session = start_session(model)
            self._try(session, images)
        return session

    def _try(self, session, images):
        try_session(session, self.tap_set, images, self._input, self.in_torch)

    def _instead(self, error, x):
        if self.is_required:
            raise NotExportable(
                f"engine='onnxruntime': ONNX Runtime can't compute this network: {error}. Take "
                "engine='torch'"
            ) from error
        self.engine = "torch"
        warnings.warn(
            f"ONNX Runtime can't compute this network, so torch does: {error}. With "
            "engine='torch' it is not tried",
            UserWarning,
            stacklevel=1,  # one place, so that Python shows it once
        )
        return self.in_torch(x)


def try_session(session, tap_set, images, prepare, in_torch):
    """Raise `NotExportable` unless a session gives what torch gives, for few images and for one.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    tap_set : TapSet
        The layers whose features it gives.
    images : torch.Tensor
    prepare : callable
        Makes of images what the session takes.
    in_torch : callable
        Makes of images the features.
    """
    for n in TRIED:
        with not_exportable():
            wanted = in_torch(images[:n]).float()
        came = _run(session, prepare(images[:n])).float()
        if came.shape != wanted.shape:
            shapes = tuple(came.shape), tuple(wanted.shape)
            raise NotExportable("its graph gives {}, not {}".format(*shapes))
        widths = [layer.n_features for layer in tap_set.tapped]
        for pair in zip(came.split(widths, 1), wanted.split(widths, 1), strict=True):
            _compare(*pair)


def _compare(came, wanted):
    """Raise if features of one layer differ from those that torch gives."""
    finite = wanted.isfinite()
    difference = float((came - wanted)[finite].abs().max()) if finite.any() else 0.0
    largest = float(wanted[finite].abs().max()) if finite.any() else 0.0
    # Nor if the difference is NaN.
    if not (difference <= TOLERANCE * largest and torch.equal(came.isfinite(), finite)):
        raise NotExportable(
            f"for {len(came)} images its graph differs from torch by {difference:.3g}, where the "
            f"largest value is {largest:.3g}"
        )


@contextmanager
def not_exportable():
    """Have every error, also of users' code, say that a network can't be computed so."""
    try:
        yield
    except NotExportable:
        raise
    except Exception as error:
        raise NotExportable(f"{type(error).__name__}: {first_line(error)}") from error


def start_session(model):
    """Return a session of a model's bytes, with as many threads as torch has."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session, pixels):
    pixels = np.ascontiguousarray(pixels.numpy())  # on this thread alone, unlike torch
    try:  # a context takes longer to enter than all else here
        (features,) = session.run(None, {PIXELS: pixels})
    except Exception as error:
        raise NotExportable(f"{type(error).__name__}: {first_line(error)}") from error
    if len(features) != len(pixels):
        raise NotExportable(f"its graph gives {len(features)} rows for {len(pixels)} images")
    return torch.from_numpy(features)
