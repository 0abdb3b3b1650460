"""What closing costs when others take over, and what sections cost beside the units inside of them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from three_sections import prepared

import fxcat
from fxcat.choosing.cost_shares import cost_fractions
from fxcat.choosing.groups import left_to_lose
from fxcat.choosing.select import close_below, close_until
from fxcat.choosing.sharing import shared_worth
from fxcat.gate_training.pressure import EARLY, FixedPressure, TargetPressure, TargetSchedule
from fxcat.gate_training.worth import Worth
from fxcat.network.draws import Draw

IMAGE = torch.zeros(1, 3, 64, 64)

STREAM, INNER = 16, (16, 48, 96)
"""Units of the residual stream of `three_sections.prepared`, and of its three blocks."""


def worths(unit: float, sections: list[float]) -> tuple[fxcat.GatedModule, torch.Tensor, torch.Tensor]:
    net = prepared()
    worth = torch.full_like(net.gate_vector.theta.detach(), unit)
    worth[-3:] = torch.tensor(sections)
    return net, worth, torch.ones_like(worth, dtype=torch.bool)


def test_units_of_a_group_cost_their_mean_and_more_the_fewer_are_left() -> None:
    net, worth, alive = worths(1.0, [200.0] * 3)
    worth[:STREAM] = torch.linspace(0.5, 1.5, STREAM)
    shared = shared_worth(net, worth, alive)
    assert shared[:STREAM].tolist() == pytest.approx([(16 / (16 - i)) ** 2 for i in range(16)])


def test_a_unit_that_does_nothing_costs_nothing_and_counts_for_nothing() -> None:
    net, worth, alive = worths(1.0, [200.0] * 3)
    worth[:4] = torch.tensor([0.0, -0.1, 0.01, 0.0])
    shared = shared_worth(net, worth, alive)
    assert shared[:4].tolist() == pytest.approx(worth[:4].tolist())
    assert float(shared[4:STREAM].min()) == pytest.approx(1.0)
    assert float(shared[4:STREAM].max()) == pytest.approx(12.0**2)


def test_sections_cost_more_the_more_of_their_worth_has_gone() -> None:
    net, worth, alive = worths(1.0, [3.0, 1.0, 4.0])
    assert shared_worth(net, worth, alive)[-3:].tolist() == pytest.approx([3 * (8 / 7) ** 2, 1.0, 4 * 4.0])


def test_sections_stand_in_for_those_that_add_to_the_same_values() -> None:
    """The stages of a ResNet, the widths of a MobileNet; through poolings and activations, not through weights."""
    net = fxcat.prepare(torchvision.models.resnet34(), IMAGE, verbose=False)
    assert [s.stream for s in net.structure.sections] == [0] * 3 + [3] * 4 + [7] * 6 + [13] * 3
    net = fxcat.prepare(torchvision.models.mobilenet_v2(), IMAGE, verbose=False)
    streams = [s.stream for s in net.structure.sections]
    assert streams == sorted(streams)
    assert [streams.count(i) for i in sorted(set(streams))] == [1, 2, 3, 2, 2]


def test_sections_of_other_streams_do_not_count() -> None:
    net = fxcat.prepare(torchvision.models.resnet18(), IMAGE, verbose=False)
    worth = torch.zeros_like(net.gate_vector.theta.detach())
    worth[-8:] = torch.arange(1.0, 9.0)
    shared = shared_worth(net, worth, torch.ones_like(worth, dtype=torch.bool))[-8:]
    pairs = [(a, b * ((a + b) / b) ** 2) for a, b in ((1, 2), (3, 4), (5, 6), (7, 8))]
    assert shared.tolist() == pytest.approx([x for pair in pairs for x in pair])


def test_units_inside_sections_are_together_worth_no_more_than_them() -> None:
    """One factor for all units, so that between them nothing changes; a section that has gone does not count."""
    for sections, factor in (([16.0, 24.0, 40.0], 0.5), ([500.0, 0.0, 0.0], 1.0)):
        net, worth, alive = worths(1.0, sections)
        first_of_each = [0, 16, 32, 80]
        assert shared_worth(net, worth, alive)[first_of_each].tolist() == pytest.approx([factor] * 4)
    alive[-2] = False
    worth[-3:] = torch.tensor([16.0, 1e6, 40.0])
    assert float(shared_worth(net, worth, alive)[0]) == pytest.approx(0.5)


def test_the_balance_makes_sections_or_units_dear() -> None:
    net, worth, alive = worths(1.0, [200.0] * 3)
    for layers, units, sections in ((0.5, 1.0, 1.0), (0.75, 2.0, 2 / 3), (0.25, 2 / 3, 2.0)):
        ratio = shared_worth(net, worth, alive, layers) / shared_worth(net, worth, alive)
        assert ratio[:-3].tolist() == pytest.approx([units] * (len(worth) - 3))
        assert ratio[-3:].tolist() == pytest.approx([sections] * 3)


def test_with_all_weight_on_layers_units_go_only_where_sections_are_not_enough() -> None:
    for layers, sections in ((1.0, 0), (0.0, 3)):
        net, worth, alive = worths(1.0, [30.0] * 3)
        wanted = torch.tensor([0.2, 1.0], dtype=torch.float64)
        shared = shared_worth(net, worth, alive, layers)
        protected = torch.zeros_like(alive)
        protected[[0, 16, 32, 80]] = True
        setting, _ = close_until(net, torch.ones_like(worth), shared, wanted, protected, final=wanted)
        assert (float(setting[-3:].sum()) == 3) is (sections == 3)
        assert float(cost_fractions(net, setting)[0]) <= 0.2


def test_of_a_section_what_its_units_have_cost_already_is_not_lost_again() -> None:
    net, worth, _ = worths(1.0, [5.0, 40.0, 200.0])
    setting = torch.ones_like(worth)
    setting[:2] = 0.0  # of the stream: in no section
    setting[STREAM : STREAM + 3] = 0.0
    assert left_to_lose(net, worth, setting)[-3:].tolist() == pytest.approx([2.0, 40.0, 200.0])


@pytest.mark.parametrize("flops", (0.7, 0.5, 0.3, 0.15))
def test_no_branch_is_thinned_at_a_higher_price_than_that_of_the_whole(flops: float) -> None:
    """The exchange: what a section has lost, and would lose if it went, against what closing it would have saved."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        net, worth, alive = worths(1.0, [0.0] * 3)
        worth[:-3] += torch.rand(len(worth) - 3, generator=generator)
        worth[-3:] = torch.tensor(INNER) * (0.5 + torch.rand(3, generator=generator))
        shared = shared_worth(net, worth, alive)
        wanted = torch.tensor([flops, 1.0], dtype=torch.float64)
        protected = torch.zeros_like(alive)
        protected[[0, 16, 32, 80]] = True
        setting, _ = close_until(net, torch.ones_like(worth), shared, wanted, protected, final=wanted)
        lost = left_to_lose(net, shared, setting)[-3:]
        assert bool((lost > 0)[setting[-3:] > 0.5].all())


def test_what_is_worth_less_than_the_price_of_its_cost_closes() -> None:
    net, worth, _ = worths(1.0, [1e-3, 1e3, 1e3])
    mix = torch.tensor([1.0, 0.0], dtype=torch.float64)
    protected = torch.zeros_like(worth, dtype=torch.bool)
    setting = close_below(net, torch.ones_like(worth), worth, 1.0, mix, protected)
    assert setting[-3:].tolist() == [0, 1, 1]
    assert bool((setting[:-3] == 1).all())


@pytest.mark.parametrize("kind", ("target", "pressure"))
def test_sections_that_will_not_stay_go_before_units_do(kind: str) -> None:
    """At the beginning the schedule asks for nothing, and a pressure is zero: nothing but those sections falls."""
    net, worth, alive = worths(1.0, [1e-3, 5e-2, 1e4])
    prices: TargetPressure | FixedPressure = FixedPressure(fxcat.Pressure(nu=1.0))
    if kind == "target":
        prices = TargetPressure(TargetSchedule(fxcat.Target(flops=0.55), torch.ones(2, dtype=torch.float64)))
    for progress, falling in ((0.0, [False] * 3), (EARLY / 4, [True, False, False]), (EARLY, [True, True, False])):
        slopes, _ = prices.slopes(net, worth, ~alive, progress)
        assert (slopes > worth)[-3:].tolist() == falling
        assert not bool((slopes > worth)[:-3].any())


def quadratic(sample: torch.Tensor) -> torch.Tensor:
    """Derivative of a loss 0.3·(1 − ξ)² in each gate."""
    return -0.6 * (1 - sample)


def test_both_ends_of_a_section_give_what_it_is_worth() -> None:
    """Noise of the derivatives, which looks like curvature, cancels."""
    generator = torch.Generator().manual_seed(0)
    explored = torch.tensor([True, False])
    worth = Worth(2, torch.device("cpu"), window=50, explored=explored)
    for _ in range(600):
        sample = (torch.rand(2, generator=generator) < torch.tensor([0.9, 1.0])).float()
        noise = 0.1 * torch.randn(2, generator=generator)
        worth.update([Draw(sample, 100, gradient=quadratic(sample) + noise)])
    both, one = worth.estimate.tolist()
    assert both == pytest.approx(0.3, abs=0.03)
    assert one == pytest.approx(0.5, abs=0.2)  # half the variance times the batch


def test_what_was_seen_long_ago_no_longer_counts() -> None:
    worth = Worth(1, torch.device("cpu"), window=10, explored=torch.tensor([True]))
    for step in range(400):
        is_open = torch.tensor([float(step >= 40)])
        worth.update([Draw(is_open, 1, gradient=torch.where(is_open > 0, 0.0, -5.0))])
        if step == 60:
            assert worth.estimate.item() > 1.0
    assert worth.estimate.item() == pytest.approx(0.0, abs=0.01)


def test_early_on_the_latter_half_counts() -> None:
    """The network changes fastest at first: whole windows would still hold what was seen of an untrained one."""
    worth = Worth(1, torch.device("cpu"), window=200, explored=torch.tensor([True]))
    for step in range(120):
        is_open = torch.tensor([float(step % 2)])
        worth.update([Draw(is_open, 1, gradient=torch.where(is_open > 0, 0.0, -50.0 if step < 20 else -2.0))])
    assert worth.estimate.item() == pytest.approx(1.0, abs=0.3)


def test_a_closed_gate_without_derivative_says_nothing() -> None:
    worth = Worth(1, torch.device("cpu"), window=50, explored=torch.tensor([True]))
    for step in range(100):
        is_open = torch.tensor([float(step % 2)])
        worth.update([Draw(is_open, 0, gradient=torch.where(is_open > 0, -0.5, 0.0))])
    assert worth.estimate.item() == pytest.approx(0.5)
