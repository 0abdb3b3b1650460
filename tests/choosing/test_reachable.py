"""A target that is accepted is met, and what a refusal advises is accepted: whatever the widths and the scores are."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from small_task import loader
from torch import nn

import fxcat
from fxcat import Limits, Target

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Narrow(nn.Module):
    """Groups of 20, 36, 6 and 64 units: one is narrower than the multiples that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 20, 36, 6, 64)
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*(layer for pair in layers for layer in pair))
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class Pieces(nn.Module):
    """Units of one group cost different amounts, and a piece of the group must not be emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.piece = nn.Conv2d(4, 8, 3, padding=1)
        self.whole = nn.Conv2d(28, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        whole = self.whole(torch.cat([x, x[:, :4], x[:, :4], x[:, :4]], 1))
        return self.head(torch.relu(whole + self.piece(x[:, 12:])).mean((2, 3)))


def prepared(model: nn.Module, round_to: int = 1, **options: Any) -> fxcat.GatedModule:
    return fxcat.prepare(model, EXAMPLE, round_to=round_to, verbose=False, **options)


def fractions(net: fxcat.GatedModule) -> dict[str, float]:
    cost, start = net.hard_cost(), net.start_cost
    return {"flops": cost.macs / start.macs, "params": cost.params / start.params}


def is_met(net: fxcat.GatedModule, target: Target) -> bool:
    asked = {"flops": target.flops, "params": target.params}
    return all(wanted is None or fractions(net)[name] <= wanted for name, wanted in asked.items())


@pytest.mark.parametrize("round_to", (1, 4, 8, 16))
def test_a_target_is_met_in_multiples_or_refused(round_to: int) -> None:
    net, refused = prepared(Narrow(), round_to), 0
    scores = torch.rand(net.gate_vector.theta.shape, generator=torch.Generator().manual_seed(0))
    for percent in range(2, 96, 3):
        target = Target(flops=percent / 100)
        try:
            fxcat.one_shot(net, scores, target=target)
        except fxcat.TargetError:
            refused += 1
            continue
        assert is_met(net, target), target
        left = net.live_units()
        narrow = left.pop("layers.4")
        assert 1 <= narrow <= 6
        assert not [n for n in left.values() if n % round_to]
    assert refused <= (8 if round_to == 16 else 2), "the narrow group goes down to one unit"


@pytest.mark.parametrize("policy", ("bernoulli", "ratio"))
@pytest.mark.parametrize("flops", (0.25, 0.31))
def test_trained_networks_meet_it_too(policy: Literal["bernoulli", "ratio"], flops: float) -> None:
    torch.manual_seed(0)
    net = prepared(Narrow(), 16, policy=policy)
    fxcat.fit(net, loader(128), epochs=5, progress=False, target=Target(flops=flops))
    assert is_met(net, Target(flops=flops))


@pytest.mark.parametrize(
    ("model", "options"),
    (
        (Narrow, {}),
        (Narrow, {"round_to": 16}),
        (Narrow, {"limits": {"layers.0": Limits(multiple_of=5), "layers.2": Limits(least=7)}}),
        (Pieces, {}),
        (Pieces, {"round_to": 4}),
    ),
)
@pytest.mark.parametrize("asked", ({"flops": 1e-6}, {"params": 1e-6}, {"flops": 1e-6, "params": 1e-6}))
def test_what_a_refusal_advises_is_met(
    model: type[nn.Module], options: dict[str, Any], asked: dict[str, float]
) -> None:
    net = prepared(model(), **options)
    scores = torch.rand(net.gate_vector.theta.shape, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    with pytest.raises(fxcat.TargetError) as error:
        fxcat.one_shot(net, scores, target=Target(**asked))
    assert ("round_to" in str(error.value)) == net.limits.aligned
    advised = {name: float(value) for name, value in re.findall(r"(flops|params) ≥ ([0-9.]+)", str(error.value))}
    assert advised.keys() == asked.keys()
    target = Target(**advised)
    fxcat.one_shot(net, scores, target=target)
    assert is_met(net, target)
    assert all(fractions(net)[name] > 0.99 * least for name, least in advised.items())
    fxcat.GateController(net, optimizer, target=target, total_steps=10)


def test_training_keeps_what_the_target_needs() -> None:
    """Even if the units that cost most, and whose piece needs a second one, are worth most."""
    net = prepared(Pieces())
    with pytest.raises(fxcat.TargetError) as error:
        net.gate_vector.theta.data.fill_(1.0)
        fxcat.one_shot(net, torch.ones(net.gate_vector.theta.shape), target=Target(flops=1e-6))
    least = float(re.findall(r"≥ ([0-9.]+)", str(error.value))[0])
    with torch.no_grad():
        for weight in net.weight_parameters():
            weight[:4] *= 10  # the first channels
    fxcat.fit(net, loader(256), epochs=6, lr=0.01, progress=False, target=Target(flops=least))
    assert is_met(net, Target(flops=least))
    assert fxcat.finalize(net)(EXAMPLE).shape == (1, 4)
