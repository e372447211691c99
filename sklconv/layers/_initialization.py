"""How weights are drawn."""

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import nn

from .._platform.sklearn import StrOptions

# How the weights are drawn where the biases are 0; ReLU's gain is that of a slope of 0.
SCHEMES: dict[str, Callable] = {
    "glorot_uniform": nn.init.xavier_uniform_,
    "glorot_normal": nn.init.xavier_normal_,
    "he_uniform": nn.init.kaiming_uniform_,
    "he_normal": nn.init.kaiming_normal_,
}
KERNEL_INITS = {"default", *SCHEMES}
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
    with torch.no_grad():
        if kernel_init == "default":
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            if bias is not None:
                bound = 1 / math.sqrt(weight[0].numel())
                nn.init.uniform_(bias, -bound, bound, generator=generator)
            return
        if kernel_init in SCHEMES:
            SCHEMES[kernel_init](weight, generator=generator)
        else:
            nn.init.normal_(weight, std=kernel_init[1], generator=generator)
        if bias is not None:
            nn.init.zeros_(bias)
