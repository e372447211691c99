"""Any declarative network is its layers in plain torch, one behind another, in float64."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.frozen import FrozenEstimator
from torch import nn
from torch.nn import functional as F

from sklconv import ConvFeatureExtractor, ConvNetClassifier
from sklconv.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    MaxPool,
)

# Drawn shapes may look like (height, width, channels).
pytestmark = pytest.mark.filterwarnings("ignore:image_shape=:UserWarning")

many = settings(
    max_examples=200,
    # A network is built layer by layer, and kinks within rounding are turned down.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# float32 against float64, relative to the largest value: sums of a few hundred terms through a
# handful of layers stay a hundred times below.
TOLERANCE = 1e-4
# What float32 makes of a value of this share of the largest may lie on either side of 0, and of
# a maximum's runner-up.
NEAR_A_KINK = 1e-5
# Of float32 in the gradients, relative to the largest: batch normalisation of nearly equal values
# makes more of it.
MOST_ROUNDING = TOLERANCE

ACTIVATIONS = {
    None: lambda z: z,
    "relu": torch.relu,
    "leaky_relu": nn.LeakyReLU(0.01),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": nn.Softplus(),
}
# A learning rate that is 0 in float32.
UNTRAINED = 1e-300

KINKED = {"relu", "leaky_relu", "selu"}


# The plain networks


def as_pair(value):
    return value if isinstance(value, tuple) else (value, value)


def zeros_around(padding, kernel_size):
    """(left, right, top, bottom), as `torch.nn.functional.pad` wants it."""
    kernel_height, kernel_width = as_pair(kernel_size)
    if padding == "same":
        totals = [kernel_width - 1, kernel_height - 1]
        return [side for total in totals for side in (total // 2, total - total // 2)]
    if padding == "full":
        height, width = kernel_height - 1, kernel_width - 1
    else:
        height, width = as_pair(0 if padding == "valid" else padding)
    return [width, width, height, height]


class PlainNetwork:
    """Layers in NCHW, one behind another, with the weights of a fitted classifier.

    ``margin`` is how near the last pass came to a kink, relative to the largest value there.
    """

    def __init__(self, steps, clf, X, dtype=torch.float64):
        self.steps, self.dtype = steps, dtype
        self.normalizes = any(isinstance(layer, BatchNorm) for _, layer in steps)
        self.weights = {
            name.removeprefix("body."): parameter.detach().to(dtype, copy=True).requires_grad_()
            for name, parameter in clf.module_.named_parameters()
        }
        self.statistics = {
            name.removeprefix("body."): buffer.to(dtype, copy=True)
            for name, buffer in clf.module_.named_buffers()
            if "running" in name
        }
        if clf.standardize:
            self.mean = X.mean((0, 2, 3), dtype=np.float64)
            self.std = X.std((0, 2, 3), dtype=np.float64)
            self.std[self.std == 0] = 1
        else:
            self.mean = np.zeros(X.shape[1])
            self.std = np.full(X.shape[1], 255.0 if X.dtype == np.uint8 else 1.0)

    def activations(self, X, training=False):
        """Return what each layer puts out, by name."""
        pixels = X.astype(np.float32).astype(np.float64)
        pixels = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        x, found = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.dtype), {}
        self.margin = np.inf
        for name, layer in self.steps:
            x = getattr(self, f"_{type(layer).__name__}".lower())(name, layer, x, training)
            found[name] = x
        return found

    def _conv(self, name, layer, x, training):
        x = F.pad(x, zeros_around(layer.padding, layer.kernel_size))
        z = F.conv2d(x, self.weights[f"{name}.weight"], self._bias(name), layer.stride)
        return self._activated(z, layer.activation)

    def _dense(self, name, layer, x, training):
        z = x @ self.weights[f"{name}.weight"].T
        bias = self._bias(name)
        return self._activated(z if bias is None else z + bias, layer.activation)

    def _bias(self, name):
        return self.weights.get(f"{name}.bias")

    def _activation(self, name, layer, x, training):
        if layer.name == "leaky_relu":
            self._note_margin(x)
            return torch.where(x > 0, x, layer.negative_slope * x)
        return self._activated(x, layer.name)

    def _activated(self, z, name):
        if name in KINKED:
            self._note_margin(z)
        return ACTIVATIONS[name](z)

    def _note_margin(self, z):
        z = z.detach().abs()
        if not self.normalizes:
            # Zeros are sums of zeros, in float32 as well; else they may be a value less its mean.
            z = z[z > 0]
        if len(z):
            self.margin = min(self.margin, float(z.min() / z.max().clamp(min=1e-30)))

    def _maxpool(self, name, layer, x, training):
        size, stride = as_pair(layer.size), as_pair(layer.stride or layer.size)
        first, second = _two_largest(x.detach(), size, stride, layer.ceil_mode)
        gap = first - second
        if not self.normalizes:
            # Where all are zero, that is what ReLU leaves: none of them gets a gradient.
            gap = torch.where((first == 0) & (second == 0), torch.inf, gap)
        if x.any():
            self.margin = min(self.margin, float(gap.min() / x.detach().abs().max()))
        return F.max_pool2d(x, size, stride, ceil_mode=layer.ceil_mode)

    def _avgpool(self, name, layer, x, training):
        stride = layer.stride or layer.size
        return F.avg_pool2d(x, layer.size, stride, ceil_mode=layer.ceil_mode)

    def _globalavgpool(self, name, layer, x, training):
        return x.mean((2, 3))

    def _batchnorm(self, name, layer, x, training):
        axes = [0, *range(2, x.ndim)]
        running_mean = self.statistics[f"{name}.running_mean"]
        running_var = self.statistics[f"{name}.running_var"]
        mean, var = running_mean, running_var
        if training:
            mean, var = x.mean(axes), x.var(axes, correction=0)
            momentum, drawn = layer.momentum, x.detach()
            running_mean.mul_(1 - momentum).add_(momentum * drawn.mean(axes))
            running_var.mul_(1 - momentum).add_(momentum * drawn.var(axes))

        def over_channels(values):
            return values.reshape(1, -1, *[1] * (x.ndim - 2))

        normal = (x - over_channels(mean)) / over_channels((var + layer.eps).sqrt())
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return over_channels(weight) * normal + over_channels(bias)

    def _dropout(self, name, layer, x, training):
        assert not training or layer.rate == 0
        return x

    def _flatten(self, name, layer, x, training):
        return x.reshape(len(x), -1)


def _two_largest(x, size, stride, ceil_mode):
    """The largest value of each window of each map, and the second largest."""
    behind = [k - 1 if ceil_mode else 0 for k in size]
    padded = F.pad(x, [0, behind[1], 0, behind[0]], value=-torch.inf)
    windows = padded.unfold(2, size[0], stride[0]).unfold(3, size[1], stride[1]).flatten(4)
    second = torch.full_like(windows[..., :1], -torch.inf)
    return torch.cat([windows, second], dim=4).topk(2).values.unbind(4)


# Random networks and data


@dataclass
class Case:
    """A network, the images and labels that it is trained on, and how they are given."""

    module: list  # as ConvNetClassifier takes it
    steps: list  # (name, layer) of what runs
    images: np.ndarray  # (N, C, H, W)
    labels: np.ndarray
    form: str
    standardize: bool
    seed: int

    def as_given(self, images):
        """Return ``images`` in the form in which the user has them."""
        if "last" in self.form:
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        return images.reshape(len(images), -1) if "flat" in self.form else images

    def fit(self, weights=None, **params):
        """Train one epoch of one batch."""
        clf = ConvNetClassifier(
            self.module,
            image_shape=self.images.shape[1:],
            data_format="channels_last" if "last" in self.form else "channels_first",
            standardize=self.standardize,
            batch_size=len(self.images),
            max_epochs=1,
            optimizer="sgd",
            lr_schedule=None,
            random_state=self.seed,
        ).set_params(**params)
        return clf.fit(self.as_given(self.images), self.labels, weights)


def extents(most, least=1):
    number = st.integers(least, most)
    return number | st.tuples(number, number)


activations = st.sampled_from(["relu", *ACTIVATIONS]) | st.just("relu")
functions = st.sampled_from([name for name in ACTIVATIONS if name])
inits = st.sampled_from(["default", "glorot_uniform", "he_normal", ("normal", 0.5)])


@st.composite
def convolutions(draw, shape):
    kernel, stride = draw(extents(4)), draw(st.just(1) | extents(3))
    padding = draw(st.sampled_from(["valid", "same", "full"]) | extents(2, least=0))
    even = any(size % 2 == 0 for size in as_pair(kernel))
    if padding == "same" and even:
        stride = 1
    padded = F.pad(torch.zeros(1, *shape), zeros_around(padding, kernel)).shape[2:]
    if any(k > n for k, n in zip(as_pair(kernel), padded, strict=True)):
        kernel, padding, stride = draw(st.sampled_from([1, 3])), "same", 1
    return Conv(
        draw(st.integers(1, 9)),
        kernel,
        stride=stride,
        padding=padding,
        activation=draw(activations),
        bias=draw(st.booleans()),
        kernel_init=draw(inits),
    )


@st.composite
def pools(draw, kind, shape):
    largest = min(3, *shape[1:])
    return kind(
        draw(extents(largest)),
        stride=draw(st.none() | extents(3)),
        ceil_mode=draw(st.booleans()),
    )


@st.composite
def layers(draw, kind, shape, rates):
    if kind is Conv:
        return draw(convolutions(shape))
    if kind in (MaxPool, AvgPool):
        return draw(pools(kind, shape))
    if kind is Dense:
        return Dense(
            draw(st.integers(1, 9)),
            activation=draw(activations),
            bias=draw(st.booleans()),
            kernel_init=draw(inits),
        )
    if kind is BatchNorm:
        return BatchNorm(
            momentum=draw(st.sampled_from([0.1, 0.5])), eps=draw(st.sampled_from([1e-5, 0.01]))
        )
    if kind is Activation:
        slope = draw(st.sampled_from([0.01, 0.3, -0.5]))
        return Activation(draw(functions), negative_slope=slope)
    if kind is Dropout:
        return Dropout(draw(rates))
    return "passthrough" if kind is None else kind()


# Layers that are run together stand one behind another often enough.
ON_MAPS = [
    [Conv],
    [Conv, MaxPool],
    [Conv, MaxPool, Dropout, Dense],
    [Conv, BatchNorm, Activation],
    [MaxPool],
    [AvgPool],
    [GlobalAvgPool],
    [Flatten],
]
ANYWHERE = [
    [Dense],
    [Dropout, Dense],
    [BatchNorm],
    [Activation],
    [Dropout],
    [None],
]


@st.composite
def networks(draw, shape, n_classes, rates):
    """Return a list of layers, and the steps that it stands for."""
    module, steps, shape = [], [], tuple(shape)
    for _ in range(draw(st.integers(0, 5))):
        for kind in draw(st.sampled_from(ANYWHERE + (ON_MAPS if len(shape) == 3 else []))):
            name, layer = f"layer{len(module)}", draw(layers(kind, shape, rates))
            module.append((name, layer))
            if layer == "passthrough":
                continue
            if kind is Dense and len(shape) == 3:
                steps.append(("flatten", Flatten()))
                shape = (math.prod(shape),)
            steps.append((name, layer))
            shape = output_shape(layer, shape)
    if len(shape) == 3:
        steps.append(("flatten", Flatten()))
    steps.append(("output", Dense("n_classes", activation=None)))
    if draw(st.booleans()):
        module.append(steps[-1])
        if draw(st.booleans()):
            steps.append(("behind", Activation(draw(functions))))
            module.append(steps[-1])
    return module, steps


def output_shape(layer, shape):
    x = torch.zeros(1, *shape)
    if isinstance(layer, Conv):
        x = F.pad(x, zeros_around(layer.padding, layer.kernel_size))
        weight = torch.zeros(layer.filters, shape[0], *as_pair(layer.kernel_size))
        return tuple(F.conv2d(x, weight, stride=layer.stride).shape[1:])
    if isinstance(layer, (MaxPool, AvgPool)):
        stride = layer.stride or layer.size
        return tuple(F.max_pool2d(x, layer.size, stride, ceil_mode=layer.ceil_mode).shape[1:])
    if isinstance(layer, Dense):
        return (layer.units,)
    if isinstance(layer, Flatten):
        return (x.numel(),)
    return shape[:1] if isinstance(layer, GlobalAvgPool) else shape


@st.composite
def cases(draw, rates, least=2):
    sides = st.integers(1, 12)
    shape = draw(st.tuples(st.integers(1, 5), sides, sides))
    n_classes = draw(st.integers(2, 4))
    n = draw(st.integers(max(least, n_classes), 40))
    module, steps = draw(networks(shape, n_classes, rates))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    dtype = draw(st.sampled_from([np.uint8, np.float32, np.float64]))
    if dtype == np.uint8:
        images = rng.integers(0, 256, (n, *shape), dtype=dtype)
    else:
        scale, offset = draw(st.sampled_from([(1, 0), (1, 3), (50, 100), (0.01, -0.02)]))
        images = (scale * rng.standard_normal((n, *shape)) + offset).astype(dtype)
    large = images.max() > 10 and dtype != np.uint8
    return Case(
        module,
        steps,
        images,
        rng.permutation(np.arange(n) % n_classes),
        draw(st.sampled_from(["first", "last", "flat", "flat, last"])),
        large or draw(st.booleans()),
        seed,
    )


some_rates = st.sampled_from([0.0, 0.1, 0.3, 0.5])


def check_close(actual, expected, name, *, scale=None, atol=None):
    """Compare within ``atol``, by default TOLERANCE of the largest value."""
    actual, expected = (
        np.asarray(torch.as_tensor(value).detach(), dtype=np.float64)
        for value in (actual, expected)
    )
    assert actual.shape == expected.shape
    if atol is None:
        atol = TOLERANCE * (np.abs(expected).max() if scale is None else scale)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)


# The properties


@many
@given(cases(some_rates), st.integers(1, 40))
def test_outputs(case, n):
    clf = case.fit(lr=0.01)
    plain = PlainNetwork(case.steps, clf, case.images)
    logits = plain.activations(case.images)[case.steps[-1][0]].detach()
    expected = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits
    scale = float(logits.abs().max())

    X = case.as_given(case.images)
    check_close(clf.decision_function(X), expected, "logits", scale=scale)
    check_close(clf.decision_function(X[:n]), expected[:n], "logits of some", scale=scale)
    # Their errors are at most those of the logits.
    check_close(clf.predict_proba(X), logits.softmax(1), "probabilities", scale=max(scale, 1))


@many
@given(cases(some_rates), st.data())
def test_activations_of_each_layer(case, data):
    clf, X = case.fit(lr=0.01), case.as_given(case.images)
    expected = PlainNetwork(case.steps, clf, case.images).activations(case.images)
    names = [name for name, _ in case.steps]
    batch_size = data.draw(st.none() | st.integers(1, 40))
    for layer in ("*", data.draw(st.sampled_from(names))):
        extractor = ConvFeatureExtractor(
            FrozenEstimator(clf), layer=layer, pool="flatten", batch_size=batch_size
        ).fit(X)
        assert extractor.layers_ == (names if layer == "*" else [layer])
        activations = [expected[name].detach().flatten(1) for name in extractor.layers_]
        ends = np.cumsum([activation.shape[1] for activation in activations])
        *features, nothing = np.split(extractor.transform(X), ends, axis=1)
        assert nothing.shape[1] == 0
        for name, *pair in zip(extractor.layers_, features, activations, strict=True):
            check_close(*pair, name)


def train_plain(case, clf, weights=None):
    """Return a `PlainNetwork` with gradients, its loss, and the gradients' absolute tolerances.

    A sum that cancels out has the rounding errors of what it is the sum of; they are measured.
    Draws near a kink, and those where rounding is all that there is, are turned down.
    """
    plain, loss = _differentiate(case, clf, weights, torch.float64)
    # Torch adds up a batch's statistics one by one where channels come last, in pairs elsewhere.
    factor = 10 if plain.normalizes else 1
    assume(plain.margin > factor * NEAR_A_KINK)
    in_float32, _ = _differentiate(case, clf, weights, torch.float32)
    gradients = {name: weight.grad for name, weight in plain.weights.items()}
    rounding = factor * max(
        10 * float((in_float32.weights[name].grad - gradient).abs().max())
        for name, gradient in gradients.items()
    )
    largest = {name: float(gradient.abs().max()) for name, gradient in gradients.items()}
    assume(rounding <= MOST_ROUNDING * max(largest.values()))
    return plain, loss, {name: TOLERANCE * own + rounding for name, own in largest.items()}


def _differentiate(case, clf, weights, dtype):
    plain = PlainNetwork(case.steps, clf, case.images, dtype)
    for name, statistic in plain.statistics.items():
        statistic.fill_(0.0 if name.endswith("mean") else 1.0)
    logits = plain.activations(case.images, training=True)[case.steps[-1][0]]
    losses = F.cross_entropy(logits, torch.from_numpy(case.labels), reduction="none")
    if weights is not None:
        losses = losses * torch.from_numpy(weights / weights.mean()).to(dtype)
    losses.mean().backward()
    return plain, float(losses.detach().mean())


@many
@given(cases(st.just(0.0)), st.booleans())
def test_gradients(case, laid_out):
    clf = case.fit(lr=UNTRAINED)
    plain, _, tolerances = train_plain(case, clf)

    network = copy.deepcopy(clf.module_).train()
    if laid_out:
        network.body.lay_out_weights(training=True)
    X = case.images if case.images.dtype == np.uint8 else case.images.astype(np.float32)
    F.cross_entropy(network(torch.from_numpy(X)), torch.from_numpy(case.labels)).backward()
    for name, tolerance in tolerances.items():
        gradient = network.body.get_parameter(name).grad
        check_close(gradient, plain.weights[name].grad, name, atol=tolerance)


@many
@given(
    cases(st.just(0.0)),
    st.sampled_from([0.03, 1.0]),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
)
def test_one_step(case, lr, weight_decay, weighted):
    weights = None
    if weighted:
        weights = np.random.default_rng(case.seed).uniform(0.5, 3, len(case.labels))
    plain, loss, tolerances = train_plain(case, case.fit(weights, lr=UNTRAINED), weights)

    clf = case.fit(weights, lr=lr, weight_decay=weight_decay)
    check_close(clf.history_[0]["train_loss"], loss, "loss", scale=max(loss, 1))
    body = clf.module_.body
    for name, tolerance in tolerances.items():
        before = plain.weights[name].detach()
        step = lr * (plain.weights[name].grad + weight_decay * before)
        # The weight is rounded when the step is added.
        rounding = 2**-23 * float((before.abs() + step.abs()).max())
        after = body.get_parameter(name).detach()
        check_close(after, before - step, name, atol=lr * tolerance + rounding)
    for name, statistic in plain.statistics.items():
        scale = max(float(statistic.abs().max()), 1)
        check_close(body.get_buffer(name), statistic, name, scale=scale)
