"""Users' modules: copied, or refused where they can't be used."""

import copy
from itertools import chain

import torch
from torch.nn.parameter import is_lazy


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
