"""``sklconv layers``."""

import sys

from .._activations.taps import penultimate_tap
from .._networks.building import trace_network
from .._networks.image_network import ImageNetwork
from .._networks.table import format_layers, layer_rows
from .backbone import make_backbone
from .console import say


def list_layers(arguments):
    """Run ``sklconv layers``."""
    backbone = make_backbone(arguments).resolve()
    body = backbone.load()
    prepare = backbone.preparation(body)
    image_shape = (prepare.channels or 3, *backbone.size)
    network = ImageNetwork(prepare, body).eval()
    trace = trace_network(network, image_shape)
    penultimate = penultimate_tap(trace, network)
    rows = layer_rows(body, *trace, penultimate=penultimate, learnable=False)
    say(format_layers(rows, image_shape, "parameters", penultimate), sys.stdout)
