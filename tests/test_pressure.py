"""Training under a fixed pressure."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from small_task import loader
from torch import nn

import fxcat


def hidden_units_left(width: int) -> int:
    """Of an MLP with one hidden layer, trained at the same price of a unit for every width."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4))
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8), verbose=False)
    fxcat.fit(net, loader(512), epochs=60, pressure=fxcat.Pressure(nu=0.01 * width), lr=0.02, progress=False)
    return sum(net.live_units().values())


def test_the_size_does_not_depend_on_the_start_width() -> None:
    sizes = [hidden_units_left(width) for width in (32, 64, 128)]
    assert max(sizes) <= 1.5 * min(sizes) <= 15


@pytest.mark.parametrize("policy", ("bernoulli", "ratio"))
def test_a_high_pressure_leaves_the_smallest_network(policy: Literal["bernoulli", "ratio"]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 4))
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8), policy=policy, verbose=False)
    history = fxcat.fit(net, loader(512), epochs=12, pressure=fxcat.Pressure(nu=1e6), progress=False)
    assert sum(net.live_units().values()) == 1
    assert len(history.epochs) == 12
    assert fxcat.finalize(net)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
