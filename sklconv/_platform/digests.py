"""Digests: equal where structure, code, configuration and weights are equal."""

import copyreg
import enum
import functools
import hashlib
import sys
import types
import weakref

import numpy as np
import torch
from torch import nn

from .passes import HOOKS, PassHook

# What torch itself keeps in every module; the tree, weights and hooks are digested by themselves.
_BOOKKEEPING = frozenset(vars(nn.Module()))


class Undigestible(TypeError):
    """A value of which no digest can be had, such as a lock or compiled code."""


def digest_of(value, *, learning=False):
    """Return a digest of a torch module, or of what holds some, as text.

    It covers names, values and sharing of parameters and buffers; the tree of modules, by class
    and by what stands in their attributes; their hooks; and, of classes and functions that are
    not torch's own, the code: bytecode, constants, defaults and what it encloses. Globals that
    code refers to are not followed. Training mode, devices and memory layouts do not count; with
    ``learning`` it does which tensors require gradients.

    Raises
    ------
    Undigestible
    """
    try:
        return _digest(value, learning)
    except Undigestible:
        raise
    except RecursionError:
        raise Undigestible("it is nested too deeply") from None
    except Exception as error:  # attributes may be anything, and raise anything
        raise Undigestible(f"{type(error).__name__}: {error}") from error


class _Digest:
    """A hash that values of many kinds are added to, each behind the name of its kind."""

    def __init__(self, learning=False):
        self.hash = _new_hash()
        self.learning = learning
        # By id, with the object: while it lives, its id is its own.
        self._shared = {}  # modules and tensors: number
        self._finished = {}  # other objects: digest
        self._open = []  # ids of those that are being added

    def add(self, value):
        """Add a value, and what it holds."""
        if type(value) in _PLAIN:
            self._write(type(value).__name__, repr(value).encode())
        elif type(value) in (tuple, frozenset, set):
            self._add_immutable(value)
        elif isinstance(value, (nn.Module, torch.Tensor)):
            self._add_shared(value)
        elif id(value) in self._open:
            self._write("cycle", str(len(self._open) - self._open.index(id(value))).encode())
        else:
            self._write("object", self._content(value))

    def _write(self, kind, content=b""):
        self.hash.update(f"{kind} {len(content)} ".encode())
        self.hash.update(content)

    def _add_shared(self, value):
        """Add a module or tensor, or its number: weights that are tied are not equal ones."""
        if id(value) in self._shared:
            self._write("again", str(self._shared[id(value)][0]).encode())
            return
        self._shared[id(value)] = (len(self._shared), value)
        self._add_object(value)

    def _content(self, value):
        """Return the digest of any other object: whether it is shared does not count."""
        if id(value) not in self._finished:
            outer, self.hash = self.hash, _new_hash()
            self._open.append(id(value))
            self._add_object(value)
            self._open.pop()
            self._finished[id(value)] = (self.hash.digest(), value)
            self.hash = outer
        return self._finished[id(value)][0]

    def _add_immutable(self, value):
        # Whether two equal ones are the same object is Python's affair: they are not references.
        self._write(type(value).__name__, str(len(value)).encode())
        items = value if isinstance(value, tuple) else sorted(map(_digest, value))
        for item in items:
            self.add(item)

    def _add_object(self, value):
        for kinds, add in _WAYS:
            if isinstance(value, kinds):
                return add(self, value)
        if type(value) is dict:
            return self._add_mapping(value)
        if type(value) is list:
            return self._add_items(value)
        return self._add_instance(value)

    def _add_module(self, module):
        if isinstance(module, torch.jit.ScriptModule):
            raise Undigestible("a ScriptModule has no Python code")
        self._write("module", str(len(module._modules)).encode())
        self.add(type(module))
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            self.add(name)
            self.add(tensor)
        self._add_attributes(
            {name: value for name, value in vars(module).items() if name not in _BOOKKEEPING}
        )
        for name in HOOKS:
            self._add_hooks(vars(module)[name], vars(module)[f"{name}_with_kwargs"])
        for name, child in module._modules.items():
            self.add(name)
            self.add(child)

    def _add_hooks(self, hooks, with_kwargs):
        self._write("hooks")
        for number, hook in list(hooks.items()):
            if not isinstance(hook, PassHook):  # of a pass that another thread is making
                self.add(hook)
                self.add(number in with_kwargs)

    def _add_tensor(self, tensor):
        self._write("tensor", f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        if self.learning:
            self._write(str(tensor.requires_grad))
        if not _is_library_code(type(tensor)):
            self.add(type(tensor))
        try:
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self.hash.update(values.numpy())
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise Undigestible(f"a tensor has no plain values ({error})") from None

    def _add_array(self, array):
        if array.dtype.hasobject or type(array) is not np.ndarray:
            return self._add_instance(array)
        self._write("array", f"{array.shape} {array.dtype}".encode())
        self.hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def _add_items(self, items):
        self._write(type(items).__name__, str(len(items)).encode())
        for item in items:
            self.add(item)

    def _add_mapping(self, mapping):
        self._write(type(mapping).__name__, str(len(mapping)).encode())
        for key, value in mapping.items():
            self.add(key)
            self.add(value)

    def _add_attributes(self, attributes):
        self._write("attributes", str(len(attributes)).encode())
        for name, value in sorted(attributes.items()):
            self.add(name)
            self.add(value)

    def _add_class(self, kind):
        self._write("class", f"{kind.__module__}.{kind.__qualname__}".encode())
        if type(kind) is not type:
            self.add(type(kind))
        for base in kind.__mro__:
            self._write("base", f"{base.__module__}.{base.__qualname__}".encode())
            if not _is_library_code(base):
                self._add_attributes(
                    {name: value for name, value in vars(base).items() if _is_code(name, value)}
                )

    def _add_function(self, function):
        self._write("function", function.__qualname__.encode())
        if _is_library_code(function):
            self._write("named", f"{function.__module__}.{function.__name__}".encode())
        else:
            self.add(function.__code__)
            self.add(function.__defaults__)
            self.add(function.__kwdefaults__)
            self._add_attributes(vars(function))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self._write("empty cell")

    def _add_code(self, code):
        self._write("code", code.co_code)
        # Not the lines, nor the file: the same code elsewhere is the same.
        self.add((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount))
        self.add((code.co_flags, code.co_exceptiontable))
        self.add((code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars))
        for constant in code.co_consts:
            self.add(constant)

    def _add_method(self, method):
        self._write("method")
        self.add(method.__func__)
        self.add(method.__self__)

    def _add_partial(self, partial):
        self._write("partial")
        self.add(partial.func)
        self.add(partial.args)
        self.add(partial.keywords)

    def _add_wrapped(self, descriptor):
        self._write(type(descriptor).__name__)
        for name in ("fget", "fset", "func", "__func__"):
            self.add(getattr(descriptor, name, None))

    def _add_named(self, value):
        name = getattr(value, "__name__", value)
        self._write("named", f"{type(value).__name__} {name}".encode())

    def _add_enum(self, member):
        self._write("enum", member.name.encode())
        self.add(type(member))
        self.add(member.value)

    def _add_graph(self, graph):
        self._write("graph", str(graph).encode())
        for node in graph.nodes:
            self.add(node.target)

    def _add_reference(self, reference):
        self._write("reference")
        self.add(reference())

    def _add_builtin(self, function):
        self._write("builtin", function.__qualname__.encode())
        # A bound one computes with its object: {}.get, tensor.mul.
        self.add(getattr(function, "__module__", None))
        self.add(getattr(function, "__self__", None))

    def _add_instance(self, value):
        """Add a class, and what `pickle` would take of its instance."""
        self._write("instance")
        self.add(type(value))
        if isinstance(value, (set, frozenset)):
            self._add_immutable(value)
            return self._add_state(getattr(value, "__dict__", None))
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception as error:
            raise Undigestible(f"{type(value).__name__}: {error}") from None
        if isinstance(reduced, str):  # a global's name
            self.add(reduced)
            return self._add_state(getattr(value, "__dict__", None))
        self.add(reduced[:2])  # what makes it, and from what
        adds = (self._add_state, self._add_each, self._add_each)
        for part, add in zip(reduced[2:], adds, strict=False):
            add(part)

    def _add_each(self, items):
        self._add_items([] if items is None else list(items))

    def _add_state(self, state):
        # Of instances with slots: their dict and the slots.
        parts = state if type(state) is tuple and len(state) == 2 else (state,)
        for part in parts:
            named = type(part) is dict and all(type(name) is str for name in part)
            self._add_attributes(part) if named else self.add(part)


def _new_hash():
    return hashlib.blake2b(digest_size=20)


def _digest(value, learning=False):
    digest = _Digest(learning)
    digest.add(value)
    return digest.hash.hexdigest()


def _is_code(name, value):
    """Whether a class's attribute has been written, not made by Python."""
    if name.startswith("__") and name.endswith("__"):
        return isinstance(value, types.FunctionType) and not name.startswith("__annotate")
    return name != "_abc_impl" and not isinstance(value, _DESCRIPTORS)


def _is_library_code(thing):
    """Whether a class or function is Python's or torch's own, known by its name, or C's."""
    if isinstance(thing, type) and not thing.__flags__ & _MADE_BY_PYTHON:
        return True
    module = str(getattr(thing, "__module__", None))
    return module.partition(".")[0] in _LIBRARIES


# Not "builtins": what says so and has Python code was made by `exec`.
_LIBRARIES = {"torch", *sys.stdlib_module_names} - {"builtins"}

# CPython's flag of classes that a class statement made, among others.
_MADE_BY_PYTHON = 1 << 9

# What is its text.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})

# How Python reaches into instances that have no dict.
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)

# Kinds of objects and how each is added; the first that fits.
_WAYS: list[tuple] = [
    (nn.Module, _Digest._add_module),
    (torch.Tensor, _Digest._add_tensor),
    (np.ndarray, _Digest._add_array),
    (enum.Enum, _Digest._add_enum),
    ((torch.dtype, torch.device, torch.memory_format, torch.layout), _Digest._add_named),
    ((torch._ops.OpOverload, torch._ops.OpOverloadPacket), _Digest._add_named),
    (types.ModuleType, _Digest._add_named),
    (weakref.ref, _Digest._add_reference),
    (torch.fx.Graph, _Digest._add_graph),
    (type, _Digest._add_class),
    (types.FunctionType, _Digest._add_function),
    (types.CodeType, _Digest._add_code),
    (types.MethodType, _Digest._add_method),
    ((types.BuiltinFunctionType, types.MethodDescriptorType), _Digest._add_builtin),
    (functools.partial, _Digest._add_partial),
    ((property, staticmethod, classmethod, functools.cached_property), _Digest._add_wrapped),
]
