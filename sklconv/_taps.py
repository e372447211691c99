"""Activations of named layers, from a pass that stops behind the deepest of them."""

import fnmatch
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import torch
from torch import nn

from ._devices import autocast
from ._passes import pass_hooks
from ._stack import LayerStack
from ._suggestions import did_you_mean


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


@dataclass(frozen=True)
class Tap:
    """Where an activation is taken: what a module puts out, or takes in, at its n-th call."""

    name: str  # as features are named after it
    module: str
    n_calls: int
    of_input: bool = False


def trace_layers(body, run):
    """Return the `LayerCall`s of one pass, in the order in which they ended.

    ``run`` is a function without arguments that makes the pass. Layers that put out anything
    but a tensor are left out.
    """
    calls: list[LayerCall] = []

    def record(name, module, inputs, output):
        if isinstance(output, torch.Tensor):
            first = inputs[0] if inputs else None
            versions = _version(first), _version(output)
            calls.append(LayerCall(name, module, first, output, *versions))

    listeners = [
        (module.register_forward_hook, partial(record, name))
        for name, module in body.named_modules()
        if name
    ]
    # Out of a caller's inference mode, in which tensors do not count writes into them.
    with pass_hooks(listeners), torch.inference_mode(False), torch.no_grad():
        output = run()
    return calls, output


def _version(value):
    tracked = isinstance(value, torch.Tensor) and not value.is_inference()
    return value._version if tracked else 0


def layer_names(calls):
    """Return the layers' names, each once, in the order of their last calls."""
    return list(reversed(dict.fromkeys(call.name for call in reversed(calls))))


def resolve_taps(layer, calls, output):
    """Return the `Tap`s that ``layer`` names, in the order given, the deepest known by ``calls``.

    Parameters
    ----------
    layer : str, int or list of these
        As `sklconv.ConvFeatureExtractor` takes it.
    calls, output
        As `trace_layers` returns them.
    """
    names = layer_names(calls)
    wanted = layer if isinstance(layer, (list, tuple)) else [layer]
    if not wanted:
        raise ValueError("layer=[] names no layer")
    taps = []
    for one in wanted:
        if isinstance(one, str) and one == "penultimate" and one not in names:
            taps.append(_penultimate(calls, output))
        else:
            taps += [_output_tap(name, calls) for name in _matching(one, names)]
    return list(dict.fromkeys(taps))


def _matching(layer, names):
    if isinstance(layer, Integral) and not isinstance(layer, bool):
        if -len(names) <= int(layer) < 0:
            return [names[int(layer)]]
        raise ValueError(f"layer={layer}: an index counts from the end, -1 to {-len(names)}")
    if not isinstance(layer, str):
        raise TypeError(f"layer={layer!r} is neither a name nor a negative index")
    if layer in names:
        return [layer]
    found = fnmatch.filter(names, layer)
    if found:
        return found
    raise ValueError(
        f"layer={layer!r} is not a layer of this network. Its layers are: {', '.join(names)}."
        + did_you_mean(layer, [*names, "penultimate"])
    )


def _output_tap(name, calls):
    return Tap(name, name, sum(call.name == name for call in calls))


def _penultimate(calls, output):
    """The tap on what feeds the last linear layer, if that one's output is the network's."""
    linear = [i for i, call in enumerate(calls) if isinstance(call.module, nn.Linear)]
    last = calls[linear[-1]] if linear else None
    if last is None or last.output is not output or last.output_version != _version(output):
        return Tap("penultimate", "", 1)
    for call in calls[: linear[-1]]:
        # Also under the name of the first that put it out so: dropout hands its input on, but
        # ReLU may have written into it since.
        if call.output is last.input and call.output_version == last.input_version:
            return _output_tap(call.name, calls)
    n_calls = sum(call.name == last.name for call in calls)
    return Tap("penultimate", last.name, n_calls, of_input=True)


class _Done(Exception):
    """Ends a pass whose last wanted activation is there."""


def run_taps(network, taps, deepest, x, precision="float32"):
    """Return each tap's activation for the batch ``x``.

    Parameters
    ----------
    network : ImageNetwork
    taps : list of Tap
    deepest : Tap
        The one behind which the pass stops.
    x : torch.Tensor of shape (N, C, H, W)
    precision : {"float32", "bfloat16"}

    Returns
    -------
    list of torch.Tensor
    """
    if isinstance(network.body, LayerStack):
        with autocast(x.device, precision):
            found = network.body.activations(network.prepare(x), {tap.module for tap in taps})
        return [found[tap.module] for tap in taps]
    hooks = _Hooks(taps, deepest)
    with hooks.on(network.body), autocast(x.device, precision), network.right_layouts():
        network.body(network.prepared(x))
    unseen = [tap.name for tap in taps if tap not in hooks.found]
    if unseen:
        raise ValueError(
            f"layer {unseen[0]!r} was not called in this pass, as it was at fit. Layers inside of "
            "what torch.compile has compiled can't be tapped: give the module itself"
        )
    return [hooks.found[tap] for tap in taps]


class _Hooks:
    """Captures the activations of one pass in one thread, and ends it behind the deepest."""

    def __init__(self, taps, deepest):
        self.taps, self.deepest = taps, deepest
        self.found: dict[Tap, torch.Tensor] = {}
        self.calls = dict.fromkeys(taps, 0)

    @contextmanager
    def on(self, body):
        with suppress(_Done), pass_hooks([self._listener(body, tap) for tap in self.taps]):
            yield

    def _listener(self, body, tap):
        module = body.get_submodule(tap.module)
        if tap.of_input:
            return module.register_forward_pre_hook, (
                lambda _, inputs, __: self._capture(tap, inputs[0])
            )
        return module.register_forward_hook, lambda _, __, output: self._capture(tap, output)

    def _capture(self, tap, activation):
        self.calls[tap] += 1
        # A copy: what comes behind may work in place.
        self.found[tap] = activation.clone()
        was_last_call = tap == self.deepest and self.calls[tap] == tap.n_calls
        if was_last_call and len(self.found) == len(self.taps):
            raise _Done


def find_deepest(taps, calls):
    """Return the tap whose activation comes last in a pass."""
    last = {call.name: position for position, call in enumerate(calls)}
    last[""] = len(calls)
    return max(taps, key=lambda tap: last[tap.module] - (0.5 if tap.of_input else 0))


def tapped_activation(tap, calls, output):
    """Return the activation of ``tap`` in a traced pass."""
    if not tap.module:
        return output
    last = next(call for call in reversed(calls) if call.name == tap.module)
    return last.input if tap.of_input else last.output
