"""New heads: the last layers of a pretrained network, made anew for other classes."""

import inspect

import torch
from torch import nn

from .._platform.devices import autocast
from .._platform.randomness import generator, seeded_global_states
from ..layers._initialization import initialize_weights

# Of torchvision's inception_v3 and googlenet: outputs beside the last one, in training only.
AUXILIARY = ("AuxLogits", "aux1", "aux2")


def drop_auxiliary_heads(body):
    """Return ``body``, which from now on puts out its logits alone while training, too."""
    if getattr(body, "aux_logits", None) is True:
        body.aux_logits = False
        for name in AUXILIARY:
            if hasattr(body, name):
                setattr(body, name, None)
    return body


def can_reset_head(body):
    """Whether ``body`` makes its own head anew, as timm's networks do."""
    reset = getattr(body, "reset_classifier", None)
    return callable(reset) and "num_classes" in inspect.signature(reset).parameters


def reset_head(body, n_classes, seed):
    """Have ``body`` make its head anew; return the names of the layers that are new."""
    before = {*body.modules(), *body.parameters()}
    with seeded_global_states(seed):
        body.reset_classifier(n_classes)
    names = tuple(_new_layers("", body, before))
    for name in names:  # made in torch's default dtype
        body.get_submodule(name).to(next(body.parameters()).dtype)
    return names


def _new_layers(name, module, before):
    """Yield the outermost modules all of whose parameters are new: not among ``before``."""
    parameters = set(module.parameters())
    if parameters <= before:
        return
    if module not in before and parameters.isdisjoint(before):
        yield name
        return
    for child_name, child in module.named_children():
        yield from _new_layers(f"{name}.{child_name}".lstrip("."), child, before)


def replace_head(body, calls, output, n_classes, seed):
    """Exchange the last layer of ``body``, if it is its head; return its name in a tuple, or ().

    ``calls`` and ``output`` are those of a traced pass.
    """
    kinds = (nn.Linear, nn.Conv2d)
    last = next((call for call in reversed(calls) if isinstance(call.module, kinds)), None)
    if last is None or not _ends_in(last, output):
        return ()
    head = _with_outputs(last.module, n_classes)
    initialize_weights(head.weight, head.bias, "default", generator(seed))
    parent, _, name = last.name.rpartition(".")
    setattr(body.get_submodule(parent), name, head)
    return (last.name,)


def _ends_in(call, output):
    """Whether ``output``, that of the network, is a layer's, or the mean of its maps."""
    if isinstance(call.module, nn.Linear):
        return call.output is output
    maps_of_classes = call.output.ndim == 4 and call.module.kernel_size == (1, 1)
    if not maps_of_classes or getattr(output, "shape", None) != call.output.shape[:2]:
        return False  # wider kernels are the last layer of a network without a head
    # SqueezeNet has a ReLU in between.
    means = (maps.mean((2, 3)) for maps in (call.output, call.output.relu()))
    return any(torch.allclose(mean, output, rtol=1e-4, atol=1e-6) for mean in means)


def _with_outputs(layer, n):
    """Return a new layer like ``layer`` with ``n`` outputs."""
    kind = layer.weight.dtype
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, n, dtype=kind)
    return nn.Conv2d(layer.in_channels, n, 1, layer.stride, layer.padding, dtype=kind)


def sole_head(network, calls, output):
    """Return the head of an `ImageNetwork` if it alone makes the output of what goes into it.

    None, if it is several layers, or other layers follow.
    """
    if len(network.head) != 1:
        return None
    head_calls = [call for call in calls if call.name == network.head[0]]
    if len(head_calls) != 1 or not isinstance(head_calls[0].input, torch.Tensor):
        return None
    (head,), x = network.head_layers(), head_calls[0].input
    try:
        with torch.no_grad(), autocast(x.device, network.precision), network.right_layouts():
            alone = head(x).float()
    except (RuntimeError, TypeError, IndexError):
        return None
    return head if alone.shape == output.shape and torch.allclose(alone, output) else None
