"""Which engine computes a call."""

import torch

from .runtime import SessionRun, import_onnxruntime

ENGINES = {"auto", "torch", "onnxruntime"}

# Multiply-adds of a call from which on an export pays: a second or two, for 850 images through
# EfficientNet-Lite0 at 224 pixels, 70 through ResNet-50.
WORTHWHILE = 3e11


def check_engine(engine, device, precision, pools=()):
    """Raise if ``engine`` is one that can't compute this."""
    if engine != "onnxruntime":
        return
    import_onnxruntime()
    why = _obstacle(device, precision, pools)
    if why:
        raise ValueError(f"engine='onnxruntime' {why}; take engine='torch'")


def choose_run(engine, network, tap_set, precision, n_images, in_torch):
    """Return what computes batches: ``in_torch``, or a `SessionRun`.

    Parameters
    ----------
    engine : {"auto", "torch", "onnxruntime"}
    network : ImageNetwork
    tap_set : TapSet
    precision : {"float32", "bfloat16"}
    n_images : int
        Of the call.
    in_torch : callable
        Takes a batch of images; returns features.
    """
    # It may have been set since the fit.
    check_engine(engine, network.device, precision, tap_set.pools)
    asked_for = engine == "onnxruntime"
    if asked_for or (engine == "auto" and pays(network, tap_set, precision, n_images)):
        return SessionRun(network, tap_set, in_torch, asked_for)
    return in_torch


def engine_of(run):
    """Return which engine computes now in what `choose_run` has returned."""
    return getattr(run, "engine", "torch")


def pays(network, tap_set, precision, n_images):
    """Whether "auto" is ONNX Runtime for a call of so many images.

    It depends on the call alone, not on what graphs there are, so that the same call gives the
    same bits.
    """
    if network.is_fast_in_torch or tap_set.multiply_adds * n_images < WORTHWHILE:
        return False
    if _obstacle(network.device, precision, tap_set.pools):
        return False
    try:
        import_onnxruntime()
    except ImportError:
        return False
    return True


def _obstacle(device, precision, pools):
    """Return why ONNX Runtime can't compute this, or None."""
    if torch.device(device).type != "cpu":
        return f"computes on CPUs, not on device={str(device)!r}"
    if precision != "float32":
        return f"computes in float32, not in precision={precision!r}"
    if any(map(callable, pools)):
        return "can't call the function that is given as pool"
    return None
