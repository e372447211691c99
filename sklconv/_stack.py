"""Networks of declarative layers: one behind another, in fewer steps than layers."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ._modules import (
    MONOTONE,
    ConvActivation,
    Dropout,
    Flatten,
    LinearActivation,
    as_channels_last,
    random_mask,
)

# Below, to enter and leave oneDNN's tensors costs more than it saves: in images a batch and in
# values an image. The bits of very small images would come to depend on the batch's size, too.
ONEDNN_IMAGES, ONEDNN_VALUES = 16, 64


class LayerStack(nn.Sequential):
    """Declarative layers one behind another.

    Where nobody observes what lies between, layers are run together: max-pooling before a
    monotone activation, which gives the same numbers from a quarter of the work; dropouts in a
    row as one; and convolutions on a CPU in oneDNN's own tensor layout.
    """

    chooses_layout = True

    def arrange(self):
        """Find the layers that are run together; call it when all are in."""
        named = list(self.named_children())
        self._stages = []
        while named:
            stage = _ConvStage.of(named) or _DenseStage.of(named) or _Stage(named[:1])
            del named[: len(stage.layers)]
            self._stages.append(stage)
        for stage in self._stages:
            if not isinstance(stage, _ConvStage):
                break
            # Only from the first layer on: to go to and fro costs more than it saves.
            stage.takes_onednn = True
            if not stage.gives_onednn:
                break

    def use_generator(self, generator):
        """Draw dropout masks from ``generator``; None: from torch's own."""
        for module in self:
            if isinstance(module, Dropout):
                module.generator = generator

    def forward(self, x):
        for stage in self._stages:
            observed = [m for _, m in stage.layers if m._forward_hooks or m._forward_pre_hooks]
            if observed:
                for _, module in stage.layers:
                    x = module(as_dense(x))
            else:
                x = stage(x)
        return as_dense(x)

    def activations(self, x, names):
        """Return a dict of what the layers ``names`` put out; those behind them do not run.

        The name ``""`` stands for the output of all.
        """
        found = {}
        for stage in self._stages:
            inner = [name for name, _ in stage.layers[:-1]]
            steps = stage.layers if names.intersection(inner) else [(stage.layers[-1][0], stage)]
            for name, step in steps:
                x = step(x if step is stage else as_dense(x))
                if name in names:
                    found[name] = as_dense(x)
                    if len(found) == len(names):
                        return found
        return {**found, "": as_dense(x)}


class _Stage:
    """A single layer; the stages below are several."""

    def __init__(self, layers):
        self.layers = layers

    def __call__(self, x):
        return self.layers[0][1](as_dense(x))


class _ConvStage(_Stage):
    """A convolution, its activation, and the max-pooling behind it, if there is one."""

    def __init__(self, layers):
        super().__init__(layers)
        self.conv = layers[0][1]
        self.pool = layers[1][1] if len(layers) > 1 else None
        self.takes_onednn = False
        self.gives_onednn = self.conv.activation in ("relu", None) and self.conv.padding != "same"

    @classmethod
    def of(cls, named):
        conv = named[0][1]
        if not isinstance(conv, ConvActivation):
            return None
        pools = len(named) > 1 and isinstance(named[1][1], nn.MaxPool2d)
        return cls(named[: 2 if pools and conv.activation in MONOTONE else 1])

    def __call__(self, x):
        if self.takes_onednn and self.gives_onednn and (x.is_mkldnn or _suits_onednn(x)):
            x = self.conv.linear(x if x.is_mkldnn else x.to_mkldnn())
            if self.pool is not None:
                size, stride, ceil = self.pool.kernel_size, self.pool.stride, self.pool.ceil_mode
                x = F.max_pool2d(x, size, stride, ceil_mode=ceil)
            return x if self.conv.activation is None else F.relu(x)
        x = self.conv.linear(as_channels_last(as_dense(x)))
        return self.conv.activate(x if self.pool is None else self.pool(x))


class _DenseStage(_Stage):
    """Dropouts, flattening and the fully connected layer behind them."""

    def __init__(self, layers):
        super().__init__(layers)
        self.linear = layers[-1][1]
        self.dropouts = [module for _, module in layers if isinstance(module, Dropout)]
        self.kept = round(256 * math.prod(1 - dropout.rate for dropout in self.dropouts))

    @classmethod
    def of(cls, named):
        length = next(
            (i for i, (_, m) in enumerate(named) if not isinstance(m, (Dropout, Flatten))),
            len(named) - 1,
        )
        if length and isinstance(named[length][1], LinearActivation):
            return cls(named[: length + 1])
        return None

    def __call__(self, x):
        x = as_dense(x).flatten(1)
        if not self.linear.training or not self.dropouts:
            return self.linear(x)
        if x.device.type != "cpu" or self.kept in (0, 256):
            for dropout in self.dropouts:
                x = dropout(x)
            return self.linear(x)
        # The few weights are scaled up in place of the many values that are kept.
        x = x * random_mask(x, self.kept, self.dropouts[0].generator)
        weight = self.linear.weight * (256 / self.kept)
        return self.linear.activate(F.linear(x, weight, self.linear.bias))


def as_dense(x):
    """``x`` in torch's own layout."""
    return x.to_dense() if x.is_mkldnn else x


def _suits_onednn(x):
    return (
        x.device.type == "cpu"
        and len(x) >= ONEDNN_IMAGES
        and x[0].numel() > ONEDNN_VALUES
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
