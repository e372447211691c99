"""Activations of named layers, from a pass that stops behind the deepest of them."""

import difflib
import fnmatch
import threading
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer as seen in a pass: what went in and what came out."""

    name: str
    module: nn.Module
    input: object
    output: torch.Tensor


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
    calls, handles = [], []

    def record(name):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor):
                calls.append(LayerCall(name, module, inputs[0] if inputs else None, output))

        return hook

    try:
        for name, module in body.named_modules():
            if name:
                handles.append(module.register_forward_hook(record(name)))
        with torch.no_grad():
            output = run()
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


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
    nearest = difflib.get_close_matches(layer, [*names, "penultimate"], n=1, cutoff=0.4)
    raise ValueError(
        f"layer={layer!r} is not a layer of this network. Its layers are: {', '.join(names)}."
        + (f" Did you mean {nearest[0]!r}?" if nearest else "")
    )


def _output_tap(name, calls):
    return Tap(name, name, sum(call.name == name for call in calls))


def _penultimate(calls, output):
    """The tap on what feeds the last linear layer, if that one's output is the network's."""
    linear = [i for i, call in enumerate(calls) if isinstance(call.module, nn.Linear)]
    if not linear or calls[linear[-1]].output is not output:
        return Tap("penultimate", "", 1)
    last = calls[linear[-1]]
    for call in calls[: linear[-1]]:
        # Also under the name of the first that put it out: dropout hands its input on.
        if call.output is last.input:
            return _output_tap(call.name, calls)
    n_calls = sum(call.name == last.name for call in calls)
    return Tap("penultimate", last.name, n_calls, of_input=True)


class _Done(Exception):
    """Ends a pass whose last wanted activation is there."""


def run_taps(network, taps, deepest, x, reduce):
    """Return what ``reduce`` makes of each tap's activation for the batch ``x``.

    Parameters
    ----------
    network : ImageNetwork
    taps : list of Tap
    deepest : Tap
        The one behind which the pass may stop.
    x : torch.Tensor of shape (N, C, H, W)
    reduce : callable
        Takes a layer's name and its activation; its result must not share memory with it,
        since what comes behind may work in place.

    Returns
    -------
    list of torch.Tensor
    """
    found: dict[Tap, torch.Tensor] = {}
    calls: dict[Tap, int] = {}
    handles = []
    thread = threading.get_ident()

    def capture(tap):
        def hook(module, inputs, output=None):
            # Another thread's pass through the same module is none of this one's business.
            if threading.get_ident() != thread:
                return
            calls[tap] = calls.get(tap, 0) + 1
            found[tap] = reduce(tap.name, inputs[0] if tap.of_input else output)
            if tap == deepest and calls[tap] == tap.n_calls and len(found) == len(taps):
                raise _Done

        return hook

    try:
        for tap in taps:
            module = network.body.get_submodule(tap.module)
            register = (
                module.register_forward_pre_hook if tap.of_input else module.register_forward_hook
            )
            handles.append(register(capture(tap)))
        network(x)
    except _Done:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [found[tap] for tap in taps]


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
