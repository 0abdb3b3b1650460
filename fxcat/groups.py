"""Which gates belong together, and which never close."""

from __future__ import annotations

import torch

from fxcat.gated import GatedModule


def group_ids(net: GatedModule) -> torch.Tensor:
    """For every gate the number of its group; every section is a group of its own."""
    counts = torch.tensor([p.count for p in net.parts])
    return torch.repeat_interleave(torch.arange(len(counts)), counts).to(net.gate_vector.theta.device)


def is_section(net: GatedModule) -> torch.Tensor:
    """Which gates are sections."""
    theta = net.gate_vector.theta
    return torch.arange(theta.numel(), device=theta.device) >= net.gate_vector.unit_count


def best_of_groups(net: GatedModule, score: torch.Tensor) -> torch.Tensor:
    """Numbers of the highest-scored unit of every set of units that must not be emptied: these never close."""
    row, member = net.required.long()
    scores = score[member]
    sets = len(net.structure.required[0].unique_consecutive())
    highest = scores.new_empty(sets).scatter_reduce(0, row, scores, "amax", include_self=False)
    tops = (scores == highest[row]).nonzero().reshape(-1)
    # of equals the first: `tops` ascends, and so do the rows
    return member[tops[torch.searchsorted(row[tops], torch.arange(len(highest), device=row.device))]]


def lowest_of_groups(net: GatedModule, score: torch.Tensor, among: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Bool, shape (gates,): those `among` which have the lowest scores of their group, this share, but at least one.

    `share`: shape (gates,), the same for all gates of a group.
    """
    group = group_ids(net)
    order = score.masked_fill(~among, torch.inf).argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = torch.bincount(group)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group[order]]
    wanted = (share * torch.bincount(group, among.double())[group]).floor().clamp(min=1)
    return among & (place < wanted)


def mean_of_groups(net: GatedModule, values: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """For every gate the mean of `values` over those of its group that are `among`; shape (gates,)."""
    group = group_ids(net)
    sums = torch.bincount(group[among], values[among].double(), minlength=int(group.max()) + 1)
    counts = torch.bincount(group[among], minlength=len(sums)).clamp(min=1)
    return (sums / counts)[group].to(values.dtype)
