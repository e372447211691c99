"""What is known of a module is known until it is written into, or gone."""

import gc
import weakref

import pytest
import torch
from torch import nn

from sklconv._platform import digests
from sklconv._platform.digests import digest_once, once, remembered


@pytest.fixture
def module():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def write_into_a_weight(module):
    with torch.no_grad():
        module[0].weight.mul_(2)


def replace_a_weight(module):
    module[0].weight = nn.Parameter(module[0].weight.detach().clone())


def write_into_a_buffer(module):
    module.train()(torch.randn(4, 1, 5, 5, generator=torch.manual_seed(0)))


def replace_a_layer(module):
    module[1] = nn.Identity()


def add_a_layer(module):
    module.append(nn.ReLU())


def load_weights(module):
    module.load_state_dict(module.state_dict())


def test_it_is_made_once_for_each_key(module):
    remembered(module)
    made = []
    for key in ("a", "b", "a", "a", "b"):
        assert once(module, key, lambda key=key: made.append(key) or key.upper()) == key.upper()
    assert made == ["a", "b"]


def test_it_is_made_each_time_where_it_is_not_remembered(module):
    made = []
    for _ in range(3):
        once(module, "a", lambda: made.append(1) or True)
    assert len(made) == 3


@pytest.mark.parametrize(
    "change",
    [
        *(write_into_a_weight, replace_a_weight, write_into_a_buffer),
        *(replace_a_layer, add_a_layer, load_weights),
    ],
)
def test_it_is_made_anew_after_a_change(module, change):
    remembered(module)
    made = []
    once(module, "a", lambda: made.append(1) or True)
    change(module)
    for _ in range(2):
        once(module, "a", lambda: made.append(2) or True)
    assert made == [1, 2]


def test_old_notes_make_room(module, monkeypatch):
    monkeypatch.setattr(digests, "MAX_NOTES", 3)
    remembered(module)
    made = []
    for key in (1, 2, 3, 1, 4, 2, 3, 1):
        once(module, key, lambda key=key: made.append(key) or key)
    assert made == [1, 2, 3, 4, 1]


def test_digests_are_those_of_now(module):
    remembered(module)
    before = digest_once(module)
    assert digest_once(module) == before
    write_into_a_weight(module)
    assert digest_once(module) != before


def test_a_module_is_freed():
    module = remembered(nn.Sequential(nn.Linear(2, 2)))
    digest_once(module)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
