"""The layer table: what is in it, what its numbers add up to, and how a long one is printed."""

import numpy as np
import pytest
import torch
from torch import nn

from sklconv import Backbone, ConvNetClassifier, __main__
from sklconv._activations.taps import penultimate_tap
from sklconv._networks.building import build_network, trace_network
from sklconv._networks.image_network import ImageNetwork, PreparePixels
from sklconv._networks.table import (
    MAX_ROWS,
    format_layers,
    layer_rows,
    stage_rows,
    without_containers,
)
from sklconv.layers import BatchNorm, Conv, Dense, Dropout, MaxPool


class Shared(nn.Module):
    """One convolution under two names, and one weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.first
        self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 3)
        self.down.weight = self.up.weight

    def forward(self, x):
        return self.down(self.up(self.again(self.first(x)).mean((2, 3))))


class Tokens(nn.Module):
    """Parameters outside of all layers, in a container, and in layers without an output."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.block = Scaled()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.spare = nn.Linear(8, 5)
        self.head = nn.Linear(8, 2)

    def forward(self, x):  # (N, 3, H, W) -> (N, 2)
        tokens = self.block(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.attention(tokens, tokens, tokens)[0][:, 0])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.gamma * self.conv(x)


class Bare(nn.Module):
    """A network without any layers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x):
        return x.mean((2, 3)) @ self.weight


def declarative():
    steps = [
        ("conv", Conv(8, 3)),
        ("bn", BatchNorm()),
        ("pool", MaxPool(2)),
        ("drop", Dropout(0.5)),
    ]
    steps.append(("dense", Dense(16)))
    return build_network(steps, (3, 16, 16), 4, statistics=None, seed=0).body


def partly_frozen():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 2))
    network[0].requires_grad_(False)
    network[3].bias.requires_grad_(False)
    return network


def lite0(**params):
    pytest.importorskip("efficientnet_lite_pytorch")
    return Backbone("efficientnet_lite/efficientnet-lite0", weights=None, **params)


NETWORKS = {
    "declarative": declarative,
    "partly frozen": partly_frozen,
    "shared": Shared,
    "tokens": Tokens,
    "bare": Bare,
    "a layer": lambda: nn.AvgPool2d(2),
    "efficientnet-lite0": lambda: lite0().load(),
    "resnet18": lambda timm: timm.create_model("resnet18"),
    "vit": lambda timm: timm.create_model("vit_tiny_patch16_224"),
    "swin": lambda timm: timm.create_model("swin_tiny_patch4_window7_224"),
}


# Sides of the images that networks with these parts take; others take 16.
SIDES = {"patch_embed": 224, "_conv_stem": 32, "layer4": 32}


@pytest.fixture(params=NETWORKS)
def network(request):
    if request.param in ("resnet18", "vit", "swin"):
        return NETWORKS[request.param](request.getfixturevalue("timm"))
    return NETWORKS[request.param]()


def trace(network):
    side = next((size for name, size in SIDES.items() if hasattr(network, name)), 16)
    return trace_network(ImageNetwork(PreparePixels(), network).eval(), (3, side, side))


def total(network, learnable=True):
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not learnable)


@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize("containers", [True, False])
def test_the_numbers_add_up(network, learnable, containers):
    calls, output = trace(network)
    rows = layer_rows(network, calls, output, learnable=learnable)
    rows = rows if containers else without_containers(rows)
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    expected = total(network, learnable)
    assert sum(row["n_parameters"] or 0 for row in rows) == expected
    text = format_layers(rows, (3, 16, 16), "parameters").splitlines()
    assert text[-1] == f"{expected:,} parameters"
    cells = [line.split() for line in text[3:-2]]
    counted = [row for row in cells if len(row) > 3]
    assert sum(int(row[3].replace(",", "")) for row in counted) == expected
    assert all(len(row) > 3 or containers for row in cells)
    shares = [row["parameter_share"] for row in rows]
    numbers = [row["n_parameters"] for row in rows]
    assert shares == [None if n is None else n / max(expected, 1) for n in numbers]
    assert [row[4] for row in counted] == [f"{n:.1%}" for n in shares if n is not None]


def test_every_layer_and_every_parameter_has_its_row(network):
    calls, output = trace(network)
    rows = {row["name"]: row for row in without_containers(layer_rows(network, calls, output))}
    shapes = {call.name: tuple(call.output.shape[1:]) for call in calls}
    for name, module in network.named_modules():
        has_own = any(True for _ in module.parameters(recurse=False))
        is_leaf = name in shapes and not any(module.children())
        assert ((name or "(network)") in rows) == (has_own or is_leaf)
        if name in rows:
            assert rows[name]["output_shape"] == shapes.get(name)
    ends = {call.name: position for position, call in enumerate(calls)}
    positions = [ends[name] for name in rows if name in ends]
    assert positions == sorted(positions)


def test_a_stage_counts_all_that_is_in_it(network):
    calls, output = trace(network)
    rows = layer_rows(network, calls, output)
    stages = stage_rows(rows, network)
    assert sum(row["n_parameters"] for row in stages) == total(network)
    if len(without_containers(rows)) <= MAX_ROWS:
        assert stages == without_containers(rows)
        return
    assert len(stages) <= MAX_ROWS
    modules, shapes = dict(network.named_modules()), {c.name: c.output.shape[1:] for c in calls}
    for row in stages:
        if row["name"] != "(network)":
            assert row["n_parameters"] == total(modules[row["name"]])
        if row["name"] in shapes:
            assert row["output_shape"] == tuple(shapes[row["name"]])


def test_stages_of_a_resnet(timm):
    network = timm.create_model("resnet18")
    calls, output = trace(network)
    rows = stage_rows(layer_rows(network, calls, output), network)
    names = [row["name"] for row in rows]
    assert names[:6] == ["conv1", "bn1", "act1", "maxpool", "layer1.0", "layer1.1"]
    assert names[-2:] == ["global_pool.flatten", "fc"]
    assert rows[5] == {
        "name": "layer1.1",
        "type": "BasicBlock",
        "output_shape": (64, 8, 8),
        "n_parameters": 73_984,
    }


def test_a_list_of_modules_is_a_stage_with_the_output_of_its_last_one():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 3, 1), nn.Linear(3, 3)

        def forward(self, x):
            return self.conv(x) * self.gate(x.mean((2, 3)))[:, :, None, None]

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Gate() for _ in range(MAX_ROWS)])
            self.end = nn.Flatten()

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.end(x)

    network = Listed()
    network.blocks.append(nn.Identity())  # one stage too many for the level of the blocks
    calls, output = trace(network)
    first, last = stage_rows(layer_rows(network, calls, output), network)
    assert (first["type"], first["output_shape"]) == ("ModuleList", (3, 16, 16))
    assert first["n_parameters"] == total(network)
    assert last["name"] == "end"


def test_many_layers_in_one_level_are_all_listed():
    network = nn.Sequential(*[nn.ReLU() for _ in range(MAX_ROWS + 5)])
    calls, output = trace(network)
    rows = layer_rows(network, calls, output)
    assert stage_rows(rows, network) == rows
    assert len(rows) == MAX_ROWS + 5


def test_layers_without_an_output_come_last():
    network = Tokens()
    rows = without_containers(layer_rows(network, *trace(network)))
    assert [(row["name"], row["output_shape"], row["n_parameters"]) for row in rows] == [
        ("block.conv", (8, 14, 14), 224),
        ("block", (8, 14, 14), 8),
        ("head", (2,), 18),
        ("attention", None, 3 * 64 + 3 * 8),
        ("attention.out_proj", None, 72),
        ("spare", None, 45),
        ("(network)", (2,), 8),
    ]
    line = format_layers(rows, (3, 16, 16), "parameters").splitlines()[-5]
    name = "attention.out_proj"
    assert line.split() == [name, "NonDynamicallyQuantizableLinear", "–", "72", "12.2%"]


def test_shared_parameters_are_counted_where_they_come_first():
    network = Shared()
    rows = layer_rows(network, *trace(network))
    assert [(row["name"], row["n_parameters"]) for row in rows] == [
        ("first", 84),
        ("up", 12),
        ("down", 3),
    ]


HEADS = {
    "a layer's output": (nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), "the output of 0"),
    "a layer's input": (Tokens(), "the input of head"),
    "the network's output": (nn.Sequential(nn.Flatten(), nn.Linear(768, 2), nn.ReLU()), None),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_table_marks_what_goes_into_the_classifier(kind):
    body, words = HEADS[kind]
    network = ImageNetwork(PreparePixels(), body).eval()
    seen = trace_network(network, (3, 16, 16))
    tap = penultimate_tap(seen, network)
    rows = layer_rows(body, *seen, penultimate=tap)
    marked = {row["name"]: row["penultimate"] for row in rows if row["penultimate"]}
    text = format_layers(rows, (3, 16, 16), "parameters", tap).splitlines()[-1]
    if words is None:
        assert not marked
        assert "penultimate" not in text
    else:
        ((name, side),) = marked.items()
        assert text == f"penultimate: {words}" == f"penultimate: the {side} of {name}"


def test_the_classifiers_table_and_what_it_prints(capsys):
    X = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    clf = ConvNetClassifier(lite0(image_size=32), max_epochs=1, verbose=1, random_state=0)
    clf.fit(X, [0, 1] * 4)
    names = list(clf.layer_table_["name"])
    assert "_conv_stem" in names
    assert clf.layer_table_["n_parameters"].sum() == total(clf.module_) == 3_373_570
    lines = capsys.readouterr().out.splitlines()
    end = lines.index("3,373,570 learnable parameters")
    assert lines[end + 1] == "penultimate: the output of _dropout"
    assert lines[end + 2] == f"{len(names)} layers, shown by stage; layer_table_ has them all"
    assert lines[end + 3].startswith("epoch")
    numbers = [int(line.split()[-2].replace(",", "")) for line in lines[3 : end - 1]]
    assert sum(numbers) == 3_373_570
    assert len(numbers) <= MAX_ROWS
    clf.set_params(freeze=["_blocks.*", "_conv*"]).fit(X, [0, 1] * 4)
    assert clf.layer_table_["n_parameters"].sum() == total(clf.module_) < 3_373_570


def test_the_commands_table_counts_frozen_ones_and_lists_containers(tmp_path, monkeypatch, capsys):
    (tmp_path / "frozen_nets.py").write_text(
        "from torch import nn\n"
        "part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False)\n"
        "network = nn.Sequential(part, nn.Flatten(), nn.Linear(400, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert __main__.main(["layers", "frozen_nets:network", "--image-size", "12"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert lines[:-3] == [
        ["0.0", "Conv2d", "4×10×10", "112", "12.3%"],
        ["0.1", "ReLU", "4×10×10", "0", "0.0%"],
        ["0", "Sequential", "4×10×10"],
        ["1", "Flatten", "400", "0", "0.0%"],
        ["2", "Linear", "2", "802", "87.7%"],
    ]
    assert lines[-2:] == [["914", "parameters"], ["penultimate:", "the", "output", "of", "1"]]
