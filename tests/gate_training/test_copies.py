"""Copies of a network that is trained: snapshots, teachers, averages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loops import STEPS, X, Y, controller_of, plain, prepared, same, sgd, trained
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxcat


class Keeping:
    """Copies of a network that somebody makes on the way, or changes."""

    def __init__(self, kind: str) -> None:
        self.kind, self.copies = kind, list[Any]()

    def __call__(self, net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, step: int) -> None:
        plain(net, optimizer, step)
        if not self.copies or (self.kind == "snapshots" and step % 20 == 0):
            self.copies.append(AveragedModel(net) if self.kind == "average" else copy.deepcopy(net))
        if self.kind == "loaded":
            self.copies[0].load_state_dict(net.state_dict())
        if self.kind == "trained apart":
            F.cross_entropy(self.copies[0](X[:8]), Y[:8]).backward()
            torch.optim.SGD(self.copies[0].weight_parameters(), lr=0.01).step()
        if self.kind == "average":
            self.copies[0].update_parameters(net)


@pytest.mark.parametrize("kind", ["snapshots", "loaded", "trained apart"])
def test_copies_that_are_no_averages_may_stay(kind: str) -> None:
    assert same(trained(Keeping(kind)), trained(plain))


def test_an_average_that_is_not_named_is_an_error() -> None:
    with pytest.raises(fxcat.InputError, match="a copy of the network is changed while it trains"):
        trained(Keeping("average"), steps=2)


def averaged_by_data(average: nn.Parameter, parameter: nn.Parameter) -> None:
    average.data.mul_(0.9).add_(parameter.data, alpha=0.1)


def averaged_as_other_data(average: nn.Parameter, parameter: nn.Parameter) -> None:
    average.data = 0.9 * average.data + 0.1 * parameter.data


@pytest.mark.parametrize("average", [averaged_by_data, averaged_as_other_data])
@pytest.mark.parametrize("begins", [0, 20])
def test_averages_whose_writes_torch_does_not_count(
    average: Callable[[nn.Parameter, nn.Parameter], None], begins: int
) -> None:
    """Momentum encoders are written so (MoCo, DINO). The error comes before anything has become smaller."""
    net = prepared()
    slow, optimizer = copy.deepcopy(net), sgd(net)
    controller = controller_of(net, optimizer)
    with pytest.raises(fxcat.InputError, match="a copy of the network is changed while it trains"):
        for i in range(STEPS):
            plain(net, optimizer, i)
            controller.step()
            for own, trained_one in zip(slow.parameters(), net.parameters(), strict=True) if i >= begins else ():
                average(own, trained_one)
    assert controller.steps < STEPS


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n.double(),
        lambda n: n.to(memory_format=torch.channels_last),
        lambda n: fxcat.one_shot(n, torch.rand(n.gate_vector.theta.shape), target=fxcat.Target(flops=0.5)),
    ],
)
def test_a_copy_in_another_form_is_no_average(change: Callable[[fxcat.GatedModule], object]) -> None:
    copies: list[fxcat.GatedModule] = []

    def step(net: fxcat.GatedModule, optimizer: torch.optim.Optimizer, i: int) -> None:
        plain(net, optimizer, i)
        if i == 3:
            copies.append(copy.deepcopy(net).eval())
            change(copies[0])

    assert same(trained(step), trained(plain))
