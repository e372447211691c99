"""What is known of a module as long as it lives and nothing is written into it."""

import weakref
from functools import partial

import torch

from .digests import digest_of

# Of one module: whoever fits on images of ever new sizes must not run out of memory.
MAX_NOTES = 100


class Stamp:
    """The layers and weights of a module as they are now.

    It no longer holds where they are replaced, or weights written into but through ``.data``.
    """

    def __init__(self, module):
        self.slots = [
            slots
            for part in module.modules()
            for slots in (part._parameters, part._buffers, part._modules)
        ]
        self.held = [
            (slots, name, value, _version(value))
            for slots in self.slots
            for name, value in slots.items()
        ]

    def still_holds(self):
        # By identity: what is kept here can't have given its id to another object.
        for slots, name, value, version in self.held:
            if slots.get(name) is not value or (version is not None and value._version != version):
                return False
        return sum(map(len, self.slots)) == len(self.held)


def _version(value):
    if isinstance(value, torch.Tensor) and not value.is_inference():
        return value._version
    return None


def remembered(module):
    """Have `once` remember what it makes of ``module``, which nobody changes; return that."""
    _known[module] = Stamp(module), {}
    return module


def once(module, key, make):
    """Return what ``make()`` returned when it was first called for ``key``.

    It is called each time of modules that are not `remembered`, and again where many other keys
    were asked for since. What it returns may not hold the module, which would never be freed.
    """
    if module not in _known:
        return make()
    stamp, notes = _known[module]
    if not stamp.still_holds():
        _known[module] = _, notes = Stamp(module), {}
    if (known := notes.get(key)) is None:  # threads may drop each other's
        if len(notes) >= MAX_NOTES:
            oldest, *_ = notes
            notes.pop(oldest, None)
        known = notes[key] = make()
    return known


def digest_once(module):
    """Return `digest_of` a module, taken once if it is `remembered`."""
    return once(module, "digest", partial(digest_of, module))


_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
