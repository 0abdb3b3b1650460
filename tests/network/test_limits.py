"""`Limits`: what users do not allow to go stays, in every way of pruning, and is checked before."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from small_task import Net, loader
from torch import nn

import fxcat
from fxcat import Limits

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Stages(nn.Module):
    """Two layers before a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.middle = nn.Conv2d(12, 20, 3, padding=1)
        self.inner = nn.Conv2d(20, 24, 3, padding=1)
        self.outer = nn.Conv2d(24, 20, 3, padding=1)
        self.head = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.middle(torch.relu(self.stem(x))))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


def prepared(limits: dict[str, Limits], **options: Any) -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Stages(), EXAMPLE, limits=limits, verbose=False, **options)


def one_shot(net: fxcat.GatedModule, flops: float) -> dict[str, int]:
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(flops=flops))
    assert net.hard_cost().macs <= flops * net.start_cost.macs
    return net.live_units()


def test_without_limits_a_strict_target_leaves_next_to_nothing() -> None:
    assert one_shot(prepared({}), 0.05)["stem"] < 4


@pytest.mark.parametrize(
    ("limits", "least"),
    (
        ({"stem": Limits(least=5)}, {"stem": 5}),
        ({"*": Limits(most_pruned=0.7)}, {"stem": 4, "middle": 6}),
        ({"stem": Limits(keep=True)}, {"stem": 12}),
        ({"s*": Limits(least=40)}, {"stem": 12}),  # all, where there are fewer
        ({"*": Limits(least=3), "stem": Limits(least=7)}, {"stem": 7, "middle": 3}),
    ),
)
def test_so_many_units_stay(limits: dict[str, Limits], least: dict[str, int]) -> None:
    found = one_shot(prepared(limits), 0.2)
    assert all(found[name] >= count for name, count in least.items())


def test_only_what_is_not_kept_is_pruned() -> None:
    left = one_shot(prepared({"*": Limits(keep=True), "inner": Limits(keep=False)}), 0.7)
    assert (left["stem"], left["middle"], left["section"]) == (12, 20, 1)
    assert 1 <= left["inner"] < 24


def test_a_section_that_is_kept_stays() -> None:
    name = next(n for n in prepared({}).gates if "section" in n)
    assert one_shot(prepared({}), 0.1)[name] == 0
    assert one_shot(prepared({name: Limits(keep=True)}), 0.1)[name] == 1


@pytest.mark.parametrize("flops", (0.6, 0.35))
def test_a_multiple_holds_for_the_groups_that_it_is_given_for(flops: float) -> None:
    left = one_shot(prepared({"middle": Limits(multiple_of=5)}), flops)
    assert left["middle"] in (5, 10, 15, 20)


@pytest.mark.parametrize("policy", ("bernoulli", "ratio"))
@pytest.mark.parametrize("objective", ({"target": fxcat.Target(flops=0.3)}, {"pressure": fxcat.Pressure(nu=1e4)}))
def test_training_keeps_to_them_also_after_shrinks(
    policy: Literal["bernoulli", "ratio"], objective: dict[str, Any]
) -> None:
    net = prepared({"stem": Limits(least=7), "middle": Limits(most_pruned=0.5)}, policy=policy)
    fxcat.fit(net, loader(256), epochs=12, lr=0.02, progress=False, **objective)
    left = net.live_units()
    assert left["stem"] >= 7
    assert left["middle"] >= math.ceil(0.5 * 20)
    assert "pressure" not in objective or (left["stem"], left["middle"]) == (7, 10)
    assert fxcat.finalize(net)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_a_target_beyond_the_limits_is_refused_before_training() -> None:
    net = prepared({"*": Limits(most_pruned=0.25)}, gates="units")
    scores = fxcat.importance.norm_scale(net)
    with pytest.raises(fxcat.TargetError, match=r"within its limits has 5\d\.\d%") as error:
        fxcat.one_shot(net, scores, target=fxcat.Target(flops=0.2))
    assert bool((net.gate_vector.theta == 1).all())
    assert "net.summary()" in str(error.value)


@pytest.mark.parametrize(
    ("limits", "message"),
    (
        ({"stm": Limits(least=2)}, "'stm', which matches no group and no section"),
        ({"*section": Limits(least=2)}, "which matches sections only"),
        ({"stem": 4}, "is none"),
        ([Limits(least=2)], "is a list"),
    ),
)
def test_limits_that_fit_nothing_are_refused(limits: Any, message: str) -> None:
    with pytest.raises(fxcat.InputError, match=message):
        prepared(limits)


@pytest.mark.parametrize("values", ({"least": 0}, {"multiple_of": 1.5}, {"most_pruned": 1.2}))
def test_limits_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(fxcat.InputError, match=next(iter(values))):
        Limits(**values)


def test_round_to_goes_with_networks_that_have_sections_only() -> None:
    net = fxcat.prepare(Net(), EXAMPLE, gates="layers", round_to=8, verbose=False)
    assert not net.structure.groups


def test_the_summary_says_once_what_holds_for_all_groups(capsys: pytest.CaptureFixture[str]) -> None:
    prepared({}, round_to=4).summary()
    assert "all 3 groups" in capsys.readouterr().out
    net = prepared({"stem": Limits(least=5)}, round_to=4)
    net.summary()
    said = capsys.readouterr().out.partition("limits")[2].partition("start:")[0]
    assert all(group.name in said for group in net.structure.groups)
