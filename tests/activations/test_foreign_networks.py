"""What activations of networks of many kinds mean: maps, tokens, what goes into the classifier."""

import copy
import pickle
import warnings
from enum import StrEnum

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F

from sklconv import Backbone, ConvFeatureExtractor

CREATED = {}


def create(timm, name, **params):
    """A network of timm with random weights, the same one each time, not to be changed."""
    key = name, *params.items()
    if key not in CREATED:
        torch.manual_seed(0)
        CREATED[key] = timm.create_model(name, pretrained=False, **params).eval()
    return CREATED[key]


def images(side, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


def as_input(X):
    return torch.from_numpy(X).float() / 255


def activations(net, X):
    """What each layer put out at its last call, by hooks of our own."""
    net, found = copy.deepcopy(net).eval(), {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda _, __, output, name=name: found.update({name: copy.deepcopy(output)})
        )
    with torch.no_grad():
        net(as_input(X))
    return found


def features(net, X, layer, pool="auto"):
    return ConvFeatureExtractor(net, layer=layer, pool=pool).fit_transform(X)


def assert_close(found, expected):
    """Equal to rounding: sums of some thousand terms, in other layouts than torch's own."""
    expected = expected.numpy()
    assert found.shape == expected.shape
    assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# Maps with their channels last ----------------------------------------------------------------


class ChannelsLast(nn.Module):
    """A stem in NCHW, a block in NHWC, and as many channels as rows and columns."""

    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.fc1, self.act = nn.Linear(channels, 2 * channels), nn.GELU()
        self.fc2 = nn.Linear(2 * channels, channels)
        self.block = Residual(self.norm, self.fc1, self.act, self.fc2)
        self.back = nn.Identity()
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.block(self.stem(x).permute(0, 2, 3, 1))
        return self.head(self.back(x.permute(0, 3, 1, 2)).mean((2, 3)))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize("channels", [8, 5])
@pytest.mark.parametrize("pool", ["avg", "max", "flatten"])
def test_maps_are_read_as_the_layers_compute_them(channels, pool):
    net, X = ChannelsLast(channels), images(8)
    seen = activations(net, X)
    for layer in ("stem", "norm", "fc1", "act", "fc2", "block", "back"):
        maps = seen[layer] if layer in ("stem", "back") else seen[layer].permute(0, 3, 1, 2)
        by = {"avg": lambda x: x.mean((2, 3)), "max": lambda x: x.amax((2, 3))}
        expected = by.get(pool, lambda x: x.flatten(1))(maps)
        assert_close(features(net, X, layer, pool), expected)


def test_names_of_flattened_maps_with_channels_last():
    extractor = ConvFeatureExtractor(ChannelsLast(5), layer="fc1", pool="flatten").fit(images(8))
    found = extractor.transform(images(8))
    seen = activations(extractor.module_.body, images(8))["fc1"]  # (N, H, W, C)
    column = list(extractor.get_feature_names_out()).index("fc1_9_y3_x6")
    assert_allclose(found[:, column], seen[:, 3, 6, 9], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "params", "layers", "stem"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)},
            ["patch_embed", "layers.0", "layers.1.blocks.0", "layers.3", "norm"],
            "patch_embed.proj",
        ),
        ("mambaout_femto", {}, ["stages.0", "stages.1.blocks.0", "stages.3"], "stem.conv1"),
    ],
)
def test_maps_of_swin_and_mambaout(timm, name, params, layers, stem):
    net, X = create(timm, name, **params), images(64)
    seen = activations(net, X)
    together = features(net, X, [*layers, stem])
    expected = [seen[layer].mean((1, 2)) for layer in layers]
    assert_close(together, torch.cat([*expected, seen[stem].mean((2, 3))], dim=1))
    last = seen[layers[-1]].permute(0, 3, 1, 2)
    assert_close(features(net, X, layers[-1], "flatten"), last.flatten(1))


def test_maps_of_torchvisions_swin(torchvision):
    torch.manual_seed(0)
    net = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4]
    )
    X = images(32)
    seen = activations(net, X)
    for layer in ("features.0", "features.1", "features.1.0", "features.2", "norm"):
        assert_close(features(net, X, layer), seen[layer].mean((1, 2)))
    for layer in ("features.0.0", "permute"):
        assert_close(features(net, X, layer), seen[layer].mean((2, 3)))


class Format(StrEnum):
    NCHW = "NCHW"
    NHWC = "NHWC"


class Products(nn.Module):
    """Puts out maps whose axes can't be followed."""

    def forward(self, x):
        return torch.einsum("nchw,cd->nhwd", x, torch.eye(3))


class Says(nn.Module):
    def __init__(self, network=None, module=None):
        super().__init__()
        self.maps, self.head = Products(), nn.Linear(3, 5)
        if network:
            self.output_fmt = network
        if module:
            self.maps.output_fmt = module

    def forward(self, x):
        return self.head(self.maps(x).mean((1, 2)))


@pytest.mark.parametrize(
    "said",
    [{"network": "NHWC"}, {"network": Format.NHWC}, {"network": "NCHW", "module": Format.NHWC}],
)
def test_the_network_or_the_module_says_where_channels_are(said):
    X = images(6)
    assert_close(features(Says(**said), X, "maps"), as_input(X).mean((2, 3)))


@pytest.mark.parametrize("said", [{}, {"network": "NCHW"}, {"network": "NHWC", "module": "NCHW"}])
def test_channels_come_first_where_nothing_else_is_said(said):
    X = images(6)
    assert_close(features(Says(**said), X, "maps"), as_input(X).mean((1, 3)))


@pytest.mark.parametrize(("layer", "said", "words"), [("stem", "NHWC", "last.*second")])
def test_a_contradiction_is_an_error_and_a_callable_the_way_out(layer, said, words):
    net, X = ChannelsLast(5), images(8)
    net.stem.output_fmt = said
    with pytest.raises(ValueError, match=f"layer '{layer}'.*{words}.*callable as pool"):
        features(net, X, layer)
    found = features(net, X, layer, pool=lambda maps: maps.mean((2, 3)))
    assert_close(found, activations(net, X)[layer].mean((2, 3)))


def test_pooled_maps_have_their_channels_first_whatever_the_network_says():
    net, X = Says(network="NHWC"), images(6)
    net.maps = nn.Sequential(net.maps, nn.MaxPool2d(2))
    net.head = nn.Linear(1, 5)
    assert_close(features(net, X, "maps"), activations(net, X)["maps"].mean((2, 3)))


class Sequences(nn.Module):
    """(N, C, L) of one-dimensional convolutions, then tokens (N, T, C)."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.pool = nn.Conv1d(3, 7, 3), nn.BatchNorm1d(7), nn.MaxPool1d(2)
        self.norm, self.lstm = nn.LayerNorm(7), nn.LSTM(7, 4, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(7, 7, 16, batch_first=True)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.pool(self.bn(self.conv(x.flatten(2))))
        tokens = self.attention(self.norm(x.transpose(1, 2)))
        self.lstm(tokens)
        return self.head(tokens.mean(1))


def test_what_one_dimensional_layers_put_out_is_reduced_over_its_length():
    net, X = Sequences(), images(5)
    seen = activations(net, X)
    for layer in ("conv", "bn", "pool"):
        assert_close(features(net, X, layer), seen[layer].mean(2))
        assert_close(features(net, X, layer, "max"), seen[layer].amax(2))
        assert_close(features(net, X, layer, "flatten"), seen[layer].flatten(1))
    for layer in ("norm", "attention"):
        assert_close(features(net, X, layer), seen[layer].mean(1))
    extractor = ConvFeatureExtractor(net, layer="pool", pool="flatten").fit(X)
    assert extractor.get_feature_names_out()[-1] == "pool_6_x10"


class MixesPlaces(nn.Module):
    """In the manner of MLP-Mixer: a linear layer along the places of each channel."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 6, 2, stride=2), nn.Linear(16, 16)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2)  # (N, C, T)
        return self.head((x + self.mix(x)).mean(2))


def test_layers_that_mix_places_leave_channels_where_they_are():
    net, X = MixesPlaces(), images(8)
    assert_close(features(net, X, "mix"), activations(net, X)["mix"].mean(2))


# Tokens ---------------------------------------------------------------------------------------

SMALL = {"img_size": 64, "depth": 2}
TRANSFORMERS = [
    # name, parameters, a layer with the prefix, how long that is, a layer without one
    ("vit_tiny_patch16_224", SMALL, "blocks.1", 1, "patch_embed"),
    ("deit_tiny_distilled_patch16_224", SMALL, "blocks.1", 2, "patch_embed"),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}, "norm", 5, "patch_embed.norm"),
    ("cait_xxs24_224", SMALL, "norm", 1, "blocks.1"),
    ("xcit_nano_12_p16_224", SMALL, "norm", 1, "blocks.1"),
    ("coat_lite_tiny", {"img_size": 64}, "serial_blocks2.1", 1, "patch_embed2"),
    ("pit_ti_224", {"img_size": 64, "depth": (1, 1, 1)}, "transformers.1.blocks.0", 1, None),
]


@pytest.mark.parametrize(
    ("name", "params", "layer", "n_prefix", "without"),
    TRANSFORMERS,
    ids=[row[0] for row in TRANSFORMERS],
)
def test_tokens_are_reduced_over_the_patches(timm, name, params, layer, n_prefix, without):
    net, X = create(timm, name, **params), images(params["img_size"])
    seen = activations(net, X)
    tokens = seen[layer]
    assert_close(features(net, X, layer), tokens[:, n_prefix:].mean(1))
    assert_close(features(net, X, layer, "max"), tokens[:, n_prefix:].amax(1))
    assert_close(features(net, X, layer, "cls"), tokens[:, 0])
    assert_close(features(net, X, layer, "flatten"), tokens.flatten(1))
    if without is not None:
        assert_close(features(net, X, without), seen[without].mean(1))
        with pytest.raises(ValueError, match=f"layer '{without}' has none: it puts out"):
            features(net, X, without, "cls")


def test_class_tokens_alone(timm):
    net, X = create(timm, "cait_xxs24_224", **SMALL), images(64)
    token = activations(net, X)["blocks_token_only.1"]
    assert token.shape == (2, 1, 192)
    for pool in ("avg", "max", "cls", "flatten"):
        assert_close(features(net, X, "blocks_token_only.1", pool), token[:, 0])


def test_registers_without_a_class_token(timm):
    params = {**SMALL, "class_token": False, "reg_tokens": 2, "global_pool": "avg"}
    net, X = create(timm, "vit_tiny_patch16_224", **params), images(64)
    assert_close(features(net, X, "blocks.1"), activations(net, X)["blocks.1"][:, 2:].mean(1))
    with pytest.raises(ValueError, match=r"layer 'blocks\.1' has none"):
        features(net, X, "blocks.1", "cls")


def test_tokens_of_torchvisions_vit(torchvision):
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32)
    X, layer = images(32), "encoder.layers.encoder_layer_0"
    tokens = activations(net, X)[layer]
    assert tokens.shape == (2, 17, 16)
    assert_close(features(net, X, layer), tokens[:, 1:].mean(1))
    assert_close(features(net, X, layer, "cls"), tokens[:, 0])
    with pytest.raises(ValueError, match="'conv_proj' has none"):
        features(net, X, "conv_proj", "cls")


class Tokens(nn.Module):
    """Patches without a convolution, one token in front of them."""

    def __init__(self, says=None):
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(12, 6), nn.LayerNorm(6), nn.Linear(6, 5)
        self.first = nn.Parameter(torch.randn(1, 1, 6))
        if says is not None:
            self.num_prefix_tokens = says

    def forward(self, x):
        n = len(x)
        patches = self.embed(F.unfold(x, 2, stride=2).transpose(1, 2))
        tokens = torch.cat([self.first.expand(n, -1, -1), patches], dim=1)
        return self.head(self.block(tokens)[:, 0])


@pytest.mark.parametrize("wrap", [lambda net: net, nn.Sequential])
def test_a_module_says_how_many_tokens_are_no_patches(wrap):
    X, prefix = images(8), "" if wrap is not nn.Sequential else "0."
    silent, telling = wrap(Tokens()), wrap(Tokens(says=1))
    tokens = activations(silent, X)[f"{prefix}block"]
    assert_close(features(silent, X, f"{prefix}block"), tokens.mean(1))
    with pytest.raises(ValueError, match="num_prefix_tokens"):
        features(silent, X, f"{prefix}block", "cls")
    tokens = activations(telling, X)[f"{prefix}block"]
    assert_close(features(telling, X, f"{prefix}block"), tokens[:, 1:].mean(1))
    assert_close(features(telling, X, f"{prefix}block", "cls"), tokens[:, 0])
    embedded = activations(telling, X)[f"{prefix}embed"]
    assert_close(features(telling, X, f"{prefix}embed"), embedded.mean(1))


def test_cls_leaves_vectors_alone(timm):
    net, X = create(timm, "vit_tiny_patch16_224", **SMALL), images(64)
    both = features(net, X, ["blocks.1", "penultimate"], "cls")
    assert_close(both[:, :192], activations(net, X)["blocks.1"][:, 0])
    assert_array_equal(both[:, 192:], features(net, X, "penultimate"))


# What goes into the classifier ----------------------------------------------------------------

HEADS = {
    "one linear layer": ("resnet18", {}, 64),
    "class token": ("vit_tiny_patch16_224", SMALL, 64),
    "hidden layer": ("mambaout_femto", {}, 64),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, 64),
    "distilled, averaged": ("levit_128s", {}, 224),
    "distilled, channels last": ("efficientformer_l1", {}, 224),
    "several branches": ("crossvit_9_240", {}, 240),
    "batch norm in front": ("repvit_m0_9", {}, 64),
    "batch norm in front, one head": ("efficientvit_m0", {}, 224),
    "auxiliary": ("volo_d1_224", {"img_size": 64}, 64),
    "convolution, BiT": ("resnetv2_50x1_bit", {}, 64),
    "convolution, DLA": ("dla34", {}, 64),
    "convolution, DPN": ("dpn48b", {}, 64),
    "of several layers": ("convformer_s18", {}, 64),
    "no classifier": ("resnet18", {"num_classes": 0}, 64),
    "no classifier, tokens": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}, 56),
}


@pytest.mark.parametrize("kind", HEADS)
def test_penultimate_is_what_timm_calls_pre_logits(timm, kind):
    name, params, side = HEADS[kind]
    net, X = create(timm, name, **params), images(side, n=3)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.uniform_(-1, 1)  # else it hardly does anything
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(as_input(X)), pre_logits=True)
    extractor = ConvFeatureExtractor(net).fit(X[:2])  # no warning
    assert_close(extractor.transform(X), expected)
    assert len(extractor.get_feature_names_out()) == expected.shape[1]


@pytest.mark.parametrize("answer", [ValueError("not so"), (torch.zeros(2, 3), torch.zeros(2, 3))])
def test_pre_logits_that_can_not_be_used_are_not(answer):
    class Network(nn.Sequential):
        def forward_features(self, x):
            return x

        def forward_head(self, x, pre_logits=False):
            if isinstance(answer, Exception):
                raise answer
            return answer

    net, X = Network(nn.Flatten(), nn.Linear(75, 6), nn.ReLU(), nn.Linear(6, 5)), images(5)
    assert ConvFeatureExtractor(net).fit(X).layers_ == ["2"]
    assert ConvFeatureExtractor(net, layer="0").fit(X).transform(X).shape == (len(X), 75)


def test_penultimate_beside_other_layers(timm):
    net, X = create(timm, "deit_tiny_distilled_patch16_224", **SMALL), images(64)
    layers = ["head_dist", "penultimate", "blocks.0"]
    seen = activations(net, X)
    x, dist = seen["norm"][:, 0], seen["norm"][:, 1]
    expected = [seen["head_dist"], (x + dist) / 2, seen["blocks.0"][:, 2:].mean(1)]
    extractor = ConvFeatureExtractor(Backbone(net), layer=layers).fit(X)
    assert extractor.layers_ == layers
    assert_close(extractor.transform(X), torch.cat(expected, dim=1))
    alone = np.vstack([extractor.transform(x) for x in np.split(X, len(X))])
    assert_close(alone, torch.cat(expected, dim=1))
    copied = pickle.loads(pickle.dumps(extractor))
    assert_array_equal(copied.transform(X), extractor.transform(X))


def test_penultimate_of_squeezenet(torchvision):
    torch.manual_seed(0)
    net, X = torchvision.models.squeezenet1_1(num_classes=7).eval(), images(64)
    assert_close(features(net, X, "penultimate"), activations(net, X)["features"].mean((2, 3)))


def scores(*behind):
    """A network that ends in a linear layer, and in ``behind``."""
    return nn.Sequential(nn.Flatten(), nn.Linear(75, 6), nn.ReLU(), nn.Linear(6, 5), *behind)


def one_pixel(*behind):
    """A network that ends in a convolution of one pixel, and in ``behind``."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 1), *behind)


class Functional(nn.Module):
    def __init__(self, body, function):
        super().__init__()
        self.body, self.function = body, function

    def forward(self, x):
        return self.function(self.body(x))


BEFORE_THE_END = [
    (scores(nn.Softmax(1)), "2"),
    (scores(nn.LogSoftmax(1)), "2"),
    (scores(nn.Dropout(), nn.Sigmoid()), "2"),
    (Functional(scores(), lambda x: F.log_softmax(x, dim=1)), "body.2"),
    (one_pixel(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1"),
    (one_pixel(nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten(), nn.Softmax(1)), "1"),
    (Functional(one_pixel(), lambda x: x.mean((2, 3))), "body.1"),
    (Functional(one_pixel(), lambda x: x.mean(-1).mean(-1).softmax(1)), "body.1"),
]


@pytest.mark.parametrize(("net", "layer"), BEFORE_THE_END)
def test_penultimate_lies_before_a_softmax_and_the_means_of_maps(net, layer):
    X = images(5)
    expected = activations(net, X)[layer]
    expected = expected.mean((2, 3)) if expected.ndim == 4 else expected
    extractor = ConvFeatureExtractor(net).fit(X)
    assert extractor.layers_ == [layer]
    assert_close(extractor.transform(X), expected)


ONLY_THE_OUTPUT = [
    scores(nn.ReLU()),
    nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()),
    one_pixel(),
    one_pixel(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(5)),
    one_pixel(nn.Flatten()),  # scores of each place
    Functional(scores(), F.normalize),
    Functional(scores(), lambda x: x.add_(1)),
    Functional(scores(), lambda x: torch.cat([x, x], dim=1)),
]


@pytest.mark.parametrize("net", ONLY_THE_OUTPUT)
def test_a_warning_says_where_only_the_output_is_left_to_take(net):
    X = images(5)
    with pytest.warns(UserWarning, match="'penultimate' takes the network's output") as caught:
        extractor = ConvFeatureExtractor(net).fit(X)
    assert caught[0].filename == __file__
    with torch.no_grad():
        output = net.eval()(as_input(X))
    assert_close(extractor.transform(X), output.mean((2, 3)) if output.ndim == 4 else output)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConvFeatureExtractor(net, layer=-1).fit(X)


def test_no_warning_where_there_is_no_other_layer_to_name():
    net, X = nn.Conv2d(3, 4, 3), images(5)
    with torch.no_grad():
        assert_close(features(net, X, "penultimate"), net(as_input(X)).mean((2, 3)))


# Layers that put out no tensor ----------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return x, self.conv(x)


class Structured(nn.Module):
    """Layers and a network that put out tuples, lists and dicts."""

    def __init__(self, output):
        super().__init__()
        self.pair, self.output = Pair(), output

    def forward(self, x):
        x, maps = self.pair(x)
        return self.output(x, maps)


STRUCTURES = [
    (lambda x, maps: (x, maps), r"tuple of 2 \(Tensor, Tensor\)"),
    (lambda x, maps: [maps], r"list of 1 \(Tensor\)"),
    (lambda x, maps: {"out": maps, "aux": None}, "dict with the keys 'out', 'aux'"),
    (lambda x, maps: None, "NoneType"),
]


@pytest.mark.parametrize(("output", "words"), STRUCTURES)
def test_what_puts_out_no_tensor_is_named_and_the_rest_can_be_tapped(output, words):
    net, X = Structured(output), images(6)
    assert_close(features(net, X, "pair.conv"), activations(net, X)["pair.conv"].mean((2, 3)))
    assert ConvFeatureExtractor(net, layer="*").fit(X).layers_ == ["pair.conv"]
    with pytest.raises(ValueError, match=f"'penultimate': the network puts out {words}.*pair"):
        features(net, X, "penultimate")
    for layer in ("pair", "pai?"):
        with pytest.raises(ValueError, match=r"'pair' puts out tuple of 2.*inside it: pair\.conv"):
            features(net, X, layer)


def test_networks_for_features_only(timm):
    net, X = create(timm, "resnet18", features_only=True), images(64)
    assert_close(features(net, X, "layer3"), activations(net, X)["layer3"].mean((2, 3)))
    with pytest.raises(ValueError, match=r"puts out list of 5 .*Name a layer.*layer4"):
        features(net, X, "penultimate")


def test_networks_for_segmentation(torchvision):
    torch.manual_seed(0)
    net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    ).eval()
    X = images(32)
    assert_close(features(net, X, "backbone.3"), activations(net, X)["backbone.3"].mean((2, 3)))
    with pytest.raises(ValueError, match="'backbone' puts out OrderedDict with the keys 'low'"):
        features(net, X, "backbone")
    with pytest.raises(ValueError, match=r"the network puts out OrderedDict.*'out'"):
        features(net, X, "penultimate")
