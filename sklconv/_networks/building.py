"""``module=`` to a torch module: networks of declarative layers, and users' own."""

import fnmatch
from contextlib import nullcontext
from copy import deepcopy
from itertools import chain, count

import torch
from torch import nn

from .. import layers
from .._activations.tracing import trace_layers
from .._platform.layouts import RightLayouts, ready_weights
from .._platform.modules import has_lazy_weights, own_copy
from .._platform.randomness import generator, seeded_global_states
from .._platform.words import by, did_you_mean, not_a_layer
from .._pretrained.backbones import Backbone
from .._pretrained.heads import can_reset_head, drop_auxiliary_heads, replace_head, reset_head
from .._pretrained.libraries import suggest_network
from ..layers._stack import LayerStack
from .image_network import ImageNetwork, LayerNetwork, PreparePixels
from .torch_module import TorchModule

# A torch class: what the layer that makes it is called.
LAYER_NAMES = {
    torch_class: name
    for name in layers.__all__
    for torch_class in getattr(layers, name).torch_classes
}

# Blank images that a network is tried with.
N_TRACED = 2


def auto_layers():
    """The layers of ``module="auto"``: a small CNN that any image from 1×1 up can bear."""
    he = "he_uniform"
    return [
        ("conv1", layers.Conv(32, 3, padding="same", kernel_init=he)),
        ("pool1", layers.MaxPool("auto")),
        ("conv2", layers.Conv(64, 3, padding="same", kernel_init=he)),
        ("pool2", layers.MaxPool("auto")),
        ("dense", layers.Dense(256, kernel_init=he)),
    ]


def is_auto(module):
    """Whether ``module`` is the word for the default network."""
    return isinstance(module, str) and module == "auto"


def build_layers(steps, image_shape, n_classes, generator):
    """Return a `LayerStack` of ``steps``, which `check_layers` has passed, for such images."""
    steps = [(name, layer) for name, layer in steps if not _is_passthrough(layer)]
    names = {name for name, _ in steps}
    if not any(_is_output(layer) for _, layer in steps):
        if "output" in names:
            raise ValueError(
                "module: the name 'output' is reserved for the output layer, "
                "Dense('n_classes', activation=None), which is added at the end. Rename the "
                "layer, or make it that one"
            )
        steps = [*steps, ("output", layers.Dense("n_classes", activation=None))]
    stack, shape = LayerStack(), tuple(image_shape)
    for name, layer in steps:
        if isinstance(layer, layers.Dense) and len(shape) == 3:
            unused = _unused(names, "flatten")
            shape = _append(stack, unused, layers.Flatten(), shape, n_classes, generator)
        shape = _append(stack, name, layer, shape, n_classes, generator)
    if shape != (n_classes,):
        raise ValueError(
            f"module: the last layer {steps[-1][0]!r} puts out {by(shape)}, but there are "
            f"{n_classes} classes; layers after Dense('n_classes') must keep its shape"
        )
    return stack


def check_layers(steps):
    """Raise unless ``steps`` is a list of ``(name, layer)`` pairs with names of their own."""
    for step in steps:
        if not (isinstance(step, tuple) and len(step) == 2 and isinstance(step[0], str)):
            raise TypeError(
                f"module: a list of layers holds (name, layer) pairs, not {step!r}; "
                'for example ("conv1", Conv(32, 5))'
            )
        name, layer = step
        if not (isinstance(layer, layers.Layer) or _is_passthrough(layer)):
            raise TypeError(
                f"module: layer {name!r} is {layer!r}, neither a layer of sklconv.layers nor "
                "'passthrough'"
            )
        if not name or "." in name or hasattr(LayerStack(), name):
            raise ValueError(f"module: {name!r} can't be a layer's name in torch; take another")


def _append(stack, name, layer, shape, n_classes, generator):
    try:
        module, output_shape = layer.build(shape, n_classes, generator)
    except (ValueError, TypeError) as error:
        kind = type(layer).__name__
        raise type(error)(
            f"module: layer {name!r} ({kind}) on an input of {by(shape)}: {error}"
        ) from None
    stack.add_module(name, module)
    return output_shape


def _unused(taken, name):
    candidates = chain([name], (f"{name}{i}" for i in count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def _is_passthrough(layer):
    return isinstance(layer, str) and layer == "passthrough"


def _is_output(layer):
    return isinstance(layer, layers.Dense) and layer.units == "n_classes"


def build_network(module, image_shape, n_classes, *, statistics, seed):
    """Return a new `ImageNetwork`, its output not yet checked.

    Parameters
    ----------
    module
        As `sklconv.ConvNetClassifier` takes it.
    image_shape : tuple of int
    n_classes : int
    statistics : (list, list, float) or None
        Each channel's mean and standard deviation, to standardise by, and the largest absolute
        value.
    seed : int
    """
    # Declarative layers take the generator; others' constructors draw from the global states.
    declarative = is_auto(module) or isinstance(module, list)
    with nullcontext() if declarative else seeded_global_states(seed):
        if isinstance(module, Backbone):
            return _with_new_head(module.resolve(), image_shape, n_classes, seed)
        body = build_body(module, image_shape, n_classes, generator(seed))
        network_class = LayerNetwork if declarative else ImageNetwork
        network = network_class(PreparePixels(*statistics or ()), body)
        if has_lazy_weights(body):  # which the first pass draws
            trace_network(network, image_shape)
    return ready_weights(network)


def _with_new_head(backbone, image_shape, n_classes, seed):
    """Return an `ImageNetwork` of a copy of the backbone, with a new head for the classes."""
    body = drop_auxiliary_heads(deepcopy(backbone.load()))
    prepare = backbone.preparation(body)
    if can_reset_head(body):
        head = reset_head(body, n_classes, seed)
    else:
        calls, output = trace_network(ImageNetwork(prepare, body), image_shape)
        head = replace_head(body, calls, output, n_classes, seed)
    if not head:
        raise ValueError(
            f"module: the backbone {backbone.network_name} does not end in a layer that a head "
            "for the classes could take the place of; use it in a ConvFeatureExtractor, or give a "
            "TorchModule or a module with a head of its own"
        )
    return ready_weights(ImageNetwork(prepare, body, head=head))


def frozen_layers(network, freeze):
    """Return the modules that ``freeze``, a parameter of `ConvNetClassifier`, names."""
    if freeze is None:
        return []
    if freeze == "backbone":
        if network.head is None:
            raise ValueError(
                "freeze='backbone' needs module=Backbone(...); of other networks name the layers"
            )
        # All but the head: also what stands around it may hold dropout.
        heads = {part for head in network.head_layers() for part in head.modules()}
        return [part for part in network.body.modules() if part not in heads]
    modules = dict(network.body.named_modules())
    del modules[""]
    found: dict[str, nn.Module] = {}
    for pattern in [freeze] if isinstance(freeze, str) else freeze:
        names = [pattern] if pattern in modules else fnmatch.filter(modules, pattern)
        if not names:
            raise ValueError(not_a_layer("freeze", pattern, modules))
        found |= {name: modules[name] for name in names}
    return list(found.values())


def build_body(module, image_shape, n_classes, generator):
    """Return what ``module=`` means as a new torch module, its output not yet checked."""
    if is_auto(module):
        module = auto_layers()
    if isinstance(module, list):
        return build_layers(module, image_shape, n_classes, generator)
    if isinstance(module, TorchModule):
        return drop_auxiliary_heads(module.build(image_shape, n_classes))
    if isinstance(module, nn.Module):
        return drop_auxiliary_heads(own_copy(module))
    raise TypeError(
        f"module={module!r} is none of 'auto', a list of (name, layer) pairs, a TorchModule, a "
        f"Backbone and a torch.nn.Module instance{_meant(module)}"
    )


def _meant(module):
    if isinstance(module, type):
        return f"; for a class, TorchModule({module.__name__})"
    if not isinstance(module, str):
        return ""
    hint = did_you_mean(module, ["auto"]) or suggest_network(module, form="Backbone({!r})")
    return f".{hint}"


def blank_images(network, image_shape, n=N_TRACED):
    """Return ``n`` images without content; of bytes, which are in range whatever pixels are."""
    return torch.zeros(n, *image_shape, dtype=torch.uint8, device=network.device)


def trace_network(network, image_shape, n_outputs=None):
    """Run ``network`` once on blank images; return the `Trace`, which iterates as calls, output.

    Raises unless it takes images of this shape and puts out ``n_outputs`` columns.
    """
    blank = blank_images(network, image_shape)
    try:
        with RightLayouts() as watched:
            trace = trace_layers(network.eval().body, lambda: network(blank))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        size = getattr(network.prepare, "size", None)
        resized = f" resized to {size}" if size else ""
        raise ValueError(
            f"module can't take images of shape {image_shape}{resized}: {error}"
        ) from error
    network.note_risks(watched.risks)
    output = trace.output
    if n_outputs is not None and getattr(output, "shape", None) != (N_TRACED, n_outputs):
        came = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"module puts out {came} for {N_TRACED} images, but y has {n_outputs} classes: its "
            f"output must have shape ({N_TRACED}, {n_outputs}), one column a class"
        )
    return trace
