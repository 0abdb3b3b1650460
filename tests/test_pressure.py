"""Training under a fixed pressure."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from small_task import loader
from torch import nn

import fxcat
from fxcat.pressure import WAITS_ABOVE, FixedPressure


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


def test_units_worth_a_little_less_than_they_cost_fall_in_turn() -> None:
    """A part of a group at a time, those worth least first; at once only what is worth much less than it costs."""
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 2))
    net = fxcat.prepare(model, torch.zeros(1, 4), verbose=False)
    policy = FixedPressure(fxcat.Pressure(nu=3.0))
    dead = torch.zeros(52, dtype=torch.bool)
    dead[[0, 45]] = True
    cost = policy.slopes(net, torch.zeros(52), dead, 1.0)
    share = torch.linspace(WAITS_ABOVE, 1.4, 52)[torch.randperm(52, generator=torch.Generator().manual_seed(0))]
    share[[5, 6]] = WAITS_ABOVE - 0.01
    share[3] = share[:40].max() + 1
    slopes = policy.slopes(net, share * cost, dead, 1.0)
    for units, at_a_time in ((range(40), 7), (range(40, 52), 2)):
        candidates = [i for i in units if not dead[i] and share[i] < max(share[j] for j in units if not dead[j])]
        lowest = sorted(candidates, key=lambda i: float(share[i]))[:at_a_time]
        for i in candidates:
            assert float(slopes[i]) == (float(cost[i]) if i in lowest or share[i] < WAITS_ABOVE else 0.0)
