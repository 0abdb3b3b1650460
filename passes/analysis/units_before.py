"""What is left of a network has the units that it had: of a head's channels none becomes a unit when no other head is
left, and what was none does not become one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.units import NO_UNIT

UnitsBefore = Mapping[str, Mapping[int, torch.Tensor]]
"""By name and axis of parameters the numbers of the units that its entries were, `NO_UNIT` where they were none."""


def keep_units(flow: LabelFlow, before: UnitsBefore) -> None:
    """Freeze what was no unit, and unite what was one."""
    count = max(
        (int(units.max()) + 1 for axes in before.values() for units in axes.values() if units.numel()), default=0
    )
    first = torch.full((count,), -1)
    for name, axes in flow.parameters.items():
        for axis, labels in axes.items():
            units = before.get(name, {}).get(axis)
            if units is None:
                continue
            others = labels[units == NO_UNIT]
            if flow.has_units(others) or axis not in flow.weight_axes.get(name, {}):
                flow.freeze(others, name, _REASON)
            else:
                flow.doubtful.append((others, name, _REASON))  # whether they are any is known later
            labels, units = labels[units != NO_UNIT], units[units != NO_UNIT].long()
            first[units] = torch.where(first[units] < 0, labels.to(first), first[units])
            flow.unite(labels, first[units].to(labels))


_REASON = "frozen before the network shrank"
