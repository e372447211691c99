"""A network as an ONNX graph: exported once with all its layers, cut for those that are wanted."""

import copy
import io
import logging
import os
import threading
import warnings
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._activations.taps import (
    NETWORK_OUTPUT,
    PRE_LOGITS,
    Tap,
    hooked_activations,
    layer_names,
    penultimate_tap,
)
from .._activations.tracing import trace_layers

OPSET = 18
PIXELS, PREPARED, FEATURES = "pixels", "prepared", "features"

# Filters of warnings, and what the exporter notes of a trace, are one for all threads; and a fork
# waits, for in a child that is made amid an export no other could begin.
exporting = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=exporting.acquire,
        after_in_parent=exporting.release,
        after_in_child=exporting.release,
    )


class NotExportable(ValueError):
    """A network that can't become an ONNX graph."""


def by_either_exporter(make, both=True):
    """Return what ``make`` returns, called with True for the quick exporter, False for the other.

    Raises `NotExportable` if it can do it with neither. The second takes too long to be of use
    unasked: without ``both`` it is left out.
    """
    reasons = []
    for by_tracing in (True, False) if both else (True,):
        try:
            return make(by_tracing)
        except NotExportable as error:
            reasons.append(str(error))
    raise NotExportable("; ".join(dict.fromkeys(reasons)))


def first_line(error):
    """Return what an error says in its first line, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


class Graph:
    """All that can be tapped in a network, as an ONNX graph behind the prepared pixels.

    Parameters
    ----------
    network : ImageNetwork
        On a CPU. It is copied.
    pixels : torch.Tensor of shape (N, C, H, W)
        Prepared images, two or more.
    by_tracing : bool, default=True
        Whether by the quick exporter, which follows most networks, or by the other.
    """

    def __init__(self, network, pixels, by_tracing=True):
        import onnx

        # Out of a caller's inference mode, whose tensors can't be traced.
        with torch.inference_mode(False):
            network, pixels = copy.deepcopy(network).eval(), pixels.clone().contiguous()
            with _ReadsOfValues() as reads:
                trace = trace_layers(network.body, lambda: network.body(pixels))
            if reads.n:
                raise NotExportable("what it computes depends on values that it reads on the way")
            taps = _all_taps(trace, network)
            body, names = _Taps(network.body, taps), _names("tap", taps)
            exported = export(body, (pixels,), [PIXELS], names, by_tracing=by_tracing)
        self._names = dict(zip(map(_place, taps), names, strict=True))
        self._model = onnx.load_from_string(exported)

    def cut(self, tap_set, activations):
        """Return the bytes of the graph that puts out the features of ``tap_set``, pooled.

        Parameters
        ----------
        tap_set : TapSet
        activations : list of torch.Tensor
            What its taps get of a few images.
        """
        import onnx

        wanted = [self._names[_place(tap)] for tap in tap_set.taps]
        layers = onnx.utils.Extractor(self._model).extract_model([PIXELS], wanted)
        inputs = _names("activation", wanted)
        pooling = _Pooling(tap_set)
        pooled = onnx.load_from_string(export(pooling, activations, inputs, [FEATURES]))
        return _chained(layers, pooled, list(zip(wanted, inputs, strict=True)), "pooled/")


def with_front(front, images, model):
    """Return the bytes of a model that begins with ``front``, a module that prepares pixels.

    Parameters
    ----------
    front : torch.nn.Module
    images : torch.Tensor
        A few of those that the result takes.
    model : bytes
        Of a model that takes prepared pixels.
    """
    import onnx

    front = copy.deepcopy(front)
    first = onnx.load_from_string(export(front, (images,), [PIXELS], [PREPARED]))
    return _chained(first, onnx.load_from_string(model), [(PREPARED, PIXELS)], "network/")


def _chained(first, second, io_map, prefix):
    """Return the bytes of two models as one; the second's names begin with ``prefix``."""
    import onnx

    second.ir_version = first.ir_version
    joined = onnx.compose.merge_models(first, second, io_map=io_map, prefix2=prefix)
    del joined.opset_import[1:]  # which are the same
    return joined.SerializeToString()


def _all_taps(trace, network):
    """Return a tap on each layer, on the output, and on what goes into the classifier."""
    taps = [Tap(name, name, 1) for name in layer_names(trace.calls)]
    if isinstance(trace.output, torch.Tensor):
        taps.append(NETWORK_OUTPUT)
    taps.append(penultimate_tap(trace, network))
    return list({_place(tap): tap for tap in taps if tap is not None}.values())


def _place(tap):
    return tap.module, tap.of_input, tap.of_pre_logits


def _names(kind, values):
    return [f"{kind}{number}" for number in range(len(values))]


class _ReadsOfValues(TorchDispatchMode):
    """Counts how often a pass reads a tensor's values, as ``if x.mean() > 0`` does."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class _Taps(nn.Module):
    """Prepared pixels to the activation of each tap."""

    def __init__(self, body, taps):
        super().__init__()
        self.body, self.taps = body, taps

    def forward(self, pixels):
        hooked = [tap for tap in self.taps if tap != PRE_LOGITS]
        # No tap is the deepest: an exception would end the export, too.
        found = hooked_activations(self.body, hooked, None, pixels)
        if PRE_LOGITS in self.taps:  # the last
            features = self.body.forward_features(pixels)
            found.append(self.body.forward_head(features, pre_logits=True))
        return tuple(found)


class _Pooling(nn.Module):
    """Activations to features."""

    def __init__(self, tap_set):
        super().__init__()
        self.tapped = tap_set.tapped

    def forward(self, *activations):
        columns = [
            layer.pooled(activation, len(activation))
            for activation, layer in zip(activations, self.tapped, strict=True)
        ]
        return torch.cat(columns, dim=1)


def export(module, examples, input_names, output_names, *, by_tracing=True):
    """Return the bytes of a module as an ONNX model of any number of images."""
    names = {"input_names": input_names, "output_names": output_names, "opset_version": OPSET}
    # Tensors of a caller's inference mode can't be traced. With gradients, torch leaves out the
    # attention in one piece, which has no ONNX operator.
    with exporting, torch.inference_mode(False), torch.enable_grad(), _silence():
        examples = tuple(example.clone() for example in examples)
        try:
            if by_tracing:
                return _export_traced(module.eval(), examples, names)
            return _export_program(module.eval(), examples, names)
        except Exception as error:  # of users' code, and of all that the exporter does not know
            raise NotExportable(f"{type(error).__name__}: {first_line(error)}") from error


def _export_traced(module, examples, names):
    file = io.BytesIO()
    axes = {name: {0: "n"} for name in [*names["input_names"], *names["output_names"]]}
    torch.onnx.export(
        module,
        examples,
        file,  # type: ignore[arg-type]  # this exporter takes files
        dynamo=False,
        dynamic_axes=axes,
        **names,
    )
    return file.getvalue()


def _export_program(module, examples, names):
    """Export by way of `torch.export`, which follows more networks and takes ten times as long."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in examples)
    with torch.no_grad():
        program = torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    assert exported is not None
    return exported.model_proto.SerializeToString()


@contextmanager
def _silence():
    """Have no warnings, no log, nor the page that torch prints of what it can't export."""
    from unittest import mock  # which takes longer to import than the rest of this file

    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), mock.patch.object(torch._C, "_jit_onnx_log", create=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
