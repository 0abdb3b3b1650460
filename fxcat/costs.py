"""The cost graph: what every op and parameter costs as a polynomial in the gates.

Each cost is coefficient × (live entries of up to two axes) × (sections open). An axis counts its live entries as a
constant plus a weighted sum of units, so the expected cost under independent gates is a multilinear polynomial in θ:
two axes that share a unit contribute E[ξ²] = θ, not θ².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxcat.records import Cost

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """How many entries of an axis are live: `constant` plus Σ `weights`·ξ[`units`], where `units` ascend."""

    constant: int
    units: Integers
    weights: Integers

    @property
    def width(self) -> int:
        """Entries when everything is alive."""
        return self.constant + int(self.weights.sum())


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
        one = Axis(1, np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))
        rows: dict[Axis, int] = {one: 0}
        contexts: dict[tuple[int, ...], int] = {(): 0}
        pairs: dict[tuple[int, int], int] = {}
        shared: list[Integers] = [np.zeros((3, 1), dtype=np.int32)]
        index = np.zeros((max(1, len(terms)), 4), dtype=np.int64)
        for i, term in enumerate(terms):
            a, b = (*term.axes, one, one)[:2]
            pair = rows.setdefault(a, len(rows)), rows.setdefault(b, len(rows))
            if pair not in pairs:
                found = _shared_units(a, b, len(shared))
                pairs[pair] = 0 if found is None else len(shared)
                shared += [] if found is None else [found]
            index[i] = (*pair, pairs[pair], contexts.setdefault(term.sections, len(contexts)))
        depth = max(len(c) for c in contexts)
        padded = [[*(s + 1 for s in c), *[0] * (depth - len(c))] for c in contexts]
        self._store("rows", _entries(tuple(rows)))
        self._store("shared", np.concatenate(shared, axis=1))
        self._store("index", index)
        self._store("contexts", np.asarray(padded, dtype=np.int64))
        self._store("constants", np.asarray([axis.constant for axis in rows]))
        self._store("coefficients", np.asarray([(t.macs, t.params) for t in terms] or [(0, 0)]))
        self._overlaps = len(shared)

    def _store(self, name: str, values: npt.NDArray[np.integer[Any]]) -> None:
        self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """MACs and parameters for gates or probabilities of shape (U,) and (S,).

        A double tensor of shape (2,): integers up to 2^53 are exact.
        """
        return (self.per_term(units, sections)[:, None] * self.get_buffer("coefficients")).sum(0)

    def per_term(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """Live combinations of every term, shape (terms,), in double precision."""
        units, sections = units.double(), sections.double()
        # one spare unit: a network may have sections only
        padded = torch.cat([units, units.new_zeros(1)])
        row, unit, weight = self.get_buffer("rows").unbind(0)
        live = self.get_buffer("constants").double().index_add(0, row, padded[unit] * weight)
        first, second, overlap, context = self.get_buffer("index").unbind(1)
        combinations = live[first] * live[second]
        if self._overlaps > 1:
            pair, unit, weight = self.get_buffer("shared").unbind(0)
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


def _entries(axes: Sequence[Axis]) -> Integers:
    """Numbers of axes, units, weights: shape (3, entries). The first entry is empty: a network may have no units."""
    entries = np.zeros((3, 1 + sum(len(a.units) for a in axes)), dtype=np.int32)
    start = 1
    for i, axis in enumerate(axes):
        end = start + len(axis.units)
        entries[0, start:end], entries[1, start:end], entries[2, start:end] = i, axis.units, axis.weights
        start = end
    return entries


def _shared_units(a: Axis, b: Axis, row: int) -> Integers | None:
    """Units of both axes with the products of their weights."""
    if not len(a.units) or not len(b.units) or a.units[-1] < b.units[0] or b.units[-1] < a.units[0]:
        return None
    units, at_a, at_b = np.intersect1d(a.units, b.units, assume_unique=True, return_indices=True)
    weights = a.weights[at_a] * b.weights[at_b]
    return np.stack([np.full_like(units, row), units, weights]) if len(units) else None


def cost_graph(
    terms: Sequence[CostTerm], edges: Sequence[tuple[str, str]], activation_bytes: Mapping[str, int]
) -> nx.DiGraph[str]:
    """One node per op and parameter, with the sums of its terms at full width."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edges_from(edges)
    for name in (*graph, *(t.owner for t in terms)):
        graph.add_node(name, macs=0, params=0, activation_bytes=activation_bytes.get(name, 0), terms=[])
    for term in terms:
        data = graph.nodes[term.owner]
        width = 1
        for axis in term.axes:
            width *= axis.width
        data["macs"] += term.macs * width
        data["params"] += term.params * width
        data["terms"].append(term)
    return graph
