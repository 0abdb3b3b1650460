"""The final choice of what stays: a 0/1 setting that meets the target and empties nothing."""

from __future__ import annotations

import torch

from fxcat.errors import TargetError
from fxcat.fractions import cost_fractions, cost_gradients
from fxcat.gated import GatedModule
from fxcat.records import Cost, Target

SLACK = 0.01
"""The result lies within this share below the target, and never above it."""


def group_ids(net: GatedModule) -> torch.Tensor:
    """For every gate the number of its group; every section is a group of its own."""
    counts = torch.tensor([p.count for p in net.parts])
    return torch.repeat_interleave(torch.arange(len(counts)), counts).to(net.gate_vector.theta.device)


def is_section(net: GatedModule) -> torch.Tensor:
    """Which gates are sections."""
    theta = net.gate_vector.theta
    return torch.arange(theta.numel(), device=theta.device) >= net.gate_vector.unit_count


def smallest_setting(net: GatedModule, score: torch.Tensor | None = None) -> torch.Tensor:
    """One unit per group (the one with the highest score), every section closed."""
    score = torch.zeros_like(net.gate_vector.theta) if score is None else score
    smallest = torch.zeros_like(net.gate_vector.theta)
    smallest[best_of_groups(net, score)] = 1.0
    return smallest


def smallest_cost(net: GatedModule) -> Cost[int]:
    """Cost of the smallest network that can be made."""
    count, smallest = net.gate_vector.unit_count, smallest_setting(net)
    cost = net.cost_model.cost(smallest[:count], smallest[count:])
    return Cost(round(cost.macs.item()), round(cost.params.item()))


def best_of_groups(net: GatedModule, score: torch.Tensor) -> torch.Tensor:
    """Numbers of the highest-scored unit of every set of units that must not be emptied: these never close."""
    row, member = net.required.long()
    scores = score[member]
    highest = scores.new_empty(len(net.structure.required)).scatter_reduce(0, row, scores, "amax", include_self=False)
    tops = (scores == highest[row]).nonzero().reshape(-1)
    # of equals the first: `tops` ascends, and so do the rows
    return member[tops[torch.searchsorted(row[tops], torch.arange(len(highest), device=row.device))]]


def check_reachable(net: GatedModule, target: Target) -> None:
    """Raise `TargetError` with what is reachable if even the smallest network is above the target."""
    reachable = cost_fractions(net, smallest_setting(net)).tolist()
    for name, wanted, least in zip(("flops", "params"), (target.flops, target.params), reachable, strict=True):
        if wanted is not None and least > wanted:
            raise TargetError(
                f"Target({name}={wanted}) cannot be reached: the smallest network that fxcat can make of this model "
                f"has {least:.1%} of the {name}",
                remedy=f"choose {name} ≥ {least:.3f}, or see net.summary() for what is pinned and why",
            )


def select_structure(net: GatedModule, target: Target, score: torch.Tensor, preferred: torch.Tensor) -> torch.Tensor:
    """A 0/1 setting of shape (gates,) within `SLACK` below the target, from the preferred one.

    Closes what has the least score per cost while the target is missed, then opens again what fits, best first.
    """
    setting = preferred.clone()
    setting[best_of_groups(net, score)] = 1.0
    protected = torch.zeros_like(setting, dtype=torch.bool)
    protected[best_of_groups(net, score)] = True
    wanted = torch.tensor([1.0 if t is None else t for t in (target.flops, target.params)], dtype=torch.float64)
    setting, _ = close_until(net, setting, score, wanted.to(setting.device), protected)
    return _open_while_fitting(net, setting, score, wanted.to(setting.device))


def close_until(
    net: GatedModule, setting: torch.Tensor, score: torch.Tensor, wanted: torch.Tensor, protected: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Close what has the least score per cost until the cost fractions are at most `wanted`.

    Returns the setting (changed in place) and the clearing slopes, shape (gates,): what every gate costs, in units of
    the score, at the price at which just enough close. A gate is closed if its score is at most its slope.
    """
    mix = (wanted < 1).double()
    mix = mix / mix.sum().clamp(min=1)
    costs, clearing = torch.zeros_like(setting, dtype=torch.float64), -torch.inf
    is_first = True
    while True:
        fractions, gradients = cost_gradients(net, setting)
        excess = (fractions - wanted).clamp(min=0)
        if is_first and bool((excess > 0).any()):
            mix = excess / excess.sum()
        is_first = False
        cost = (mix[:, None] * gradients).sum(0)
        is_open = setting > 0.5
        costs[is_open] = cost[is_open]  # those of closed gates stay what they were then
        candidates = (is_open & ~protected & (cost > 0)).nonzero().reshape(-1)
        ratio = score[candidates].double() / cost[candidates]
        if not bool((excess > 0).any()):
            least = float(ratio.min()) if len(ratio) else 0.0
            return setting, costs * (clearing if clearing > -torch.inf else least)
        if not len(candidates):
            raise TargetError("the target cannot be reached without emptying a group")
        order = ratio.argsort()
        saved = cost[candidates[order]].cumsum(0)
        # Marginal costs change as structures go: take a part of what seems to be enough, then look again.
        enough = int((saved < 0.5 * (mix * excess).sum()).sum()) + 1
        closed = order[:enough]
        clearing = max(clearing, float(ratio[closed].max()))
        setting[candidates[closed]] = 0.0


def _open_while_fitting(
    net: GatedModule, setting: torch.Tensor, score: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    tried = torch.zeros_like(setting, dtype=torch.bool)
    while True:
        fractions, gradients = cost_gradients(net, setting)
        room = wanted - fractions
        limited = wanted < 1
        if bool((room[limited] <= SLACK * 0.5 * wanted[limited]).any()):
            return setting
        fits = (gradients <= room[:, None]).all(0) | (wanted[:, None] >= 1).all(0)
        # what costs nothing now lies in a closed section
        candidates = ((setting < 0.5) & fits & ~tried & (gradients.sum(0) > 0)).nonzero().reshape(-1)
        if not len(candidates):
            return setting
        price = gradients[:, candidates].sum(0)
        best = candidates[(score[candidates].double() / price).argmax()]
        tried[best] = True
        opened = setting.clone()
        opened[best] = 1.0
        if bool((cost_fractions(net, opened) <= wanted).all()):
            setting = opened
