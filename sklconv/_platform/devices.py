"""Where and how a network computes: device, precision, memory."""

import ctypes
import functools
import os
import sys
from contextlib import contextmanager, nullcontext

import torch

_is_fresh_child = False


def _note_fork():
    global _is_fresh_child
    _is_fresh_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def leave_parents_threads():
    """In a forked child, have torch compute on one thread; call it before the first work there.

    The threads that the parent's work ran on are not there in the child, which would wait for
    them for ever.
    """
    global _is_fresh_child
    if _is_fresh_child:
        _is_fresh_child = False
        torch.set_num_threads(1)


def resolve_device(device):
    """Return the name of the torch device that ``device`` means; raise if it is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={device!r} is not available here ({reason}); take 'auto' or 'cpu'"
        ) from None
    return device


def check_precision(precision, device):
    """Raise unless ``device`` computes in ``precision`` faster than by emulation."""
    if precision != "bfloat16":
        return
    kind = torch.device(device).type
    if kind == "cpu":
        known = torch.cpu.get_capabilities()
        able = known.get("arm_bf16")
        if known.get("avx512_bf16") or known.get("amx_bf16"):
            # The CPU has them; ATEN_CPU_CAPABILITY may forbid torch to use them.
            able = torch.backends.cpu.get_cpu_capability() == "AVX512"
    else:
        able = kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if not able:
        raise ValueError(
            f"precision='bfloat16' needs a {kind} with instructions for it (on x86 AVX512-BF16 or "
            "AMX), which this one has not: it would be many times slower than 'float32'"
        )


def autocast(device, precision):
    """Return a context in which a network computes in ``precision`` on ``device``."""
    if precision == "bfloat16":
        # Within another autocast, rounded weights would be kept while the weights learn.
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    return nullcontext()


def without_autocast(device):
    """Return a context out of a caller's autocast.

    That one keeps the weights as it first saw them, whatever they learn since.
    """
    kind = torch.device(device).type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


@functools.cache
def keep_freed_memory():
    """Let glibc keep freed blocks of up to 32 MB, of which every batch needs some anew.

    It returns blocks to the system, and faults them in again page by page, until it has seen
    a larger one freed; this takes up to a third of a small network's time.
    """
    if sys.platform == "linux":
        torch.empty(31 * 2**20, dtype=torch.uint8)


# Of glibc's malloc.h: parameters of mallopt, and up to which block it adjusts them by itself.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 32 * 2**20


@contextmanager
def step_memory_kept(n_bytes=2**30):
    """Have glibc keep all freed blocks of up to 32 MB, ``n_bytes`` at most, within the context.

    The activations of a training step are freed together, and the next step needs as many.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
    mallopt(M_TRIM_THRESHOLD, n_bytes)
    try:
        yield
    finally:
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_BLOCK)
