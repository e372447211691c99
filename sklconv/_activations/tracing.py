"""One pass through a network, recorded layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from .._platform.modules import pass_hooks
from .axes import FollowAxes

# Of a list or dict that is put out, how many parts an error names.
MAX_PARTS = 4


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer as seen in a pass: what went in and what came out."""

    name: str
    module: nn.Module
    input: object
    output: torch.Tensor
    # How often they had been written into by then: what follows may work in place.
    input_version: int
    output_version: int
    # Where their channels are, if that is known.
    input_axis: int | None
    output_axis: int | None


@dataclass
class Trace:
    """What was seen in a pass; iterates as ``calls, output``.

    Attributes
    ----------
    calls : list of LayerCall
        In the order in which they ended. Layers that put out anything but a tensor are left out.
    others : dict of str to str
        Names of the layers that are left out, and what they put out, in words.
    output
        What the network put out.
    output_axis : int or None
        Where the output's channels are, if that is known.
    images : torch.Tensor or None
        What the network took in, its pixels prepared.
    classifier : LayerCall or None
        The call of a linear layer, or of a convolution of one pixel, whose output is the
        network's, but for a softmax, or the mean of each map.
    """

    calls: list[LayerCall] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)
    output: object = None
    output_axis: int | None = None
    images: object = None
    classifier: LayerCall | None = None

    def __iter__(self):
        return iter((self.calls, self.output))


def trace_layers(body, run):
    """Return the `Trace` of the pass that ``run``, a function without arguments, makes."""
    trace, follow = Trace(), FollowAxes()

    def take(x=None):
        trace.images = x
        follow.note_images(x)

    def record(name, module, inputs, output):
        if not isinstance(output, torch.Tensor):
            trace.others[name] = describe(output)
            return
        first = inputs[0] if inputs else None
        follow.note_layer(module, output, len(trace.calls))
        versions = _version(first), _version(output)
        axes = _known(follow.axes, first), _known(follow.axes, output)
        trace.calls.append(LayerCall(name, module, first, output, *versions, *axes))

    listeners = [
        (module.register_forward_hook, partial(record, name))
        for name, module in body.named_modules()
        if name
    ]
    images = body.register_forward_pre_hook, lambda _, inputs, __: take(*inputs[:1])
    # Out of a caller's inference mode, in which tensors do not count writes into them.
    with (
        pass_hooks([images, *listeners]),
        torch.inference_mode(False),
        torch.no_grad(),
        follow,
    ):
        trace.output = run()
    trace.output_axis = _known(follow.axes, trace.output)
    trace.classifier = _classifier(trace, _known(follow.scores, trace.output))
    return trace


def _version(value):
    tracked = isinstance(value, torch.Tensor) and not value.is_inference()
    return value._version if tracked else 0


def _known(noted, value):
    return noted.get(value) if isinstance(value, torch.Tensor) else None


def _classifier(trace, scores):
    if scores is None:
        return None
    call = trace.calls[scores[1]]
    if any(later.name == call.name for later in trace.calls[scores[1] + 1 :]):
        return None  # layers are tapped at their last calls
    if isinstance(call.module, nn.Linear) and call.output is trace.output:
        return call
    return call if trace.output.shape[1:] == call.module.weight.shape[:1] else None


def describe(value):
    """Say in words what ``value`` is that a layer puts out."""
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with the keys {_some(map(repr, value))}"
    if isinstance(value, (list, tuple)):
        kinds = _some(type(part).__name__ for part in value)
        return f"{type(value).__name__} of {len(value)} ({kinds})"
    return type(value).__name__


def _some(words):
    words = list(words)
    return ", ".join(words[:MAX_PARTS]) + ", …" * (len(words) > MAX_PARTS)
