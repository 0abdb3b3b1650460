"""Which gates belong together, and which never close."""

from __future__ import annotations

import torch

from fxcat.network.gated_network import GatedNetwork


def group_ids(net: GatedNetwork) -> torch.Tensor:
    """For every gate the number of its group; every section is a group of its own."""
    counts = torch.tensor([p.count for p in net.parts])
    return torch.repeat_interleave(torch.arange(len(counts)), counts).to(net.gate_vector.theta.device)


def is_section(net: GatedNetwork) -> torch.Tensor:
    """Which gates are sections."""
    theta = net.gate_vector.theta
    return torch.arange(theta.numel(), device=theta.device) >= net.gate_vector.unit_count


def best_of_groups(net: GatedNetwork, score: torch.Tensor) -> torch.Tensor:
    """Numbers of the highest-scored unit of every set of units that must not be emptied: these never close."""
    row, member = net.required.long()
    scores = score[member]
    numbers = net.structure.required[0]  # on the CPU: no device is waited for
    sets = int(numbers[-1]) + 1 if len(numbers) else 0
    highest = scores.new_empty(sets).scatter_reduce(0, row, scores, "amax", include_self=False)
    tops = (scores == highest[row]).nonzero().reshape(-1)
    # of equals the first: `tops` ascends, and so do the rows
    return member[tops[torch.searchsorted(row[tops], torch.arange(len(highest), device=row.device))]]


def kept_gates(net: GatedNetwork, score: torch.Tensor) -> torch.Tensor:
    """Numbers of the gates that never close: of every set of units that must not be emptied those with the highest
    scores, one or as many as `Limits` say, and the sections that are kept."""
    units = _least_of_groups(net, score) if net.limits.hold_units else best_of_groups(net, score)
    if not any(limit.keep for limit in net.limits.sections):
        return units
    sections = net.part_limits()[len(net.structure.groups) :]
    kept = [net.gate_vector.unit_count + i for i, (_, limit) in enumerate(sections) if limit.keep]
    return torch.cat([units, torch.tensor(kept, dtype=units.dtype).to(units)])


def _least_of_groups(net: GatedNetwork, score: torch.Tensor) -> torch.Tensor:
    """Numbers of the highest-scored units of every set that must not be emptied, as many as its limits want."""
    row, member = net.required.long()
    sets = torch.bincount(row)
    least = torch.ones_like(sets)
    for i, (at_start, limit) in enumerate(net.part_limits()[: len(net.structure.groups)]):
        least[i] = limit.least_of(at_start)
    order = score[member].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    place = torch.arange(len(order), device=row.device) - (sets.cumsum(0) - sets)[row[order]]
    return member[order[place < least[row[order]]]].unique()


def left_to_lose(net: GatedNetwork, score: torch.Tensor, setting: torch.Tensor) -> torch.Tensor:
    """What closing a gate costs in addition to what has closed already; shape (gates,).

    Of a section that is less by what the closed gates inside of it have cost: they would go with it. So what is left of
    a branch goes too as soon as thinning it has cost as much as the whole.
    """
    section, gate = net.inside
    lost = torch.where(setting[gate] < 0.5, score[gate].double(), 0.0)
    return score.double().index_add(0, section + net.gate_vector.unit_count, -lost)
