"""A network of declarative layers, run one after another in fewer steps than layers."""

from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn

from ._conv import ConvStage
from ._dense import DenseStage
from ._dropout import DropoutModule
from ._pieces import Pieces
from ._pool import PoolStage
from ._stage import Stage, as_dense


class LayerStack(nn.Sequential):
    """Declarative layers, one after another.

    Where nobody observes what lies between, layers are run together: max-pooling before a
    monotone activation, which gives the same numbers from a quarter of the work; dropouts in a
    row as one, and a ReLU in front of them in the same pass; and convolutions in oneDNN's own
    tensor layout, on CPUs where that is faster.
    """

    def __init__(self, *layers):
        super().__init__(*layers)
        self.arrange()

    def arrange(self):
        """Find the layers that are run together; call it again when layers have been added."""
        named = list(self.named_children())
        self._stages = []
        while named:
            kinds = (kind.of(named) for kind in (ConvStage, DenseStage, PoolStage))
            stage = next(filter(None, kinds), Stage(named[:1]))
            del named[: len(stage.layers)]
            self._stages.append(stage)
        for stage in self._stages:
            if not isinstance(stage, ConvStage):
                break
            # Only from the first layer on: to go to and fro costs more than it saves.
            stage.takes_onednn = True
            if not stage.gives_onednn:
                break
        for stage, following in pairwise(self._stages):
            stage.feeds_onednn = following.takes_onednn
            if (
                stage.activation == "relu"
                and isinstance(following, DenseStage)
                and following.dropouts
            ):
                stage.leaves_relu = following.takes_relu = True

    def use_generator(self, generator):
        """Draw dropout masks from ``generator``; None: from torch's own."""
        for module in self:
            if isinstance(module, DropoutModule):
                module.generator = generator

    @contextmanager
    def in_pieces(self, n_images):
        """Have a batch of ``n_images`` come piece by piece in a block; give its `Pieces`."""
        pieces = Pieces(n_images)
        concerned = [part for part in (*self, *self._stages) if hasattr(part, "pieces")]
        for part in concerned:
            part.pieces = pieces
        try:
            yield pieces
        finally:
            for part in concerned:
                del part.pieces

    def lay_out_weights(self, training):
        """Put the convolutions' weights into the order that suits ``training`` or inference.

        oneDNN's tensors need them in torch's own order, and so do optimizers that flatten
        gradients (LBFGS). Dense images (few at a time on a CPU, all on a GPU) are channels last,
        and so should the weights be.
        """
        for stage in self._stages:
            if isinstance(stage, ConvStage) and stage.takes_onednn:
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
        """Return a dict of what the layers ``names`` put out; later layers do not run.

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
        return x if isinstance(self._stages[0], ConvStage) else x.contiguous()


def _is_hooked(module):
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or module._backward_hooks or module._backward_pre_hooks)
