"""ConvFeatureExtractor: activations against naive ones, and everything around them."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sklconv import ConvFeatureExtractor, ConvNetClassifier, TorchModule
from sklconv.layers import Activation, BatchNorm, Conv, Dense, Dropout, GlobalAvgPool, MaxPool

IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES = IMAGES.reshape(-1, 1, 8, 8).astype(np.float32)
X, y = IMAGES[:150], DIGITS[:150]
X_new = IMAGES[1000:1040]

LAYERS = {
    "plain": [
        ("conv1", Conv(4, 3)),
        ("pool1", MaxPool(2)),
        ("dense", Dense(12)),
        ("drop", Dropout(0.5)),
    ],
    # Activations that other layers change in place, or that stand alone.
    "norms": [
        ("conv1", Conv(4, 3, activation=None)),
        ("bn", BatchNorm()),
        ("act", Activation("relu")),
        ("conv2", Conv(6, 3, activation="gelu")),
        ("gap", GlobalAvgPool()),
        ("dense", Dense(12, activation="tanh")),
    ],
}


def classifier(layers="plain", **params):
    params = {"max_epochs": 1, "random_state": 0, **params}
    return ConvNetClassifier(clone_layers(LAYERS[layers]), **params)


def clone_layers(layers):
    return [(name, clone(layer)) for name, layer in layers]


@pytest.fixture(scope="module")
def fitted():
    """Trained classifiers, not to be changed."""
    return {name: classifier(name).fit(X, y) for name in LAYERS}


def naive_activations(network, X):
    """Each layer's activation when the layers are called one after the other."""
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        x = network.prepare(torch.from_numpy(X))
        activations = {}
        for name, layer in network.body.named_children():
            x = layer(x)
            activations[name] = x.clone()
    return activations


def pooled(activation, pool):
    if activation.ndim == 2:
        return activation.numpy()
    if pool == "flatten":
        return activation.contiguous().flatten(1).numpy()
    flat = activation.flatten(2) if activation.ndim == 4 else activation.transpose(1, 2)
    return (flat.amax(2) if pool == "max" else flat.mean(2)).numpy()


def assert_features(features, expected):
    assert features.dtype == np.float32
    assert features.flags.c_contiguous
    assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


# Users' own networks --------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)  # runs twice, and on what others put out
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.conv2(self.relu(self.bn1(self.conv1(x))))
        y += x
        return self.relu(y)


class ResidualNet(nn.Module):
    """In the manner of a ResNet: functional ops between its layers."""

    def __init__(self, num_classes=10, width=6):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3)
        self.layer1 = nn.Sequential(Block(width), Block(width))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(torch.flatten(self.avgpool(self.layer1(self.stem(x))), 1))


class FunctionalHead(nn.Module):
    """What feeds the last layer is put out by no module."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 12)
        self.fc2 = nn.Linear(12, 10)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Probabilities(nn.Sequential):
    """A softmax stands behind the last linear layer."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
        self.append(nn.Softmax(1))


class Recurrent(nn.Module):
    """One linear layer runs three times."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(64, 12)
        self.step = nn.Linear(12, 12)
        self.end = nn.Linear(12, 10)

    def forward(self, x):
        x = self.start(x.flatten(1))
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return self.end(x)


class TiedHead(nn.Module):
    """The layer that puts out the result has run before."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(64, 10)
        self.step = nn.Linear(10, 10)

    def forward(self, x):
        x = self.step(self.start(x.flatten(1)))
        return self.step(torch.tanh(x))


class Tokens(nn.Module):
    """In the manner of a vision transformer: (N, T, C) between its layers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 6, 2, stride=2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)  # puts out a tuple
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens)[0])
        return self.head(tokens.mean(1))


class InPlaceHead(nn.Sequential):
    """In the manner of AlexNet and VGG: ReLU works in place on what a linear layer put out."""

    def __init__(self):
        super().__init__(
            nn.Flatten(),
            nn.Linear(64, 12),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(12, 10),
        )


class InPlaceMaps(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10)
        )


MODULES = {
    "residual": ResidualNet,
    "functional head": FunctionalHead,
    "probabilities": Probabilities,
    "recurrent": Recurrent,
    "tied head": TiedHead,
    "tokens": Tokens,
    "in-place head": InPlaceHead,
    "in-place maps": InPlaceMaps,
}


def make_module(name):
    torch.manual_seed(3)
    module = MODULES[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    return module


def naive_hooks(module, X):
    """What each layer put out at its last call, and took in, copied on the spot; the output."""
    module = copy.deepcopy(module).eval()
    outputs, inputs = {}, {}

    def hook(name):
        def keep(layer, args, output):
            if isinstance(output, torch.Tensor):
                outputs.pop(name, None)
                outputs[name] = output.clone()

        def keep_input(layer, args):
            inputs[name] = args[0].clone()

        return keep, keep_input

    for name, layer in module.named_modules():
        if name:
            keep, keep_input = hook(name)
            layer.register_forward_hook(keep)
            layer.register_forward_pre_hook(keep_input)
    with torch.no_grad():
        output = module(torch.from_numpy(X)).clone()
    return outputs, inputs, output


# Activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["auto", "avg", "max", "flatten"])
@pytest.mark.parametrize("layers", LAYERS)
def test_features_of_declarative_layers(fitted, layers, pool):
    clf = fitted[layers]
    naive = naive_activations(clf.module_, X_new)
    for name, activation in naive.items():
        extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer=name, pool=pool).fit(X)
        assert extractor.layers_ == [name]
        assert_features(extractor.transform(X_new), pooled(activation, pool))
        # Its neighbours come from the same pass.
    every = ConvFeatureExtractor(FrozenEstimator(clf), layer="*", pool=pool).fit(X)
    assert every.layers_ == list(naive)
    expected = np.hstack([pooled(activation, pool) for activation in naive.values()])
    assert_features(every.transform(X_new), expected)


@pytest.mark.parametrize("pool", ["auto", "avg", "max", "flatten"])
@pytest.mark.parametrize("name", MODULES)
def test_features_of_users_modules(name, pool):
    module = make_module(name)
    outputs, _, _ = naive_hooks(module, X_new)
    for layer, activation in outputs.items():
        extractor = ConvFeatureExtractor(module, layer=layer, pool=pool).fit(X)
        assert_features(extractor.transform(X_new), pooled(activation, pool))
    every = ConvFeatureExtractor(module, layer="*", pool=pool).fit(X)
    assert every.layers_ == list(outputs)
    expected = np.hstack([pooled(activation, pool) for activation in outputs.values()])
    assert_features(every.transform(X_new), expected)


def penultimate_by_hand(name, outputs, inputs, output):
    """What stands in the documentation, spelt out for each network."""
    return {
        "residual": lambda: inputs["fc"],
        "functional head": lambda: inputs["fc2"],
        "probabilities": lambda: inputs["3"],
        "recurrent": lambda: inputs["end"],
        "tied head": lambda: inputs["step"],  # at its last call
        "tokens": lambda: inputs["head"],
        "in-place head": lambda: inputs["4"],
        "in-place maps": lambda: inputs["3"],
    }[name]()


@pytest.mark.parametrize("name", MODULES)
def test_penultimate_is_what_feeds_the_last_linear_layer(name):
    module = make_module(name)
    expected = penultimate_by_hand(name, *naive_hooks(module, X_new))
    extractor = ConvFeatureExtractor(module).fit(X)
    assert_features(extractor.transform(X_new), expected.numpy())
    assert len(extractor.get_feature_names_out()) == expected.shape[1]
    assert len(set(extractor.get_feature_names_out())) == expected.shape[1]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_callers_grad_mode_makes_no_difference(mode, name):
    module = make_module(name)
    expected = ConvFeatureExtractor(module).fit(X).transform(X_new)
    with mode():
        found = ConvFeatureExtractor(module).fit(X).transform(X_new)
    assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("layers", "name"), [("plain", "dense"), ("norms", "dense")], ids=["plain", "norms"]
)
def test_penultimate_of_declarative_layers_is_named(fitted, layers, name):
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted[layers])).fit(X)
    assert extractor.layers_ == [name]
    expected = naive_activations(fitted[layers].module_, X_new)[name]
    assert_features(extractor.transform(X_new), expected.numpy())


def test_a_frozen_classifier_with_another_reader_or_order_of_axes():
    clf = ConvNetClassifier(image_shape=(8, 8), reader=lambda item: item[1], max_epochs=1)
    items = [(name, x.reshape(8, 8).astype(np.uint8)) for name, x in zip("abcd", X, strict=False)]
    files = np.array([name for name, _ in items], dtype=object)
    pixels = dict(items)
    clf.set_params(reader=pixels.get).fit(files, [0, 1, 0, 1])
    frozen = FrozenEstimator(clf)
    turned = ConvFeatureExtractor(frozen, reader=lambda name: pixels[name][::-1]).fit(files)
    expected = (
        ConvFeatureExtractor(frozen)
        .fit(files)
        .transform(np.stack([pixels[name][::-1] for name in files]))
    )
    assert_features(turned.transform(files), expected)
    with pytest.raises(ValueError, match="data_format='channels_last' is not that of the frozen"):
        ConvFeatureExtractor(frozen, data_format="channels_last").fit(files)


def test_the_layer_table_lists_what_can_be_tapped():
    pd = pytest.importorskip("pandas")
    module = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 12), nn.ReLU()))
    module.append(nn.Linear(12, 10))
    module[1].requires_grad_(False)
    table = pd.DataFrame(ConvFeatureExtractor(module).fit(X).layer_table_)
    assert list(table["name"]) == ["0", "1.0", "1.1", "1", "2"]
    assert table["n_parameters"].sum() == sum(p.numel() for p in module.parameters())
    assert list(table["penultimate"]) == ["", "", "output", "", ""]
    extractor = ConvFeatureExtractor(module, layer=list(table["name"])).fit(X)
    assert extractor.layers_ == list(table["name"])


def test_penultimate_of_a_network_that_is_one_linear_layer():
    clf = ConvNetClassifier([], max_epochs=1, random_state=0).fit(X, y)
    extractor = ConvFeatureExtractor(FrozenEstimator(clf)).fit(X)
    expected = naive_activations(clf.module_, X_new)["flatten"]
    assert_features(extractor.transform(X_new), expected.numpy())


def test_penultimate_of_a_network_without_a_classifier_is_its_output_with_a_warning():
    module = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match="takes the network's output.*layer=-1"):
        extractor = ConvFeatureExtractor(module).fit(X)
    with torch.no_grad():
        assert_features(extractor.transform(X_new), module(torch.from_numpy(X_new)).numpy())


def test_a_layer_of_the_name_penultimate_is_that_layer():
    module = nn.Sequential()
    module.add_module("penultimate", nn.Flatten())
    module.add_module("hidden", nn.Linear(64, 12))
    module.add_module("output", nn.Linear(12, 10))
    extractor = ConvFeatureExtractor(module, layer="penultimate").fit(X)
    assert_array_equal(extractor.transform(X_new), X_new.reshape(40, 64))


SELECTIONS = [
    ("conv1", ["conv1"]),
    (-1, ["dense"]),
    (-6, ["conv1"]),
    (np.int64(-2), ["gap"]),
    ("conv*", ["conv1", "conv2"]),
    ("[bg]*", ["bn", "gap"]),
    ("?on?2", ["conv2"]),
    (["conv2", "conv1"], ["conv2", "conv1"]),
    (["dense", "conv*", -3], ["dense", "conv1", "conv2"]),
    (["conv1", "conv1", -6], ["conv1"]),
    (["penultimate", "bn"], ["gap", "bn"]),
]


@pytest.mark.parametrize(("layer", "expected"), SELECTIONS)
def test_selections_of_layers(layer, expected):
    # The last linear layer is "dense".
    layers = [*clone_layers(LAYERS["norms"][:-1]), ("dense", Dense("n_classes", activation=None))]
    clf = ConvNetClassifier(layers, max_epochs=1, random_state=0).fit(X, y)
    extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer=layer).fit(X)
    assert extractor.layers_ == expected
    naive = naive_activations(clf.module_, X_new)
    expected_features = np.hstack([pooled(naive[name], "avg") for name in expected])
    assert_features(extractor.transform(X_new), expected_features)


def test_deep_names_and_negative_indices_of_users_modules():
    names = ["layer1.1.conv2", "layer1.1", "layer1", "avgpool", "fc"]
    module = make_module("residual")
    extractor = ConvFeatureExtractor(module, layer="*").fit(X)
    for position, name in enumerate(reversed(names), start=1):
        if name != "layer1.1.conv2":
            assert extractor.layers_[-position] == name
    deep = ConvFeatureExtractor(module, layer="layer1.*.conv?").fit(X)
    assert deep.layers_ == [f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    assert ConvFeatureExtractor(module, layer=-1).fit(X).layers_ == ["fc"]


UNKNOWN = [
    ("dens", ValueError, "Did you mean 'dense'?"),
    ("Conv1", ValueError, "Did you mean 'conv1'?"),
    ("penultimat", ValueError, "Did you mean 'penultimate'?"),
    ("xyz", ValueError, "Its layers are: conv1, pool1, flatten, dense, drop, output."),
    ("xyz*", ValueError, "layer='xyz*' is not a layer of this network"),
    ("", ValueError, "layer='' is not a layer of this network"),
    (["dense", "dens"], ValueError, "layer='dens'"),
    ([], ValueError, "names no layer"),
    (0, ValueError, "-1 to -6"),
    (3, ValueError, "-1 to -6"),
    (-7, ValueError, "-1 to -6"),
    ([1.5], TypeError, "layer=1.5"),
    ([None], TypeError, "layer=None"),
    (["dense", ["conv1"]], TypeError, "neither a name nor a negative index"),
]


@pytest.mark.parametrize(("layer", "error", "message"), UNKNOWN)
def test_unknown_layers_are_errors_that_help(fitted, layer, error, message):
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted["plain"]), layer=layer)
    with pytest.raises(error) as info:
        extractor.fit(X)
    assert message in str(info.value)
    assert set(vars(extractor)) == set(vars(clone(extractor)))


@pytest.mark.parametrize(
    ("layer", "listed"), [("block7", "'block.7'?"), ("xyz", "block.0, block.1, block.2, block.3,")]
)
def test_of_many_layers_a_few_are_listed(layer, listed):
    network = nn.Sequential()
    network.block = nn.Sequential(*[nn.Identity() for _ in range(99)], nn.Flatten())
    extractor = ConvFeatureExtractor(network, layer=layer)
    with pytest.raises(ValueError, match=r"Of its 101 layers: .*sklconv layers") as raised:
        extractor.fit(X)
    message = str(raised.value)
    assert listed in message
    assert message.count("block.") <= 11
    assert len(message) < 400


def test_layers_that_put_out_no_tensor_are_left_out():
    assert "attention" not in ConvFeatureExtractor(make_module("tokens"), layer="*").fit(X).layers_
    with pytest.raises(ValueError, match="layer='attention'"):
        ConvFeatureExtractor(make_module("tokens"), layer="attention").fit(X)


# One pass, stopping behind the deepest --------------------------------------------------------


class Counting(nn.Module):
    """Counts calls of its parts, one list for all copies."""

    calls: list = []

    def __init__(self, name, layer):
        super().__init__()
        self.name = name
        self.layer = layer

    def forward(self, x):
        Counting.calls.append((self.name, len(x)))
        return self.layer(x)


def counting_module():
    return nn.Sequential(
        Counting("a", nn.Conv2d(1, 4, 3)),
        Counting("b", nn.ReLU()),
        Counting("c", nn.Flatten()),
        Counting("d", nn.Linear(144, 12)),
        Counting("e", nn.Linear(12, 10)),
    )


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("0", "a"),
        ("1", "ab"),
        (["1", "0"], "ab"),
        (["0", "3"], "abcd"),
        ("penultimate", "abcd"),
        (["penultimate", "0"], "abcd"),
        ("*", "abcde"),
        (-1, "abcde"),
    ],
)
def test_the_pass_is_one_and_stops_behind_the_deepest_layer(layer, expected):
    extractor = ConvFeatureExtractor(counting_module(), layer=layer, batch_size=30).fit(X)
    Counting.calls.clear()
    extractor.transform(X[:70])
    names = "".join(name for name, _ in Counting.calls)
    assert names == expected * 3


def test_the_pass_stops_before_the_layer_whose_input_is_tapped():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Counting("first", nn.Linear(64, 12))
            self.last = nn.Linear(12, 10)
            self.forwards = 0

        def forward(self, x):
            x = F.relu(self.first(x.flatten(1)))
            x = self.last(x)
            Counting.calls.append(("behind", len(x)))
            return x

    extractor = ConvFeatureExtractor(Functional()).fit(X)
    Counting.calls.clear()
    extractor.transform(X[:64])
    assert Counting.calls == [("first", 64)]


class CountOps(TorchDispatchMode):
    """Counts the operators that torch runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def count(self):
        convolutions = sum("conv" in name for name in self.names)
        return convolutions, sum(name in ("addmm", "mm", "linear") for name in self.names)


@pytest.mark.parametrize(
    ("layer", "n_convolutions", "n_linear"),
    [("conv1", 1, 0), ("conv2", 2, 0), ("dense", 2, 1), (["conv1", "dense"], 2, 1), (-1, 2, 2)],
)
def test_the_pass_through_declarative_layers_stops_too(fitted, layer, n_convolutions, n_linear):
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted["norms"]), layer=layer).fit(X)
    with CountOps() as ops:
        extractor.transform(X_new)
    assert ops.count() == (n_convolutions, n_linear)


def hooks_of(module):
    return [
        hook
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    ]


def fail(*args):
    raise ZeroDivisionError


@pytest.mark.parametrize("layer", ["dense", "*"])
def test_no_hooks_are_left(fitted, layer):
    clf = fitted["plain"]
    extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer=layer).fit(X)
    assert hooks_of(extractor.module_) == []
    extractor.transform(X_new)
    assert hooks_of(extractor.module_) == []
    batches = extractor.set_params(batch_size=10).transform_batches(X_new)
    next(batches)
    batches.close()  # left in the middle
    assert hooks_of(extractor.module_) == []


@pytest.mark.parametrize("what", ["pool", "network", "X", "layer"])
def test_no_hooks_are_left_after_errors(what):
    class Fragile(nn.Sequential):
        broken = ""

        def forward(self, x):
            return fail() if Fragile.broken == "network" else super().forward(x)

    def pool(activation):
        return fail() if Fragile.broken == "pool" else activation

    module = nn.Sequential(nn.Flatten(), Fragile(nn.Linear(64, 12), nn.ReLU()), nn.Linear(12, 10))
    extractor = ConvFeatureExtractor(module, layer=["0", "1.0", "1.1"], pool=pool).fit(X)
    expected = extractor.transform(X_new)
    error = ZeroDivisionError
    if what in ("pool", "network"):
        Fragile.broken = what
    elif what == "layer":
        error = ValueError
        with pytest.raises(error):
            extractor.set_params(layer="nonsense").fit(X)
    else:
        error = ValueError
    with pytest.raises(error):
        extractor.transform(X_new if what in ("pool", "network") else X_new * np.nan)
    assert hooks_of(extractor.module_) == []
    Fragile.broken = ""
    assert_array_equal(extractor.transform(X_new), expected)


# Pools, names and containers ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "pool", "names"),
    [
        ("dense", "auto", [f"dense_{i}" for i in range(12)]),
        ("dense", "flatten", [f"dense_{i}" for i in range(12)]),
        ("conv1", "auto", [f"conv1_{i}" for i in range(4)]),
        ("conv1", "avg", [f"conv1_{i}" for i in range(4)]),
        ("conv1", "max", [f"conv1_{i}" for i in range(4)]),
        (
            "pool1",
            "flatten",
            [f"pool1_{c}_y{y}_x{x}" for c in range(4) for y in range(3) for x in range(3)],
        ),
        (
            ["conv1", "pool1"],
            "max",
            [f"conv1_{i}" for i in range(4)] + [f"pool1_{i}" for i in range(4)],
        ),
        ("conv1", lambda maps: maps.mean((2, 3))[:, :2], ["conv1_0", "conv1_1"]),
    ],
)
def test_names_of_features(fitted, layer, pool, names):
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted["plain"]), layer=layer, pool=pool)
    assert extractor.fit(X).get_feature_names_out().tolist() == names
    assert extractor.get_feature_names_out().dtype == object
    assert extractor.transform(X_new).shape == (40, len(names))


def test_names_of_flattened_features_say_where_they_come_from(fitted):
    clf = fitted["plain"]
    extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer="conv1", pool="flatten").fit(X)
    features = extractor.set_output(transform="pandas").transform(X_new)
    maps = naive_activations(clf.module_, X_new)["conv1"].numpy()
    for c, row, column in ((0, 0, 0), (1, 0, 5), (3, 4, 2), (2, 5, 0)):
        expected = maps[:, c, row, column]
        assert_allclose(features[f"conv1_{c}_y{row}_x{column}"], expected, rtol=1e-4, atol=1e-5)


def test_names_of_flattened_tokens():
    extractor = ConvFeatureExtractor(make_module("tokens"), layer="norm", pool="flatten").fit(X)
    names = extractor.get_feature_names_out()
    assert names[:2].tolist() == ["norm_0_t0", "norm_1_t0"]
    assert names[-1] == "norm_5_t15"
    assert extractor.transform(X_new).shape == (40, 96) == (40, len(names))


def test_names_check_the_input_names(fitted):
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted["plain"])).fit(X)
    assert len(extractor.get_feature_names_out([f"p{i}" for i in range(64)])) == 12
    with pytest.raises(ValueError, match="64"):
        extractor.get_feature_names_out(["a", "b"])


def test_a_callable_pool_gets_the_activation():
    seen = []

    def generalized_mean(maps):
        seen.append((type(maps), tuple(maps.shape)))
        return maps.clamp(min=0).pow(3).mean((2, 3)).pow(1 / 3)

    module = make_module("in-place maps")
    extractor = ConvFeatureExtractor(module, layer="0", pool=generalized_mean).fit(X)
    maps = naive_hooks(module, X_new)[0]["0"].clamp(min=0).numpy()
    assert_features(extractor.transform(X_new), (maps**3).mean((2, 3)) ** (1 / 3))
    assert seen[-1] == (torch.Tensor, (40, 4, 6, 6))


def test_what_a_callable_pool_returns_is_copied():
    # ReLU works in place on what the pool returned a view of.
    module = make_module("in-place maps")
    extractor = ConvFeatureExtractor(module, layer=["0", "1"], pool=lambda x: x[:, :, 0, 0]).fit(X)
    outputs, _, _ = naive_hooks(module, X_new)
    expected = np.hstack([outputs[name][:, :, 0, 0].numpy() for name in ("0", "1")])
    assert_features(extractor.transform(X_new), expected)
    assert (expected < 0).any()


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x,
        lambda x: x.mean(),
        lambda x: x.mean(0).flatten(1),
        lambda x: x.numpy(),
        lambda x: None,
    ],
)
def test_a_callable_pool_that_returns_no_vectors_is_an_error(pool):
    with pytest.raises(ValueError, match=r"pool returned .* layer '0'.*\(2, n_features\)"):
        ConvFeatureExtractor(make_module("in-place maps"), layer="0", pool=pool).fit(X)


def test_activations_of_no_known_kind_need_a_callable_pool():
    class Deep(nn.Module):
        def forward(self, x):
            return x.unflatten(3, (2, 4))

    module = nn.Sequential(Deep(), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '0' .* give a callable as pool"):
        ConvFeatureExtractor(module, layer="0").fit(X)
    extractor = ConvFeatureExtractor(module, layer="0", pool=lambda x: x.flatten(1)).fit(X)
    assert_array_equal(extractor.transform(X_new), X_new.reshape(40, 64))


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output(fitted, container):
    pytest.importorskip(container)
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted["plain"]), layer=["dense", "conv1"])
    plain = extractor.fit_transform(X)
    table = extractor.set_output(transform=container).transform(X)
    assert list(table.columns) == extractor.get_feature_names_out().tolist()
    assert_array_equal(table.to_numpy(), plain)
    fresh = ConvFeatureExtractor(classifier(), layer="dense").set_output(transform=container)
    assert list(fresh.fit_transform(X, y).columns) == [f"dense_{i}" for i in range(12)]
    again = extractor.set_output(transform="default").transform(X)
    assert isinstance(again, np.ndarray)


def test_names_and_index_of_a_data_frame(fitted):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X.reshape(150, 64), index=np.arange(150) + 7).add_prefix("pixel")
    extractor = ConvFeatureExtractor(classifier()).fit(frame, y)
    assert extractor.feature_names_in_.tolist() == frame.columns.tolist()
    assert extractor.n_features_in_ == 64
    assert extractor.image_shape_ == (1, 8, 8)
    expected = ConvFeatureExtractor(classifier()).fit_transform(X, y)
    assert_array_equal(extractor.transform(frame), expected)
    table = extractor.set_output(transform="pandas").transform(frame)
    assert_array_equal(table.index, frame.index)


def test_names_through_a_pipeline(fitted):
    head = LogisticRegression(max_iter=200)
    model = make_pipeline(ConvFeatureExtractor(FrozenEstimator(fitted["plain"])), head)
    model.set_output(transform="pandas").fit(X, y)
    assert model[-1].feature_names_in_.tolist() == [f"dense_{i}" for i in range(12)]
    assert model[:-1].get_feature_names_out()[3] == "dense_3"


# Rows and batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 7, 40, 1000])
@pytest.mark.parametrize("layers", LAYERS)
def test_a_row_has_the_same_features_alone_and_in_any_batch(fitted, layers, batch_size):
    frozen = FrozenEstimator(fitted[layers])
    extractor = ConvFeatureExtractor(frozen, layer=["conv1", "dense"], pool="flatten").fit(X)
    expected = extractor.transform(X_new)
    rounding = {"rtol": 1e-5, "atol": 1e-6 * np.abs(expected).max()}
    extractor.set_params(batch_size=batch_size)
    assert_allclose(extractor.transform(X_new), expected, **rounding)
    alone = np.vstack([extractor.transform(X_new[i : i + 1]) for i in range(40)])
    assert_allclose(alone, expected, **rounding)
    shuffled = np.random.default_rng(0).permutation(40)
    assert_allclose(extractor.transform(X_new[shuffled]), expected[shuffled], **rounding)


@pytest.mark.parametrize(
    ("batch_size", "n_rows"), [(None, [256, 44]), (100, [100] * 3), (299, [299, 1])]
)
def test_transform_batches_concatenates_to_transform(fitted, batch_size, n_rows):
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted["plain"]), batch_size=batch_size)
    many = IMAGES[:300]
    batches = list(extractor.fit(X).transform_batches(many))
    assert [len(batch) for batch in batches] == n_rows
    assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}
    assert_array_equal(np.concatenate(batches), extractor.transform(many))


def test_transform_batches_works_batch_by_batch():
    extractor = ConvFeatureExtractor(counting_module(), layer="0", batch_size=20).fit(X)
    Counting.calls.clear()
    batches = extractor.transform_batches(X[:60])
    first = next(batches)
    assert len(Counting.calls) == 1
    second = next(batches)
    assert len(Counting.calls) == 2
    # What was handed out stays as it was.
    assert_array_equal(first, extractor.transform(X[:20]))
    assert_array_equal(second, extractor.transform(X[20:40]))


def test_results_belong_to_the_caller():
    # Features that are a view of the input must not be X itself, nor each other.
    module = nn.Sequential(nn.Flatten(), nn.Identity())
    extractor = ConvFeatureExtractor(module, layer="0").fit(X)
    images = X_new.copy()
    features = extractor.transform(images)
    features[:] = -1
    assert_array_equal(images, X_new)
    assert_array_equal(extractor.transform(images), X_new.reshape(40, 64))


def test_networks_that_write_into_their_input_leave_X_alone():
    class Careless(nn.Module):
        def forward(self, x):
            return x.mul_(0)

    images = X_new.copy()
    for layer in ("0", "1"):
        module = nn.Sequential(Careless(), nn.Flatten())
        assert not ConvFeatureExtractor(module, layer=layer).fit(images).transform(images).any()
    assert_array_equal(images, X_new)


@pytest.mark.parametrize("source", ["classifier", "module"])
def test_evaluation_mode_is_enforced(fitted, source):
    if source == "classifier":
        layers = [*clone_layers(LAYERS["norms"]), ("drop", Dropout(0.5))]
        clf = ConvNetClassifier(layers, max_epochs=1, random_state=0).fit(X, y)
        extractor = ConvFeatureExtractor(FrozenEstimator(clf), layer="*").fit(X)
    else:
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(144, 10)
        )
        extractor = ConvFeatureExtractor(module.train(), layer="*").fit(X)
        assert module.training  # the user's own stays as it was
    assert not any(part.training for part in extractor.module_.modules())
    expected = extractor.transform(X_new)
    state = copy.deepcopy(extractor.module_.state_dict())

    for part in (extractor.module_, list(extractor.module_.body.children())[1]):
        part.train()
        assert_array_equal(extractor.transform(X_new), expected)
        assert not any(part.training for part in extractor.module_.modules())
    for name, values in extractor.module_.state_dict().items():
        assert_array_equal(values, state[name], err_msg=name)


# What is trained ------------------------------------------------------------------------------


def test_a_classifier_is_cloned_and_trained():
    clf = classifier()
    extractor = ConvFeatureExtractor(clf, layer="dense").fit(X, y)
    assert not hasattr(clf, "net_")
    assert extractor.estimator is clf
    alone = classifier().fit(X, y)
    assert_array_equal(extractor.estimator_.predict_proba(X_new), alone.predict_proba(X_new))
    assert extractor.module_ is extractor.estimator_.module_
    expected = naive_activations(alone.module_, X_new)["dense"]
    assert_features(extractor.transform(X_new), expected.numpy())


def test_a_fitted_classifier_is_trained_again_and_left_alone(fitted):
    clf = copy.deepcopy(fitted["plain"])
    before = clf.predict_proba(X_new)
    extractor = ConvFeatureExtractor(clf).fit(X[:60] + 1, y[:60])
    assert extractor.estimator_ is not clf
    assert not np.array_equal(extractor.estimator_.predict_proba(X_new), before)
    assert_array_equal(clf.predict_proba(X_new), before)
    assert len(clf.history_) == 1


def test_no_estimator_means_default_parameters():
    small = X[:40]
    extractor = ConvFeatureExtractor(random_state=0).fit(small, y[:40])
    assert repr(extractor.estimator_) == repr(ConvNetClassifier(random_state=0))
    expected = ConvNetClassifier(random_state=0).fit(small, y[:40])
    assert_array_equal(extractor.estimator_.predict_proba(X_new), expected.predict_proba(X_new))
    assert extractor.layers_ == ["dense"]


def test_fit_transform_is_fit_and_transform():
    together = ConvFeatureExtractor(classifier()).fit_transform(X, y)
    assert_array_equal(together, ConvFeatureExtractor(classifier()).fit(X, y).transform(X))


def test_sample_weight_and_validation_data_reach_the_training():
    weights = np.linspace(0, 2, len(y))
    extractor = ConvFeatureExtractor(classifier())
    extractor.fit(X, y, weights, X_val=X_new, y_val=DIGITS[1000:1040])
    expected = classifier().fit(X, y, weights, X_val=X_new, y_val=DIGITS[1000:1040])
    assert_array_equal(extractor.estimator_.predict_proba(X), expected.predict_proba(X))
    assert [row["valid_loss"] for row in extractor.estimator_.history_] == [
        row["valid_loss"] for row in expected.history_
    ]


def test_a_frozen_classifier_is_not_trained(fitted):
    clf = copy.deepcopy(fitted["plain"])
    state, history = copy.deepcopy(clf.module_.state_dict()), clf.history_
    for labels in (None, y, np.zeros(150)):
        extractor = ConvFeatureExtractor(FrozenEstimator(clf)).fit(X, labels)
        assert extractor.estimator_ is clf
        extractor.transform(X_new)
    assert clf.history_ == history
    for name, values in clf.module_.state_dict().items():
        assert_array_equal(values, state[name])


def test_frozen_estimators_must_be_fitted_classifiers_of_these_images(fitted):
    with pytest.raises(NotFittedError):
        ConvFeatureExtractor(FrozenEstimator(classifier())).fit(X, y)
    with pytest.raises(TypeError, match="must be a ConvNetClassifier, not LogisticRegression"):
        ConvFeatureExtractor(FrozenEstimator(LogisticRegression())).fit(X, y)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        ConvFeatureExtractor(FrozenEstimator(fitted["plain"])).fit(X[:, :, :6])


def test_a_module_needs_no_labels_and_is_copied():
    module = make_module("residual").train()
    state = copy.deepcopy(module.state_dict())
    extractor = ConvFeatureExtractor(module, layer="layer1").fit(X)
    assert not hasattr(extractor, "estimator_")
    expected = extractor.transform(X_new)
    assert_array_equal(ConvFeatureExtractor(module, layer="layer1").fit_transform(X_new), expected)
    # Neither changes the other.
    for name, values in module.state_dict().items():
        assert_array_equal(values, state[name], err_msg=name)
    assert all(part.training for part in module.modules())
    assert hooks_of(module) == []
    with torch.no_grad():
        module.stem.weight.mul_(2)
    assert_array_equal(extractor.transform(X_new), expected)
    # The weights are read at fit.
    assert not np.array_equal(extractor.fit(X).transform(X_new), expected)


def test_a_module_gets_what_torchvision_would_give_it():
    module = nn.Sequential(nn.Flatten(), nn.Identity())
    extractor = ConvFeatureExtractor(module, layer="0").fit(X.astype(np.uint8))
    of_bytes = extractor.transform(X_new.astype(np.uint8))
    assert_allclose(of_bytes, X_new.reshape(40, 64) / 255, rtol=1e-6)
    assert_array_equal(extractor.transform(X_new), X_new.reshape(40, 64))
    assert_array_equal(extractor.transform(X_new.astype(np.int64)), X_new.reshape(40, 64))


def test_a_module_that_cannot_take_the_images_is_an_error():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\)"):
        ConvFeatureExtractor(module).fit(X)


def test_a_torch_module_with_arguments_in_a_grid():
    clf = ConvNetClassifier(TorchModule(ResidualNet, width=4), max_epochs=1, random_state=0)
    extractor = ConvFeatureExtractor(clf, layer="avgpool")
    assert extractor.fit_transform(X, y).shape == (150, 4)
    extractor.set_params(estimator__module__width=7)
    assert extractor.fit_transform(X, y).shape == (150, 7)


def test_parameters_override_those_of_the_estimator():
    clf = classifier(
        verbose=0,
        batch_size=33,
        data_format="channels_last",
        image_shape=(4, 16),
        precision="bfloat16",
    )
    given = {
        "image_shape": (1, 8, 8),
        "data_format": "channels_first",
        "device": "cpu",
        "precision": "float32",
        "random_state": 7,
        "verbose": 1,
        "batch_size": 10,
    }
    extractor = ConvFeatureExtractor(clf, **given).fit(X.reshape(150, 64), y)
    params = extractor.estimator_.get_params()
    for name, value in given.items():
        assert params[name] == (33 if name == "batch_size" else value), name
    assert clf.get_params()["random_state"] == 0
    assert extractor.image_shape_ == (1, 8, 8)
    expected = classifier(random_state=7, batch_size=33).fit(X, y)
    assert_array_equal(extractor.estimator_.predict_proba(X), expected.predict_proba(X))


def test_none_means_as_the_estimator_has_it(capsys):
    given = {
        "image_shape": (4, 16),
        "data_format": "channels_last",
        "device": "cpu",
        "random_state": 7,
        "verbose": 1,
    }
    extractor = ConvFeatureExtractor(classifier(**given)).fit(X.reshape(150, 64), y)
    params = extractor.estimator_.get_params()
    assert {name: params[name] for name in given} == given
    assert extractor.image_shape_ == (1, 4, 16)
    assert "learnable parameters" in capsys.readouterr().out
    ConvFeatureExtractor(classifier(**given), verbose=0).fit(X.reshape(150, 64), y)
    assert capsys.readouterr().out == ""


def test_image_shape_and_data_format_of_a_module():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    flat = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    first = ConvFeatureExtractor(module, layer="0", image_shape=(3, 4, 4)).fit(flat)
    last = ConvFeatureExtractor(
        module, layer="0", image_shape=(3, 4, 4), data_format="channels_last"
    )
    moved = flat.reshape(5, 3, 4, 4).transpose(0, 2, 3, 1).reshape(5, 48)
    # Means of values of either sign: near zero, what is lost is a share of the values.
    came, expected = last.fit(moved).transform(moved), first.transform(flat)
    assert_allclose(came, expected, rtol=1e-5, atol=1e-6)


# Threads and copies ---------------------------------------------------------------------------


@pytest.fixture
def _hasty_threads():
    """Threads take turns as often as they can, so that what can go wrong does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_network_can_not_catch_what_ends_a_pass():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.ran = nn.Linear(64, 3), nn.Linear(64, 2), False

        def forward(self, x):
            try:
                return self.first(x.flatten(1))
            except Exception:
                self.ran = True
                return self.second(x.flatten(1))

    extractor = ConvFeatureExtractor(Careful(), layer="first").fit(X)
    assert extractor.transform(X_new).shape == (len(X_new), 3)
    assert not extractor.module_.body.ran


@pytest.mark.usefixtures("_hasty_threads")
@pytest.mark.parametrize("source", ["declarative", "module"])
def test_eight_threads_at_once(fitted, source):
    if source == "declarative":
        clf = fitted["plain"]
    else:
        clf = ConvNetClassifier(make_module("residual"), max_epochs=1, random_state=0).fit(X, y)
    names = [name for name, _ in clf.module_.body.named_children()]
    frozen = FrozenEstimator(clf)
    jobs = [clf.predict_proba, clf.decision_function]
    for name in names:
        extractor = ConvFeatureExtractor(frozen, layer=name, pool="flatten", batch_size=16)
        jobs += [extractor.fit(X).transform] * 2

    def refit(X):
        # The order of the layers is that of a pass, which other threads' passes may not disturb.
        extractor = ConvFeatureExtractor(frozen, layer=["*", -1, "penultimate"], pool="max")
        return extractor.fit(X).transform(X)

    jobs += [refit] * 4
    expected = [job(X_new) for job in jobs]
    rounds = 6
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(job, X_new) for _ in range(rounds) for job in jobs]
        results = [future.result() for future in futures]
    for i, result in enumerate(results):
        assert_array_equal(result, expected[i % len(jobs)])
    assert hooks_of(clf.module_) == []


def through_pickle(estimator, path):
    return pickle.loads(pickle.dumps(estimator))


def through_joblib(estimator, path):
    joblib.dump(estimator, path / "extractor.joblib", compress=1)
    return joblib.load(path / "extractor.joblib")


def through_deepcopy(estimator, path):
    return copy.deepcopy(estimator)


COPIES = [through_pickle, through_joblib, through_deepcopy]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("source", ["classifier", "frozen", "module"])
def test_copies_of_fitted_extractors(fitted, tmp_path, source, copied):
    estimator = {
        "classifier": classifier(),
        "frozen": FrozenEstimator(copy.deepcopy(fitted["norms"])),
        "module": make_module("residual"),
    }[source]
    extractor = ConvFeatureExtractor(estimator, layer=["penultimate", -1]).fit(X, y)
    expected, names = extractor.transform(X_new), extractor.get_feature_names_out()
    other = copied(extractor, tmp_path)
    with torch.no_grad():
        for parameter in extractor.module_.parameters():
            parameter.zero_()  # the copy has weights of its own
    assert_array_equal(other.transform(X_new), expected)
    assert_array_equal(other.get_feature_names_out(), names)
    assert not any(part.training for part in other.module_.modules())


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_extractors_that_are_not_fitted(tmp_path, copied):
    extractor = copied(ConvFeatureExtractor(classifier(), layer="conv1"), tmp_path)
    expected = ConvFeatureExtractor(classifier(), layer="conv1").fit_transform(X, y)
    assert_array_equal(extractor.fit_transform(X, y), expected)


def test_a_clone_is_not_fitted(fitted):
    extractor = ConvFeatureExtractor(make_module("residual"), layer="avgpool", pool="max").fit(X)
    copied = clone(extractor)
    assert copied.get_params(deep=False).keys() == extractor.get_params(deep=False).keys()
    assert (copied.layer, copied.pool) == ("avgpool", "max")
    with pytest.raises(NotFittedError):
        copied.transform(X)
    assert_array_equal(copied.fit(X).transform(X_new), extractor.transform(X_new))
    frozen = FrozenEstimator(fitted["plain"])
    assert clone(ConvFeatureExtractor(frozen)).estimator is frozen


@pytest.mark.parametrize(
    "call",
    [
        lambda extractor: extractor.transform(X),
        lambda extractor: list(extractor.transform_batches(X)),
        lambda extractor: extractor.get_feature_names_out(),
    ],
)
def test_not_fitted(call):
    with pytest.raises(NotFittedError):
        call(ConvFeatureExtractor(classifier()))


def test_a_failed_fit_leaves_the_extractor_as_it_was(fitted):
    extractor = ConvFeatureExtractor(FrozenEstimator(fitted["plain"]), layer="dense").fit(X)
    expected = extractor.transform(X_new)
    for params, data in (
        ({"layer": "nonsense"}, X),
        ({"estimator": classifier()}, X * np.nan),
        ({"estimator": classifier(lr=1e30)}, X),
        ({"estimator": nn.Conv2d(3, 4, 3)}, X),
        ({"pool": fail}, X),
    ):
        extractor.set_params(**params)
        with pytest.raises((ValueError, ZeroDivisionError)):
            extractor.fit(data, y)
        extractor.set_params(
            estimator=FrozenEstimator(fitted["plain"]), layer="dense", pool="auto"
        )
        assert_array_equal(extractor.transform(X_new), expected)


def test_refitting_from_one_kind_of_estimator_to_another(fitted):
    extractor = ConvFeatureExtractor(classifier()).fit(X, y)
    extractor.set_params(estimator=make_module("residual")).fit(X)
    assert not hasattr(extractor, "estimator_")
    assert isinstance(extractor.module_.body, ResidualNet)
    extractor.set_params(estimator=FrozenEstimator(fitted["plain"]), layer="dense").fit(X)
    assert extractor.estimator_ is fitted["plain"]
    assert extractor.module_ is fitted["plain"].module_
