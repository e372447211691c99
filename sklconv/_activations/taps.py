"""Activations of named layers, from a pass that stops after the deepest of them."""

import fnmatch
import inspect
import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

from .._platform.devices import autocast
from .._platform.modules import pass_hooks
from .._platform.words import not_a_layer
from .tracing import describe


@dataclass(frozen=True)
class Tap:
    """Where an activation is taken: what a module puts out, or takes in, at its n-th call."""

    name: str  # what features are named after
    module: str
    n_calls: int
    of_input: bool = False
    # In place of a module's: what the network's own `forward_head` calls pre-logits, as timm's do.
    of_pre_logits: bool = False


def layer_names(calls):
    """Return the layers' names, each once, in the order of their last calls."""
    return list(reversed(dict.fromkeys(call.name for call in reversed(calls))))


def resolve_taps(layer, trace, penultimate):
    """Return the `Tap`s that ``layer`` names, in the order given.

    Parameters
    ----------
    layer : str, int or list of these
        As `sklconv.ConvFeatureExtractor` takes it.
    trace : Trace
        Of a pass through the network.
    penultimate : Tap or None
        As `penultimate_tap` returns it.
    """
    names = layer_names(trace.calls)
    wanted = layer if isinstance(layer, list) else [layer]
    if not wanted:
        raise ValueError("layer=[] names no layer")
    taps = []
    for one in wanted:
        if one == "auto" and one not in names:
            raise ValueError(
                f"layer={layer!r}: 'auto' stands alone, for the fit of a ConvFeatureExtractor"
            )
        if isinstance(one, str) and one == "penultimate" and one not in names:
            taps.append(penultimate or _no_penultimate(trace))
        else:
            taps += [output_tap(name, trace.calls) for name in _matching(one, names, trace)]
    return list(dict.fromkeys(taps))


def _matching(layer, names, trace):
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
    others = fnmatch.filter(trace.others, layer)
    if others:
        raise ValueError(_not_one_tensor(layer, others[0], names, trace))
    raise ValueError(not_a_layer("layer", layer, names, "auto", "penultimate"))


def _not_one_tensor(layer, name, names, trace):
    inside = [other for other in names if other.startswith(f"{name}.")]
    children = [other for other in inside if other.count(".") == name.count(".") + 1]
    hint = f" Layers inside it: {', '.join(children or inside)}" if inside else ""
    return (
        f"layer={layer!r}: {name!r} puts out {trace.others[name]}; only layers that put out one "
        f"tensor can be tapped.{hint}"
    )


def output_tap(name, calls):
    """Return the `Tap` on what the layer ``name`` puts out at its last call."""
    return Tap(name, name, sum(call.name == name for call in calls))


NETWORK_OUTPUT = Tap("penultimate", "", 1)
PRE_LOGITS = Tap("penultimate", "", 1, of_pre_logits=True)


def penultimate_tap(trace, network):
    """Return the tap on what goes into the classifier; `NETWORK_OUTPUT` if nothing tells that.

    What the network itself calls pre-logits, unless that is only what feeds its last linear layer;
    else what feeds the last layer before the output, a softmax or the means of maps. None, if the
    network does not put out one tensor.
    """
    features = _pre_logits(trace, network)
    if features is not None and not _goes_into_the_last_layer(features, trace):
        return PRE_LOGITS
    if trace.classifier is not None:
        return _input_tap(trace.classifier, trace.calls)
    return NETWORK_OUTPUT if isinstance(trace.output, torch.Tensor) else None


def _no_penultimate(trace):
    raise ValueError(
        f"layer='penultimate': the network puts out {describe(trace.output)}, and nothing tells "
        "what goes into a classifier. Name a layer; its layers are: "
        + ", ".join(layer_names(trace.calls))
    )


def _pre_logits(trace, network):
    """Return what the network calls pre-logits, of the traced images; None if it has none."""
    body, x = network.body, trace.images
    if not _has_pre_logits(body):
        return None
    try:
        with torch.no_grad(), autocast(x.device, network.precision), network.right_layouts():
            found = body.forward_head(body.forward_features(x), pre_logits=True)
    except Exception:  # of users' code, which may never have been called so
        return None
    return found if isinstance(found, torch.Tensor) else None


def _goes_into_the_last_layer(features, trace):
    last = trace.classifier
    if last is None or last.output is not trace.output:
        return False
    return features.shape == last.input.shape and torch.allclose(features, last.input)


def _has_pre_logits(body):
    head = getattr(body, "forward_head", None)
    return hasattr(body, "forward_features") and "pre_logits" in _parameter_names(head)


def _parameter_names(function):
    return inspect.signature(function).parameters if callable(function) else ()


def _input_tap(last, calls):
    """The tap on what goes into the call ``last``, by the name of the layer that put it out."""
    for call in calls:
        if call is last:
            break
        # The first that put it out so: dropout hands its input on, but ReLU may have written
        # into it since.
        if call.output is last.input and call.output_version == last.input_version:
            return output_tap(call.name, calls)
    n_calls = sum(call.name == last.name for call in calls)
    return Tap("penultimate", last.name, n_calls, of_input=True)


class _Done(BaseException):
    """Ends a pass whose last wanted activation is there.

    No `Exception`: on its way torch would look through each layer's hooks, which other threads
    may change at that moment, and users' networks could catch it.
    """


def hooked_activations(body, taps, deepest, x):
    """Return each tap's activation for prepared images ``x``, found by hooks.

    Parameters
    ----------
    body : torch.nn.Module
    taps : list of Tap
    deepest : Tap
        The one after which the pass stops.
    x : torch.Tensor of shape (N, C, H, W)

    Returns
    -------
    list of torch.Tensor
    """
    hooks = _Hooks(taps, deepest)
    with hooks.on(body):
        _run(body, x, hooks.found, taps)
    unseen = [tap.name for tap in taps if tap not in hooks.found]
    if unseen:
        raise ValueError(
            f"layer {unseen[0]!r} was not called in this pass, as it was at fit. Layers inside of "
            "what torch.compile has compiled can't be tapped: give the module itself"
        )
    return [hooks.found[tap] for tap in taps]


def _run(body, x, found, taps):
    if PRE_LOGITS not in taps:
        body(x)
        return
    features = body.forward_features(x)
    found[PRE_LOGITS] = body.forward_head(features, pre_logits=True)
    if len(found) < len(taps):
        body.forward_head(features)


class _Hooks:
    """Captures the activations of one pass in one thread, and ends it after the deepest."""

    def __init__(self, taps, deepest):
        self.taps, self.deepest = taps, deepest
        self.found: dict[Tap, torch.Tensor] = {}
        self.calls = dict.fromkeys(taps, 0)

    @contextmanager
    def on(self, body):
        with suppress(_Done), pass_hooks(self._listeners(body)):
            yield

    def _listeners(self, body):
        return [self._listener(body, tap) for tap in self.taps if not tap.of_pre_logits]

    def _listener(self, body, tap):
        module = body.get_submodule(tap.module)
        if tap.of_input:
            return module.register_forward_pre_hook, (
                lambda _, inputs, __: self._capture(tap, inputs[0])
            )
        return module.register_forward_hook, lambda _, __, output: self._hand_on(tap, output)

    def _hand_on(self, tap, output):
        """Capture a layer's output; return what comes behind shall take in its place, if any."""
        self._capture(tap, output)
        # So that what was captured is part of the way that gradients take.
        return self.found[tap].clone() if torch.is_grad_enabled() else None

    def _capture(self, tap, activation):
        self.calls[tap] += 1
        # A copy: what comes behind may work in place.
        self.found[tap] = activation.clone()
        was_last_call = tap == self.deepest and self.calls[tap] == tap.n_calls
        if was_last_call and len(self.found) == len(self.taps):
            raise _Done


def find_deepest(taps, calls):
    """Return the tap whose activation comes last in a pass."""
    return in_order(taps, calls)[-1]


def in_order(taps, calls):
    """Return taps in the order in which their activations come in a pass."""
    last = _last_positions(calls)
    return sorted(taps, key=lambda tap: last[tap.module] - (0.5 if tap.of_input else 0))


def _last_positions(calls):
    """Where in a pass each module is called last; the network itself behind all."""
    return {call.name: position for position, call in enumerate(calls)} | {"": len(calls)}


def multiply_adds(calls, deepest):
    """Return the multiply-adds of convolutions and linear layers up to a tap, an image."""
    total = 0
    for call in calls[: _last_positions(calls)[deepest.module] + 1]:
        if isinstance(call.module, nn.Linear):
            total += call.output[:1].numel() * call.module.in_features
        elif isinstance(call.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            channels = call.module.in_channels // call.module.groups
            total += call.output[:1].numel() * channels * math.prod(call.module.kernel_size)
    return total


def tapped_activation(tap, trace):
    """Return the activation of ``tap`` in a traced pass, and the axis of its channels or None."""
    if not tap.module:
        return trace.output, trace.output_axis
    last = next(call for call in reversed(trace.calls) if call.name == tap.module)
    if tap.of_input:
        return last.input, last.input_axis
    return last.output, last.output_axis
