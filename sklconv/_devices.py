"""Where and how a network computes: device, precision, memory."""

import functools
import sys
from contextlib import nullcontext

import torch


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
            f"device={device!r} is not to be had here ({reason}); take 'auto' or 'cpu'"
        ) from None
    return device


def check_precision(precision, device):
    """Raise unless ``device`` computes in ``precision`` faster than by emulation."""
    if precision != "bfloat16":
        return
    kind = torch.device(device).type
    if kind == "cpu":
        known = torch.cpu.get_capabilities()
        able = known.get("avx512_bf16") or known.get("amx_bf16") or known.get("arm_bf16")
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
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@functools.cache
def keep_freed_memory():
    """Let glibc keep freed blocks of up to 32 MB, of which every batch needs some anew.

    It returns blocks to the system, and faults them in again page by page, until it has seen
    a larger one freed; this takes up to a third of a small network's time.
    """
    if sys.platform == "linux":
        torch.empty(31 * 2**20, dtype=torch.uint8)
