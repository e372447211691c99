"""The lean steps of torch's optimizers against torch's own."""

import copy

import pytest
import torch
from torch import nn

from sklconv._training.optimizers import FusedAdamSteps, lean_step


def problem():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    return network, torch.randn(20, 7), torch.randint(0, 3, (20,))


def train(network, X, y, optimizer, step, parts):
    """Take as many steps as ``parts``, each with the gradients of the parameters it names."""
    for number, part in enumerate(parts):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)

        def closure(part=part):
            network.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(network(X), y)
            loss.backward()
            for name, parameter in network.named_parameters():
                if part not in name:
                    parameter.grad = None
            return loss

        with torch.no_grad():
            step(closure)
    return [parameter.detach() for parameter in network.parameters()]


@pytest.mark.parametrize(
    "parts",
    [[""] * 6, ["", "", "weight", "", "0.", ""], ["weight", "", "", ""], ["9", "", ""]],
    ids=["all", "missing in between", "missing at first", "none at first"],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"maximize": True}],
    ids=["defaults", "others", "maximize"],
)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("frozen", [[], ["0.weight"], ["2.weight", "2.bias"]], ids=str)
def test_fused_adam_steps_are_torchs_to_the_bit(optimizer, settings, parts, frozen):
    network, X, y = problem()
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    weights = []
    for wrap in (lambda optimizer: lean_step(optimizer, alone=True), lambda o: o.step):
        twin = copy.deepcopy(network)
        first, *_, last = twin
        groups = [{"params": first.parameters()}, {"params": last.parameters(), "lr": 0.01}]
        steps = optimizer(groups, lr=0.1, fused=True, **settings)
        weights.append(train(twin, X, y, steps, wrap(steps), parts))
    for got, expected in zip(*weights, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("optimizer", "suits"),
    [
        (lambda p: torch.optim.AdamW(p, fused=True), True),
        (lambda p: torch.optim.AdamW(p), False),
        (lambda p: torch.optim.AdamW(p, fused=True, amsgrad=True), False),
        (lambda p: torch.optim.SGD(p, fused=True), False),
        (lambda p: type("Mine", (torch.optim.AdamW,), {})(p, fused=True), False),
    ],
    ids=["fused", "not fused", "amsgrad", "another", "a subclass"],
)
def test_which_optimizers_are_replaced(optimizer, suits):
    made = optimizer(problem()[0].parameters())
    assert isinstance(lean_step(made, alone=True), FusedAdamSteps) == suits
    assert not isinstance(lean_step(made, alone=False), FusedAdamSteps)


@pytest.mark.parametrize("observer", ["hook", "scheduler"])
def test_hooks_and_schedulers_of_the_optimizer_are_called(observer):
    network, X, y = problem()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    own, called = optimizer.step, []
    if observer == "hook":
        optimizer.register_step_post_hook(lambda *_: called.append(1))
    else:
        optimizer.step = lambda closure: called.append(1) or own(closure)
    train(network, X, y, optimizer, lean_step(optimizer, alone=True), ["", ""])
    assert len(called) == 2
