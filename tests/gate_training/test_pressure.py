"""Training under a fixed pressure."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from small_task import Net, loader
from torch import nn

import fxcat
from fxcat.choosing.sharing import shared_worth
from fxcat.gate_training.pressure import FixedPressure


def hidden_units_left(width: int, seed: int) -> int:
    """Of an MLP with one hidden layer, trained at the same price of a unit for every width."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4))
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8), verbose=False)
    pressure = fxcat.Pressure(nu=0.01 * width)
    fxcat.fit(net, loader(512), epochs=120, pressure=pressure, lr=0.02, progress=False, seed=seed)
    return sum(net.live_units().values())


@pytest.mark.slow
def test_the_size_does_not_depend_on_the_start_width() -> None:
    """On average over seeds: a single unit is a fifth of what is left."""
    small, large = (sum(hidden_units_left(width, seed) for seed in range(3)) / 3 for width in (32, 128))
    assert max(small, large) <= 1.5 * min(small, large) <= 15


@pytest.mark.parametrize("policy", ("bernoulli", "ratio"))
def test_a_high_pressure_leaves_the_smallest_network(policy: Literal["bernoulli", "ratio"]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 4))
    net = fxcat.prepare(model, torch.zeros(1, 3, 8, 8), policy=policy, verbose=False)
    history = fxcat.fit(net, loader(512), epochs=12, pressure=fxcat.Pressure(nu=1e6), progress=False)
    assert sum(net.live_units().values()) == 1
    assert len(history.epochs) == 12
    assert fxcat.finalize(net)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


WIDE, NARROW = range(40), range(40, 52)
"""Gates of the two groups of `two_hidden_layers`."""


def two_hidden_layers() -> fxcat.GatedModule:
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 2))
    return fxcat.prepare(model, torch.zeros(1, 4), verbose=False)


@pytest.mark.parametrize(
    ("objective", "spread"),
    (
        ({"pressure": fxcat.Pressure(nu=0.5)}, True),
        ({"pressure": fxcat.Pressure(nu=0.0)}, False),
        ({"target": fxcat.Target(flops=0.5)}, False),
    ),
)
def test_units_share_the_task_from_the_warm_up_on_under_pressure(objective: dict[str, Any], spread: bool) -> None:
    """A tenth of the units is closed at random, and some sections, to see what they are worth; nothing in inference."""
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.01)
    controller = fxcat.GateController(net, optimizer, total_steps=1000, warmup=0.1, **objective)
    images, samples = torch.zeros(2, 3, 8, 8), list[torch.Tensor]()
    for _ in range(99):
        optimizer.zero_grad()
        net(images).sum().backward()
        optimizer.step()
        samples.append(net.gate_vector.draws.used[0].sample)
        controller.step()
    units, sections = torch.stack(samples).split([net.gate_vector.unit_count, 1], dim=1)
    assert 0.08 < 1 - float(units.mean()) < 0.12 if spread else bool(units.all())
    explores = objective.get("pressure") != fxcat.Pressure(nu=0.0)
    assert 0.02 < 1 - float(sections.mean()) < 0.2 if explores else bool(sections.all())
    assert bool((net.gate_vector.theta == 1).all())
    assert bool(net.eval().gate_vector().all())


@pytest.mark.parametrize("policy", ("bernoulli", "ratio"))
def test_without_a_warm_up_gates_are_trained_from_the_first_step(policy: Literal["bernoulli", "ratio"]) -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), policy=policy, verbose=False)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.01)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=100, warmup=0.0)
    assert net.gate_vector.values == controller.policy.values


def test_nothing_falls_without_pressure() -> None:
    worth = torch.zeros(52)
    worth[[3, 7, 45]] = 0.1
    pressure = FixedPressure(fxcat.Pressure(nu=0.0))
    slopes, _ = pressure.slopes(two_hidden_layers(), worth, torch.zeros_like(worth).bool(), 1.0)
    assert not slopes.any()


def falling(shares: torch.Tensor, dead: list[int]) -> set[int]:
    """Of gates that are worth these shares of their cost by themselves: which are pushed towards zero."""
    net, policy = two_hidden_layers(), FixedPressure(fxcat.Pressure(nu=3.0))
    is_dead = torch.zeros(52, dtype=torch.bool)
    is_dead[dead] = True
    costs, _ = policy.slopes(net, torch.zeros(52), is_dead, 1.0)
    worth = shared_worth(net, shares * costs, ~is_dead)
    slopes, _ = policy.slopes(net, worth, is_dead, 1.0)
    return {i for i in range(52) if i not in dead and slopes[i] > worth[i]}


def test_units_of_a_group_worth_less_than_it_costs_fall_in_turn() -> None:
    """So many that the others will be worth their cost, as worth falls with the width squared; the least first."""
    shuffled = torch.Generator().manual_seed(0)
    shares = torch.cat([torch.linspace(0.3, 0.7, n)[torch.randperm(n, generator=shuffled)] for n in (40, 12)])
    found = falling(shares, [])
    for units, too_many in ((WIDE, 12), (NARROW, 4)):  # a share of 1 − √0.5
        assert found & {*units} == {*sorted(units, key=lambda i: float(shares[i]))[:too_many]}


def test_one_unit_falls_where_a_group_is_worth_hardly_less_than_it_costs() -> None:
    """What is dead no longer counts."""
    shares = torch.full((52,), 1.02)
    shares[[0, 45]] = 0.0
    shares[50] = 0.8
    shares[51] = 1.01
    found = falling(shares, [0, 45])
    assert found == {50}


def test_a_group_worth_more_than_it_costs_stays_but_for_what_is_worth_next_to_nothing() -> None:
    shares = torch.full((52,), 1.2)
    shares[[3, 7, 41]] = 0.05
    shares[[4, 42]] = 0.2
    assert falling(shares, []) == {3, 7, 41}


def test_a_unit_without_which_nothing_works_does_not_keep_the_others() -> None:
    shares = torch.full((52,), 0.5)
    shares[[0, 40]] = 1e6
    found = falling(shares, [])
    assert 5 <= len(found & {*WIDE}) <= 12
    assert len(found & {*NARROW}) <= 4
    assert not found & {0, 40}


def test_a_few_units_that_work_are_not_taken_for_the_many_that_do_not() -> None:
    shares = torch.full((52,), 1e-4)
    shares[:4] = 2.0
    assert falling(shares, []) & {*WIDE} == {*WIDE} - {*range(4)}
