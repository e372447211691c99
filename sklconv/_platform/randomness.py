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


@contextmanager
def seeded_global_states(seed):
    """Run a block under seeded global states of torch, numpy and `random`; then restore them.

    For users' code, which draws from them. Threads take turns.
    """
    seed = int(seed)
    with _global_states:
        numpy_state, python_state = np.random.get_state(), random.getstate()
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            try:
                yield
            finally:
                np.random.set_state(numpy_state)
                random.setstate(python_state)
