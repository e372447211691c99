"""How weights are drawn."""

import math
from numbers import Real

import torch
from torch import nn

from .._platform.sklearn import StrOptions

KERNEL_INITS = {"default", "glorot_uniform", "glorot_normal", "he_uniform", "he_normal"}
CONSTRAINTS = [StrOptions(KERNEL_INITS), tuple]


def check_kernel_init(value):
    """Return ``value``; raise unless it says how weights are drawn."""
    if isinstance(value, str):
        return value
    if value[:1] == ("normal",) and len(value) == 2 and isinstance(value[1], Real):
        if float(value[1]) >= 0:
            return value
        raise ValueError(f"kernel_init={value!r} has a negative standard deviation")
    raise ValueError(
        f"kernel_init={value!r} is none of {', '.join(sorted(KERNEL_INITS))} or ('normal', std)"
    )


def initialize_weights(weight, bias, kernel_init, generator):
    """Draw ``weight`` and ``bias`` as ``kernel_init`` says; see `sklconv.layers.Conv`."""
    init = nn.init
    with torch.no_grad():
        if kernel_init == "default":
            init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                init.uniform_(bias, -bound, bound, generator=generator)
            return
        if kernel_init == "glorot_uniform":
            init.xavier_uniform_(weight, generator=generator)
        elif kernel_init == "glorot_normal":
            init.xavier_normal_(weight, generator=generator)
        elif kernel_init == "he_uniform":
            init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
        elif kernel_init == "he_normal":
            init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        else:
            init.normal_(weight, std=kernel_init[1], generator=generator)
        if bias is not None:
            init.zeros_(bias)
