"""Declarative layers: shapes, weights, parameters that can be searched, and their errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn
from torch.nn import functional as F

from sklconv import ConvNetClassifier
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
)

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)

ACTIVATIONS = {
    None: lambda x: x,
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


def build(layer, shape, n_classes=10, seed=0):
    return layer.build(shape, n_classes, torch.Generator().manual_seed(seed))


def images(shape, n=2):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(24, 8, 8), dtype=np.uint8), np.arange(24) % 3


def never_called(batch):
    pytest.fail("training has begun")


def fit(module, data, **params):
    return ConvNetClassifier(module, max_epochs=1, random_state=0, **params).fit(*data)


# Output shapes, against torch itself


def as_pair(value):
    return value if isinstance(value, tuple) else (value, value)


def zeros_around(padding, kernel_size):
    """(left, right, top, bottom), as `torch.nn.functional.pad` wants it."""
    kernel_height, kernel_width = as_pair(kernel_size)
    if padding == "same":
        extra = [kernel_width - 1, kernel_height - 1]
        return [side for total in extra for side in (total // 2, total - total // 2)]
    if padding == "full":
        height, width = kernel_height - 1, kernel_width - 1
    else:
        height, width = as_pair(0 if padding == "valid" else padding)
    return [width, width, height, height]


def extents(most, least=1):
    number = st.integers(least, most)
    return number | st.tuples(number, number)


lengths = st.integers(1, 12)


@quick
@given(
    st.integers(1, 3),
    lengths,
    lengths,
    extents(6),
    extents(3),
    st.sampled_from(["valid", "same", "full"]) | extents(3, least=0),
)
@example(2, 5, 7, (2, 4), 1, "same")  # torch puts the odd zero behind
def test_conv_is_torchs_convolution(channels, height, width, kernel_size, stride, padding):
    even_kernel = any(size % 2 == 0 for size in as_pair(kernel_size))
    assume(not (padding == "same" and even_kernel and as_pair(stride) != (1, 1)))
    x = images((channels, height, width))
    padded = F.pad(x, zeros_around(padding, kernel_size))
    layer = Conv(3, kernel_size, stride=stride, padding=padding, activation=None)

    if any(k > n for k, n in zip(as_pair(kernel_size), padded.shape[2:], strict=True)):
        with pytest.raises(ValueError, match=r"kernel of .* is larger than its input"):
            build(layer, (channels, height, width))
        return
    module, shape = build(layer, (channels, height, width))
    expected = F.conv2d(padded, module.weight, module.bias, stride)

    assert shape == expected.shape[1:]
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    if padding == "same":
        sizes = zip((height, width), as_pair(stride), strict=True)
        assert shape[1:] == tuple(math.ceil(size / step) for size, step in sizes)
    if padding == "same" and as_pair(stride) == (1, 1):
        assert shape[1:] == (height, width)


@pytest.mark.parametrize("kernel_size", [2, (4, 3), (3, 4)])
def test_same_padding_of_an_even_kernel_with_a_stride_is_an_error(kernel_size):
    with pytest.raises(ValueError, match=r'padding="same" with a kernel of .* stride of 2×2'):
        build(Conv(3, kernel_size, stride=2, padding="same"), (1, 8, 8))


@pytest.mark.parametrize(
    ("layer", "torch_class"), [(MaxPool, nn.MaxPool2d), (AvgPool, nn.AvgPool2d)]
)
@quick
@given(lengths, lengths, extents(6), st.none() | extents(4), st.booleans())
@example(1, 1, 5, 2, True)  # torch: "Output size is too small"
@example(2, 2, 4, 2, True)  # in torch an output without pixels
@example(5, 5, 2, 4, True)  # a last window would start behind the edge
def test_pools_are_torchs_pools(layer, torch_class, height, width, size, stride, ceil_mode):
    x = images((2, height, width))
    try:
        expected = torch_class(size, stride=stride, ceil_mode=ceil_mode)(x)
        fits = expected.numel() > 0
    except RuntimeError:
        fits = False

    pool = layer(size, stride=stride, ceil_mode=ceil_mode)
    if not fits:
        with pytest.raises(ValueError, match=r"a window of .* its input of"):
            build(pool, (2, height, width))
        return
    module, shape = build(pool, (2, height, width))
    assert shape == expected.shape[1:]
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (28, 14), (32, 16), (33, 11), (64, 16), (224, 16)],
)
def test_max_pool_auto(length, expected):
    module, shape = build(MaxPool("auto"), (3, length, 5))
    assert shape == (3, expected, 2)
    assert module(images((3, length, 5))).shape[1:] == shape


@quick
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_max_pool_auto_halves_or_leaves_8_to_16(height, width):
    _, shape = build(MaxPool("auto"), (1, height, width))
    for before, after in zip((height, width), shape[1:], strict=True):
        if before > 32:
            assert 8 <= after <= 16
        else:
            assert after == max(before // 2, 1)


def test_max_pool_auto_with_a_stride():
    _, shape = build(MaxPool("auto", stride=1), (1, 8, 1))
    assert shape == (1, 7, 1)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 1, 1), (6,)])
@pytest.mark.parametrize("layer", [BatchNorm(), Activation("relu"), Dropout(0.5)])
def test_layers_that_keep_the_shape(layer, shape):
    module, output_shape = build(layer, shape)
    assert output_shape == shape
    assert module(images(shape)).shape[1:] == shape


def test_spatial_dropout_takes_feature_maps():
    module, shape = build(SpatialDropout(0.5), (4, 3, 5))
    assert shape == (4, 3, 5)
    assert module(images(shape)).shape[1:] == shape
    with pytest.raises(ValueError, match=r"needs feature maps \(C, H, W\), but its input"):
        build(SpatialDropout(0.5), (6,))


def test_flatten_puts_map_behind_map():
    module, shape = build(Flatten(), (3, 4, 5))
    assert shape == (60,)
    x = images((3, 4, 5))
    for contiguous in (x, x.to(memory_format=torch.channels_last)):
        expected = np.stack([image.ravel() for image in x.numpy()])
        np.testing.assert_array_equal(module(contiguous), expected)


def test_global_avg_pool_is_the_mean_of_each_map():
    module, shape = build(GlobalAvgPool(), (3, 4, 5))
    assert shape == (3,)
    x = images((3, 4, 5))
    np.testing.assert_allclose(module(x), x.numpy().mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("units", "n_outputs"), [(7, 7), ("n_classes", 10)])
def test_dense_is_torchs_linear(units, n_outputs):
    module, shape = build(Dense(units, activation=None), (6,))
    assert shape == (n_outputs,)
    x = images((6,))
    torch.testing.assert_close(module(x), F.linear(x, module.weight, module.bias))


@pytest.mark.parametrize("shape", [(4, 3, 5), (6,)])
def test_batch_norm_has_torchs_momentum_and_eps(shape):
    module, _ = build(BatchNorm(momentum=1.0, eps=0.5), shape)
    x = images(shape, n=8)
    axes = [0, *range(2, x.ndim)]
    output = module.train()(x)
    # Momentum 1: the newest batch is all that the running statistics know.
    torch.testing.assert_close(module.running_mean, x.mean(axes))
    torch.testing.assert_close(module.running_var, x.var(axes))
    torch.testing.assert_close(
        output.var(axes, correction=0), 1 / (1 + 0.5 / x.var(axes, correction=0))
    )


# Activations


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(
    "make", [lambda name: Conv(3, 2, activation=name), lambda name: Dense(5, activation=name)]
)
def test_activation_of_conv_and_dense(make, name):
    shape = (2, 4, 4) if isinstance(make(name), Conv) else (4,)
    activated, _ = build(make(name), shape)
    linear, _ = build(make(None), shape)
    x = images(shape)
    torch.testing.assert_close(activated(x), ACTIVATIONS[name](linear(x)))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name])
def test_activation_layer_leaves_its_input_alone(name):
    module, _ = build(Activation(name), (5,))
    x = images((5,))
    before = x.clone()
    torch.testing.assert_close(module(x), ACTIVATIONS[name](before))
    assert torch.equal(x, before)


def test_negative_slope():
    module, _ = build(Activation("leaky_relu", negative_slope=0.2), (5,))
    x = images((5,))
    torch.testing.assert_close(module(x), torch.where(x < 0, 0.2 * x, x))


# Weights


def uniform(bound):
    return {"std": bound / math.sqrt(3), "most": bound}


# fan_in is 32·5·5 = 800 for the convolution and 700 for the dense layer; fan_out 1600 and 300.
FANS = [
    pytest.param(Conv, (64, 5), (32, 8, 8), 800, 1600, id="conv"),
    pytest.param(Dense, (300,), (700,), 700, 300, id="dense"),
]
INITS = {
    "default": lambda fan_in, fan_out: uniform(1 / math.sqrt(fan_in)),
    "glorot_uniform": lambda fan_in, fan_out: uniform(math.sqrt(6 / (fan_in + fan_out))),
    "he_uniform": lambda fan_in, fan_out: uniform(math.sqrt(6 / fan_in)),
    "glorot_normal": lambda fan_in, fan_out: {"std": math.sqrt(2 / (fan_in + fan_out))},
    "he_normal": lambda fan_in, fan_out: {"std": math.sqrt(2 / fan_in)},
    ("normal", 0.01): lambda fan_in, fan_out: {"std": 0.01},
}


@pytest.mark.parametrize("kernel_init", INITS, ids=str)
@pytest.mark.parametrize(("layer", "args", "shape", "fan_in", "fan_out"), FANS)
def test_kernel_init_moments(layer, args, shape, fan_in, fan_out, kernel_init):
    module, _ = build(layer(*args, kernel_init=kernel_init), shape)
    weights = module.weight.detach().numpy().ravel()
    expected = INITS[kernel_init](fan_in, fan_out)
    std = expected["std"]

    assert abs(weights.mean()) < 5 * std / math.sqrt(weights.size)
    assert weights.std() == pytest.approx(std, rel=0.02)
    if "most" in expected:
        assert 0.99 < np.abs(weights).max() / expected["most"] <= 1 + 1e-6
    else:
        # Normal: kurtosis 3, where a uniform distribution has 1.8.
        assert (weights**4).mean() / std**4 == pytest.approx(3, rel=0.1)
    bias = module.bias.detach().numpy()
    if kernel_init == "default":
        assert 0.9 < np.abs(bias).max() * math.sqrt(fan_in) <= 1 + 1e-6
    else:
        assert not bias.any()


@pytest.mark.parametrize("layer", [Conv(4, 3, bias=False), Dense(4, bias=False)])
def test_without_bias(layer):
    module, _ = build(layer, (2, 5, 5) if isinstance(layer, Conv) else (5,))
    assert [name for name, _ in module.named_parameters()] == ["weight"]


@pytest.mark.parametrize("kernel_init", INITS, ids=str)
def test_weights_come_from_the_generator_alone(kernel_init):
    layer = Conv(4, 3, kernel_init=kernel_init)
    state = torch.get_rng_state()
    first, again, other = (build(layer, (1, 5, 5), seed=seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


# Wrong parameters


@pytest.mark.parametrize(
    ("layer", "parameter"),
    [
        (Conv(0, 3), "filters"),
        (Conv("many", 3), "filters"),
        (Conv(2.0, 3), "filters"),
        (Conv(4, 0), "kernel_size"),
        (Conv(4, (3, 0)), "kernel_size"),
        (Conv(4, (3, 3, 3)), "kernel_size"),
        (Conv(4, (3.0, 3)), "kernel_size"),
        (Conv(4, None), "kernel_size"),
        (Conv(4, 3, stride=0), "stride"),
        (Conv(4, 3, stride=(1,)), "stride"),
        (Conv(4, 3, padding="reflect"), "padding"),
        (Conv(4, 3, padding=-1), "padding"),
        (Conv(4, 3, padding=(1, -1)), "padding"),
        (Conv(4, 3, activation="swish"), "activation"),
        (Conv(4, 3, bias="yes"), "bias"),
        (Conv(4, 3, kernel_init="zeros"), "kernel_init"),
        (Conv(4, 3, kernel_init=("normal",)), "kernel_init"),
        (Conv(4, 3, kernel_init=("normal", "wide")), "kernel_init"),
        (Conv(4, 3, kernel_init=("normal", -1.0)), "kernel_init"),
        (Conv(4, 3, kernel_init=("uniform", 1.0)), "kernel_init"),
        (MaxPool(0), "size"),
        (MaxPool("half"), "size"),
        (MaxPool(2, stride=0), "stride"),
        (MaxPool(2, stride="auto"), "stride"),
        (MaxPool(2, ceil_mode="no"), "ceil_mode"),
        (AvgPool("auto"), "size"),
        (AvgPool((2, 2, 2)), "size"),
        (BatchNorm(momentum=1.5), "momentum"),
        (BatchNorm(momentum=None), "momentum"),
        (BatchNorm(eps=0), "eps"),
        (Activation("swish"), "name"),
        (Activation(None), "name"),
        (Activation("leaky_relu", negative_slope="steep"), "negative_slope"),
        (Dropout(1), "rate"),
        (SpatialDropout(1), "rate"),
        (Dropout(-0.1), "rate"),
        (Dropout("half"), "rate"),
        (Dense(0), "units"),
        (Dense("classes"), "units"),
        (Dense(4, activation="softmax"), "activation"),
        (Dense(4, kernel_init=None), "kernel_init"),
    ],
    ids=str,
)
def test_wrong_parameters_name_the_parameter_and_the_layer(layer, parameter, data):
    steps = (
        [("first", layer)]
        if not isinstance(layer, Dense)
        else [("flat", Flatten()), ("first", layer)]
    )
    with pytest.raises(ValueError, match=f"layer 'first' .{type(layer).__name__}.*{parameter}"):
        fit(steps, data, augment=never_called)


# Wrong networks


@pytest.mark.parametrize(
    ("module", "error", "words"),
    [
        pytest.param(
            [("conv1", Conv(4, 9))],
            ValueError,
            ["'conv1'", "Conv", "9×9", "8×8"],
            id="kernel larger than the image",
        ),
        pytest.param(
            [("conv1", Conv(4, (3, 11), padding=1))],
            ValueError,
            ["'conv1'", "Conv", "3×11", "8×8", "padded to 10×10"],
            id="kernel larger than the padded image",
        ),
        pytest.param(
            [("pool1", MaxPool(8)), ("pool2", MaxPool(2))],
            ValueError,
            ["'pool2'", "MaxPool", "2×2", "1×1"],
            id="pool of a 1×1 map",
        ),
        pytest.param(
            [("pool1", AvgPool(8)), ("pool2", AvgPool(5, stride=2, ceil_mode=True))],
            ValueError,
            ["'pool2'", "AvgPool", "5×5", "2×2", "1×1"],
            id="pool of a 1×1 map, rounded up",
        ),
        pytest.param(
            [("dense", Dense(5)), ("conv1", Conv(4, 3))],
            ValueError,
            ["'conv1'", "Conv", "(C, H, W)", "vector of 5", "before"],
            id="Conv behind Dense",
        ),
        pytest.param(
            [("gap", GlobalAvgPool()), ("pool", MaxPool(2))],
            ValueError,
            ["'pool'", "MaxPool", "(C, H, W)", "vector of 1"],
            id="MaxPool behind GlobalAvgPool",
        ),
        pytest.param(
            [("flat", Flatten()), ("again", Flatten())],
            ValueError,
            ["'again'", "Flatten", "vector of 64"],
            id="Flatten twice",
        ),
        pytest.param(
            [("output", Dense("n_classes", activation=None)), ("dense", Dense(7))],
            ValueError,
            ["'dense'", "7", "3 classes", "n_classes"],
            id="another width behind the output layer",
        ),
        pytest.param(
            [("output", Dense(3, activation=None))],
            ValueError,
            ["'output'", "Dense('n_classes', activation=None)", "Rename the layer"],
            id="an output layer that is none",
        ),
        pytest.param(
            [("dense", Dense(4)), ("dense", Dense(5))],
            ValueError,
            ["dense", "not unique"],
            id="two layers of one name",
        ),
        pytest.param(
            [("lr", Dense(4))], ValueError, ["lr", "conflict"], id="named like a parameter"
        ),
        pytest.param([("a__b", Dense(4))], ValueError, ["a__b"], id="name with two underscores"),
        pytest.param([("a.b", Dense(4))], ValueError, ["'a.b'", "name"], id="name with a dot"),
        pytest.param([("", Dense(4))], ValueError, ["''", "name"], id="empty name"),
        pytest.param(
            [("forward", Dense(4))], ValueError, ["'forward'", "name"], id="a method's name"
        ),
        pytest.param(
            [("training", Dense(4))], ValueError, ["'training'", "name"], id="an attribute's name"
        ),
        pytest.param(
            [("dense", nn.Linear(64, 3))],
            TypeError,
            ["'dense'", "Linear", "sklconv.layers", "'passthrough'"],
            id="torch layer",
        ),
        pytest.param(
            [("dense", Dense)], TypeError, ["'dense'", "Dense", "sklconv.layers"], id="a class"
        ),
        pytest.param(
            [("dense", "drop")],
            TypeError,
            ["'dense'", "'drop'", "'passthrough'"],
            id="another word",
        ),
        pytest.param(
            [("dense", None)], TypeError, ["'dense'", "None", "'passthrough'"], id="None"
        ),
        pytest.param([Dense(4)], TypeError, ["(name, layer)", "Dense(units=4)"], id="no name"),
        pytest.param(
            [("dense", Dense(4), 2)], TypeError, ["(name, layer)", "2"], id="three in a tuple"
        ),
        pytest.param(
            [(Dense(4), "dense")],
            TypeError,
            ["(name, layer)", "'dense'"],
            id="the wrong way round",
        ),
        pytest.param(
            (("dense", Dense(4)),), TypeError, ["module=", "a list of (name, layer)"], id="no list"
        ),
        pytest.param(
            Dense(4), TypeError, ["module=Dense", "a list of (name, layer)"], id="bare layer"
        ),
        pytest.param("large", TypeError, ["module='large'", "'auto'"], id="another network"),
        pytest.param(None, TypeError, ["module=None", "'auto'"], id="no module"),
        pytest.param(
            nn.Linear, TypeError, ["module=", "instance", "TorchModule(Linear)"], id="torch class"
        ),
    ],
)
def test_wrong_networks(module, error, words, data):
    clf = ConvNetClassifier(module, augment=never_called)
    with pytest.raises(error) as raised:
        clf.fit(*data)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert not hasattr(clf, "classes_")


def test_names_that_the_package_uses_itself_are_free(data):
    clf = fit([("dense", Dense(6)), ("flatten", Dropout(0.5))], data)
    assert list(clf.layer_table_["name"]) == ["flatten2", "dense", "flatten", "output"]
    clf = fit([("output", Conv(2, 3)), ("logits", Dense("n_classes", activation=None))], data)
    assert list(clf.layer_table_["name"]) == ["output", "flatten", "logits"]


def test_passthrough_leaves_a_layer_out(data):
    with_pool = fit([("conv", Conv(2, 3)), ("pool", MaxPool(2)), ("dense", Dense(4))], data)
    without = clone(with_pool).set_params(pool="passthrough").fit(*data)
    never = fit([("conv", Conv(2, 3)), ("dense", Dense(4))], data)
    assert list(with_pool.layer_table_["name"]) == ["conv", "pool", "flatten", "dense", "output"]
    assert list(without.layer_table_["name"]) == ["conv", "flatten", "dense", "output"]
    np.testing.assert_array_equal(
        without.decision_function(data[0]), never.decision_function(data[0])
    )


def test_an_empty_list_is_a_linear_model(data):
    clf = fit([], data)
    assert list(clf.layer_table_["name"]) == ["flatten", "output"]


# Layers' parameters as the estimator's own


STEPS = [
    ("z_conv", Conv(4, 3, padding="same")),
    ("pool", MaxPool(2)),
    ("a_dense", Dense(6)),
    ("drop", Dropout(0.5)),
]


def make_steps():
    return [(name, clone(layer)) for name, layer in STEPS]


def test_nested_parameters_of_a_list():
    params = ConvNetClassifier(make_steps()).get_params()
    assert params["z_conv__filters"] == 4
    assert params["z_conv__padding"] == "same"
    assert params["drop__rate"] == 0.5
    assert params["pool"].size == 2
    assert params["lr"] == "auto"


def test_nested_parameters_of_auto():
    params = ConvNetClassifier().get_params()
    assert params["module"] == "auto"
    assert isinstance(params["conv1"], Conv)
    assert params["conv1__filters"] == params["conv1"].filters
    assert params["pool1__size"] == "auto"
    assert not any("__" in name for name in ConvNetClassifier().get_params(deep=False))


def test_set_parameters_of_layers(data):
    clf = ConvNetClassifier(make_steps(), max_epochs=1, random_state=0)
    assert clf.set_params(z_conv__filters=5, a_dense__units=7, lr=0.1) is clf
    assert clf.lr == 0.1
    table = clf.fit(*data).layer_table_
    assert list(table["output_shape"]) == [(5, 8, 8), (5, 4, 4), (80,), (7,), (7,), (3,)]


def test_set_parameters_of_auto(data):
    clf = ConvNetClassifier(max_epochs=1, random_state=0)
    names = [name for name in clf.get_params() if isinstance(clf.get_params()[name], Dense)]
    assert names == ["dense"]
    clf.set_params(conv1__filters=5, dense="passthrough")
    assert [name for name, _ in clf.module] == ["conv1", "pool1", "conv2", "pool2", "dense"]
    table = clf.fit(*data).layer_table_
    assert table["output_shape"][0] == (5, 8, 8)
    assert "dense" not in list(table["name"])
    # The default itself is as it was.
    assert ConvNetClassifier().get_params()["conv1__filters"] != 5


def test_auto_and_its_layers_written_out_are_one_network(data):
    clf = ConvNetClassifier(max_epochs=1, random_state=0)
    filters = clf.get_params()["conv1__filters"]
    written = clone(clf).set_params(conv1__filters=filters)
    assert isinstance(written.module, list)
    np.testing.assert_array_equal(
        written.fit(*data).decision_function(data[0]), clf.fit(*data).decision_function(data[0])
    )


def test_replace_a_layer_whole_keeps_its_place(data):
    steps = make_steps()
    clf = ConvNetClassifier(steps, max_epochs=1, random_state=0)
    clf.set_params(pool=AvgPool(4), pool__stride=2, drop="passthrough")
    assert [name for name, _ in clf.module] == ["z_conv", "pool", "a_dense", "drop"]
    assert clf.get_params()["pool__stride"] == 2
    assert isinstance(steps[1][1], MaxPool)  # the list that was passed in is as it was
    table = clf.fit(*data).layer_table_
    assert list(table["name"]) == ["z_conv", "pool", "flatten", "a_dense", "output"]
    assert list(table["type"]) == ["Conv", "AvgPool", "Flatten", "Dense", "Dense"]
    assert table["output_shape"][1] == (4, 3, 3)


def test_module_and_its_layers_can_be_set_at_once():
    clf = ConvNetClassifier().set_params(drop__rate=0.25, module=make_steps())
    assert clf.get_params()["drop__rate"] == 0.25


@pytest.mark.parametrize(
    "params",
    [{"z_conv__units": 3}, {"conv9__filters": 3}, {"conv9": Conv(4, 3)}],
    ids=str,
)
@pytest.mark.parametrize("module", ["auto", STEPS], ids=["auto", "list"])
def test_unknown_parameters(module, params):
    with pytest.raises(ValueError, match="Invalid parameter"):
        clone(ConvNetClassifier(module)).set_params(**params)


@pytest.mark.parametrize("name", ["auto", "list"])
def test_clone_has_layers_of_its_own(name):
    clf = ConvNetClassifier("auto" if name == "auto" else make_steps())
    conv = "conv1" if name == "auto" else "z_conv"
    clf.set_params(**{f"{conv}__filters": 9, "pool1" if name == "auto" else "pool": AvgPool(3)})
    copy = clone(clf)
    assert [name for name, _ in copy.module] == [name for name, _ in clf.module]
    assert repr(copy) == repr(clf)
    for (_, layer), (_, cloned) in zip(clf.module, copy.module, strict=True):
        assert cloned is not layer
        assert cloned.get_params() == layer.get_params()
    copy.set_params(**{f"{conv}__filters": 3})
    assert clf.get_params()[f"{conv}__filters"] == 9


def test_fit_leaves_the_layers_alone(data):
    steps = make_steps()
    clf = fit(steps, data)
    assert clf.module is steps
    assert [vars(layer) for _, layer in steps] == [vars(layer) for _, layer in make_steps()]
    assert clf.get_params()["z_conv"] is steps[0][1]
