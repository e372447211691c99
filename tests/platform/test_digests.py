"""The digest of a network tells networks apart by what they compute, and by nothing else."""

import collections
import copy
import enum
import functools
import logging
import os
import pickle
import subprocess
import sys
import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklconv._platform.digests import Undigestible, digest_of


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
    digest = digest_of(net)
    assert digest_of(copy.deepcopy(net)) == digest
    assert digest_of(pickle.loads(pickle.dumps(net))) == digest
    net.train().requires_grad_(False).to(memory_format=torch.channels_last)
    assert digest_of(net) == digest


def test_another_process_finds_the_same_digest():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_digests import *\n"
        "print(digest_of(nn.Sequential(conv_net(), Scaled())))"
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
    assert digests == {digest_of(nn.Sequential(conv_net(), Scaled()))}


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
    before = digest_of(net)
    change(net)
    assert digest_of(net) != before


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
    assert digest_of(other) not in (digest_of(Scaled()), digest_of(same))


def test_code_that_exec_ran_counts():
    one, other = {}, {}
    exec("def scale(x): return x", one)
    exec("def scale(x): return x * 2", other)
    assert digest_of(holding(one["scale"])) != digest_of(holding(other["scale"]))


@pytest.mark.parametrize(
    "net", [nn.LSTM(3, 4), torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))]
)
def test_networks_of_torchs_own_have_digests(net):
    assert digest_of(net.eval()) == digest_of(copy.deepcopy(net))


def test_loggers_have_a_digest_that_stays():
    net = holding(logging.getLogger(__name__))
    before = digest_of(net)
    logging.getLogger(f"{__name__}.other")
    assert digest_of(net) == before


def test_code_is_compared_not_its_place():
    line = "return self.function(x) * self.factor**power"
    assert digest_of(scaled_from(line)) == digest_of(scaled_from(line + "  # why"))


def enclosing(value):
    class Local(nn.Module):
        def forward(self, x):
            return x * value

    return Local()


def test_what_code_encloses_counts():
    assert digest_of(enclosing(2)) == digest_of(enclosing(2))
    assert digest_of(enclosing(2)) != digest_of(enclosing(3))


def test_defaults_and_class_constants_count(monkeypatch):
    before = digest_of(Scaled())
    monkeypatch.setattr(Scaled, "offset", 3.0)
    changed = digest_of(Scaled())
    monkeypatch.setattr(Scaled.forward, "__defaults__", (2,))
    assert len({before, changed, digest_of(Scaled())}) == 3


def pre_hook(net, function):
    net.register_forward_pre_hook(function)


def post_hook(net, function):
    net.register_forward_hook(function)


def hooked(register):
    net = conv_net()
    register(net, print)
    return net


def holding(value):
    net = conv_net()
    net.held = value
    return net


def activation(base):
    class Activation(base):
        pass

    return Activation()


def option(value):
    class Option(enum.Enum):
        SCALE = value

    return Option.SCALE


def named_tuple(offset):
    class Config(NamedTuple):
        scale: float = 1.0

        def scaled(self, x):
            return self.scale * x + offset

    return Config()


class Slotted:
    __slots__ = ("scale",)


class SlottedAndMore(Slotted):
    def __init__(self, scale):
        self.scale, self.more = scale, 1


class Recent(collections.deque):
    pass


def cached(value):
    class Cached(nn.Module):
        @functools.lru_cache  # noqa: B019
        def scale(self):
            return value

    return Cached()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (activation(nn.Sigmoid), activation(nn.Tanh)),
        (hooked(pre_hook), hooked(post_hook)),
        (cached(1), cached(2)),
        *(
            (holding(one), holding(other))
            for one, other in [
                (option(1.0), option(2.0)),
                (F.max_pool2d, F.adaptive_max_pool2d),
                (torch.Tensor.relu, torch.Tensor.tanh),
                (np.tanh, np.sinh),
                (torch.tensor(1.0).mul, torch.tensor(2.0).mul),
                ({0: 1}.get, {0: 2}.get),
                (named_tuple(1), named_tuple(2)),
                (SlottedAndMore(1), SlottedAndMore(2)),
                (Recent([1]), Recent([2])),
                (lambda *x: x, lambda **x: x),
                (np.array(0, "M8[s]"), np.array(1, "M8[s]")),
                (np.zeros((0, 2)), np.zeros((0, 3))),
                (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
            ]
        ),
    ],
)
def test_other_values_of_any_kind_have_other_digests(one, other):
    assert digest_of(one) == digest_of(copy.deepcopy(one))
    assert digest_of(one) != digest_of(other)


@pytest.mark.parametrize("value", [nn.LazyLinear(2), 10**5000], ids=["lazy", "large"])
def test_what_raises_has_no_digest(value):
    with pytest.raises(Undigestible):
        digest_of(holding(value))


def test_modules_in_a_circle_have_a_digest():
    def circle():
        net = Scaled()
        net.options["self"] = [net]
        return net

    assert digest_of(circle()) == digest_of(circle())


@pytest.mark.parametrize(
    "value", [threading.Lock(), (number for number in [1])], ids=["lock", "generator"]
)
def test_what_has_no_digest_is_an_error(value):
    net = conv_net()
    net.held = value
    with pytest.raises(Undigestible, match=type(value).__name__):
        digest_of(net)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_scripted_modules_have_no_digest():
    with pytest.raises(Undigestible, match="ScriptModule"):
        digest_of(torch.jit.script(conv_net()))
