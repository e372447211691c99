"""A network with the preparation of its pixels in front, and all that is asked of one."""

from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn

from .._activations.taps import hooked_activations
from .._platform.devices import autocast
from .._platform.layouts import OUTPUT, RightLayouts, as_channels_last, risks_of_modules
from .._platform.modules import state_without_hooks
from .._platform.randomness import mask_generator, seeded_global_states


class PreparePixels(nn.Module):
    """Pixels as they come, uint8 or float, to the float32 that a network wants.

    With ``mean`` and ``std`` (one value a channel) pixels are standardised; without, uint8
    is divided by 255 and other numbers are left unchanged. ``largest`` is the largest absolute
    value that they had at fit, where that is known.
    """

    fitting = None  # it neither resizes nor crops

    def __init__(self, mean=None, std=None, largest=None):
        super().__init__()
        self.largest = largest
        self.standardize = mean is not None
        if self.standardize:
            self.register_buffer("scale", _per_channel([1 / s for s in std]))
            self.register_buffer(
                "shift", _per_channel([-m / s for m, s in zip(mean, std, strict=True)])
            )

    def unpack_bytes(self, x):
        """Return uint8 pixels as floats that mean the same to `forward`."""
        return x.float() if self.standardize else x.float().div_(255)

    def check(self, x):
        """Raise if ``x`` can't be prepared: there are no such pixels."""

    def forward(self, x):  # (N, C, H, W), any real dtype -> float32
        # A copy: neither this nor what comes behind may write into X. Its strides are those of one
        # of two layouts: X's own, of axes of length one, would choose between kernels.
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        pixels = x.to(torch.float32, copy=True, memory_format=layout)
        if self.standardize:
            pixels.mul_(self.scale).add_(self.shift)
        elif x.dtype == torch.uint8:
            pixels.div_(255)
        return pixels


class ImageNetwork(nn.Module):
    """A network with the preparation of its pixels in front: raw images to outputs.

    Its body is any module. What else is asked of a network than its outputs (activations, seeded
    draws, layouts) depends on that: `LayerNetwork` answers for declarative layers.
    """

    is_fast_in_torch = False  # so that to export it hardly ever pays

    def __init__(self, prepare, body, head=None):
        super().__init__()
        self.prepare = prepare
        self.body = body
        self.head = head  # names of the layers that are new in a pretrained body
        self.precision = "float32"
        self.risks = set()  # of its convolutions in channels-last layout
        self._frozen = []
        # What whoever made the body froze stays so.
        self._fixed = {name for name, p in body.named_parameters() if not p.requires_grad}
        # Walking through the modules and parameters of a small network takes as long as a
        # layer of it: they are noted once.
        self._parts = list(body.modules())
        device = next(
            (tensor.device for tensor in chain(body.parameters(), body.buffers())), "cpu"
        )
        self.register_buffer("_anchor", torch.empty(0, device=device), persistent=False)

    def __getstate__(self):
        return state_without_hooks(self)

    @property
    def device(self):
        """Where the network's weights lie."""
        return self._anchor.device

    def freeze(self, layers):
        """Have ``layers``, modules of the body, stay as they are while training."""
        if layers or self._frozen:
            for name, parameter in self.body.named_parameters():
                parameter.requires_grad_(name not in self._fixed)
        self._frozen = layers
        self._set_parts(lambda part, learns: part.requires_grad_(learns))

    def _set_parts(self, set_part):
        """Call ``set_part`` for what is frozen, with False, and for the head, with True.

        The head learns also where what is frozen stands around it, but not what is frozen in it.
        """
        heads = [head for head in self.head_layers() if head not in self._frozen]
        within = {part for head in heads for part in head.modules()}
        for layer in self._frozen:
            set_part(layer, False)
        for head in heads:
            set_part(head, True)
        for layer in within.intersection(self._frozen):
            set_part(layer, False)

    def head_layers(self):
        """Return the modules that are new in a pretrained body."""
        return [self.body.get_submodule(name) for name in self.head or ()]

    def settings(self):
        """Return what `restore` needs: all that is set here but weights."""
        learnable = [parameter.requires_grad for parameter in self.parameters()]
        return self.precision, self._frozen, learnable

    def restore(self, settings):
        """Go back to earlier `settings`."""
        self.precision, self._frozen, learnable = settings
        for parameter, learns in zip(self.parameters(), learnable, strict=True):
            parameter.requires_grad_(learns)

    def train(self, mode=True):
        """Set training mode; what is frozen stays in eval mode, its statistics fixed."""
        super().train(mode)
        if mode:
            self._set_parts(lambda part, learns: part.train(learns))
        return self

    def has_training_parts(self):
        """Whether any part is in training mode."""
        return any([part.training for part in self._parts])  # noqa: C419  (a list is faster)

    def forward(self, x):  # (N, C, H, W) -> the body's output, float32
        x = self.prepared(x)
        if self.precision == "float32" and not self.risks:
            return self.body(x)
        with autocast(x.device, self.precision), self.right_layouts():
            return self.body(x).float()

    def right_layouts(self):
        """Return a context in which convolutions of the body are computed rightly."""
        if self.device.type != "cpu":
            return nullcontext()
        trains = torch.is_grad_enabled()
        if OUTPUT in self.risks or (trains and (self.risks or self.precision != "float32")):
            return RightLayouts()
        return nullcontext()

    def note_risks(self, seen):
        """Note which risks a pass has ``seen`` in its convolutions."""
        self.risks = seen | risks_of_modules(self.body)

    def prepared(self, x):
        """Return ``x`` as the body wants it."""
        return as_channels_last(self.prepare(x))

    def activations(self, taps, deepest, x, precision="float32"):
        """Return each tap's activation for the batch ``x``; the pass stops after the deepest.

        Parameters
        ----------
        taps : list of Tap
        deepest : Tap
            The one after which the pass stops.
        x : torch.Tensor of shape (N, C, H, W)
        precision : {"float32", "bfloat16"}

        Returns
        -------
        list of torch.Tensor
        """
        with autocast(x.device, precision), self.right_layouts():
            return hooked_activations(self.body, taps, deepest, self.prepared(x))

    def seeded(self, seed, users_code=True):
        """Return a context in which draws start from ``seed``, also those of users' code.

        It gives the generator of dropout masks, if the network has one of its own.
        """
        return seeded_global_states(seed)

    def lay_out_weights(self, training):
        """Put the weights into the order in memory that suits ``training`` or inference."""


class LayerNetwork(ImageNetwork):
    """A network whose body is a `LayerStack`: it takes images in any layout."""

    is_fast_in_torch = True

    def has_training_parts(self):
        """Whether any part is in training mode, also one that has been put in another's place."""
        layers = self.body._modules.values()
        return super().has_training_parts() or any([part.training for part in layers])  # noqa: C419

    def right_layouts(self):
        """Return a context that does nothing: the stack's layers see to it themselves."""
        return nullcontext()

    def note_risks(self, seen):
        """Note nothing, likewise."""

    def prepared(self, x):
        """Return ``x`` as the body wants it."""
        return self.prepare(x)

    def activations(self, taps, deepest, x, precision="float32"):
        """Return each tap's activation; layers between them are run together."""
        with autocast(x.device, precision):
            found = self.body.activations(self.prepare(x), {tap.module for tap in taps})
        return [found[tap.module] for tap in taps]

    @contextmanager
    def seeded(self, seed, users_code=False):
        """Return a context in which dropout draws from a generator of its own."""
        masks = mask_generator(seed, self.device)
        self.body.use_generator(masks)
        try:
            with seeded_global_states(seed) if users_code else nullcontext():
                yield masks
        finally:
            self.body.use_generator(None)

    def in_pieces(self, n_images):
        """Return a context in which a batch of ``n_images`` comes in pieces; see `LayerStack`."""
        return self.body.in_pieces(n_images)

    def lay_out_weights(self, training):
        """Put the convolutions' weights into the order that suits."""
        self.body.lay_out_weights(training)


def _per_channel(values):
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
