"""The digest of a network tells networks apart by what they compute, and by nothing else."""

import copy
import functools
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from sklconv._digests import Undigestible, network_digest


def conv_net(activation=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), activation or nn.ReLU(), nn.BatchNorm2d(4))


class Scaled(nn.Module):
    """A module with code, constants, attributes and defaults of its own."""

    offset = 1.0

    def __init__(self, factor=2.0, function=torch.relu):
        super().__init__()
        self.factor, self.function = factor, function
        self.options = {"sizes": [1, 2], "names": {"a", "b", "c"}}
        self.register_buffer("shift", torch.ones(2), persistent=False)

    def forward(self, x, power=1):
        return self.function(x) * self.factor**power + self.offset


def scaled_from(body):
    """A class like `Scaled` with another ``forward``, from source text."""
    namespace = {"torch": torch, "Scaled": Scaled, "__name__": __name__}
    text = f"class Other(Scaled):\n    def forward(self, x, power=1):\n        {body}\n"
    exec(text, namespace)
    return namespace["Other"]()


def test_equal_networks_have_equal_digests():
    net = nn.Sequential(conv_net(), Scaled(), Scaled(function=functools.partial(torch.add, 1)))
    digest = network_digest(net)
    assert network_digest(copy.deepcopy(net)) == digest
    assert network_digest(pickle.loads(pickle.dumps(net))) == digest
    net.train().requires_grad_(False).to(memory_format=torch.channels_last)
    assert network_digest(net) == digest


def test_another_process_finds_the_same_digest():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_digests import *\n"
        "print(network_digest(nn.Sequential(conv_net(), Scaled())))"
    )
    folder = __file__.rpartition("test_digests")[0]
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, folder],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {network_digest(nn.Sequential(conv_net(), Scaled()))}


def write_through_data(net):
    net[0].weight.data.zero_()


def write_one_value(net):
    net[2].running_mean[1] += 1e-6


def take_another_activation(net):
    net[1] = nn.Tanh()


def take_another_stride(net):
    net[0].stride = (2, 2)


def rename(net):
    net.add_module("more", net[1])
    del net[1]


def hook(net):
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)


def override(net):
    net[1].forward = torch.sigmoid


def tie(net):
    net[2].bias = net[2].weight


@pytest.mark.parametrize(
    "change",
    [
        write_through_data,
        write_one_value,
        take_another_activation,
        take_another_stride,
        rename,
        hook,
        override,
        tie,
    ],
)
def test_changes_of_a_network_change_its_digest(change):
    net = conv_net()
    net[2].bias.data.fill_(1.0)  # as its weight is
    before = network_digest(net)
    change(net)
    assert network_digest(net) != before


@pytest.mark.parametrize(
    "other",
    [
        Scaled(factor=3.0),
        Scaled(function=torch.tanh),
        scaled_from("return self.function(x) * self.factor**power - self.offset"),
        scaled_from("return torch.tanh(x) * self.factor**power + self.offset"),
        scaled_from("return self.function(x) * self.factor**power + 2.0"),
    ],
)
def test_other_attributes_and_other_code_have_other_digests(other):
    same = scaled_from("return self.function(x) * self.factor**power + self.offset")
    assert network_digest(other) not in (network_digest(Scaled()), network_digest(same))


def test_code_is_compared_not_its_place():
    line = "return self.function(x) * self.factor**power"
    assert network_digest(scaled_from(line)) == network_digest(scaled_from(line + "  # why"))


def enclosing(value):
    class Local(nn.Module):
        def forward(self, x):
            return x * value

    return Local()


def test_what_code_encloses_counts():
    assert network_digest(enclosing(2)) == network_digest(enclosing(2))
    assert network_digest(enclosing(2)) != network_digest(enclosing(3))


def test_defaults_and_class_constants_count(monkeypatch):
    before = network_digest(Scaled())
    monkeypatch.setattr(Scaled, "offset", 3.0)
    changed = network_digest(Scaled())
    monkeypatch.setattr(Scaled.forward, "__defaults__", (2,))
    assert len({before, changed, network_digest(Scaled())}) == 3


def test_modules_in_a_circle_have_a_digest():
    def circle():
        net = Scaled()
        net.options["self"] = [net]
        return net

    assert network_digest(circle()) == network_digest(circle())


@pytest.mark.parametrize(
    "value", [threading.Lock(), (number for number in [1])], ids=["lock", "generator"]
)
def test_what_has_no_digest_is_an_error(value):
    net = conv_net()
    net.held = value
    with pytest.raises(Undigestible, match=type(value).__name__):
        network_digest(net)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_scripted_modules_have_no_digest():
    with pytest.raises(Undigestible, match="ScriptModule"):
        network_digest(torch.jit.script(conv_net()))
