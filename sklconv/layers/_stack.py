"""A network of declarative layers, run one after another in fewer steps than layers."""

from contextlib import contextmanager
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ._conv import ConvActivation, ConvStage
from ._dense import DenseStage
from ._dropout import DropoutModule
from ._pieces import Pieces
from ._pool import PoolStage
from ._stage import Stage, as_dense

# Layers and their stages by stack; no part of it, so that copies and digests know nothing of them.
_found: WeakKeyDictionary = WeakKeyDictionary()


class LayerStack(nn.Sequential):
    """Declarative layers, one after another.

    Where nobody observes what lies between, layers are run together: max-pooling before a
    monotone activation, which gives the same numbers from a quarter of the work; dropouts in a
    row as one, and a ReLU in front of them in the same pass; and convolutions in oneDNN's own
    tensor layout, on CPUs where that is faster.
    """

    def _current_stages(self):
        """Return the layers that are run together, found anew where layers have changed."""
        named = list(self._modules.items())
        layers = [(*pair, vars(pair[1]).get("activation")) for pair in named]
        known, stages = _found.get(self, (None, None))
        if layers != known:
            stages = _arrange(named)
            _found[self] = layers, stages
        return stages

    def use_generator(self, generator):
        """Draw dropout masks from ``generator``; None: from torch's own."""
        for module in self:
            if isinstance(module, DropoutModule):
                module.generator = generator

    @contextmanager
    def in_pieces(self, n_images):
        """Have a batch of ``n_images`` come piece by piece in a block; give its `Pieces`."""
        pieces = Pieces(n_images)
        concerned = [part for part in (*self, *self._current_stages()) if hasattr(part, "pieces")]
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
        for stage in self._current_stages():
            if isinstance(stage, ConvStage) and stage.takes_onednn:
                weight = stage.conv.weight
                own = training and weight.device.type == "cpu"
                layout = torch.contiguous_format if own else torch.channels_last
                weight.data = weight.data.contiguous(memory_format=layout)

    def forward(self, x):
        observed = self._observed()
        joined = self.training and not observed
        x = self._in_one_layout(x)
        for stage in self._current_stages():
            if observed.isdisjoint(stage.layers):
                x = stage(x, joined)
            else:
                for _, module in stage.layers:
                    x = module(as_dense(x))
        return as_dense(x)

    def activations(self, x, names):
        """Return a dict of what the layers ``names`` put out; later layers do not run.

        The name ``""`` stands for the output of all.
        """
        found, observed = {}, self._observed()
        x = self._in_one_layout(x)
        for stage in self._current_stages():
            apart = names.intersection(name for name, _ in stage.layers[:-1])
            apart = apart or not observed.isdisjoint(stage.layers)
            for name, step in stage.layers if apart else [(stage.layers[-1][0], stage)]:
                x = step(x if step is stage else as_dense(x))
                if name in names:
                    found[name] = as_dense(x)
                    if len(found) == len(names):
                        return found
        return {**found, "": as_dense(x)}

    def _observed(self):
        return {(name, module) for name, module in self._modules.items() if _is_hooked(module)}

    def _in_one_layout(self, x):
        # Convolutions choose their input's layout; others' sums and masks would follow X's.
        return x if isinstance(next(iter(self), None), ConvActivation) else x.contiguous()


def _arrange(named):
    """Return the stages of layers, pairs (name, module), each aware of its neighbours."""
    stages = []
    while named:
        kinds = (kind.of(named) for kind in (ConvStage, DenseStage, PoolStage))
        stages.append(next(filter(None, kinds), Stage(named[:1])))
        named = named[len(stages[-1].layers) :]
    for stage in stages:
        if not isinstance(stage, ConvStage):
            break
        # Only from the first layer on: to go to and fro costs more than it saves.
        stage.takes_onednn = True
        if not stage.gives_onednn:
            break
    for stage, following in pairwise(stages):
        stage.feeds_onednn = following.takes_onednn
        drops = isinstance(following, DenseStage) and following.dropouts
        if stage.activation == "relu" and drops:
            stage.leaves_relu = following.takes_relu = True
    return stages


def _is_hooked(module):
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or module._backward_hooks or module._backward_pre_hooks)
