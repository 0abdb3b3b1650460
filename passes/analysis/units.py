"""Units and groups from labels.

In: a finished label flow. Out: `Units`: for every label its unit (a number in the flat vector of all units), the
groups in that vector, and what is pinned with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import fx

from fxcat.passes.analysis.chains import Chain
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.unions import Freeze, Unions
from fxcat.passes.graph.label_arrays import FROZEN, Grid, Integers, Labels, compress, join, leaves
from fxcat.passes.graph.meta import value_of
from fxcat.records import Pinned

NO_UNIT = -1


@dataclass(frozen=True, slots=True)
class UnitRange:
    """A group: units `start` … `start + count` of the flat vector, named after its first producer."""

    name: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Units:
    """Which unit every index belongs to; `NO_UNIT` for what is always live."""

    of_label: torch.Tensor
    groups: tuple[UnitRange, ...]
    pinned: tuple[Pinned, ...]
    parameters: Mapping[str, Mapping[int, torch.Tensor]]
    chains: tuple[Chain, ...]
    required: torch.Tensor = field(default_factory=lambda: torch.empty((2, 0), dtype=torch.int32))
    """Sets of units of which one each must stay: see `_required_sets`."""

    @property
    def count(self) -> int:
        return sum(g.count for g in self.groups)

    def of(self, labels: torch.Tensor) -> torch.Tensor:
        """Units in the place of labels, compressed."""
        return compress(self.of_label[labels])

    def of_value(self, labels: Labels) -> Labels:
        if isinstance(labels, tuple):
            return tuple(self.of_value(item) for item in labels)
        if isinstance(labels, Grid):
            return Grid(tuple(self.of(layer) for layer in labels.layers))
        return None if labels is None else self.of(labels)


def resolve_units(flow: LabelFlow, chains: tuple[Chain, ...]) -> Units:
    """Number the units group by group. A group with a single unit is pinned, since it can never be emptied, and so is
    the only unit of a value or of a parameter."""
    while True:  # to freeze the only unit of a value may leave one unit of another
        units = _number(flow, chains)
        row, member = _required_sets(flow, units)
        alone = member[torch.bincount(row)[row] == 1] if len(row) else member
        if not len(alone):
            return replace(units, required=torch.stack([row, member]))
        for number in alone.tolist():
            group = next(g for g in units.groups if g.start <= number < g.start + g.count)
            flow.freeze((units.of_label == number).nonzero().reshape(-1).int(), group.name, "the only unit of a value")


def _number(flow: LabelFlow, chains: tuple[Chain, ...]) -> Units:
    unions = flow.unions
    roots, are_units = unions.unit_roots()
    blocks = unions.blocks
    block_of = np.zeros(unions.count, dtype=np.int32)
    for i, block in enumerate(blocks):
        block_of[block.start : block.start + block.count] = i
    group_of_block = np.arange(len(blocks), dtype=np.int32)
    live = np.flatnonzero(roots != FROZEN)
    join(group_of_block, block_of[live], block_of[roots[live]])
    unit_roots = np.flatnonzero(are_units)
    group_of_unit = group_of_block[block_of[unit_roots]] if len(blocks) else unit_roots
    groups: list[UnitRange] = []
    pinned = _pinned(unions)
    numbers = np.full(unions.count, NO_UNIT, dtype=np.int32)
    start = 0
    by_group = np.argsort(group_of_unit, kind="stable")
    present, sizes = np.unique(group_of_unit, return_counts=True)
    for group, members in zip(present, np.split(unit_roots[by_group], np.cumsum(sizes)[:-1]), strict=False):
        name = blocks[group].owner
        if len(members) == 1:
            pinned.append(Pinned(name, "the group has a single unit", 1))
            continue
        numbers[members] = np.arange(start, start + len(members))
        groups.append(UnitRange(name, start, len(members)))
        start += len(members)
    return Units(torch.from_numpy(numbers[roots]), _unique_names(groups), tuple(pinned), flow.parameters, chains)


def _pinned(unions: Unions) -> list[Pinned]:
    """One entry per place and reason, with the number of labels it froze."""
    found: dict[tuple[str, str], int] = {}
    for freeze in (*(f for f in unions.freezes if not f.besides), *_unexplained(unions)):
        key = (freeze.where, freeze.reason)
        found[key] = found.get(key, 0) + int(freeze.labels.unique().numel())
    return [Pinned(where, reason, count) for (where, reason), count in found.items()]


def _unexplained(unions: Unions) -> list[Freeze]:
    """Those reasons, to be told where there is no other, that are the only ones for what might be units."""
    besides = [f for f in unions.freezes if f.besides]
    if not besides:
        return []
    roots = unions.roots(frozen=False)
    producing = {int(r) for b in unions.blocks if b.producer for r in np.unique(roots[b.start : b.start + b.count])}
    explained = {int(r) for f in unions.freezes if not f.besides for r in np.unique(roots[f.labels.numpy()])}
    return [f for f in besides if not producing.isdisjoint(set(roots[f.labels.numpy()].tolist()) - explained)]


def _unique_names(groups: list[UnitRange]) -> tuple[UnitRange, ...]:
    seen: dict[str, int] = {}
    result: list[UnitRange] = []
    for group in groups:
        seen[group.name] = seen.get(group.name, 0) + 1
        name = group.name if seen[group.name] == 1 else f"{group.name}#{seen[group.name]}"
        result.append(UnitRange(name, group.start, group.count))
    return tuple(result)


def _leaves_out(flow: LabelFlow, node: fx.Node) -> bool:
    def elements(node: fx.Node) -> list[int]:
        return [] if flow.values[node] is None else [t.numel() for t in leaves(value_of(node))]

    entering = sum(sum(elements(n)) for n in node.all_input_nodes)
    return any(count < entering for count in elements(node))


def _required_sets(flow: LabelFlow, units: Units) -> torch.Tensor:
    """Sets of units of which at least one must stay so that no value and no parameter is emptied: the numbers of a set
    and of a unit in it, ascending, shape (2, members), int32.

    These are the groups; pieces of them that a value has, which only a movement that leaves elements out (a split, a
    slice) can make; and pieces that a parameter has, where other units of its group come from elsewhere.
    """
    starts = np.array([g.start for g in units.groups] + [units.count])
    moved = [n for n, r in flow.rules.items() if r is not None and r.movement and _leaves_out(flow, n)]
    arrays = {id(x): x for node in moved for x in leaves(flow.values[node])}
    arrays |= {id(x): x for axes in units.parameters.values() for axis, x in axes.items() if axis >= 0}
    ends = {g.start: g.start + g.count for g in units.groups}
    of_label = units.of_label.numpy()
    sets: dict[bytes, Integers] = {}
    for labels in arrays.values():
        found = of_label[labels.numpy()].reshape(-1)
        first = int(found[0]) if len(found) else NO_UNIT
        count = ends.get(first, first) - first
        if first == NO_UNIT or (count and np.array_equal(found[:count], np.arange(first, first + count))):
            continue  # the usual case, and a quick test: a whole group comes first
        numbers = np.unique(found)
        if numbers[0] == NO_UNIT:
            continue  # something else stays in it, whatever goes
        group = np.searchsorted(starts, numbers, side="right") - 1
        counts = np.bincount(group, minlength=len(units.groups))
        if not bool((counts == np.diff(starts))[counts > 0].any()):  # a whole group is a set already, and a smaller one
            sets[numbers.tobytes()] = numbers
    sizes = [*np.diff(starts).tolist(), *map(len, sets.values())]
    pairs = np.empty((2, sum(sizes)), dtype=np.int32)
    pairs[0] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    pairs[1, : units.count] = np.arange(units.count)  # every unit is in one group
    pairs[1, units.count :] = np.concatenate([pairs[1, :0], *sets.values()])
    return torch.from_numpy(pairs)
