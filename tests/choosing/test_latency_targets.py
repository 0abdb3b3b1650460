"""Targets and pressures in milliseconds: chosen at once, and trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from artificial_latency import table_for, with_latency
from three_sections import Block
from torch import nn

import fxcat
from fxcat.choosing.cost_shares import cost_fractions


def prepared(**options: Any) -> fxcat.GatedModule:
    torch.manual_seed(0)
    blocks = [Block(32, hidden) for hidden in (16, 48, 96)]
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(32, 4))
    return fxcat.prepare(model, torch.zeros(1, 3, 8, 8), verbose=False, **options)


def shares(net: fxcat.GatedModule) -> list[float]:
    return cost_fractions(net, net.gate_vector.hard()).tolist()


def random_scores(net: fxcat.GatedModule) -> torch.Tensor:
    scores = torch.rand(net.gate_vector.theta.numel(), generator=torch.Generator().manual_seed(0))
    scores[net.gate_vector.unit_count :] *= 40  # sections do the work of many units
    return scores


@pytest.mark.parametrize("latency", (0.8, 0.5, 0.3))
def test_what_is_chosen_meets_it_and_has_widths_that_pay(latency: float) -> None:
    net = with_latency(prepared())
    fxcat.one_shot(net, random_scores(net), target=fxcat.Target(latency=latency))
    assert latency - 0.06 < shares(net)[2] <= latency
    live = net.live_units()
    assert all(live[group.name] % 8 == 0 for group in net.start_structure.groups)


def test_several_targets_are_all_met() -> None:
    net = with_latency(prepared())
    target = fxcat.Target(flops=0.6, params=0.7, latency=0.5)
    fxcat.one_shot(net, random_scores(net), target=target)
    flops, params, latency = shares(net)
    assert flops <= 0.6
    assert params <= 0.7
    assert latency <= 0.5


def test_without_a_table_it_says_what_to_do() -> None:
    net, target = prepared(), fxcat.Target(latency=0.5)
    with pytest.raises(fxcat.TargetError, match=r"net.use_latency\(fxcat.LatencyTable.measure\(net\)\)"):
        fxcat.one_shot(net, random_scores(net), target=target)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    with pytest.raises(fxcat.TargetError, match="right after prepare"):
        fxcat.GateController(net, optimizer, target=target, total_steps=10)


def test_what_cannot_be_reached_is_said_and_the_advice_works() -> None:
    net = with_latency(prepared())
    with pytest.raises(fxcat.TargetError, match="of the latency") as caught:
        fxcat.one_shot(net, random_scores(net), target=fxcat.Target(latency=0.001))
    advised = float(str(caught.value).partition("latency ≥ ")[2].partition(",")[0])
    fxcat.one_shot(net, random_scores(net), target=fxcat.Target(latency=advised))
    assert shares(net)[2] <= advised


def trained(net: fxcat.GatedModule, **objective: Any) -> fxcat.GatedModule:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
    controller = fxcat.GateController(net, optimizer, total_steps=120, **objective)
    for _ in range(120):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        loss = nn.functional.cross_entropy(net(x), (x[:, 0].sum((1, 2)) > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        controller.step()
    return net


def test_training_ends_at_it() -> None:
    net = trained(with_latency(prepared()), target=fxcat.Target(latency=0.5))
    before = net.expected_latency().item() / net.latency.start  # type: ignore[union-attr]
    assert 0.4 < before <= 0.5
    live = net.live_units()
    assert all(live[group.name] % 8 == 0 for group in net.start_structure.groups)


def test_pressure_on_latency_closes_what_takes_time() -> None:
    net = trained(with_latency(prepared()), pressure=fxcat.Pressure(nu=2.0, latency=1.0))
    assert net.expected_latency().item() < 0.9 * net.latency.start  # type: ignore[union-attr]


def test_ratios_learn_under_it_too() -> None:
    net = with_latency(prepared(policy="ratio"))
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator))] * 2
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(latency=0.6), total_steps=60, held_out=data)
    for _ in range(60):
        nn.functional.cross_entropy(net(data[0][0]), data[0][1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    assert net.expected_latency().item() <= 0.6 * net.latency.start  # type: ignore[union-attr]


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(fxcat.TargetError, match=r"Target\(latency=1.5\)"):
        fxcat.Target(latency=1.5)
    with pytest.raises(fxcat.TargetError, match=r"Pressure\(latency=0.5\)"):
        fxcat.Pressure(nu=1.0, params=0.6, latency=0.5)


def test_pressure_without_a_table_says_what_to_do() -> None:
    net = prepared()
    sgd = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    with pytest.raises(fxcat.TargetError, match=r"Pressure\(latency=0.5\) needs to know(?s:.*)net.use_latency"):
        fxcat.GateController(net, sgd, pressure=fxcat.Pressure(1.0, latency=0.5), total_steps=9)
    assert net.led.is_fresh


def test_a_table_comes_before_training() -> None:
    net, table = prepared(), table_for(prepared())
    sgd = torch.optim.SGD(net.weight_parameters(), lr=0.1)
    controller = fxcat.GateController(net, sgd, target=fxcat.Target(flops=0.5), total_steps=9)
    with pytest.raises(fxcat.InputError, match=r"are being trained already(?s:.*)before GateController"):
        net.use_latency(table)
    assert net.latency is None
    for _ in range(9):
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        sgd.step()
        controller.step()
