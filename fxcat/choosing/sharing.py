"""What it costs to close structures one after another: those that stay take over what the others did.

The loss difference of a single gate says little about the loss without many of them. Alone nearly every unit looks
worthless, since its neighbours do the same, and worth more the fewer are left. Networks of the same widths are as good
whichever units went (Liu et al. 2019, arXiv 1810.05270). So a group is taken as a whole: its units are worth the same,
their mean, and when n units have become m, each is worth (n/m)² as much: the loss falls with one over the width. If
they lie in a section, it goes with the last of them: so together they are worth no more than it.
Sections differ, so each is worth what it is found to be; but those that add to the same values, one after another,
stand in for each other too: when those that have closed were worth a share s of all of that stream, the others are
worth 1/(1−s)² as much.
"""

from __future__ import annotations

import torch

from fxcat.choosing.groups import group_ids, is_section
from fxcat.network.gated_network import GatedNetwork

IDLE = 0.1
"""A unit worth less than this share of its group's mean does nothing that others would have to take over."""
OUTLIER = 8.0
"""Worth of a unit, as a multiple of its group's mean, up to which it counts."""
SETTLES = 40
"""Rounds after which the mean of what counts no longer changes."""
LEAST_EMPHASIS = 1e-6
"""Of what is not to go: so it goes only where the target cannot be met with the others alone."""


def shared_worth(net: GatedNetwork, worth: torch.Tensor, alive: torch.Tensor, layers: float = 0.5) -> torch.Tensor:
    """What it costs, in units of the loss, when a gate closes after those of its kind that are worth less.

    `worth`: loss differences of single gates; `alive`: which gates are left (bool); both, and the result, of shape
    (gates,). `layers`: κ in [0, 1], at ½ sections and units count as they are, above sections close sooner.
    """
    units = net.gate_vector.unit_count
    shared = worth.double().clone()
    shared[:units] *= _share_of_sections(net, worth, alive)
    shared[:units] = _of_units(shared[:units], alive[:units], group_ids(net)[:units])
    streams = torch.tensor([s.stream for s in net.structure.sections], dtype=torch.int64, device=worth.device)
    shared[units:] = _of_sections(shared[units:], alive[units:], streams)
    return emphasized(net, shared, layers).to(worth.dtype)


def emphasized(net: GatedNetwork, worth: torch.Tensor, layers: float) -> torch.Tensor:
    """What gates are worth, shape (gates,), to somebody who would rather see layers go, or units: see `Target`."""
    emphasis = torch.where(is_section(net), 2 * layers, 2 * (1 - layers)).clamp(min=LEAST_EMPHASIS)
    return worth / torch.where(worth > 0, emphasis, 1 / emphasis)


def _share_of_sections(net: GatedNetwork, worth: torch.Tensor, alive: torch.Tensor) -> float:
    """The factor, at most 1, at which units of a group that lie in a section are together worth no more than it.

    It goes with the last of them, and they stand in for each other, so their loss differences add up to less than that
    of the section: to about a half in ResNets once they have begun to learn. Before that noise, which is taken for the
    units' curvature, makes it more. One factor for all units, also for those outside of sections, which noise concerns
    as much: between units it decides nothing.
    """
    section, gate = net.inside
    units = net.gate_vector.unit_count
    inner = (gate < units) & alive[gate] & alive[units + section]
    section, gate = section[inner], gate[inner]
    pairs = torch.stack([section, group_ids(net)[gate]]).unique(dim=1)
    whole = float(worth[units + pairs[0]].clamp(min=0).sum())
    together = float(worth[gate].clamp(min=0).sum())
    return whole / together if together > whole > 0 else 1.0


def _of_units(worth: torch.Tensor, alive: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """The mean of the group, times what the law makes of it when the unit's turn comes; shape (units,).

    At least what the unit is worth alone, and no more where it does nothing.
    """
    busy = alive & (worth > IDLE * _means(worth.clamp(min=0), alive, group))
    count = torch.bincount(group[busy], minlength=int(group.max()) + 1 if len(group) else 0)[group]
    left = (count - _places(worth.masked_fill(~busy, torch.inf), group)).clamp(min=1)
    return torch.where(busy, torch.maximum(worth, _means(worth, busy, group) * (count / left).square()), worth)


def _of_sections(worth: torch.Tensor, alive: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """Its own, times what the law makes of it when the section's turn comes in its stream; shape (sections,)."""
    shared = worth.clone()
    for number in stream.unique():
        found = (alive & (worth > 0) & (stream == number)).nonzero().reshape(-1)
        found = found[worth[found].argsort(stable=True)]
        left = worth[found].flip(0).cumsum(0).flip(0)
        shared[found] *= (left[:1] / left).square()
    return shared


def _means(values: torch.Tensor, among: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """For every unit the mean over those of its group that are `among`; all of shape (units,).

    What is more than `OUTLIER` times the mean counts as so much: one unit without which nothing works says nothing of
    the others.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    group_of, values = group[among], values[among]
    counts = torch.bincount(group_of, minlength=groups).clamp(min=1)
    means = torch.bincount(group_of, values, minlength=groups) / counts
    for _ in range(SETTLES):
        counted = torch.minimum(values, OUTLIER * means[group_of])
        means = torch.bincount(group_of, counted, minlength=groups) / counts
    return means[group]


def _places(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """The place of every gate in its group, in ascending order of `values`: 0, 1, …; shape (gates,)."""
    order = values.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = torch.bincount(group)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group[order]]
    return places
