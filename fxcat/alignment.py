"""Widths that hardware likes: groups keep a multiple of some number of channels (`prepare(round_to=8)`, `Limits`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fxcat.closing import next_to_close
from fxcat.fractions import cost_fractions, cost_gradients
from fxcat.gated import GatedModule
from fxcat.groups import kept_gates


def aligned(net: GatedModule, setting: torch.Tensor, score: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The 0/1 setting, shape (gates,), with aligned widths and cost fractions of at most `wanted`, shape (2,).

    After `nearest_aligned`, whole blocks of units, and sections, close while the cost is too high, those with the least
    score per cost first, and then some open while the cost stays below.
    """
    blocks = _Blocks(net, setting, score)
    blocks.round()
    while bool((cost_fractions(net, blocks.setting) > wanted).any()) and blocks.close_worst(wanted):
        pass
    while blocks.open_best(wanted):
        pass
    return blocks.setting


def nearest_aligned(net: GatedModule, setting: torch.Tensor, score: torch.Tensor, *, up: bool = False) -> torch.Tensor:
    """The 0/1 setting with every group at the nearest multiple (`up`: at the next one), its best units open.

    Groups that have not enough units for one multiple, those without an open unit, and sections stay as they are.
    """
    blocks = _Blocks(net, setting, score)
    blocks.round(up=up)
    return blocks.setting


def least_aligned(net: GatedModule, setting: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """The 0/1 setting with as few units open in every group as `aligned` can leave."""
    blocks = _Blocks(net, setting, score)
    for group in blocks.groups:
        blocks.keep(group, group.least)
    return blocks.setting


@dataclass(frozen=True, slots=True)
class _Group:
    """Numbers of a group's units, the best first; how many make a block, and how few may stay. Or one section."""

    numbers: torch.Tensor
    size: int
    least: int


class _Blocks:
    """The groups that can be aligned, as blocks of units in the order of their scores."""

    def __init__(self, net: GatedModule, setting: torch.Tensor, score: torch.Tensor) -> None:
        self.net, self.setting, self.score = net, setting.clone(), score.double()
        order = self.score.clone()
        order[kept_gates(net, score)] = torch.inf  # these never close
        self.groups: list[_Group] = []
        widths, start = channels_per_unit(net), 0
        for part, (_, limits) in zip(net.parts, net.part_limits(), strict=True):
            if part.kind == "units":
                per_unit, multiple = int(widths[start : start + part.count].min()), limits.multiple_of or 1
                size = multiple // math.gcd(multiple, per_unit)
                if size <= part.count:
                    of_group = order[start : start + part.count]
                    numbers = start + of_group.argsort(descending=True, stable=True)
                    needed = int(of_group.isinf().sum())
                    self.groups.append(_Group(numbers, size, min(part.count, max(1, -(-needed // size)) * size)))
            else:
                least = int(order[start].isinf())
                self.groups.append(_Group(torch.tensor([start], device=order.device), 1, least))
            start += part.count

    def round(self, *, up: bool = False) -> None:
        """Every group to the nearest multiple, or the next one."""
        for group in self.groups:
            count = self._count(group)
            if count:
                blocks = count / group.size
                most = len(group.numbers) // group.size
                wanted = min(most, math.ceil(blocks) if up else round(blocks)) * group.size
                self.keep(group, max(group.least, wanted))

    def close_worst(self, wanted: torch.Tensor) -> bool:
        """Close the block with the least score per cost (`next_to_close`); False if every group is at its last."""
        fractions, gradients = cost_gradients(self.net, self.setting)
        found: list[tuple[_Group, torch.Tensor]] = []
        for group in self.groups:
            count = self._count(group)
            block = group.numbers[max(0, count - group.size) : count]
            if count > group.least and bool((gradients[:, block] > 0).any()):
                found.append((group, block))
        if not found:
            return False
        score = torch.stack([self.score[block].sum() for _, block in found])
        savings = torch.stack([gradients[:, block].sum(1) for _, block in found], 1)
        excess = (fractions - wanted).clamp(min=0)
        closed, _ = next_to_close(score, savings, excess / excess.sum(), fractions, wanted, wanted)
        worst = found[int(closed[0])][0]
        self.keep(worst, self._count(worst) - worst.size)
        return True

    def open_best(self, wanted: torch.Tensor) -> bool:
        """Open the block with the highest score per cost that fits; False if none does."""
        found: list[tuple[float, int, torch.Tensor]] = []
        _, gradients = cost_gradients(self.net, self.setting)
        for i, group in enumerate(self.groups):
            count = self._count(group)
            if (count or len(group.numbers) == 1) and count <= len(group.numbers) - group.size:
                block = group.numbers[count : count + group.size]
                cost = float(gradients[:, block].sum())
                found += [(-float(self.score[block].sum()) / cost, i, block)] if cost > 0 else []
        for _, _, block in sorted(found, key=lambda f: f[:2]):
            opened = self.setting.index_fill(0, block, 1.0)
            if bool((cost_fractions(self.net, opened) <= wanted).all()):
                self.setting = opened
                return True
        return False

    def keep(self, group: _Group, count: int) -> None:
        """Open the best `count` units of a group, and close the others."""
        self.setting[group.numbers[:count]] = 1.0
        self.setting[group.numbers[count:]] = 0.0

    def _count(self, group: _Group) -> int:
        return int(self.setting[group.numbers].sum())


def channels_per_unit(net: GatedModule) -> torch.Tensor:
    """Of every unit, how many entries it has on the parameter axis where it has fewest; int64, shape (units,)."""
    count = net.gate_vector.unit_count
    least = torch.full((count,), torch.iinfo(torch.int64).max)
    for axes in net.program.unit_axes(net.network).values():
        for numbers in axes.values():
            found = torch.bincount(numbers[numbers >= 0].cpu(), minlength=count)
            least = torch.where(found > 0, torch.minimum(least, found), least)
    return least.clamp(max=torch.iinfo(torch.int32).max)
