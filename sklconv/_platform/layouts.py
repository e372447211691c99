"""Memory layouts of convolutions: channels last, but where torch computes that wrongly.

On CPUs, torch 2.13 (oneDNN) reads and writes memory that is not its own for a few geometries in
channels-last layout, and computes the same ones rightly in its own order, channels first.
``tests/search_convolutions.py`` searches for more of their kind.
"""

import functools
from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .modules import refuse_lazy_weights

OUTPUT, GRADIENTS = "output", "gradients"


@functools.cache
def favours_onednn():
    """Whether this CPU computes convolutions faster on oneDNN's own tensors than channels last.

    Narrower instructions than AVX-512 have no kernels for few channels: oneDNN pads one to eight.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def as_channels_last(x):
    """``x`` in channels-last memory layout, which CPU and GPU kernels prefer."""
    n, c, h, w = x.shape
    if c == 1 and x.is_contiguous():
        # Both layouts are one in memory; only the strides tell torch which is meant.
        return x.as_strided((n, c, h, w), (h * w, 1, w, 1))
    return x.contiguous(memory_format=torch.channels_last)


def ready_weights(network):
    """Put weights in float32, as pixels are, and kernels in channels-last layout; return it.

    Where some are in float32, the others are what their author meant them to be.
    `torch.nn.Module.to` knows the layout too, but fails on weights of five dimensions.
    """
    refuse_lazy_weights(network)
    precisions = {weight.dtype for weight in network.parameters()}
    if precisions and torch.float32 not in precisions:
        network.float()
    for weight in chain(network.parameters(), network.buffers()):
        if weight.ndim == 4 and weight.layout == torch.strided:
            weight.data = weight.data.to(memory_format=torch.channels_last)
    return network


def as_channels_first(x):
    """``x`` in torch's own memory layout, its strides included, where axes have length 1."""
    return x.reshape(-1).view(x.shape)


def convolve(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`torch.nn.functional.conv2d` in a layout, and with numbers, that are computed rightly."""
    if x.ndim == 4 and x.device.type == "cpu" and not x.is_mkldnn:
        trains = torch.is_grad_enabled()
        if trains and _in_halves(x) and _is_wrong_in_halves(x, stride, dilation):
            return _in_float32(convolve, x, weight, bias, stride, padding, dilation, groups)
        risks = risks_of(weight.shape, stride, padding)
        if OUTPUT in risks or (trains and risks):
            x, weight = as_channels_first(x), as_channels_first(weight)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def convolve_transposed(x, weight, bias=None, *args, **kwargs):
    """`torch.nn.functional.conv_transpose2d`, likewise: its output is a convolution's gradient."""
    if x.ndim == 4 and x.device.type == "cpu":
        if _in_halves(x):
            return _in_float32(convolve_transposed, x, weight, bias, *args, **kwargs)
        x, weight = as_channels_first(x), as_channels_first(weight)
    return F.conv_transpose2d(x, weight, bias, *args, **kwargs)


def _in_halves(x):
    """Whether ``x`` is computed with in numbers of 16 bits."""
    return x.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cpu")


def _is_wrong_in_halves(x, stride, dilation):
    """Whether the gradient of the weights is, with numbers of 16 bits."""
    return max(_pair(dilation)) > 1 or x.shape[3] < _pair(stride)[1]


def _in_float32(function, x, weight, bias, *args, **kwargs):
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        return function(x.float(), weight.float(), bias, *args, **kwargs).to(kind)


def risks_of(weight_shape, stride, padding):
    """Return what channels last may get wrong of such a convolution: `OUTPUT`, `GRADIENTS`."""
    rows, columns = _pair(stride)
    if rows == columns == 1:
        return set()
    _, channels_a_group, *kernel = weight_shape
    if channels_a_group == 1 and (rows != columns or rows > min(kernel)):
        return {OUTPUT}
    if kernel == [1, 1]:
        return {GRADIENTS} if padding in (0, (0, 0), "valid") else {OUTPUT, GRADIENTS}
    # Seen with an output one pixel wide.
    return {OUTPUT} if rows > kernel[0] or columns > kernel[1] else set()


def risks_of_modules(network):
    """Return the risks of all convolutions in ``network`` that are modules."""
    risks = set()
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            risks.add(OUTPUT)
        elif isinstance(module, nn.Conv2d) and getattr(module, "weight", None) is not None:
            risks |= risks_of(module.weight.shape, module.stride, module.padding)
    return risks


def _pair(value):
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class RightLayouts(TorchFunctionMode):
    """Has the convolutions of foreign modules computed by `convolve`, while it is active.

    It sees every call of a torch function, which takes 2 to 3 microseconds each.

    Attributes
    ----------
    risks : set
        Of the convolutions seen so far.
    """

    def __init__(self):
        super().__init__()
        self.risks = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.conv2d:
            return self._convolve(*args, **kwargs)
        if func is F.conv_transpose2d:
            return self._convolve_transposed(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolve(self, input, weight, bias=None, stride=1, padding=0, *further, **named):
        self.risks |= risks_of(weight.shape, stride, padding)
        return convolve(input, weight, bias, stride, padding, *further, **named)

    def _convolve_transposed(self, input, weight, *further, **named):
        self.risks.add(OUTPUT)
        return convolve_transposed(input, weight, *further, **named)
