"""module= to a network: published ones in declarative layers, users' own, and what runs inside."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn

from sklconv import Backbone, ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv._networks.building import auto_layers, build_layers, build_network, trace_network
from sklconv._networks.image_network import ImageNetwork, PreparePixels
from sklconv._platform.randomness import mask_generator
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
    SpatialDropout,
    _dense,
    _dropout,
)
from sklconv.layers._activation import ACTIVATIONS, MONOTONE
from sklconv.layers._dropout import DropoutModule, SpatialDropoutModule


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def digits_like(n=20, n_classes=10, shape=(28, 28), seed=0):
    """Random uint8 images and labels, each class at least once."""
    X = np.random.default_rng(seed).integers(0, 256, size=(n, *shape), dtype=np.uint8)
    return X, np.arange(n) % n_classes


# The networks of the five reference systems (shared/REFERENCE_RESULTS.md)


def leaky(name):
    return (name, Activation("leaky_relu", negative_slope=0.2))


def textbook(filters1, filters2, units):
    """R3: batch normalisation in front of the activations, on the outputs as well."""
    norm = BatchNorm(momentum=1.0, eps=1e-8)
    return [
        ("conv1", Conv(filters1, 5, padding="same", activation=None)),
        leaky("leaky1"),
        ("pool1", MaxPool(2)),
        ("conv2", Conv(filters2, 5, padding="same", activation=None)),
        leaky("leaky2"),
        ("pool2", MaxPool(2)),
        ("dense", Dense(units, activation=None)),
        ("norm", norm),
        leaky("leaky3"),
        ("drop", Dropout(0.1)),
        ("output", Dense("n_classes", activation=None)),
        ("output_norm", norm),
        leaky("output_leaky"),
    ]


def textbook_shapes(filters1, filters2, units):
    return [
        *[(filters1, 28, 28)] * 2,
        (filters1, 14, 14),
        *[(filters2, 14, 14)] * 2,
        (filters2, 7, 7),
        (filters2 * 7 * 7,),
        *[(units,)] * 4,
        *[(10,)] * 3,
    ]


PLAIN = {"bias": False, "kernel_init": ("normal", 0.01)}  # R5: no biases, N(0, 0.01²)
SOFTMAX = ("output", Dense("n_classes", activation=None, **PLAIN))

REFERENCES = {
    "R1": (
        [
            ("conv1", Conv(32, 5, kernel_init="glorot_uniform")),
            ("pool1", MaxPool(2)),
            ("conv2", Conv(32, 5, kernel_init="glorot_uniform")),
            ("pool2", MaxPool(2)),
            ("drop1", Dropout(0.5)),
            ("dense", Dense(256)),
            ("drop2", Dropout(0.5)),
        ],
        160_362,
        [
            (32, 24, 24),
            (32, 12, 12),
            (32, 8, 8),
            (32, 4, 4),
            (32, 4, 4),
            (512,),
            (256,),
            (256,),
            (10,),
        ],
    ),
    "R2": (
        [
            ("conv", Conv(32, 3)),
            ("pool", MaxPool(2)),
            ("drop1", Dropout(0.25)),
            ("flat", Flatten()),
            ("drop2", Dropout(0.5)),
        ],
        54_410,
        [(32, 26, 26), (32, 13, 13), (32, 13, 13), (5408,), (5408,), (10,)],
    ),
    "R3, the text": (textbook(64, 128, 1024), 6_642_462, textbook_shapes(64, 128, 1024)),
    "R3, the code": (textbook(1024, 128, 64), 3_705_822, textbook_shapes(1024, 128, 64)),
    "R4, dense": ([("dense", Dense(128))], 101_770, [(784,), (128,), (10,)]),
    "R4, CNN": (
        [
            ("conv1", Conv(32, 3)),
            ("pool", MaxPool(2)),
            ("conv2", Conv(64, 3)),
            ("dense", Dense(64)),
        ],
        515_146,
        [(32, 26, 26), (32, 13, 13), (64, 11, 11), (7744,), (64,), (10,)],
    ),
    "R5, softmax regression": ([SOFTMAX], 7_840, [(784,), (10,)]),
    "R5, one hidden layer": (
        [("hidden", Dense(625, activation="sigmoid", **PLAIN)), SOFTMAX],
        496_250,
        [(784,), (625,), (10,)],
    ),
    "R5, two hidden layers": (
        [
            ("drop0", Dropout(0.2)),
            ("hidden1", Dense(625, **PLAIN)),
            ("drop1", Dropout(0.5)),
            ("hidden2", Dense(625, **PLAIN)),
            ("drop2", Dropout(0.5)),
            SOFTMAX,
        ],
        886_875,
        [(1, 28, 28), (784,), (625,), (625,), (625,), (625,), (10,)],
    ),
    "R5, ConvNet": (
        [
            ("conv1", Conv(32, 3, padding="full", **PLAIN)),
            ("pool1", MaxPool(2, ceil_mode=True)),
            ("drop1", Dropout(0.2)),
            ("conv2", Conv(64, 3, **PLAIN)),
            ("pool2", MaxPool(2, ceil_mode=True)),
            ("drop2", Dropout(0.2)),
            ("conv3", Conv(128, 3, **PLAIN)),
            ("pool3", MaxPool(2, ceil_mode=True)),
            ("flat", Flatten()),
            ("drop3", Dropout(0.2)),
            ("dense", Dense(625, **PLAIN)),
            ("drop4", Dropout(0.5)),
            SOFTMAX,
        ],
        818_698,
        [
            (32, 30, 30),
            *[(32, 15, 15)] * 2,
            (64, 13, 13),
            *[(64, 7, 7)] * 2,
            (128, 5, 5),
            (128, 3, 3),
            *[(1152,)] * 2,
            *[(625,)] * 2,
            (10,),
        ],
    ),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_published_networks(reference):
    steps, n_parameters, shapes = REFERENCES[reference]
    # As many images as classes: two of the networks are large.
    clf = ConvNetClassifier(module=steps, max_epochs=1, batch_size=10, random_state=0)
    table = clf.fit(*digits_like(10)).layer_table_
    names = list(table["name"])
    assert [name for name in names if name not in ("flatten", "output")] == [
        name for name, _ in steps if name != "output"
    ]
    assert list(table["output_shape"]) == shapes
    assert table["n_parameters"].sum() == n_parameters
    assert sum(p.numel() for p in clf.module_.parameters()) == n_parameters


def test_layer_table_of_a_published_network():
    steps, *_ = REFERENCES["R2"]
    table = ConvNetClassifier(module=steps, max_epochs=1).fit(*digits_like(10)).layer_table_
    assert list(table["type"]) == ["Conv", "MaxPool", "Dropout", "Flatten", "Dropout", "Dense"]
    assert list(table["n_parameters"]) == [320, 0, 0, 0, 0, 54_090]


# "auto"


def entering_dense(image_shape, n_classes=3):
    network = build_network("auto", image_shape, n_classes, statistics=None, seed=0)
    calls, output = trace_network(network, image_shape, n_classes)
    assert output.shape == (2, n_classes)
    return next(call.input.shape[1] for call in calls if call.name == "dense")


@pytest.mark.parametrize(
    "image_shape",
    [(1, 1, 1), (4, 1, 1), (1, 1, 63), (1, 200, 1), (1, 2, 3), (3, 33, 5), (3, 64, 64)],
    ids=str,
)
def test_auto_bears_any_image(image_shape):
    assert 1 <= entering_dense(image_shape) <= 4096


def test_auto_on_photographs():
    assert entering_dense((3, 224, 224)) <= 4096


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 70), st.integers(1, 70))
@example(32, 32)
@example(33, 32)
@example(65, 63)
def test_auto_lets_at_most_4096_values_into_dense(height, width):
    assert entering_dense((1, height, width)) <= 4096


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 1), (2, 40, 3)], ids=str)
def test_auto_trains_on_small_images(shape):
    X, y = digits_like(12, 2, shape)
    clf = ConvNetClassifier(max_epochs=1, data_format="channels_first").fit(X, y)
    assert clf.image_shape_ == shape
    names = [name for name, _ in auto_layers()]
    assert names == ["conv1", "pool1", "conv2", "pool2", "dense"]
    assert list(clf.layer_table_["name"]) == [*names[:-1], "flatten", "dense", "output"]


# TorchModule


class Small(nn.Module):
    """Keeps what it was called with."""

    def __init__(self, shape, n_outputs, called_with):
        super().__init__()
        self.dense = nn.Linear(math.prod(shape), n_outputs)
        self.called_with = called_with

    def forward(self, x):
        return self.dense(x.flatten(1))


class Channels(Small):
    def __init__(self, in_channels, num_classes, width=5):
        super().__init__((in_channels, 4, 6), num_classes, (in_channels, num_classes, width))


class Chans(Small):
    def __init__(self, in_chans, n_classes):
        super().__init__((in_chans, 4, 6), n_classes, (in_chans, n_classes))


class Shape(Small):
    def __init__(self, *, image_shape, n_classes=1000, depth=None):
        super().__init__(image_shape, n_classes, (image_shape, n_classes, depth))


def factory(in_chans, num_classes):
    return Small((in_chans, 4, 6), num_classes, (in_chans, num_classes))


@pytest.fixture(scope="module")
def colour():
    return digits_like(12, 3, (2, 4, 6))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (TorchModule(Channels), (2, 3, 5)),
        (TorchModule(Channels, width=7), (2, 3, 7)),
        (TorchModule(Chans), (2, 3)),
        (TorchModule(Shape), ((2, 4, 6), 3, None)),
        (TorchModule(Shape, depth=[1, 2]), ((2, 4, 6), 3, [1, 2])),
        (TorchModule(Shape, image_shape=(4, 6, 2)), ((4, 6, 2), 3, None)),
        (TorchModule(factory), (2, 3)),
    ],
    ids=["class", "width", "chans", "shape", "depth", "given shape", "function"],
)
def test_torch_module_infers_arguments_that_are_not_given(module, expected, colour):
    clf = ConvNetClassifier(module, max_epochs=1).fit(*colour)
    assert clf.module_.body.called_with == expected
    assert clf.predict(colour[0]).shape == (12,)


def test_torch_module_parameters_are_the_estimators_own(colour):
    clf = ConvNetClassifier(TorchModule(Channels, width=7), max_epochs=1)
    params = clf.get_params()
    assert params["module__width"] == 7
    assert params["module__module_class"] is Channels

    original = clf.module
    assert clf.set_params(module__width=8).fit(*colour).module_.body.called_with == (2, 3, 8)
    clf.set_params(module__module_class=Shape, module=TorchModule(Channels, depth=1))
    assert clf.fit(*colour).module_.body.called_with == ((2, 4, 6), 3, 1)
    assert original.get_params() == {"module_class": Channels, "width": 8}


def test_torch_module_clone_and_repr():
    module = TorchModule(Channels, width=[1, 2])
    copied = clone(module)
    assert copied.get_params() == module.get_params()
    assert copied.get_params()["width"] is not module.get_params()["width"]
    copied.set_params(width=3, extra="x")
    assert module.get_params() == {"module_class": Channels, "width": [1, 2]}
    assert copied.get_params() == {"module_class": Channels, "width": 3, "extra": "x"}
    assert repr(copied) == f"TorchModule(extra='x', module_class={Channels!r}, width=3)"
    clf = clone(ConvNetClassifier(copied))
    assert clf.module is not copied
    assert clf.get_params()["module__extra"] == "x"
    assert "width=3" in repr(clf)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (TorchModule(lambda: 3), TypeError, "returned int, not a torch.nn.Module"),
        (TorchModule(Channels, widht=3), TypeError, "widht"),
        (TorchModule(Channels, num_classes=4), ValueError, "puts out .2, 4. .* 3 classes"),
    ],
    ids=["no module", "unknown argument", "wrong number of classes"],
)
def test_torch_module_errors(module, error, message, colour):
    with pytest.raises(error, match=message):
        ConvNetClassifier(module).fit(*colour)


# nn.Module instances


class Noisy(nn.Module):
    """Changes itself in every pass, and writes into its input."""

    def __init__(self, n_outputs=3):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.dense = nn.Linear(48, n_outputs)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.dense(self.drop(self.norm(x.mul_(2))).flatten(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use", ["classifier", "extractor"])
def test_a_module_instance_is_copied_and_never_changed(use, training, colour):
    module = Noisy().train(training)
    state = copy.deepcopy(module.state_dict())
    X, y = colour
    before = X.copy()
    if use == "classifier":
        clf = ConvNetClassifier(module, max_epochs=2, random_state=0).fit(X, y)
        clf.predict(X)
        assert clf.module_.body is not module
    else:
        ConvFeatureExtractor(module, layer="norm").fit_transform(X)
    assert module.training is training
    assert all(m.training is training for m in module.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name
    np.testing.assert_array_equal(X, before)


def test_a_module_instance_starts_from_its_weights(colour):
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    clf = ConvNetClassifier(module, lr=1e-12, weight_decay=0, max_epochs=1).fit(*colour)
    torch.testing.assert_close(clf.module_.body[1].weight, module[1].weight)
    # Without standardisation uint8 is divided by 255.
    expected = module(torch.from_numpy(colour[0]) / 255).detach().numpy()
    np.testing.assert_allclose(clf.decision_function(colour[0]), expected, atol=1e-5)


class ReturnsTuple(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)), x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), r"\(2, 5\) .* 3 classes.*\(2, 3\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), r"\(2, 1\) .* 3 classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Flatten(0)), r"\(6,\) .* 3 classes"),
        (nn.Conv2d(2, 3, 1), r"\(2, 3, 4, 6\) .* 3 classes"),
        (ReturnsTuple(48, 3), "tuple .* 3 classes"),
        (nn.Linear(7, 3), r"can't take images of shape \(2, 4, 6\)"),
        (nn.Conv2d(3, 3, 1), r"can't take images of shape \(2, 4, 6\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_outputs_of_the_wrong_shape(module, message, colour):
    clf = ConvNetClassifier(module, augment=lambda x: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match=message):
        clf.fit(*colour)
    assert not hasattr(clf, "classes_")


def test_errors_of_a_module_keep_their_cause(colour):
    with pytest.raises(ValueError, match="can't take") as raised:
        ConvNetClassifier(nn.Linear(7, 3)).fit(*colour)
    assert isinstance(raised.value.__cause__, RuntimeError)


# Layers that are run together

EXACT = {None, "relu", "leaky_relu"}  # piecewise linear: no rounding that could make or break ties


def stack_of(*steps, shape=(2, 9, 14)):
    return build_layers(list(steps), shape, 3, generator()).to(memory_format=torch.channels_last)


def pooled_maps(activation, pool):
    return stack_of(
        ("conv", Conv(4, 3, activation=activation)),
        ("pool", pool),
        ("conv2", Conv(3, 2, activation=activation)),
        ("pool2", MaxPool("auto")),
    )


def images(n, scale=1.0):
    x = scale * torch.randn(n, 2, 9, 14, generator=generator(1))
    return x.to(memory_format=torch.channels_last)


def one_by_one(stack, x):
    for layer in stack:
        x = layer(x)
    return x


def numbers(stack, run, x):
    """Output and all gradients."""
    x = x.clone().requires_grad_(True)
    stack.zero_grad(set_to_none=True)
    output = run(x)
    (output * torch.randn(output.shape, generator=generator(2))).sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in stack.parameters())]


def check_numbers(stack, x, exact):
    together = numbers(stack, stack, x)
    apart = numbers(stack, lambda x: one_by_one(stack, x), x)
    for got, expected in zip(together, apart, strict=True):
        if exact:
            assert torch.equal(got, expected)
        else:
            most = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * most)


# A batch of 20 is large enough for oneDNN's own tensors, with rounding of their own.
@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize(
    "pool", [MaxPool(2), MaxPool(3, stride=2), MaxPool((1, 4), ceil_mode=True)], ids=repr
)
@pytest.mark.parametrize("activation", sorted(MONOTONE, key=str))
def test_pooling_before_the_activation_gives_the_same_numbers(activation, pool, n):
    stack = pooled_maps(activation, pool)
    for scale in (0.1, 1, 30):
        check_numbers(stack, images(n, scale), exact=n == 5 and activation in EXACT)


extents = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from([5, 16, 33]),
    st.integers(1, 5),
    extents,
    extents,
    st.sampled_from(["valid", "full", (0, 2)]),
    extents,
    st.none() | extents,
    st.booleans(),
    st.sampled_from([None, "relu"]),
)
def test_any_convolution_and_pool_give_the_same_numbers(
    n, filters, kernel_size, stride, padding, size, pool_stride, ceil_mode, activation
):
    conv = Conv(filters, kernel_size, stride=stride, padding=padding, activation=activation)
    pool = MaxPool(size, stride=pool_stride, ceil_mode=ceil_mode)
    try:
        stack = stack_of(("conv", conv), ("pool", pool), ("conv2", Conv(3, 1)))
    except ValueError:
        assume(False)
    check_numbers(stack, images(n), exact=False)


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_that_are_not_monotone_stay_in_front_of_the_pool(activation, n):
    assert activation not in MONOTONE
    check_numbers(pooled_maps(activation, MaxPool(2)), images(n), exact=n == 5)


APART = [
    *(Activation(name) for name in ACTIVATIONS),
    *(Activation("leaky_relu", negative_slope=slope) for slope in (0.2, 0, -0.5)),
]


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("order", ["act-pool", "pool-act", "act", "act-drop", "act-act2-pool"])
@pytest.mark.parametrize("layer", APART, ids=repr)
def test_an_activation_as_a_layer_of_its_own_gives_the_same_numbers(layer, order, n):
    layers = {"pool": MaxPool(2), "drop": Dropout(0.5), "act": layer, "act2": Activation("tanh")}
    behind = [(name, layers[name]) for name in order.split("-")]
    stack = stack_of(("conv", Conv(4, 3, activation=None)), *behind).eval()
    exact = n == 5 and layer.name in EXACT and "act2" not in order
    check_numbers(stack, images(n), exact)


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", APART, ids=repr)
def test_an_activation_between_batch_norm_and_pool_gives_the_same_numbers(layer, training, n):
    # A bias in front of batch norm has no gradient but rounding.
    conv, norm = ("conv", Conv(4, 3, activation=None, bias=False)), ("norm", BatchNorm())
    stack = stack_of(conv, norm, ("act", layer), ("pool", MaxPool(2)))
    check_numbers(stack.train(training), images(n), exact=layer.name in EXACT and n == 5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_its_own_or_of_the_convolution_is_the_same(name, n, training):
    own = stack_of(("conv", Conv(4, 3, activation=name)), ("pool", MaxPool(2)))
    steps = ("conv", Conv(4, 3, activation=None)), ("act", Activation(name)), ("pool", MaxPool(2))
    apart = stack_of(*steps)
    for one, other in zip(
        numbers(own.train(training), own, images(n)),
        numbers(apart.train(training), apart, images(n)),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("n", [5, 20])
def test_a_second_activation_stays_behind_the_first(n):
    steps = ("conv", Conv(4, 3)), ("act", Activation("gelu")), ("pool", MaxPool(2))
    check_numbers(stack_of(*steps), images(n), exact=False)


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize(
    "steps",
    [
        [("conv", Conv(4, 3)), ("pool", AvgPool(2))],
        [("conv", Conv(4, 3)), ("pool", GlobalAvgPool())],
        [("conv", Conv(4, 3)), ("flat", Flatten()), ("dense", Dense(5))],
        [("conv", Conv(4, 3)), ("drop", Dropout(0.5)), ("pool", MaxPool(2))],
        [("drop", Dropout(0.5)), ("conv", Conv(4, 4, padding="same")), ("conv2", Conv(4, 3))],
        [("norm", BatchNorm()), ("conv", Conv(4, 3, padding="full")), ("norm2", BatchNorm())],
        [
            ("conv", Conv(4, 3, stride=2)),
            ("leaky", Activation("leaky_relu")),
            ("pool", MaxPool(2)),
        ],
        [
            ("drop", Dropout(0.5)),
            ("flat", Flatten()),
            ("drop2", Dropout(0.5)),
            ("dense", Dense(5)),
        ],
    ],
    ids=lambda steps: "-".join(name for name, _ in steps),
)
def test_networks_are_their_layers_one_behind_another(steps, n):
    check_numbers(stack_of(*steps).eval(), images(n), exact=False)


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize(
    "steps",
    [
        [("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("drop", Dropout(0.5))],
        [("conv", Conv(4, 3)), ("drop", Dropout(0.25)), ("dense", Dense(6, bias=False))],
        [("conv", Conv(4, 3)), ("drop", SpatialDropout(0.5)), ("dense", Dense(6))],
        [("conv", Conv(4, 4, padding="same")), ("flat", Flatten()), ("drop", Dropout(0.75))],
        [("conv", Conv(4, 3, activation="elu")), ("pool", MaxPool(2)), ("drop", Dropout(0.5))],
        [("conv", Conv(4, 3, activation=None)), ("drop", Dropout(0.5))],
        [("dense", Dense(8)), ("drop", Dropout(0.5)), ("dense2", Dense(7, activation="tanh"))],
        [("dense", Dense(8)), ("drop", Dropout(0)), ("dense2", Dense(7))],
        [("drop", Dropout(0.5)), ("dense", Dense(8)), ("dense2", Dense(7))],
        [("dense", Dense(1030)), ("drop", Dropout(0.5))],
    ],
    ids=lambda steps: "-".join(repr(layer) for _, layer in steps),
)
def test_training_is_the_layers_one_behind_another(steps, n, monkeypatch):
    """At most one dropout in each: both ways draw the same masks then, if layouts are ignored."""
    stack = stack_of(*steps).train()
    random_mask = _dropout.random_mask
    for module in (_dropout, _dense):
        monkeypatch.setattr(
            module, "random_mask", lambda x, *args: random_mask(torch.empty(x.shape), *args)
        )

    def seeded(run):
        def run_seeded(x):
            stack.use_generator(mask_generator(0, x.device))
            return run(x)

        return run_seeded

    together = numbers(stack, seeded(stack), images(n))
    apart = numbers(stack, seeded(lambda x: one_by_one(stack, x)), images(n))
    for got, expected in zip(together, apart, strict=True):
        # Gradients of weights are sums over images and places that cancel out in part.
        most = expected.abs().max().item()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * most)


def test_a_layer_in_eval_mode_does_not_switch_off_the_dropout_in_front_of_it():
    stack = stack_of(("drop", Dropout(0.5)), ("dense", Dense(5))).train()
    stack.dense.eval()
    x = images(20)
    assert not torch.equal(stack(x), stack(x))
    stack.drop.eval()
    assert torch.equal(stack(x), stack(x))


@pytest.mark.parametrize("training", [True, False])
def test_the_weights_layout(training):
    stack = pooled_maps("relu", MaxPool(2))
    expected = stack(images(20)).detach()
    stack.lay_out_weights(training)
    contiguous = [stack.conv.weight.is_contiguous(), stack.conv2.weight.is_contiguous()]
    assert contiguous == [training, training]
    torch.testing.assert_close(stack(images(20)).detach(), expected)


def test_a_hook_while_training_holds_what_the_layer_put_out():
    stack = stack_of(("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("drop", Dropout(0.5))).train()
    seen = []
    stack.pool.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    x = images(20)
    stack(x)
    torch.testing.assert_close(seen[0], stack.pool(stack.conv(x)))


@pytest.mark.parametrize("layer", ["conv", "drop", "dense", "output"])
def test_a_backward_hook_is_called(layer):
    stack = stack_of(("conv", Conv(4, 3)), ("drop", Dropout(0.5)), ("dense", Dense(5))).train()
    called = []
    stack.get_submodule(layer).register_full_backward_hook(lambda *_: called.append(layer))
    stack(images(20).requires_grad_(True)).sum().backward()
    assert called == [layer]


def test_a_part_of_a_network_runs():
    stack = stack_of(("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("dense", Dense(5))).eval()
    x = images(20)
    torch.testing.assert_close(stack[:2](x), stack.pool(stack.conv(x)))


@pytest.mark.parametrize("n", [15, 16])
@pytest.mark.parametrize("bias", [True, False])
def test_many_inputs_and_few_outputs(n, bias):
    stack = stack_of(("dense", Dense(3, bias=bias, activation=None)), shape=(2, 30, 20)).eval()
    x = torch.randn(n, 2, 30, 20, generator=generator(1))
    output = stack[:2](x)
    assert output.is_contiguous()
    torch.testing.assert_close(output, stack.dense(x.flatten(1)))


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("kind", ["hook", "pre-hook"])
@pytest.mark.parametrize("observed", ["conv", "act", "pool", "drop"])
def test_a_hook_sees_the_layers_in_their_own_order(observed, kind, n):
    conv, act = ("conv", Conv(4, 3, activation=None)), ("act", Activation("relu"))
    stack = stack_of(conv, act, ("pool", MaxPool(2)), ("drop", Dropout(0.5))).eval()
    x = images(n)
    unobserved = stack(x)
    seen = []
    layer = stack.get_submodule(observed)
    if kind == "hook":
        handle = layer.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    else:
        handle = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(stack(x), unobserved)
    handle.remove()

    values = [x]
    for layer in stack[:4]:
        values.append(layer(values[-1]))
    position = ["conv", "act", "pool", "drop"].index(observed)
    through = values[position : position + 2]
    torch.testing.assert_close(seen[0], through[kind == "hook"])
    assert torch.equal(stack(x), unobserved)
    assert len(seen) == 1


def replace_first(stack):
    stack.conv = nn.Conv2d(2, 4, 3)


def replace_last(stack):
    stack.output = nn.Linear(5, 7)


def remove_last(stack):
    del stack[-1]


def append_layer(stack):
    stack.append(Dense(4).build((3,), 3, generator())[0])


def change_activation(stack):
    stack.conv.activation = "tanh"


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize(
    "change",
    [
        replace_first,
        replace_last,
        remove_last,
        change_activation,
        lambda stack: stack.append(nn.Softmax(1)),
        append_layer,
    ],
)
def test_layers_that_are_changed_count(change, n):
    stack = stack_of(("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("dense", Dense(5))).eval()
    x = images(n)
    before = stack(x)
    change(stack)
    stack.eval()
    after = stack(x)
    assert after.shape != before.shape or not torch.allclose(after, before)
    expected = one_by_one(stack, x)
    torch.testing.assert_close(after, expected)
    torch.testing.assert_close(stack.activations(x, {""})[""], expected)


def test_a_layer_that_stands_twice_runs_twice():
    stack = stack_of(("dense", Dense(3)), ("dense2", Dense(3))).eval()
    stack.append(stack.output)
    x = images(20)
    torch.testing.assert_close(stack(x), one_by_one(stack, x))


def test_a_head_that_is_replaced_is_trained():
    X, y = digits_like(40, 10)
    body = ConvNetClassifier(max_epochs=1, random_state=0).fit(X, y).module_.body
    body.output = nn.Linear(256, 2)
    clf = ConvNetClassifier(body, max_epochs=1, random_state=0).fit(X, y % 2)
    assert clf.predict_proba(X).shape == (40, 2)
    assert not torch.equal(clf.module_.body.output.weight, body.output.weight)


def test_a_rate_that_is_changed_counts():
    stack = stack_of(("drop", Dropout(0.9)), ("dense", Dense(5))).train()
    x = images(20)
    stack(x)
    stack.drop.rate = 0.0
    torch.testing.assert_close(stack(x), one_by_one(stack, x))


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("hooked", ["conv", "pool", "dense"])
def test_a_hook_counts_in_activations(hooked, n):
    stack = stack_of(("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("dense", Dense(5))).eval()
    stack.get_submodule(hooked).register_forward_hook(lambda layer, inputs, output: output * 2 + 1)
    x = images(n)
    torch.testing.assert_close(stack.activations(x, {"dense"})["dense"], one_by_one(stack[:-1], x))


@pytest.mark.parametrize("n", [5, 20])
def test_a_network_compiles_as_a_whole(n):
    stack = stack_of(("conv", Conv(4, 3)), ("pool", MaxPool(2)), ("drop", Dropout(0.5))).eval()
    with torch.no_grad():
        compiled = torch.compile(stack, fullgraph=True, backend="eager")(images(n))
    torch.testing.assert_close(compiled, stack(images(n)).detach())


@pytest.mark.parametrize("n", [12, 40])
@pytest.mark.parametrize(
    "layer",
    ["conv", "pool", ["conv", "pool"], ["pool2", "conv"], ["drop", "flatten"], "act", "conv2"],
    ids=str,
)
def test_tapped_layers_are_those_of_the_plain_order(layer, n):
    X, y = digits_like(n, 3, (9, 14))
    steps = [
        ("conv", Conv(4, 3)),
        ("pool", MaxPool(2)),
        ("conv2", Conv(3, 2, activation=None)),
        ("act", Activation("leaky_relu", negative_slope=0.2)),
        ("pool2", MaxPool("auto")),
        ("drop", Dropout(0.5)),
        ("dense", Dense(4)),
    ]
    extractor = ConvFeatureExtractor(
        ConvNetClassifier(steps, max_epochs=1, random_state=0), layer=layer, pool="flatten"
    )
    features = extractor.fit(X, y).transform(X)
    network = extractor.module_
    x, found = network.prepare(torch.from_numpy(X[:, None])), {}
    with torch.no_grad():
        for name, module in network.body.named_children():
            x = found[name] = module(x)
    wanted = [layer] if isinstance(layer, str) else layer
    expected = torch.cat([found[name].flatten(1) for name in wanted], dim=1)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clf: pickle.loads(pickle.dumps(clf))])
def test_a_copy_runs_its_own_layers(copied):
    X, y = digits_like(30, 3, (9, 14))
    steps = [
        ("conv", Conv(4, 3)),
        ("pool", MaxPool(2)),
        ("drop", Dropout(0.5)),
        ("dense", Dense(4)),
    ]
    clf = ConvNetClassifier(steps, max_epochs=1, random_state=0).fit(X, y)
    before = clf.decision_function(X)
    twin = copied(clf)
    np.testing.assert_array_equal(twin.decision_function(X), before)
    twin.partial_fit(X, y)
    assert (twin.decision_function(X) != before).any()
    np.testing.assert_array_equal(clf.decision_function(X), before)


# Dropout

LAYOUTS = {
    "vectors": lambda: torch.ones(200, 500),
    "contiguous": lambda: torch.ones(20, 10, 25, 20),
    "channels_last": lambda: torch.ones(20, 10, 25, 20).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.ones(500, 200).t(),
    "odd": lambda: torch.ones(7, 3, 5, 953),
}


def drop(rate, x, seed=0):
    dropout = DropoutModule(rate).train()
    dropout.generator = mask_generator(seed, x.device)
    return dropout(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.25, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate, layout):
    x = LAYOUTS[layout]()
    output = drop(rate, x).numpy()
    share = round(256 * rate) / 256  # of 256ths
    error = math.sqrt(share * (1 - share) / output.size)
    dropped = (output == 0).mean()
    assert abs(dropped - share) < 4 * error
    # What is kept is scaled by the exact share kept: the expectation is x.
    assert np.unique(output[output != 0]) == pytest.approx(1 / (1 - share), rel=1e-6)
    assert abs(output.mean() - 1) < 4 * error / (1 - share)
    assert output.var() == pytest.approx(share / (1 - share), rel=0.05)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_dropout_drops_values_independently(layout):
    output = drop(0.5, LAYOUTS[layout]()).numpy()
    dropped = (output == 0) - 0.5
    for axis in range(4):
        pairs = np.take(dropped, range(1, 5), axis) * np.take(dropped, range(4), axis)
        # Under independence the products have mean 0 and standard deviation 1/4.
        assert abs(pairs.mean()) < 4 * 0.25 / math.sqrt(pairs.size)
        shares = dropped.mean(axis=tuple(a for a in range(4) if a != axis))
        n = dropped.size / len(shares)
        assert np.abs(shares).max() < 5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.625, 0.6])
def test_large_masks(rate, layout):
    """Where half a byte is enough, a byte decides on two values far apart."""
    x = torch.ones(101, 11, 20, 15)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    output = drop(rate, x)
    assert output.stride() == x.stride()
    in_memory = output.as_strided((x.numel(),), (1,)).numpy()
    share = round(256 * rate) / 256
    spread = math.sqrt(share * (1 - share))
    dropped = ((in_memory == 0) - share) / spread
    half = math.ceil(len(dropped) / 2)
    for part in (dropped[:half], dropped[half:]):
        assert abs(part.mean()) < 4 / math.sqrt(len(part))
    for distance in (1, 2, 8, half - 1, half, half + 1):
        products = dropped[distance:] * dropped[:-distance]
        assert abs(products.mean()) < 4 / math.sqrt(len(products))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "vectors"])
def test_dropout_keeps_the_memory_layout(layout):
    x = LAYOUTS[layout]()
    assert drop(0.5, x).stride() == x.stride()


def test_dropout_masks_lie_in_memory_alike():
    """One seed drops the same places of memory, whichever layout they have."""
    last = drop(0.5, LAYOUTS["channels_last"]())
    first = drop(0.5, torch.ones(20, 25, 20, 10))
    assert torch.equal(last.permute(0, 2, 3, 1), first)


def test_dropout_draws_from_its_generator_alone():
    x = torch.ones(30, 40)
    state = torch.get_rng_state()
    assert torch.equal(drop(0.5, x), drop(0.5, x))
    assert not torch.equal(drop(0.5, x), drop(0.5, x, seed=1))
    dropout = DropoutModule(0.5).train()
    dropout.generator = mask_generator(0, x.device)
    assert not torch.equal(dropout(x), dropout(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_without_a_generator_draws_from_torchs_own():
    x, dropout = torch.ones(30, 40), DropoutModule(0.5).train()
    torch.manual_seed(3)
    first = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x))
    assert not torch.equal(first, dropout(x))


@pytest.mark.parametrize("rate", [0.001, 0.999])
def test_dropout_at_rates_that_no_256th_is_near(rate):
    x = torch.ones(1000, 100)
    output = drop(rate, x)
    assert output[output != 0].unique().item() == pytest.approx(1 / (1 - rate), rel=1e-5)
    assert (output == 0).float().mean().item() == pytest.approx(
        rate, rel=0.2 if rate < 0.5 else 1e-3
    )


def test_dropout_does_nothing_at_rate_0_or_outside_training():
    x = torch.randn(5, 6)
    assert torch.equal(drop(0, x), x)
    assert torch.equal(DropoutModule(0.5).eval()(x), x)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("rate", [0.25, 0.001])
def test_spatial_dropout_drops_whole_maps_and_keeps_the_mean(rate, last):
    x = torch.rand(50, 80, 3, 4, generator=generator(0)) + 0.1
    dropout = SpatialDropoutModule(rate).train()
    dropout.generator = mask_generator(0, x.device)
    output = dropout(x.to(memory_format=torch.channels_last) if last else x)
    factors = output / x
    assert torch.equal((output == 0).any((2, 3)), (output == 0).all((2, 3)))
    kept = factors[:, :, 0, 0]
    assert torch.allclose(factors, kept[:, :, None, None].expand_as(x))
    assert kept[kept != 0].unique(dim=0).numpy() == pytest.approx(1 / (1 - rate), rel=1e-5)
    n_dropped, n = int((kept == 0).sum()), kept.numel()
    assert abs(n_dropped - rate * n) < 4 * math.sqrt(rate * n)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_gradient_is_the_mask():
    x = torch.randn(50, 60, generator=generator(1)).requires_grad_(True)
    output = drop(0.25, x)
    output.sum().backward()
    assert torch.equal(output.detach(), x.detach() * x.grad)


def test_dropout_leaves_its_input_alone():
    x = torch.ones(30, 40)
    drop(0.5, x)
    assert torch.equal(x, torch.ones(30, 40))


@pytest.mark.parametrize(
    ("steps", "share"),
    [
        ([Dropout(0.25), Flatten()], 0.25),
        ([Flatten(), Dropout(0.1)], 26 / 256),
        ([Dropout(0.25), Flatten(), Dropout(0.5)], 0.625),
        ([Dropout(0.5), Dropout(0), Dropout(0.5), Dropout(0.5)], 0.875),
    ],
    ids=repr,
)
def test_dropouts_in_front_of_a_dense_layer(steps, share):
    """They are run together with it: an identity shows what they hand on."""
    named = [(f"layer{i}", layer) for i, layer in enumerate(steps)]
    stack = stack_of(*named, ("dense", Dense(300, activation=None)), shape=(3, 10, 10)).train()
    with torch.no_grad():
        stack.dense.weight.copy_(torch.eye(300))
        stack.dense.bias.zero_()
    stack.use_generator(mask_generator(0, torch.device("cpu")))
    handed_on = []
    stack.output.register_forward_pre_hook(lambda layer, inputs: handed_on.append(inputs[0]))

    x = (1 + torch.rand(400, 3, 10, 10, generator=generator(1))).requires_grad_(True)
    stack(x)
    scaled = (handed_on[0] / x.detach().flatten(1)).detach().numpy()
    error = math.sqrt(share * (1 - share) / scaled.size)
    assert abs((scaled == 0).mean() - share) < 4 * error
    np.testing.assert_allclose(scaled[scaled != 0], 1 / (1 - share), rtol=1e-5)
    handed_on[0].sum().backward()
    np.testing.assert_allclose(x.grad.flatten(1), scaled, rtol=1e-5)

    stack(x)
    assert not torch.equal(handed_on[1], handed_on[0])
    stack.eval()(x)
    torch.testing.assert_close(handed_on[-1], x.flatten(1))


# Where it lies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.BatchNorm2d(2, affine=False)])
def test_a_network_is_where_its_body_is(layer):
    network = ImageNetwork(PreparePixels(), layer.to("meta"))
    assert network.device.type == "meta"
    assert ImageNetwork(PreparePixels(), nn.ReLU()).device.type == "cpu"


# Other precisions --------------------------------------------------------------------------------


class AddsDoubles(nn.Module):
    """Its buffer is meant to be in float64, as one of its parameters is in float32."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("offset", torch.full((1,), 1 / 3, dtype=torch.float64))

    def forward(self, x):
        return (self.conv(x) + self.offset).float().mean((2, 3))


def in_precision(dtype):
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4, 2)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [lambda module: module, Backbone])
def test_weights_of_another_precision_are_taken_as_float32(dtype, form):
    X, y = digits_like(shape=(3, 12, 12), n_classes=2)
    module = in_precision(dtype)
    kept = copy.deepcopy(module.state_dict())
    extractor = ConvFeatureExtractor(form(module), layer="0").fit(X)
    exactly = copy.deepcopy(module).float()
    with torch.no_grad():
        expected = exactly.eval()[0](extractor.module_.prepare(torch.from_numpy(X)))
    np.testing.assert_allclose(extractor.transform(X), expected.mean((2, 3)), atol=1e-5)

    losses = [
        ConvNetClassifier(form(network), max_epochs=2, random_state=0).fit(X, y).history_
        for network in (module, copy.deepcopy(module).float())
    ]
    assert [e["train_loss"] for e in losses[0]] == [e["train_loss"] for e in losses[1]]
    assert all(torch.equal(kept[name], value) for name, value in module.state_dict().items())
    assert {value.dtype for value in kept.values()} == {dtype, torch.int64}


def test_a_part_in_another_precision_stays_in_it():
    X, _ = digits_like(shape=(3, 12, 12))
    extractor = ConvFeatureExtractor(nn.Sequential(AddsDoubles()), layer="0").fit(X)
    assert extractor.module_.body[0].offset.dtype == torch.float64
    assert extractor.transform(X).dtype == np.float32


@pytest.mark.parametrize("wrapped", [lambda module: module, Backbone])
def test_lazy_layers_need_weights_where_none_are_trained(wrapped):
    X = np.zeros((3, 1, 8, 8), np.float32)
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(
        ValueError, match=r"Sequential has lazy layers, .*: call it once with a batch"
    ):
        ConvFeatureExtractor(wrapped(lazy), layer=-1).fit(X)
    lazy(torch.from_numpy(X))
    assert ConvFeatureExtractor(wrapped(lazy), layer=-1).fit_transform(X).shape == (3, 5)


def test_a_sparse_buffer_is_left_alone():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    module.register_buffer("mask", torch.ones(1, 2, 3, 4).to_sparse())
    X = np.zeros((3, 1, 8, 8), np.float32)
    assert ConvFeatureExtractor(module, layer=-1).fit_transform(X).shape == (3, 3)


def test_a_part_that_is_put_into_a_fitted_network_is_not_in_training_mode():
    X, y = digits_like(40, 3)
    clf = ConvNetClassifier([("conv", Conv(4, 3)), ("norm", BatchNorm())], max_epochs=1).fit(X, y)
    clf.module_.body.norm = nn.BatchNorm2d(4).train()
    np.testing.assert_allclose(clf.predict_proba(X)[:3], clf.predict_proba(X[:3]), atol=1e-5)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.script(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(144, 2))


def with_old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 2)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (scripted, TypeError, "a ScriptModule, .*: give the module that it was made of"),
        (with_old_weight_norm, ValueError, "can't be copied.* torch.nn.utils.parametrizations"),
        (lambda: nn.Linear(64, 2, device="meta"), ValueError, "on torch's device 'meta'"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda module: ConvFeatureExtractor(module, layer=-1),
        lambda module: ConvFeatureExtractor(Backbone(module), layer=-1),
        lambda module: ConvNetClassifier(module, max_epochs=1),
        lambda module: ConvNetClassifier(Backbone(module), max_epochs=1),
    ],
    ids=["extractor", "extractor of a backbone", "classifier", "fine-tuning"],
)
def test_modules_that_can_not_be_used(use, make, error, message):
    with pytest.raises(error, match=message):
        use(make()).fit(*digits_like(8, 2, (8, 8)))
