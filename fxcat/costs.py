"""The cost graph: what every op and parameter costs as a polynomial in the gates.

Each cost is coefficient × (live entries of up to two axes) × (sections open). An axis counts its live entries as a
constant plus a weighted sum of units, so the expected cost under independent gates is a multilinear polynomial in θ:
two axes that share a unit contribute E[ξ²] = θ, not θ².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import nn

from fxcat.records import Cost


@dataclass(frozen=True, slots=True)
class Axis:
    """How many entries of an axis are live: `constant` plus Σ `weights`·ξ[`units`]."""

    constant: int
    units: tuple[int, ...]
    weights: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CostTerm:
    """`macs` and `params` per combination of live entries of the axes, if all `sections` are open."""

    owner: str
    macs: int
    params: int
    axes: tuple[Axis, ...]
    sections: tuple[int, ...]


class CostModel(nn.Module):
    """Evaluates all terms at once; differentiable in θ. Moves between devices with the network that holds it."""

    def __init__(self, terms: Sequence[CostTerm]) -> None:
        super().__init__()
        one = Axis(1, (), ())
        rows: dict[Axis, int] = {one: 0}
        pairs: dict[tuple[int, int], int] = {}
        contexts: dict[tuple[int, ...], int] = {(): 0}
        first: list[int] = []
        second: list[int] = []
        context: list[int] = []
        for term in terms:
            a, b = (*term.axes, one, one)[:2]
            first.append(rows.setdefault(a, len(rows)))
            second.append(rows.setdefault(b, len(rows)))
            context.append(contexts.setdefault(term.sections, len(contexts)))
        shared: list[tuple[int, int, int]] = []
        overlap: list[int] = []
        axes = list(rows)
        for pair in zip(first, second, strict=True):
            if pair not in pairs:
                found = _shared_units(axes[pair[0]], axes[pair[1]])
                pairs[pair] = 0 if not found else 1 + max(pairs.values(), default=0)
                shared += [(pairs[pair], unit, weight) for unit, weight in found]
            overlap.append(pairs[pair])
        depth = max(len(c) for c in contexts)
        padded = [[*(s + 1 for s in c), *[0] * (depth - len(c))] for c in contexts]
        flat = [(r, u, w) for r, axis in enumerate(axes) for u, w in zip(axis.units, axis.weights, strict=True)]
        self._store("rows", [(0, 0, 0), *flat])
        self._store("shared", [(0, 0, 0), *shared])
        self._store("index", list(zip(first, second, overlap, context, strict=True)) or [(0, 0, 0, 0)])
        self._store("contexts", padded)
        # double: integers up to 2^53 are exact, whatever the network's own precision is
        self._store("constants", [axis.constant for axis in axes])
        self._store("coefficients", [(t.macs, t.params) for t in terms] or [(0, 0)])
        self._overlaps = 1 + max(overlap, default=0)

    def _store(self, name: str, values: object) -> None:
        self.register_buffer(name, torch.from_numpy(np.asarray(values, dtype=np.int64)), persistent=False)

    def forward(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """MACs and parameters, a double tensor of shape (2,), for gates or probabilities of shape (U,) and (S,)."""
        return (self.per_term(units, sections)[:, None] * self.get_buffer("coefficients")).sum(0)

    def per_term(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """Live combinations of every term, shape (terms,), in double precision."""
        units, sections = units.double(), sections.double()
        # one spare unit: a network may have sections only
        padded = torch.cat([units, units.new_zeros(1)])
        row, unit, weight = self.get_buffer("rows").unbind(1)
        live = self.get_buffer("constants").double().index_add(0, row, padded[unit] * weight)
        first, second, overlap, context = self.get_buffer("index").unbind(1)
        combinations = live[first] * live[second]
        if self._overlaps > 1:
            pair, unit, weight = self.get_buffer("shared").unbind(1)
            variance = padded * (1 - padded)
            extra = variance.new_zeros(self._overlaps).index_add(0, pair, variance[unit] * weight)
            combinations = combinations + extra[overlap]
        if sections.numel():
            opened = torch.cat([sections.new_ones(1), sections])[self.get_buffer("contexts")].prod(1)
            combinations = combinations * opened[context]
        return combinations

    def cost(self, units: torch.Tensor, sections: torch.Tensor) -> Cost[torch.Tensor]:
        macs, params = self.forward(units, sections).unbind(0)
        return Cost(macs, params)


def _shared_units(a: Axis, b: Axis) -> list[tuple[int, int]]:
    if not a.units or not b.units:
        return []
    weights = dict(zip(b.units, b.weights, strict=True))
    return [(u, w * weights[u]) for u, w in zip(a.units, a.weights, strict=True) if u in weights]


def cost_graph(terms: Sequence[CostTerm], edges: Sequence[tuple[str, str]]) -> nx.DiGraph[str]:
    """The terms as a graph: one node per owner (op or parameter) with `macs`, `params` at full width and its terms."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edges_from(edges)
    for term in terms:
        graph.add_node(term.owner)
        data = graph.nodes[term.owner]
        width = 1
        for axis in term.axes:
            width *= axis.constant + sum(axis.weights)
        data["macs"] = data.get("macs", 0) + term.macs * width
        data["params"] = data.get("params", 0) + term.params * width
        data.setdefault("terms", []).append(term)
    return graph
