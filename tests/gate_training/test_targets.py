"""What is left lies below the target, and no further than it is worth: also where whole sections can go."""

from __future__ import annotations

import pytest
import torch
from three_sections import prepared
from torch import nn

import fxcat
from fxcat.choosing.cost_shares import SLACK, cost_fractions
from fxcat.choosing.select import close_until, select_structure
from fxcat.gate_training.bernoulli import BernoulliPolicy


@pytest.mark.parametrize("flops", (0.6, 0.4, 0.2))
@pytest.mark.parametrize("seed", range(3))
def test_never_so_much_dies_that_the_target_is_undercut(seed: int, flops: float) -> None:
    """Whatever gates are worth: here noise, and sections are worth next to nothing."""
    net, steps, target = prepared(), 300, fxcat.Target(flops=flops)
    theta, units = net.gate_vector.theta, net.gate_vector.unit_count
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(theta.numel(), generator=generator)
    mean[units:] *= 0.5
    worth = mean.clone()
    policy = BernoulliPolicy(net, target, gated=steps)
    policy.prices.worth = lambda measured: worth  # type: ignore[method-assign]
    for step in range(steps):
        worth.lerp_(mean + torch.randn(theta.numel(), generator=generator), 0.02)
        policy.update(step, step / steps)
        alive = cost_fractions(net, (~policy.dead).to(theta.dtype))
        assert float(alive[0]) >= (1 - SLACK) * flops
    assert bool(policy.dead.any())
    score = worth.clamp(min=0) * (theta.detach() + 1e-3)
    setting = select_structure(net, target, score, net.gate_vector.hard())
    assert float(cost_fractions(net, setting)[0]) <= flops


def scored(net: fxcat.GatedModule, sections: list[float]) -> torch.Tensor:
    """What stands in the way of the blocks is worth much, hidden units 1."""
    score = torch.ones(net.gate_vector.theta.numel())
    score[:16] = 100.0
    score[-3:] = torch.tensor(sections)
    return score


@pytest.mark.parametrize("round_to", (1, 8))
def test_units_go_in_place_of_a_section_that_is_too_large(round_to: int) -> None:
    net = prepared(round_to=round_to)
    score = scored(net, [1e-6] * 3)
    setting = select_structure(net, fxcat.Target(flops=0.951), score, torch.ones_like(score))
    assert setting[-3:].tolist() == [1, 1, 1]
    assert 0.94 <= float(cost_fractions(net, setting)[0]) <= 0.951  # a block of 8 units is 4.9 %


def test_a_section_that_is_worth_nothing_goes_even_if_it_is_large() -> None:
    """Without the last one the network is well below the target, and nothing else has to go."""
    net = prepared()
    score = scored(net, [1e-6] * 3)
    setting = select_structure(net, fxcat.Target(flops=0.5), score, torch.ones_like(score))
    assert int((setting == 0).sum()) == 1
    assert setting[-1] == 0


def test_large_units_go_before_the_small_ones_are_used_up() -> None:
    """A layer of few units that cost much, and a cheap one that everything hangs on once it is small."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 40), nn.ReLU(), nn.Linear(40, 4)
    )
    net = fxcat.prepare(model, torch.zeros(1, 1, 12, 12), verbose=False)
    score = torch.cat([torch.linspace(10, 11, 8), 1.08 ** torch.arange(40.0)])
    setting = select_structure(net, fxcat.Target(flops=0.8), score, torch.ones_like(score))
    assert int(setting[8:].sum()) >= 32
    assert float(cost_fractions(net, setting)[0]) <= 0.8


def test_slopes_close_what_goes_and_open_what_must_stay() -> None:
    net = prepared()
    for flops, sections in ((0.96, [1, 1, 1]), (0.45, [1, 1, 0])):
        score = scored(net, [-0.1, 0.0001, 0.1])
        score[:-3] += torch.rand(len(score) - 3, generator=torch.Generator().manual_seed(0))
        wanted = torch.tensor([flops, 1.0], dtype=torch.float64)
        nothing = torch.zeros(len(score), dtype=torch.bool)
        setting, slopes = close_until(net, torch.ones_like(score), score, wanted, nothing, final=wanted)
        assert setting[-3:].tolist() == sections
        assert bool((score <= slopes + 1e-6)[setting == 0].all())
        assert bool((score > slopes)[-3:][setting[-3:] == 1].all())
        assert bool((score < slopes)[-3:][setting[-3:] == 0].all())


def test_of_sections_alone_those_go_that_are_worth_least() -> None:
    net = prepared("layers")
    for score, expected in (([1.0, 1.0, 9.0], [0, 0, 1]), ([1.0, 9.0, 1.0], [1, 1, 0])):
        setting = select_structure(net, fxcat.Target(flops=0.65), torch.tensor(score), torch.ones(3))
        assert setting.tolist() == expected
