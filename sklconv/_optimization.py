"""Optimizers by name, schedules of the learning rate, batch sizes."""

import inspect
import math
from functools import partial

import numpy as np
import torch

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "nadam": torch.optim.NAdam,
    "lbfgs": torch.optim.LBFGS,
}
# These update all weights in one kernel instead of several a weight.
FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad)


def optimizer_settings(optimizer, weight_decay, device):
    """Return the arguments of ``optimizer`` that go without saying."""
    accepted = inspect.signature(optimizer).parameters
    settings = {}
    if "weight_decay" in accepted:
        settings["weight_decay"] = weight_decay
    if optimizer in FUSED and torch.device(device).type in ("cpu", "cuda"):
        settings["fused"] = True
    return settings


def plain_step(optimizer):
    """Return ``optimizer.step`` without what torch wraps around it for profiling and hooks.

    On a small network that takes longer than the step itself. Call it under `torch.no_grad`.
    """
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooked or "step" in vars(optimizer):  # torch's schedulers put their own in its place
        return optimizer.step
    return partial(inspect.unwrap(type(optimizer).step), optimizer)


def one_cycle(n_steps):
    """Factors of the learning rate: up from 1/25 for 30% of the steps, then down to nearly 0.

    L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using
    large learning rates", 2019; the cosine form and the figures are torch's `OneCycleLR`'s.
    """
    peak = max(0.3 * n_steps - 1, 0)
    step = np.arange(n_steps)
    up = np.clip(step / peak, 0, 1) if peak else np.ones(n_steps)
    down = np.clip((step - peak) / max(n_steps - 1 - peak, 1), 0, 1)
    rising = 1 + (1 / 25 - 1) * (1 + np.cos(np.pi * up)) / 2
    falling = (1 - 4e-6) * (1 + np.cos(np.pi * down)) / 2 + 4e-6
    return np.where(step < peak, rising, falling)


def cosine(n_steps):
    """Factors of the learning rate: half a cosine from 1 to 0 (Loshchilov and Hutter, 2017)."""
    return (1 + np.cos(np.pi * np.arange(n_steps) / n_steps)) / 2


SCHEDULES = {"onecycle": one_cycle, "cosine": cosine}


def auto_batch_size(n):
    """Return a batch size that leaves about 40 steps an epoch, from 8 to 128."""
    return min(max(2 ** round(math.log2(max(n, 40) / 40)), 8), 128)
