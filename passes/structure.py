"""The public description of an analysis: groups, sections, costs, coverage, and what is pinned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from fxcat.network.cost_model import Axis, Holding, Integers
from fxcat.network.program import Structure
from fxcat.passes.work import Analysis
from fxcat.records import COUNTED, Cost, Group, Pinned, SectionInfo


def describe(analysis: Analysis) -> Structure:
    """Describe an analysis; all costs are for one example at full width."""
    terms, units = analysis.terms, analysis.units
    in_group, in_section = _Tally(len(units.groups)), _Tally(len(analysis.sections))
    starts = np.array([g.start for g in units.groups], dtype=np.int32)
    groups_of: dict[Axis, set[int]] = {}
    widths: dict[Axis, int] = {}
    total, covered = [0] * len(COUNTED), 0
    for term in terms:
        width = 1
        for axis in term.axes:
            if axis not in groups_of:
                widths[axis] = axis.width
                groups_of[axis] = _groups(axis, starts)
            width *= widths[axis]
        amounts = [amount * width for amount in term.amounts]
        groups = set().union(*[groups_of[axis] for axis in term.axes])
        total = [sum(both) for both in zip(total, amounts, strict=True)]
        in_group.add(groups, term.macs * width, term.params * width)
        in_section.add(term.holding.sections, term.macs * width, term.params * width)
        covered += term.macs * width if groups or term.holding != Holding() else 0
    return Structure(
        groups=tuple(Group(g.name, g.count, *cost) for g, cost in zip(units.groups, in_group, strict=True)),
        sections=tuple(
            SectionInfo(s.name, *cost, s.stream) for s, cost in zip(analysis.sections, in_section, strict=True)
        ),
        pinned=_not_captured(analysis) + units.pinned,
        cost=Cost(*total),
        required=units.required,
        coverage=covered / max(1, total[0]),
        terms=terms,
        edges=(
            tuple(i.name for n in analysis.inference for i in n.all_input_nodes),
            tuple(n.name for n in analysis.inference for _ in n.all_input_nodes),
        ),
        activation_bytes=_activation_bytes(analysis),
    )


def _not_captured(analysis: Analysis) -> tuple[Pinned, ...]:
    captured = analysis.captured
    refused = tuple(
        Pinned(path or captured.name, f"could not be captured: {error.what}", 0)
        for path, error in captured.refused.items()
    )
    left = "forward leaves a value in it, and the network does not: return it"
    return refused + tuple(Pinned(f"attribute {name!r}", left, 0) for name in sorted(captured.left))


def _activation_bytes(analysis: Analysis) -> dict[str, int]:
    """Bytes of every op's result for one example."""
    sizes: dict[str, int] = {}
    for node in analysis.inference:
        if node.op not in ("placeholder", "get_attr"):
            value = analysis.labels.one(node)
            values: list[Any] = [value] if isinstance(value, torch.Tensor) else tree_leaves(value)
            total = sum(t.numel() * t.element_size() for t in values if isinstance(t, torch.Tensor))
            sizes[node.name] = total
    return sizes


def _groups(axis: Axis, starts: Integers) -> set[int]:
    """The groups that have units on an axis; `starts`: the first unit of every group."""
    start, stop, _ = axis.runs
    first, last = (np.searchsorted(starts, units, side="right") - 1 for units in (start, stop - 1))
    return {g for a, b in zip(first.tolist(), last.tolist(), strict=True) for g in range(a, b + 1)}


class _Tally:
    """Sums of MACs and parameters for so many parts."""

    def __init__(self, parts: int) -> None:
        self.macs, self.params = [0] * parts, [0] * parts

    def add(self, parts: Iterable[int], macs: int, params: int) -> None:
        for i in parts:
            self.macs[i] += macs
            self.params[i] += params

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.macs, self.params, strict=True)
