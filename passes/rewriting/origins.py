"""What the units and sections of a smaller network were in the one before it."""

from __future__ import annotations

import torch

from fxcat.errors import PlanError
from fxcat.network.origin import named_tensors
from fxcat.passes.analysis.units import NO_UNIT
from fxcat.passes.rewriting.plan import Plan
from fxcat.passes.work import Analysis


def never_units(analysis: Analysis, plan: Plan | None = None) -> dict[str, dict[int, torch.Tensor]]:
    """For every parameter axis that a plan leaves which of its entries were no units: they must not become some. By all
    names that a parameter had."""
    frozen: dict[str, dict[int, torch.Tensor]] = {}
    names = analysis.labels.names
    for name, axes in analysis.units.parameters.items():
        for axis, labels in axes.items():
            if axis >= 0:
                mask = analysis.units.of_label[labels] == NO_UNIT
                index = None if plan is None else plan.keep.get(name, {}).get(axis)
                frozen.setdefault(name, {})[axis] = mask if index is None else mask[index]
    frozen |= {other: dict(frozen[first]) for other, first in names.first.items() if first in frozen}
    # axes that had no labels may have some in what is left: of an axis beside them one index has stayed
    for name, value, _ in named_tensors(plan.twin) if plan is not None else ():
        axes = frozen.setdefault(name, {})
        for axis, size in enumerate(value.shape):
            axes.setdefault(axis, torch.ones(size, dtype=torch.bool))
    return frozen


def unit_origins(old: Analysis, new: Analysis, plan: Plan) -> torch.Tensor:
    """For every unit of the new network its number in the old one: both label the same parameter entries."""
    origin = torch.full((new.units.count,), NO_UNIT)
    for known, axes in new.units.parameters.items():
        name = old.labels.names.canonical(known)
        for axis, labels in axes.items():
            if axis < 0 or axis not in old.units.parameters.get(name, {}):
                continue
            before = old.units.of_label[old.units.parameters[name][axis]]
            index = plan.keep.get(name, {}).get(axis)
            before = before if index is None else before[index]
            after = new.units.of_label[labels]
            origin[after[after != NO_UNIT]] = before[after != NO_UNIT].long()
    if bool((origin == NO_UNIT).any()):
        raise PlanError("what is left has units that were none before", remedy="report it with the model and the gates")
    return origin


def section_origins(old: Analysis, new: Analysis, plan: Plan) -> torch.Tensor:
    number = {s.join: i for i, s in enumerate(old.sections)}
    return torch.tensor([number[plan.origin[s.join]] for s in new.sections], dtype=torch.int64)
