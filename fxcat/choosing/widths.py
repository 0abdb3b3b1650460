"""Widths that hardware likes: groups keep a multiple of some number of channels (`prepare(round_to=8)`, `Limits`)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from fxcat.choosing.cost_shares import cost_fractions, cost_gradients
from fxcat.choosing.groups import kept_gates
from fxcat.choosing.knapsack import next_to_close
from fxcat.errors import InputError
from fxcat.network.gated_network import GatedNetwork


def aligned(
    net: GatedNetwork, setting: torch.Tensor, score: torch.Tensor, wanted: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """The 0/1 setting, shape (gates,), with aligned widths and cost fractions of at most `wanted`, shape (costs,), if
    that is possible with the gates `kept` (numbers) open.

    After `nearest_aligned`, whole blocks of units, single ones of groups that have not enough for a block, and sections
    close while the cost is too high, those with the least score per cost first; then some open while it stays below.
    """
    blocks = _Blocks(net, setting, score, kept)
    blocks.round()
    while bool((cost_fractions(net, blocks.setting) > wanted).any()) and blocks.close_worst(wanted):
        pass
    while blocks.open_best(wanted):
        pass
    return blocks.setting


def nearest_aligned(net: GatedNetwork, setting: torch.Tensor, score: torch.Tensor, *, up: bool = False) -> torch.Tensor:
    """The 0/1 setting with every group at the nearest multiple (`up`: at the next one), its best units open.

    Groups that have not enough units for one multiple, those without an open unit, and sections stay as they are.
    """
    blocks = _Blocks(net, setting, score, kept_gates(net, score))
    blocks.round(up=up)
    return blocks.setting


def least_aligned(net: GatedNetwork, setting: torch.Tensor, score: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The 0/1 setting with as few units open in every group as `aligned` can leave; `kept`: numbers of open gates."""
    blocks = _Blocks(net, setting, score, kept)
    for group in blocks.groups:
        blocks.keep(group, group.least)
    return blocks.setting


def check_multiples(net: GatedNetwork) -> None:
    """Raise `InputError` if widths shall be multiples of more channels than any of these groups has: by mistake."""
    asked = [w for w in group_widths(net) if w.multiple > 1]
    if asked and all(w.block > w.units for w in asked):
        raise InputError(
            f"no group has the {min(w.multiple for w in asked)} channels of which its width shall be a multiple; the "
            f"widest has {max(w.units * w.channels for w in asked)}",
            remedy="give a smaller round_to=, or Limits(multiple_of=…)",
        )


@dataclass(frozen=True, slots=True)
class Width:
    """Of a group: the number of its first unit, how many it has, and the channels of each; and of how many channels its
    width shall be a multiple."""

    start: int
    units: int
    channels: int
    multiple: int

    @property
    def block(self) -> int:
        """Units that have a multiple of so many channels."""
        return self.multiple // math.gcd(self.multiple, self.channels)


def group_widths(net: GatedNetwork) -> list[Width]:
    """Of all groups that there are, in their order."""
    channels, start = channels_per_unit(net), 0
    found: list[Width] = []
    for part, (_, limits) in zip(net.parts, net.part_limits(), strict=True):
        if part.kind == "units":
            own = int(channels[start : start + part.count].min())
            found.append(Width(start, part.count, own, limits.multiple_of or 1))
        start += part.count
    return found


@dataclass(frozen=True, slots=True)
class _Group:
    """Numbers of a group's units, the best first; how many make a block, and how few may stay. Or one section."""

    numbers: torch.Tensor
    size: int
    least: int


class _Blocks:
    """The groups as blocks of units in the order of their scores; those that cannot be aligned, as single units."""

    def __init__(self, net: GatedNetwork, setting: torch.Tensor, score: torch.Tensor, kept: torch.Tensor) -> None:
        self.net, self.setting, self.score = net, setting.clone(), score.double()
        order = self.score.clone()
        order[kept] = torch.inf  # these never close
        self.groups: list[_Group] = []
        for width in group_widths(net):
            size = width.block if width.block <= width.units else 1
            of_group = order[width.start : width.start + width.units]
            numbers = width.start + of_group.argsort(descending=True, stable=True)
            needed = int(of_group.isinf().sum())
            self.groups.append(_Group(numbers, size, min(width.units, max(1, -(-needed // size)) * size)))
        for section in range(net.gate_vector.unit_count, len(order)):
            self.groups.append(_Group(torch.tensor([section], device=order.device), 1, int(order[section].isinf())))

    def round(self, *, up: bool = False) -> None:
        """Every group that can be aligned to the nearest multiple, or the next one."""
        for group in self.groups:
            count = self._count(group)
            if count and group.size > 1:
                blocks = count / group.size
                most = len(group.numbers) // group.size
                wanted = min(most, math.ceil(blocks) if up else round(blocks)) * group.size
                self.keep(group, max(group.least, wanted))

    def close_worst(self, wanted: torch.Tensor) -> bool:
        """Close blocks with the least score per cost (`next_to_close`); False if every group is at its last."""
        fractions, gradients = cost_gradients(self.net, self.setting)
        scores, savings, groups = [self.score[:0]], [gradients[:, :0]], list[int]()
        for i, group in enumerate(self.groups):
            blocks = self._of(group, 1.0)[group.least :].view(-1, group.size)
            if len(blocks) and bool((gradients[:, blocks[-1]] > 0).any()):
                scores.append(self.score[blocks].sum(1))
                savings.append(gradients[:, blocks].sum(2))
                groups += [i] * len(blocks)
        if not groups:
            return False
        excess = (fractions - wanted).clamp(min=0)
        mix = excess / excess.sum()
        closed, _ = next_to_close(torch.cat(scores), torch.cat(savings, 1), mix, fractions, wanted, wanted)
        for i, blocks in Counter(groups[c] for c in closed.tolist()).items():
            self.setting[self._of(self.groups[i], 1.0)[-blocks * self.groups[i].size :]] = 0.0
        return True

    def open_best(self, wanted: torch.Tensor) -> bool:
        """Open the block with the highest score per cost that fits; False if none does."""
        found: list[tuple[float, int, torch.Tensor]] = []
        fractions, gradients = cost_gradients(self.net, self.setting)
        limited = wanted < 1
        for i, group in enumerate(self.groups):
            block = self._of(group, 0.0)[: group.size]
            if (self._count(group) or len(group.numbers) == 1) and len(block) == group.size:
                added = gradients[:, block].sum(1)  # at least: units that meet each other cost more
                fits = bool((fractions + added <= wanted)[limited].all())
                cost = float(added.sum())
                found += [(-float(self.score[block].sum()) / cost, i, block)] if fits and cost > 0 else []
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

    def _of(self, group: _Group, value: float) -> torch.Tensor:
        """Numbers of a group's units that are open (1.0) or closed (0.0), the best first. Single units need not be open
        in that order: they may differ in cost."""
        return group.numbers[self.setting[group.numbers] == value]

    def _count(self, group: _Group) -> int:
        return int(self.setting[group.numbers].sum())


def channels_per_unit(net: GatedNetwork) -> torch.Tensor:
    """Of every unit, how many entries it has on the parameter axis where it has fewest; int64, shape (units,)."""
    least = np.full(net.gate_vector.unit_count, np.iinfo(np.int32).max, dtype=np.int64)
    for axis in {axis for term in net.structure.terms if term.params for axis in term.axes}:
        for start, stop, weight in axis.runs.T.tolist():
            np.minimum(least[start:stop], weight, out=least[start:stop])
    return torch.from_numpy(least)
