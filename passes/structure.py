"""The public description of an analysis: groups, sections, costs, coverage, and what is pinned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from fxcat.costs import Axis
from fxcat.gated import Structure
from fxcat.passes.analysis import Analysis
from fxcat.passes.units import required_sets
from fxcat.records import Cost, Group, Pinned, SectionInfo


def describe(analysis: Analysis) -> Structure:
    """Describe an analysis; all costs are for one example at full width."""
    terms, units = analysis.terms, analysis.units
    in_group = [_Tally() for _ in units.groups]
    in_section = [_Tally() for _ in analysis.sections]
    owner = np.repeat(np.arange(len(units.groups), dtype=np.int32), [g.count for g in units.groups])
    groups_of: dict[Axis, list[int]] = {}
    widths: dict[Axis, int] = {}
    total, covered = _Tally(), 0
    for term in terms:
        width = 1
        for axis in term.axes:
            if axis not in groups_of:
                widths[axis] = axis.width
                owners = owner[axis.units[0]]  # ascending, as units are
                groups_of[axis] = [*owners[:1].tolist(), *owners[1:][owners[1:] != owners[:-1]].tolist()]
            width *= widths[axis]
        macs, params = term.macs * width, term.params * width
        total.add(macs, params)
        groups = {g for axis in term.axes for g in groups_of[axis]}
        for i in groups:
            in_group[i].add(macs, params)
        for i in term.sections:
            in_section[i].add(macs, params)
        covered += macs if groups or term.sections else 0
    return Structure(
        groups=tuple(Group(g.name, g.count, t.macs, t.params) for g, t in zip(units.groups, in_group, strict=True)),
        sections=tuple(
            SectionInfo(s.name, t.macs, t.params) for s, t in zip(analysis.sections, in_section, strict=True)
        ),
        pinned=_not_captured(analysis) + units.pinned,
        cost=Cost(total.macs, total.params),
        required=required_sets(analysis.flow, units),
        coverage=covered / max(1, total.macs),
        terms=terms,
        edges=(
            tuple(i.name for n in analysis.inference for i in n.all_input_nodes),
            tuple(n.name for n in analysis.inference for _ in n.all_input_nodes),
        ),
        activation_bytes=_activation_bytes(analysis),
    )


def _not_captured(analysis: Analysis) -> tuple[Pinned, ...]:
    captured = analysis.captured
    return tuple(
        Pinned(path or captured.name, f"could not be captured: {error.what}", 0)
        for path, error in captured.refused.items()
    )


def _activation_bytes(analysis: Analysis) -> dict[str, int]:
    """Bytes of every op's result for one example."""
    sizes: dict[str, int] = {}
    for node in analysis.inference:
        if node.op not in ("placeholder", "get_attr"):
            value = node.meta.get("value")
            values: list[Any] = [value] if isinstance(value, torch.Tensor) else tree_leaves(value)
            total = sum(t.numel() * t.element_size() for t in values if isinstance(t, torch.Tensor))
            sizes[node.name] = total // analysis.flow.batch
    return sizes


class _Tally:
    def __init__(self) -> None:
        self.macs = 0
        self.params = 0

    def add(self, macs: int, params: int) -> None:
        self.macs += macs
        self.params += params
