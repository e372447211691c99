"""Networks of declarative layers: one behind another, in fewer steps than layers."""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from ._layouts import as_channels_last
from ._modules import (
    MONOTONE,
    ConvActivation,
    Dropout,
    Flatten,
    LinearActivation,
    random_mask,
)

# Below, to enter and leave oneDNN's tensors costs more than it saves: in images a batch and in
# values an image. The bits of very small images would come to depend on the batch's size, too.
ONEDNN_IMAGES, ONEDNN_VALUES = 16, 64

# A matrix product takes half the time with these few columns as rows.
FEW_OUTPUTS, MANY_INPUTS, MANY_IMAGES = 16, 1024, 16


class LayerStack(nn.Sequential):
    """Declarative layers one behind another.

    Where nobody observes what lies between, layers are run together: max-pooling before a
    monotone activation, which gives the same numbers from a quarter of the work; dropouts in a
    row as one, and a ReLU in front of them in the same pass; and convolutions on a CPU in
    oneDNN's own tensor layout.
    """

    chooses_layout = True

    def __init__(self, *layers):
        super().__init__(*layers)
        self.arrange()

    def arrange(self):
        """Find the layers that are run together; call it again when layers have been added."""
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
        for stage, behind in pairwise(self._stages):
            stage.feeds_onednn = behind.takes_onednn
            if stage.activation == "relu" and isinstance(behind, _DenseStage) and behind.dropouts:
                stage.leaves_relu = behind.takes_relu = True

    def use_generator(self, generator):
        """Draw dropout masks from ``generator``; None: from torch's own."""
        for module in self:
            if isinstance(module, Dropout):
                module.generator = generator

    def lay_out_weights(self, training):
        """Put the convolutions' weights into the order that suits ``training`` or inference.

        oneDNN's tensors want them in torch's own order; dense images, which few at a time and
        all on a GPU are, want them channels last, as they lie themselves.
        """
        for stage in self._stages:
            if isinstance(stage, _ConvStage) and stage.takes_onednn:
                weight = stage.conv.weight
                own = training and weight.device.type == "cpu"
                layout = torch.contiguous_format if own else torch.channels_last
                weight.data = weight.data.contiguous(memory_format=layout)

    def forward(self, x):
        observed = {module for module in self if _is_hooked(module)}
        joined = self.training and not observed
        x = self._in_one_layout(x)
        for stage in self._stages:
            modules = [module for _, module in stage.layers]
            if observed.isdisjoint(modules):
                x = stage(x, joined)
            else:
                for module in modules:
                    x = module(as_dense(x))
        return as_dense(x)

    def activations(self, x, names):
        """Return a dict of what the layers ``names`` put out; those behind them do not run.

        The name ``""`` stands for the output of all.
        """
        found = {}
        x = self._in_one_layout(x)
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

    def _in_one_layout(self, x):
        # Convolutions choose their input's layout; others' sums and masks would follow X's.
        return x if isinstance(self._stages[0], _ConvStage) else x.contiguous()


class _Stage:
    """A single layer; the stages below are several.

    Called with ``joined``, a stage that ``leaves_relu`` leaves its ReLU to the one behind.
    """

    activation: str | None = None
    leaves_relu = takes_relu = takes_onednn = feeds_onednn = False

    def __init__(self, layers):
        self.layers = layers

    def __call__(self, x, joined=False):
        return self.layers[0][1](as_dense(x))


class _ConvStage(_Stage):
    """A convolution, its activation, and the max-pooling behind it, if there is one."""

    def __init__(self, layers):
        super().__init__(layers)
        self.conv = layers[0][1]
        self.activation = self.conv.activation
        self.pool = layers[1][1] if len(layers) > 1 else None
        self.gives_onednn = self.activation in ("relu", None) and self.conv.padding != "same"

    @classmethod
    def of(cls, named):
        conv = named[0][1]
        if not isinstance(conv, ConvActivation):
            return None
        pools = len(named) > 1 and isinstance(named[1][1], nn.MaxPool2d)
        return cls(named[: 2 if pools and conv.activation in MONOTONE else 1])

    def __call__(self, x, joined=False):
        if self.takes_onednn and self.gives_onednn and (x.is_mkldnn or _suits_onednn(x)):
            x = self.conv.linear(x if x.is_mkldnn else x.to_mkldnn())
            if self.pool is not None:
                size, stride, ceil = self.pool.kernel_size, self.pool.stride, self.pool.ceil_mode
                x = F.max_pool2d(x, size, stride, ceil_mode=ceil)
            if self.activation is None or (joined and self.leaves_relu):
                return x
            # Pooling on oneDNN's tensors keeps its result for the backward pass.
            keeps = self.feeds_onednn and torch.is_grad_enabled()
            return F.relu(x) if keeps else F.relu_(x if self.feeds_onednn else as_dense(x))
        x = self.conv.linear(as_channels_last(as_dense(x)))
        x = x if self.pool is None else self.pool(x)
        return x if joined and self.leaves_relu else self.conv.activate(x)


class _DenseStage(_Stage):
    """A fully connected layer, and dropouts and flattening in front of it."""

    def __init__(self, layers):
        super().__init__(layers)
        self.linear = layers[-1][1]
        self.activation = self.linear.activation
        self.dropouts = [module for _, module in layers if isinstance(module, Dropout)]
        self.kept = round(256 * math.prod(1 - dropout.rate for dropout in self.dropouts))

    @classmethod
    def of(cls, named):
        length = next(
            (i for i, (_, m) in enumerate(named) if not isinstance(m, (Dropout, Flatten))),
            len(named) - 1,
        )
        if isinstance(named[length][1], LinearActivation):
            return cls(named[: length + 1])
        return None

    def __call__(self, x, joined=False):
        x, weight, bias = as_dense(x), self.linear.weight, self.linear.bias
        relu_waits = joined and self.takes_relu
        if self._drops_together(x):
            mask = _ReLUMask.apply if relu_waits else torch.mul
            x = mask(x, random_mask(x, self.kept, self.dropouts[0].generator))
            x, scale = _linear(x.flatten(1), weight), 256 / self.kept
            # The few outputs are scaled up in place of the many values that are kept.
            x = x * scale if bias is None else torch.add(bias.to(x.dtype), x, alpha=scale)
        else:
            x = F.relu_(x) if relu_waits else x
            for dropout in self.dropouts:
                x = dropout(x)
            x = _linear(x.flatten(1), weight, bias)
        return x if joined and self.leaves_relu else self.linear.activate(x)

    def _drops_together(self, x):
        if x.device.type != "cpu" or not self.dropouts or self.kept in (0, 256):
            return False
        return all(dropout.training for dropout in self.dropouts)


def _linear(x, weight, bias=None):
    """`F.linear`, on a CPU by way of its transpose where that is faster."""
    n_outputs, n_inputs = weight.shape
    transposed = n_outputs <= FEW_OUTPUTS and n_inputs >= MANY_INPUTS and len(x) >= MANY_IMAGES
    if not transposed or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    x = (weight @ x.t()).t().contiguous()
    return x if bias is None else x + bias


class _ReLUMask(torch.autograd.Function):
    """``relu(x) * mask`` in place; its gradient needs only the result."""

    @staticmethod
    def forward(ctx, x, mask):
        x.relu_().mul_(mask)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        # Above zero is what neither ReLU nor the mask has held back.
        return torch.ops.aten.threshold_backward(gradient, x, 0), None


def _is_hooked(module):
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or module._backward_hooks or module._backward_pre_hooks)


def as_dense(x):
    """``x`` in torch's own layout."""
    return x.to_dense() if x.is_mkldnn else x


def _suits_onednn(x):
    return (
        x.device.type == "cpu"
        and len(x) >= ONEDNN_IMAGES
        and x[0].numel() > ONEDNN_VALUES
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )
