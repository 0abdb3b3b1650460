"""What the units and sections of a smaller network were in the one before it."""

from __future__ import annotations

import torch

from fxcat.errors import PlanError
from fxcat.network.origin import named_tensors
from fxcat.passes.analysis.units import NO_UNIT
from fxcat.passes.rewriting.plan import Plan
from fxcat.passes.work import Analysis


def units_before(analysis: Analysis, plan: Plan | None = None) -> dict[str, dict[int, torch.Tensor]]:
    """For every parameter axis that a plan leaves the units that its entries were; by all names of a parameter."""
    before: dict[str, dict[int, torch.Tensor]] = {}
    names = analysis.labels.names
    for name, axes in analysis.units.parameters.items():
        for axis, labels in axes.items():
            if axis >= 0:
                units = analysis.units.of_label[labels]
                index = None if plan is None else plan.keep.get(name, {}).get(axis)
                before.setdefault(name, {})[axis] = units if index is None else units[index]
    before |= {other: dict(before[first]) for other, first in names.first.items() if first in before}
    # axes that had no labels may have some in what is left: of an axis beside them one index has stayed
    for name, value, _ in named_tensors(plan.twin) if plan is not None else ():
        axes = before.setdefault(name, {})
        for axis, size in enumerate(value.shape):
            axes.setdefault(axis, torch.full((size,), NO_UNIT))
    return before


def unit_origins(old: Analysis, new: Analysis, plan: Plan) -> torch.Tensor:
    """For every unit of the new network its number in the old one: both label the same parameter entries."""
    origin = torch.full((new.units.count,), NO_UNIT)
    before = units_before(old, plan)
    for name, axes in new.units.parameters.items():
        for axis, labels in axes.items():
            if axis >= 0:
                units = new.units.of_label[labels]
                origin[units[units != NO_UNIT]] = before[name][axis][units != NO_UNIT].long()
    if bool((origin == NO_UNIT).any()) or len(origin.unique()) < len(origin):
        raise PlanError("what is left has other units than before", remedy="report it with the model and the gates")
    return origin


def section_origins(old: Analysis, new: Analysis, plan: Plan) -> torch.Tensor:
    number = {s.join: i for i, s in enumerate(old.sections)}
    return torch.tensor([number[plan.origin[s.join]] for s in new.sections], dtype=torch.int64)
