"""Costs by layer, before and after."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fxcat.gated import GatedModule
from fxcat.network.cost_model import CostModel
from fxcat.network.program import Structure


@dataclass(frozen=True, slots=True)
class LayerCost:
    """A module's own ops and parameters, or an op that is no module's: at the start, and what is left."""

    name: str
    macs: int
    macs_left: int
    params: int
    params_left: int


def layer_costs(net: GatedModule) -> tuple[LayerCost, ...]:
    """Of all layers of the start network that cost anything, in its order."""
    start, live = net.start_structure, net.live_gates().double()
    units = sum(g.units for g in start.groups)
    model, every = CostModel(start.terms), torch.ones_like(live)
    before = model.per_term(every[:units], every[units:]).tolist()
    after = model.per_term(live[:units], live[units:]).tolist()
    layers = _layers(start)
    sums: dict[str, list[float]] = {}
    for term, full, left in zip(start.terms, before, after, strict=True):
        amounts = sums.setdefault(layers[term.owner], [0.0] * 4)
        for i, amount in enumerate((term.macs * full, term.macs * left, term.params * full, term.params * left)):
            amounts[i] += amount
    return tuple(LayerCost(name, *map(round, sums[name])) for name in _in_order(net, list(sums)) if any(sums[name]))


def _in_order(net: GatedModule, names: list[str]) -> list[str]:
    """In the order of the model's parameters; ops that have none behind what comes before them."""
    first = {name.rpartition(".")[0] or name: i for i, name in reversed(list(enumerate(net.recipe[-1].shapes)))}
    places: dict[str, float] = {}
    last = 0.0
    for name in names:
        last = first.get(name, last)
        places[name] = last if name in first else last + 0.5
    return sorted(names, key=lambda name: places[name])


def _layers(structure: Structure) -> dict[str, str]:
    """For every op and parameter that costs: the module it belongs to; itself if that is not known.

    Ops have the names of their modules with underscores; those that are given a parameter are its module's."""
    owners = list(dict.fromkeys(t.owner for t in structure.terms))
    modules = {o: o.rpartition(".")[0] for o in owners if "." in o}
    flat = {_op_name(path): path for path in modules.values()}
    parameters = {_op_name(owner): path for owner, path in modules.items()}
    reading = {reader: parameters[name] for name, reader in _pairs(structure) if name in parameters}
    found: dict[str, str] = {}
    for owner in owners:
        again = re.sub(r"_\d+$", "", owner)  # of a module that is called more than once
        known = (modules.get(owner), flat.get(owner), reading.get(owner), flat.get(again))
        found[owner] = next((path for path in known if path is not None), owner)
    return found


def _op_name(path: str) -> str:
    """What `torch.fx` calls the op of a path: an identifier, which begins with no digit."""
    name = path.replace(".", "_")
    return f"_{name}" if name[:1].isdigit() else name


def _pairs(structure: Structure) -> Iterable[tuple[str, str]]:
    return zip(*structure.edges, strict=True)
