"""Random draws that repeat, whatever else draws from torch's and numpy's global states."""

import os
import random
import threading
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state

# The global states are one for all threads: whoever seeds them has them alone.
_global_states = threading.RLock()


def _renew_lock():
    global _global_states
    _global_states = threading.RLock()


if hasattr(os, "register_at_fork"):
    # In the child nobody releases what another thread held.
    os.register_at_fork(after_in_child=_renew_lock)


def draw_seed(random_state):
    """Return a seed for torch, drawn from what scikit-learn takes as ``random_state``."""
    return check_random_state(random_state).randint(np.iinfo(np.int32).max)


def generator(seed, device="cpu"):
    """Return a torch generator that starts from ``seed``."""
    return torch.Generator(device).manual_seed(int(seed))


def mask_generator(seed, device):
    """Return what dropout masks are drawn from on ``device``: on a CPU, the fastest there is."""
    return np.random.SFC64(seed) if device.type == "cpu" else generator(seed, device)


def generator_state(generator):
    """Return where a `generator` or `mask_generator` stands, as a tensor or plain numbers."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator and generator.get_state()
    return _plain(generator.state)


def set_generator_state(generator, state):
    """Set a generator to what `generator_state` returned of one of its kind."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif generator is not None:
        generator.state = state


def global_states():
    """Return where torch's, numpy's and `random`'s global generators stand, in plain values."""
    on_gpus = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_gpus else [],
        "numpy": _plain(np.random.get_state(legacy=False)),
        "python": random.getstate(),
    }


def set_global_states(states):
    """Set the global generators to what `global_states` returned."""
    torch.set_rng_state(states["torch"])
    for number, state in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(state, number)
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


def _plain(value):
    """Return a state of numpy's with lists in place of arrays."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


@contextmanager
def seeded_global_states(seed):
    """Run a block under seeded global states of torch, numpy and `random`; then restore them.

    For users' code, which draws from them. Threads take turns.
    """
    seed = int(seed)
    with _global_states:
        before = global_states()
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            set_global_states(before)
