"""Users' modules: copied or refused, and with hooks that stay for one pass of one thread."""

import copy
import threading
from collections import OrderedDict
from contextlib import contextmanager
from itertools import chain

import torch
from torch.nn.parameter import is_lazy

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class PassHook:
    """A forward hook, or pre-hook, that hears only of passes of the thread that made it.

    It is no part of the network: copies and pickles are made without it.
    """

    def __init__(self, function):
        self.function = function
        self.thread = threading.get_ident()

    def __call__(self, module, inputs, output=None):
        """Return what ``function`` makes of the arguments that torch gives a forward hook."""
        if threading.get_ident() == self.thread:
            return self.function(module, inputs, output)
        return None


@contextmanager
def pass_hooks(listeners):
    """Have ``listeners``, (register, function) pairs, hear of what happens in the block.

    ``register`` is a module's `register_forward_hook` or `register_forward_pre_hook`.
    """
    handles = []
    try:
        for register, function in listeners:
            handles.append(register(PassHook(function)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def state_without_hooks(network):
    """Return ``vars(network)`` as it is between passes, whatever other threads are at.

    Modules are copied; tensors are the same.
    """
    memo = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    found = []
    for module in network.modules():
        for name in HOOKS:
            hooks = getattr(module, name)
            # In one go: while a loop goes on, another thread may put hooks in or take them out.
            kept = [pair for pair in list(hooks.items()) if not isinstance(pair[1], PassHook)]
            memo[id(hooks)] = OrderedDict()
            found.append((memo[id(hooks)], kept))
    try:
        state = copy.deepcopy(vars(network), memo)
        for hooks, kept in found:
            # Copied as well, behind the modules: they may be these modules' methods.
            hooks.update(copy.deepcopy(kept, memo))
    except Exception:  # users' modules may hold what can be pickled, but not copied
        return vars(network)
    return state


def own_copy(module):
    """Return a copy of a user's module; raise if it is of a kind that can't be used."""
    kind = type(module).__name__
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise TypeError(
            f"{kind} is, or holds, a ScriptModule, whose layers can be neither tapped nor "
            "trained: give the module that it was made of"
        )
    if any(weight.is_meta for weight in _weights(module)):
        raise ValueError(
            f"{kind} has weights on torch's device 'meta', which have no values: load these first"
        )
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise ValueError(
            f"{kind} can't be copied, and would be changed by what is done with it: {error}. "
            "Of torch.nn.utils.weight_norm and spectral_norm, take those of "
            "torch.nn.utils.parametrizations"
        ) from error


def has_lazy_weights(module):
    """Whether some weights will only be drawn, in the shape of the input, by a first pass."""
    return any(map(is_lazy, _weights(module)))


def refuse_lazy_weights(module):
    """Raise if a network that is used as it is has weights that no pass has drawn yet."""
    if has_lazy_weights(module):
        raise ValueError(
            f"{type(module).__name__} has lazy layers, which have no weights before images have "
            "passed: call it once with a batch of images"
        )


def _weights(module):
    return chain(module.parameters(), module.buffers())
