"""What an activation's axes mean, and which layer classifies, followed through a pass op by op.

Shapes do not tell (N, C, H, W) from (N, H, W, C), nor (N, C, L) from (N, T, C). Where activations
come from does: pixels and convolutions have their channels on axis 1, linear layers on the last
one, permutations and reshapes move them, and most other operations leave them where they are.
"""

import math
from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

MOVES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}
RESHAPES = {
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze")
}
PUT_CHANNELS_FIRST = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("batch_norm", "instance_norm", "group_norm"),
}
# So are those of what comes in, unless they were seen to be elsewhere.
POOLS = {
    "interpolate",
    *(
        f"{kind}_pool{n}d"
        for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg")
        for n in (1, 2, 3)
    ),
}
PUT_CHANNELS_LAST = {"linear", "layer_norm", "rms_norm", "multi_head_attention_forward"}
# The axes of products are not those of their factors; what a property returns may be transposed.
UNKNOWN = {"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum", "__get__"}

# What leaves scores of classes such: behind any layer, and behind a convolution of one pixel,
# whose scores are one map a class.
OF_SCORES = {
    *("softmax", "log_softmax", "sigmoid", "logsigmoid", "dropout", "contiguous", "clone"),
    *("to", "float", "view", "reshape", "flatten", "squeeze", "mean"),
}
OF_MAPS = {"relu", "relu_", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool2d"}


class FollowAxes(TorchFunctionMode):
    """Sees each torch function of a pass, and notes what its results are.

    Attributes
    ----------
    axes : mapping of tensor to int
        The axis of the channels, where that is known.
    scores : mapping of tensor to (torch.nn.Module, int)
        Of tensors that are a layer's output, but for a softmax or a mean: that layer, and the
        number that `note_layer` gave to its call.
    """

    def __init__(self):
        super().__init__()
        self.axes = WeakTensorKeyDictionary()
        self.scores = WeakTensorKeyDictionary()

    def note_images(self, x):
        """Note that ``x`` are images (N, C, H, W)."""
        if isinstance(x, torch.Tensor):
            self.axes[x] = 1

    def note_layer(self, module, output, call):
        """Note that ``output`` comes from this call of ``module``, if that may be a classifier."""
        is_linear = isinstance(module, nn.Linear)
        if is_linear or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            self.scores[output] = module, call

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Before the call, which may work in place.
        shape, axis, scores = self._source([*args, *kwargs.values()])
        result = func(*args, **kwargs)
        for output in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(output, torch.Tensor):
                name = getattr(func, "__name__", "")
                _note(self.axes, output, _axis(func, name, shape, axis, output, args, kwargs))
                _note(self.scores, output, scores if _keeps_scores(name, scores) else None)
        return result

    def _source(self, values):
        """Return shape, axis and scores of the first of ``values`` of which any is known."""
        flat = chain.from_iterable(v if isinstance(v, (tuple, list)) else [v] for v in values)
        for value in flat:
            if isinstance(value, torch.Tensor) and (value in self.axes or value in self.scores):
                return tuple(value.shape), self.axes.get(value), self.scores.get(value)
        return None, None, None


def _note(known, tensor, value):
    if value is None:
        known.pop(tensor, None)
    else:
        known[tensor] = value


def _keeps_scores(name, scores):
    if scores is None:
        return False
    return name in OF_SCORES or (name in OF_MAPS and not isinstance(scores[0], nn.Linear))


def _axis(func, name, shape, axis, output, args, kwargs):
    """The axis of the channels of what ``func`` returned for a tensor of this shape and axis."""
    if name in PUT_CHANNELS_FIRST or func is F.unfold:
        return 1
    stays = axis is not None and output.ndim == len(shape)
    if name in PUT_CHANNELS_LAST:
        # On other axes than the channels' they mix places, as in MLP-Mixer.
        return axis if stays else output.ndim - 1
    if name in POOLS:
        return axis if stays else 1
    if axis is None or name in UNKNOWN:
        return None
    if name in MOVES:
        return _moved(shape, axis, func, args, kwargs)
    if name in RESHAPES:
        return _reshaped(shape, axis, tuple(output.shape))
    return axis if stays else None


def _moved(shape, axis, func, args, kwargs):
    """Where ``func`` puts the axis, as a tensor without memory shows, whose sizes all differ."""
    sizes = range(2, 2 + len(shape))
    arguments = [torch.empty(*sizes, device="meta"), *args[1:]]
    return tuple(func(*arguments, **kwargs).shape).index(sizes[axis])


def _reshaped(shape, axis, new):
    """Where the axis is in the new shape: as long as before, behind as many values."""
    n_before = math.prod(shape[:axis])
    for i, size in enumerate(new):
        if size == shape[axis] and math.prod(new[:i]) == n_before:
            return i
    return None
