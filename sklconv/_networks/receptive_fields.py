"""How much of an image the values of declarative layers depend on."""

import numpy as np
from torch import nn

from ..layers._base import as_pair
from ..layers._pool import GlobalAvgPoolModule
from .building import LAYER_NAMES

# The first pixel where there is none.
NOWHERE = np.iinfo(np.int64).max


def receptive_fields(calls):
    """Return the receptive field (height, width) of each layer of a `LayerStack`, by name.

    It is the smallest rectangle of pixels that holds all those on which a value of the layer
    depends; of the layer's values, that with the largest. Layers behind one of an unknown kind
    are left out.

    Parameters
    ----------
    calls : list of LayerCall
        As `trace_layers` returns them.
    """
    fields: dict = {}
    # Of each place along an axis, the first and the last pixel.
    axes = [(np.arange(n), np.arange(n)) for n in calls[0].input.shape[2:]]
    for call in calls:
        if type(call.module) not in LAYER_NAMES:
            break
        axes = [_through(call, axis, *places) for axis, places in enumerate(axes)]
        extents = [int((last - first).max()) + 1 for first, last in axes]
        fields[call.name] = tuple(extents) if min(extents) > 0 else (0, 0)
    return fields


def _through(call, axis, first, last):
    """Return first and last pixels of the places that a layer puts out."""
    module = call.module
    if isinstance(module, (nn.Linear, GlobalAvgPoolModule)):
        return first.min(keepdims=True), last.max(keepdims=True)
    if not hasattr(module, "kernel_size"):
        return first, last  # flattening included: each value stays as it is
    places = _window(module, axis, call.output.shape[2 + axis])
    inside = (places >= 0) & (places < len(first))  # not padding
    places = places.clip(0, len(first) - 1)
    return (
        np.where(inside, first[places], NOWHERE).min(1),
        np.where(inside, last[places], -1).max(1),
    )


def _window(module, axis, n_outputs):
    """Return the places of the input that each of ``n_outputs`` sees, along an axis."""
    size = as_pair(module.kernel_size, "kernel_size")[axis]
    stride = as_pair(module.stride, "stride")[axis]
    dilation = as_pair(getattr(module, "dilation", 1), "dilation")[axis]
    if module.padding == "same":
        padding = dilation * (size - 1) // 2
    else:
        padding = as_pair(module.padding, "padding", least=0)[axis]
    starts = stride * np.arange(n_outputs) - padding
    return starts[:, None] + dilation * np.arange(size)
