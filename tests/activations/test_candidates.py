"""The layers that ``layer="auto"`` looks at."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklconv._activations.candidates import MAX_CANDIDATES, candidate_taps
from sklconv._activations.tap_set import place_candidates
from sklconv._activations.taps import penultimate_tap
from sklconv._networks.building import trace_network
from sklconv._networks.image_network import ImageNetwork, PreparePixels

SHAPE = (1, 8, 8)


def candidates_of(body):
    network = ImageNetwork(PreparePixels(), body).eval()
    trace = trace_network(network, SHAPE)
    return [tap.name for tap in candidate_taps(trace, penultimate_tap(trace, network))]


def placed(body, pool="auto"):
    network = ImageNetwork(PreparePixels(), body).eval()
    trace = trace_network(network, SHAPE)
    blank = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    taps = place_candidates(pool, network, trace, blank, penultimate_tap(trace, network))
    return [(layer.tap.name, layer.pool, layer.n_features) for layer in taps.tapped]


def conv_bn(n_in, n_out, inplace=False):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(inplace)
    )


class Residual(nn.Module):
    def __init__(self, n, inplace):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Stages(nn.Module):
    """A stem, blocks in stages, a head: as most pretrained networks are."""

    def __init__(self, n_stages, n_blocks, inplace=False):
        super().__init__()
        self.pad, self.stem = nn.ZeroPad2d(1), conv_bn(1, 4, inplace)
        self.stages = nn.ModuleList(
            nn.Sequential(*[Residual(4, inplace) for _ in range(n_blocks)])
            for _ in range(n_stages)
        )
        self.drop, self.head = nn.Dropout(), nn.Sequential(nn.Linear(4, 7))

    def forward(self, x):
        x = self.stem(self.pad(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(self.drop(x.mean((2, 3)))).softmax(1)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_step_is_one_candidate(inplace):
    body = nn.Sequential(*conv_bn(1, 4, inplace), nn.MaxPool2d(2), *conv_bn(4, 6, inplace))
    body.extend([nn.Flatten(), nn.Linear(96, 9), nn.ReLU(inplace), nn.Dropout(), nn.Linear(9, 3)])
    # Pooling, flattening: other features. Dropout hands on what comes in.
    assert candidates_of(body) == ["2", "3", "6", "7", "9"]


@pytest.mark.parametrize("inplace", [False, True])
def test_of_deep_networks_blocks_are_the_candidates_and_of_very_deep_ones_stages(inplace):
    blocks = [f"stages.{i}.{j}" for i in range(3) for j in range(7)]
    found = candidates_of(Stages(3, 8, inplace))
    # A stage puts out what its last block does.
    assert [n for n in found if n.startswith("stages")] == [
        name if j < 7 else f"stages.{i}"
        for i in range(3)
        for j, name in enumerate([*blocks[7 * i : 7 * i + 7], ""])
    ]
    assert found[0].startswith("stem")
    assert not any(name.startswith(("pad", "head")) for name in found)
    assert candidates_of(Stages(4, 12, inplace)) == [
        "stem", "stages.0", "stages.1", "stages.2", "stages.3", "drop"
    ]  # fmt: skip


class HiddenInABlock(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.conv, self.output = nn.Conv2d(1, 4, 3), nn.Linear(9, 3)
        self.dense = nn.Sequential(nn.Linear(4, 9), nn.ReLU(inplace))

    def forward(self, x):
        return self.output(self.dense(self.conv(x).mean((2, 3))))


@pytest.mark.parametrize("inplace", [False, True])
def test_one_activation_has_one_name(inplace):
    # What goes into the classifier is what both the block and its last layer put out.
    assert candidates_of(HiddenInABlock(inplace)) == ["conv", "dense"]


def test_there_are_never_too_many():
    body = nn.Sequential(*[nn.Linear(64, 64) for _ in range(100)])
    found = candidates_of(nn.Sequential(nn.Flatten(), *body))
    assert len(found) <= MAX_CANDIDATES + 1
    assert "99" in found  # what goes into the classifier
    assert "100" not in found


def test_the_output_is_no_candidate():
    headless = nn.Sequential(*conv_bn(1, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert candidates_of(headless) == ["2", "3"]
    wrapped = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), nn.Softmax(1))
    assert candidates_of(wrapped) == ["0.0"]  # by way of "penultimate"
    scores = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert candidates_of(scores) == ["0"]


def test_heads_that_are_averaged_are_no_candidates():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.norm = nn.Linear(64, 9), nn.LayerNorm(9)
            self.first, self.second = nn.Linear(9, 3), nn.Linear(9, 3)

        def forward(self, x):
            x = self.norm(self.hidden(x.flatten(1)))
            return (self.first(x) + self.second(x.relu())) / 2

    assert candidates_of(TwoHeads()) == ["norm"]


def test_a_layer_that_runs_twice_is_taken_at_its_last_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.output = (
                nn.Linear(64, 64),
                nn.Linear(64, 64),
                nn.Linear(64, 2),
            )

        def forward(self, x):
            return self.output(F.relu(self.again(self.again(self.first(x.flatten(1))))))

    body = Twice()
    network = ImageNetwork(PreparePixels(), body).eval()
    trace = trace_network(network, SHAPE)
    taps = candidate_taps(trace, penultimate_tap(trace, network))
    assert [(tap.name, tap.n_calls) for tap in taps] == [
        ("first", 1), ("again", 2), ("penultimate", 1)
    ]  # fmt: skip


def test_maps_are_pooled_in_both_ways_where_they_are_small():
    body = nn.Sequential(
        nn.Conv2d(1, 512, 1), nn.MaxPool2d(2), nn.Conv2d(512, 300, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(300, 2),
    )  # fmt: skip
    assert placed(body) == [
        ("0", "avg", 512),  # of 32,768 values
        ("1", "flatten", 512 * 16), ("1", "avg", 512),
        ("2", "flatten", 1200), ("2", "avg", 300),
        ("3", "avg", 300),
        ("4", "auto", 300),
    ]  # fmt: skip
    assert placed(body, "max")[:2] == [("0", "max", 512), ("1", "max", 512)]


def test_what_can_not_be_pooled_is_left_out():
    class Windows(nn.Module):
        """Puts out more rows than images."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.scale * x.reshape(2 * len(x), -1)

    body = nn.Sequential(
        nn.Conv2d(1, 4, 1), Windows(), nn.Unflatten(0, (-1, 2)), nn.Flatten(), nn.Linear(256, 2)
    )
    names = [name for name, *_ in placed(body)]
    assert "1" not in names
    assert {"0", "3"} <= set(names)
    assert [name for name, *_ in placed(body, lambda maps: maps.amax((2, 3)))] == ["0"]
    maps_only = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(ValueError, match=r"no layer in front of the output.*class token"):
        placed(maps_only, "cls")


@pytest.mark.parametrize("body", [nn.Flatten(), nn.Sequential(nn.Flatten())])
def test_a_network_of_nothing_but_an_output_has_none(body):
    with pytest.raises(ValueError, match="no layer in front of the output"):
        placed(body)
