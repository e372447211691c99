"""The best hand-tuned PyTorch loops that we can write for these networks, without sklconv.

What pays on a CPU, the most telling first:

- With AVX-512 convolutions and pools run on oneDNN's own tensors (``to_mkldnn``): nothing is
  reordered between layers, pooling is a vectorized kernel that notes one byte a window, and zeroes
  and scatters its gradient in one go. With narrower instructions channels last is faster.
- A dropout mask is cut from random bytes, eight of a 64-bit draw, a large one from their halves
  (the shares kept here are multiples of 1/16). Dropouts in a row are one whose kept share is the
  product of theirs: the same distribution.
- Pooling comes before ReLU: the same numbers from a quarter of the elements.
- ReLU and mask work in place, and their gradient needs only the sign of what came out. What a
  dropout scales by goes into what the layer behind it puts out instead of into its large input.
- With few outputs, the product of the dense layer's weights and its transposed input takes half
  the time of the product that `F.linear` computes.
- The optimizer is one fused kernel a weight; gradients are dropped, not zeroed; no loss is read.
- A large block that is allocated and freed once makes the C library keep freed memory, which it
  otherwise returns to the system, and faults in anew, several times a batch.

One image is faster in channels-last dense tensors.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..race import data, networks

INFERENCE_BATCH = 256  # of 64, 128, 192, 256 and 512 the fastest
HAS_WIDE_KERNELS = (
    torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


class TunedR1(nn.Module):
    """R1, trained and evaluated by hand-picked kernels."""

    def __init__(self, side, n_classes):
        super().__init__()
        plain = networks.plain("R1", side, n_classes)
        self.conv1, self.conv2, self.dense, self.output = plain[0], plain[3], plain[8], plain[11]
        self.masks = Masks(0)

    def features(self, x):  # (N, 1, H, W) -> (N, 256), before ReLU
        x = F.relu(F.max_pool2d(self.conv1(enter_onednn(x)), 2, 2))
        x = F.max_pool2d(self.conv2(x), 2, 2)
        x, scale = self.relu_dropout(leave_onednn(x), kept=0.5)
        return scaled_linear(self.dense, x.flatten(1), scale)

    def forward(self, x):
        x, scale = self.relu_dropout(self.features(x), kept=0.5)
        return scaled_linear(self.output, x, scale)

    def relu_dropout(self, x, kept):
        return relu_dropout(x, kept, self.masks) if self.training else (x.relu_(), 1.0)

    def one_image(self, x):
        x = F.max_pool2d(self.conv1(channels_last(x)), 2, 2).relu_()
        x = F.max_pool2d(self.conv2(x), 2, 2).relu_().flatten(1)
        return self.output(self.dense(x).relu_())


class TunedR2(nn.Module):
    """R2, trained and evaluated by hand-picked kernels."""

    def __init__(self, side, n_classes):
        super().__init__()
        plain = networks.plain("R2", side, n_classes)
        self.conv1, self.output = plain[0], plain[6]
        self.masks = Masks(0)

    def features(self, x):  # (N, 1, H, W) -> (N, 32, H', W'), before ReLU
        return leave_onednn(F.max_pool2d(self.conv1(enter_onednn(x)), 2, 2))

    def forward(self, x):
        x = self.features(x)
        if not self.training:
            return few_outputs(self.output, x.relu_().flatten(1))
        x, scale = relu_dropout(x, 0.75 * 0.5, self.masks)
        return few_outputs(self.output, x.flatten(1), scale)

    def one_image(self, x):
        return self.output(F.max_pool2d(self.conv1(channels_last(x)), 2, 2).relu_().flatten(1))


class TunedLinear(nn.Module):
    """One dense layer on the pixels."""

    def __init__(self, side, n_classes):
        super().__init__()
        self.output = networks.plain("linear", side, n_classes)[1]

    def forward(self, x):
        return self.output(x.flatten(1))

    one_image = forward


NETWORKS = {"R1": TunedR1, "R2": TunedR2, "linear": TunedLinear}


class Masks:
    """Dropout masks of zeros and ones, from random bytes."""

    def __init__(self, seed):
        self.random = np.random.SFC64(seed)

    def draw(self, n, kept):
        """Return ``n`` floats, a share of ``kept`` (a multiple of 1/16) of them 1, others 0."""
        mask = torch.empty(n)
        half = math.ceil(n / 2) if n >= 2**18 else n
        words = torch.from_numpy(self.random.random_raw(math.ceil(half / 8)))
        drawn = words.view(torch.uint8)[:half]
        torch.lt(drawn, round(256 * kept), out=mask[:half])
        if half < n:
            torch.lt(drawn[: n - half] & 15, round(16 * kept), out=mask[half:])
        return mask


class ReLUMask(torch.autograd.Function):
    """``relu(x) * mask`` in place."""

    @staticmethod
    def forward(ctx, x, mask):
        x.relu_().view(-1).mul_(mask)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        # Above zero is exactly what neither ReLU nor mask has held back.
        return torch.ops.aten.threshold_backward(gradient, x, 0), None


def relu_dropout(x, kept, masks):
    """ReLU and dropout; what is left to scale by, for the layer behind, is returned too."""
    return ReLUMask.apply(x, masks.draw(x.numel(), kept)), 1 / kept


def scaled_linear(layer, x, scale):
    """``layer(scale * x)``: fewer values come out than go in."""
    if scale == 1:
        return layer(x)
    return torch.add(layer.bias, F.linear(x, layer.weight), alpha=scale)


def few_outputs(layer, x, scale=1.0):
    """``layer(scale * x)`` by way of the transpose."""
    return torch.add(layer.bias, (layer.weight @ x.t()).t(), alpha=scale)


def enter_onednn(x):
    """Images as a oneDNN tensor, or in channels-last layout, whichever is faster on this CPU."""
    return x.to_mkldnn() if HAS_WIDE_KERNELS else channels_last(x)


def leave_onednn(x):
    return x.to_dense() if x.is_mkldnn else x.contiguous()


def channels_last(x):
    """Grey images with channels-last strides, which torch can't tell from others itself."""
    n, c, h, w = x.shape
    return x.as_strided((n, c, h, w), (h * w, 1, w, 1))


def keep_freed_memory():
    """Let the C library keep freed blocks of up to 32 MB instead of returning them."""
    torch.empty(31 * 2**20, dtype=torch.uint8)


def prepare_fit(task):
    """Return a function that trains."""
    X, y, model = _ready(task)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01, fused=True)

    def fit():
        model.train()
        for _ in range(task["epochs"]):
            for rows in torch.randperm(len(X)).split(task["batch_size"]):
                logits = model(X.index_select(0, rows))
                loss = F.cross_entropy(logits, y.index_select(0, rows))
                for parameter in parameters:
                    parameter.grad = None
                loss.backward()
                optimizer.step()

    return fit


def prepare_predict(task):
    """Return a function that computes all class probabilities."""
    X, _, model = _ready(task)
    return _in_batches(model, X, task["n_classes"], lambda images: model(images).softmax(1))


def prepare_transform(task):
    """Return a function that computes the features in front of the last layer."""
    X, _, model = _ready(task)
    n_features = 256 if task["network"] == "R1" else networks.n_flat("R2", task["side"])
    return _in_batches(model, X, n_features, lambda x: model.features(x).relu_().flatten(1))


def prepare_one_image(task):
    """Return the fastest call for one ready float32 image."""
    X, _, model = _ready(task | {"n_images": 1})
    model.eval()
    for module in model.children():
        module.to(memory_format=torch.channels_last)

    def call():
        with torch.inference_mode():
            return model.one_image(X)

    return call


def _ready(task):
    keep_freed_memory()
    X, y = data.read_float(task)
    model = NETWORKS[task["network"]](task["side"], task["n_classes"])
    return torch.from_numpy(X).unsqueeze(1), torch.from_numpy(y), model


def _in_batches(model, X, width, compute):
    model.eval()

    def run():
        # As numpy allocates it, in large pages: the caller's own, new at each call.
        out = torch.from_numpy(np.empty((len(X), width), dtype=np.float32))
        with torch.inference_mode():
            for rows in range(0, len(X), INFERENCE_BATCH):
                out[rows : rows + INFERENCE_BATCH] = compute(X[rows : rows + INFERENCE_BATCH])
        return out

    return run
