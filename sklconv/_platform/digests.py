"""Digests, equal where structure, code and weights are; and what holds while they stay so."""

import copyreg
import functools
import hashlib
import sys
import types
import weakref

import numpy as np
import torch
from torch import nn

from .modules import HOOKS, PassHook

# What torch itself keeps in every module; the tree, weights and hooks are digested by themselves.
_BOOKKEEPING = frozenset(vars(nn.Module()))

# Of one module: whoever fits on images of ever new sizes must not run out of memory.
MAX_NOTES = 100


class Undigestible(TypeError):
    """A value of which no digest can be had, such as a lock or compiled code."""


def digest_of(value, code=None):
    """Return a digest of a torch module, or of what holds some, as text.

    It covers names, values and sharing of parameters and buffers; the tree of modules, by class
    and by what stands in their attributes; their hooks; and, of classes and functions that are
    not torch's, scikit-learn's or this package's own, the code: bytecode, constants, defaults
    and what it encloses. Globals that code refers to are not followed. Training mode, devices
    and memory layouts do not count.

    Parameters
    ----------
    value : object
    code : list or None, default=None
        To which the classes and functions that were met are added, but for libraries'.

    Raises
    ------
    Undigestible
    """
    digests = _Digests()
    try:
        digest = digests.of(value)
    except Exception as error:  # attributes may be anything, and raise anything
        raise Undigestible(f"{type(error).__name__}: {error}") from error
    if code is not None:
        met = [met for _, met in digests._met.values() if isinstance(met, CODE)]
        code += [thing for thing in met if not _is_library_code(thing)]
    return _hash(digest).hex()


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
    were asked for since. It may not return None, nor what holds the module, which would then
    never be freed.
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
    return once(module, "digest", functools.partial(digest_of, module))


class _Digests:
    """Digests of objects, each from those of its type and parts, which `_parts` names."""

    def __init__(self):
        # By id, with the object: while it lives, its id is its own.
        self._met = {}
        self._n_shared = self._depth = 0

    def of(self, value):
        """Return the digest of ``value``, as bytes; of plain values their text."""
        if _is_plain(value):
            text = repr(value)
            return f"{type(value).__name__} {len(text)} {text}".encode()
        if id(value) not in self._met:
            # Weights that are tied are not equal ones. Whether other objects are shared does not
            # count: until one is done, its depth stands for it where it holds itself.
            is_shared = isinstance(value, (nn.Module, torch.Tensor))
            mark = f"again {self._n_shared} " if is_shared else f"cycle {self._depth} "
            self._met[id(value)] = (mark.encode(), value)
            self._n_shared += is_shared
            self._depth += 1
            digest = _hash(b"".join(map(self.of, (type(value), *_parts(value)))))
            self._depth -= 1
            if is_shared:
                return digest
            self._met[id(value)] = (digest, value)
        return self._met[id(value)][0]


def _hash(content):
    return hashlib.blake2b(content, digest_size=20).digest()


def _hash_values(content):
    # For which most CPUs have instructions: half the time for long ones.
    return hashlib.sha256(content).digest()


def _is_plain(value):
    """Whether the text of ``value`` says it all: most of what stands in a module's attributes."""
    kind = type(value)
    if kind is dict:
        return _PLAIN.issuperset(map(type, value)) and all(map(_is_flat, value.values()))
    return kind in _PLAIN or _is_flat(value)


def _is_flat(value):
    kind = type(value)
    if kind is tuple or kind is list:
        return _PLAIN.issuperset(map(type, value))
    return kind in _PLAIN


def _parts(value):
    if type(value) in (tuple, list):
        return value
    if type(value) is dict:
        return (*value, *value.values())
    return next(parts(value) for kinds, parts in _PARTS if isinstance(value, kinds))


def _parts_of_module(module):
    if isinstance(module, torch.jit.ScriptModule):
        raise Undigestible("a ScriptModule has no Python code")
    attributes = vars(module)
    hooks = [
        (name, hook, number in attributes[f"{name}_with_kwargs"])
        for name in HOOKS
        for number, hook in list(attributes[name].items())
        if not isinstance(hook, PassHook)  # of a pass that another thread is making
    ]
    own = {name: attributes[name] for name in sorted(attributes.keys() - _BOOKKEEPING)}
    return module._parameters, module._buffers, own, hooks, module._modules


def _parts_of_tensor(tensor):
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tuple(tensor.shape), str(tensor.dtype), _hash_values(values.numpy())


def _parts_of_array(array):
    if array.dtype.hasobject or type(array) is not np.ndarray:
        return _parts_of_instance(array)
    return (
        array.shape,
        str(array.dtype),
        _hash_values(np.ascontiguousarray(array).reshape(-1).view(np.uint8)),
    )


def _parts_of_class(kind):
    parts: list = []
    for base in kind.__mro__:
        parts.append(f"{base.__module__}.{base.__qualname__}")
        if not _is_library_code(base):
            all_of_it = sorted(vars(base).items())
            parts.append({name: value for name, value in all_of_it if _is_code(name, value)})
    return parts


def _parts_of_function(function):
    if _is_library_code(function):
        return function.__module__, function.__qualname__, function.__closure__
    return (
        function.__qualname__,
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        function.__closure__,
        vars(function),
    )


def _parts_of_code(code):
    # Not the lines, nor the file: the same code elsewhere is the same.
    return (
        *(code.co_code, code.co_consts, code.co_flags, code.co_exceptiontable),
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        *(code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars),
    )


def _parts_of_cell(cell):
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ("empty",)


def _parts_of_instance(value):
    """Return what `pickle` would take of an instance."""
    reduce = copyreg.dispatch_table.get(type(value))
    reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    if isinstance(reduced, str):  # a global's name
        return reduced, getattr(value, "__dict__", None)
    # What makes it, from what, and its state; then what is in it.
    return (*reduced[:3], *(tuple(items or ()) for items in reduced[3:5]))


def _is_code(name, value):
    """Whether a class's attribute has been written, not made by Python."""
    if name.startswith("__") and name.endswith("__"):
        return isinstance(value, types.FunctionType) and not name.startswith("__annotate")
    return name != "_abc_impl" and not isinstance(value, _DESCRIPTORS)


def _is_library_code(thing):
    """Whether a class or function is one of a library's, known by its name, or C's."""
    if isinstance(thing, type) and not thing.__flags__ & _MADE_BY_PYTHON:
        return True
    module = str(getattr(thing, "__module__", None))
    return module.partition(".")[0] in _LIBRARIES


# Not "builtins": what says so and has Python code was made by `exec`.
_LIBRARIES = {"torch", "sklearn", "sklconv", *sys.stdlib_module_names} - {"builtins"}

# CPython's flag of classes that a class statement made, among others.
_MADE_BY_PYTHON = 1 << 9

CODE = (type, types.FunctionType)

# What is its text.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})

# How Python reaches into instances that have no dict.
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)

# Kinds of objects and what makes them up; the first that fits.
_PARTS: list[tuple] = [
    (nn.Module, _parts_of_module),
    (torch.Tensor, _parts_of_tensor),
    (np.ndarray, _parts_of_array),
    (
        (set, frozenset),
        lambda items: (
            *sorted(_Digests().of(item) for item in items),
            getattr(items, "__dict__", None),
        ),
    ),
    (
        (types.ModuleType, torch._ops.OpOverload, torch._ops.OpOverloadPacket),
        lambda named: (getattr(named, "__module__", None), named.__name__),
    ),
    (weakref.ref, lambda reference: (reference(),)),
    (torch.fx.Graph, lambda graph: (str(graph), *(node.target for node in graph.nodes))),
    (type, _parts_of_class),
    (types.FunctionType, _parts_of_function),
    (types.CodeType, _parts_of_code),
    (types.CellType, _parts_of_cell),
    (types.MethodType, lambda method: (method.__func__, method.__self__)),
    (
        types.BuiltinFunctionType,
        # A bound one computes with its object: {}.get, tensor.mul.
        lambda function: (function.__qualname__, function.__module__, function.__self__),
    ),
    (property, lambda descriptor: (descriptor.fget, descriptor.fset)),
    ((staticmethod, classmethod), lambda descriptor: (descriptor.__func__,)),
    (functools.cached_property, lambda descriptor: (descriptor.func,)),
    (object, _parts_of_instance),
]

# What `once` remembers, beside a module's stamp.
_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
