"""The network that the command is given."""

import importlib
import os
import sys
from contextlib import contextmanager

import torch

from .._pretrained.backbones import PREPROCESSING, Backbone
from .._pretrained.libraries import LIBRARIES
from .console import in_one_line
from .errors import CommandError


def make_backbone(arguments):
    """Return the `Backbone` that the command's options describe."""
    network = arguments.backbone
    if network.partition("/")[0] not in LIBRARIES and ":" in network:
        network = _import_network(network)
        if arguments.image_size is None:
            raise CommandError(
                f"--image-size is missing: nothing says what size {arguments.backbone} wants"
            )
    weights = None if arguments.weights == "none" else arguments.weights
    given = {name: getattr(arguments, name, None) for name in PREPROCESSING}
    return Backbone(network, weights=weights, **given)


def _import_network(name):
    """Return the module that ``MODULE:NAME`` names, or a function that makes it."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # at the end: no module there takes another's place
    with _errors_named(name):
        network = getattr(importlib.import_module(module_name), attribute)
    if isinstance(network, torch.nn.Module):
        return network
    if not callable(network):
        raise CommandError(
            f"{name} is {network!r}, neither a torch.nn.Module nor a function that returns one"
        )
    return _errors_named(name)(network)


@contextmanager
def _errors_named(network):
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
        raise CommandError(f"{network}: {kind}: {in_one_line(error)}") from error
