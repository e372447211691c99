"""Where a network computes."""

import torch


def resolve_device(device):
    """Return the name of the torch device that ``device`` means; raise if it is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={device!r} is not to be had here ({reason}); take 'auto' or 'cpu'"
        ) from None
    return device
