"""Where training stands, and how to go back there."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .._platform.randomness import (
    generator_state,
    global_states,
    set_generator_state,
    set_global_states,
)


class EarlyStopping:
    """Watches the validation loss and keeps the best weights in memory."""

    def __init__(self, patience, tol):
        self.patience, self.tol = patience, tol
        self.reference, self.lowest, self.waited, self.best = math.inf, math.inf, 0, None

    def watch(self, module, loss):
        """Note the loss of an epoch."""
        if loss < self.lowest:
            self.lowest, self.best = loss, values_of(module)
        if loss < self.reference - self.tol:
            self.reference, self.waited = loss, 0
        else:
            self.waited += 1

    @property
    def is_over(self):
        """Whether it is time to stop."""
        return self.waited >= self.patience

    def restore_best(self, module):
        """Give ``module`` the weights of its best epoch."""
        if self.best is not None:
            set_values(module, self.best)


@dataclass
class TrainingState:
    """Where training stands: with the recipe and the images, all that decides how it goes on.

    Attributes
    ----------
    net : LeanNet or None
        With weights, optimizer and history. None before there is one.
    order : torch.Generator or None
        What the order of the images is drawn from.
    masks
        What dropout masks are drawn from, where that is not torch's global generator.
    stopping : EarlyStopping or None
    n_epochs, n_batches : int
        Trained so far.
    layer_rows : list
        As `layer_rows` returns them.
    """

    net: Any = None
    order: torch.Generator | None = None
    masks: Any = None
    stopping: EarlyStopping | None = None
    n_epochs: int = 0
    n_batches: int = 0
    layer_rows: list = field(default_factory=list)

    def state_dict(self):
        """Return the state between two epochs as plain values: tensors, numbers, lists and dicts.

        `torch.load` reads it with ``weights_only=True``.
        """
        return {
            "values": [values_of(module) for module in self.net.learning()],
            "optimizer": copy.deepcopy(self.net.optimizer_.state_dict()),
            "history": copy.deepcopy(self.net.history.to_list()),
            "order": generator_state(self.order),
            "masks": generator_state(self.masks),
            "global_states": global_states(),
            "stopping": self.stopping and copy.deepcopy(vars(self.stopping)),
            "n_epochs": self.n_epochs,
            "n_batches": self.n_batches,
        }

    def load_state_dict(self, state):
        """Go to where a `state_dict` was taken, of training with the same recipe and images."""
        for module, values in zip(self.net.learning(), state["values"], strict=True):
            set_values(module, values)
        optimizer = self.net.optimizer_
        base_lrs = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
            group["lr"] = lr  # where a schedule had got to follows from the number of epochs
        del self.net.history[:]
        self.net.history.extend(copy.deepcopy(state["history"]))
        set_generator_state(self.order, state["order"])
        set_generator_state(self.masks, state["masks"])
        set_global_states(state["global_states"])
        if self.stopping is not None:
            vars(self.stopping).update(copy.deepcopy(state["stopping"]))
        self.n_epochs, self.n_batches = state["n_epochs"], state["n_batches"]


def values_of(module):
    """Return copies of a module's weights and buffers, also of those that it does not save."""
    state = {name: copy.deepcopy(value) for name, value in module.state_dict().items()}
    return state, copy.deepcopy(dict(module.named_buffers()))


def set_values(module, values):
    """Give a module what `values_of` returned."""
    state, buffers = values
    module.load_state_dict(state)
    with torch.inference_mode():  # a buffer may have been made in it
        for name, buffer in module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
