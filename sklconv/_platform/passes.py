"""Hooks that stay on a network's layers for one pass of one thread."""

import copy
import threading
from collections import OrderedDict
from contextlib import contextmanager

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
