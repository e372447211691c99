"""Optimizers by name, schedules of the learning rate, batch sizes."""

import inspect
import math
import warnings
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


def lean_step(optimizer, *, alone):
    """Return ``optimizer.step`` without what takes a small network longer than the step itself.

    That is what torch wraps around it for profiling and hooks, and, where the caller is ``alone``
    with the optimizer, what `FusedAdamSteps` spares. Call it under `torch.no_grad`.
    """
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooked or "step" in vars(optimizer):  # torch's schedulers put their own in its place
        return optimizer.step
    plain_step = partial(inspect.unwrap(type(optimizer).step), optimizer)
    if alone and FusedAdamSteps.can_replace(optimizer):
        return FusedAdamSteps(optimizer, plain_step)
    return plain_step


class FusedAdamSteps:
    """Steps of a fused Adam or AdamW that nobody else touches, but for its learning rates.

    Torch's own ``step`` collects parameters and state anew each time. This does so once and
    calls the two operators that ``step`` ends in: the same weights to the bit.
    """

    def __init__(self, optimizer, plain_step):
        self.optimizer = optimizer
        self.plain_step = plain_step
        self.groups = []  # (param_group, parameters, averages, their squares', counts of steps)

    @staticmethod
    def can_replace(optimizer):
        """Whether these are the steps that ``optimizer`` would take."""
        return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and all(
            group["fused"]
            and not group["amsgrad"]
            and isinstance(group["lr"], float)
            and len({(p.device, p.dtype) for p in group["params"]}) == 1
            for group in optimizer.param_groups
        )

    def __call__(self, closure):
        if not self.groups:
            loss = self.plain_step(closure)  # which makes the state, if there is none
            self._collect()
            return loss
        with torch.enable_grad():
            loss = closure()
        gradients = [[p.grad for p in parameters] for _, parameters, *_ in self.groups]
        if any(grad is None for grads in gradients for grad in grads):
            self.plain_step()
            return loss
        for (group, parameters, averages, squares, counts), grads in zip(
            self.groups, gradients, strict=True
        ):
            update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            torch._foreach_add_(counts, 1)
            update(
                parameters,
                grads,
                averages,
                squares,
                [],
                counts,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )
        return loss

    def _collect(self):
        for group in self.optimizer.param_groups:
            parameters = [p for p in group["params"] if p.requires_grad]
            if any(p.grad is None for p in parameters):
                self.groups = []  # a part of the network does not always run
                return
            state = [self.optimizer.state[p] for p in parameters]
            if parameters:
                keys = ("exp_avg", "exp_avg_sq", "step")
                self.groups.append((group, parameters, *([s[k] for s in state] for k in keys)))


class ScheduledRates:
    """The learning rates of an optimizer, set from batch to batch if there is a schedule.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose rates are the highest ones.
    schedule : callable or None
        As in `SCHEDULES`. None: the rates are left to whoever sets them.
    n_batches : int
        Of all epochs.
    """

    def __init__(self, optimizer, schedule, n_batches):
        self.optimizer = optimizer
        self.highest = self.latest = self._read()
        self.factors = None if schedule is None else schedule(n_batches).tolist()

    def set_those_of(self, batch):
        """Set the rates of a batch, counted from the first epoch on."""
        if self.factors is not None:
            self._write([self.factors[batch] * lr for lr in self.highest])

    def check_unchanged(self):
        """Warn if others have set the rates meanwhile: they will be set anew."""
        if self.factors is None or self._read() == self.latest:
            return
        warnings.warn(
            "a callback set the learning rate, which has no effect: lr_schedule sets it anew "
            "before each batch. Set lr_schedule=None",
            UserWarning,
            stacklevel=1,  # one place, so that Python shows it once
        )

    def restore(self):
        """Set the rates that there were before."""
        self._write(self.highest)

    def _read(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def _write(self, lrs):
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        self.latest = lrs


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


# Where nothing says how long the training will be, or its first weights are somebody else's.
LR = 3e-3

SCHEDULES = {"onecycle": one_cycle, "cosine": cosine}


def auto_lr(n_steps, batch_size):
    """Return the highest learning rate of a schedule of so many steps.

    It is 3e-3 for 1,500 steps of 128 images, three epochs of 60,000. It goes with the square root
    of the batch size, as the noise of gradients does, and falls with that of the number of steps:
    what trains for long gains from smaller steps, what does not has no time for them.
    """
    lr = LR * math.sqrt(1500 / n_steps * batch_size / 128)
    return min(max(lr, 1e-3), 1e-2)


def auto_batch_size(n):
    """Return a batch size that leaves about 40 steps an epoch, from 8 to 128."""
    return min(max(2 ** round(math.log2(max(n, 40) / 40)), 8), 128)
