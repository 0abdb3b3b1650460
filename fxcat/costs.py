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
    """How many entries of an axis are live: `constant` plus Σ weight·ξ[unit].

    Units come in runs, shape (3, runs): numbers `start` … `stop` − 1, ascending, each with the same `weight`.
    """

    constant: int
    runs: Integers

    @classmethod
    def counting(cls, units: npt.NDArray[np.integer[Any]], constant: int = 0) -> Axis:
        """The axis with an entry for every number in `units` (in any order), and `constant` more."""
        steps = units[1:] - units[:-1]
        if len(units) and bool((steps == 1).all()):  # the usual case, and a quick test
            return cls(constant, np.array([[units[0]], [units[-1] + 1], [1]], dtype=np.int32))
        if bool((steps > 0).all()):  # sorting takes long
            numbers, weights = units, np.ones(len(units), dtype=np.int64)
        else:
            numbers, weights = np.unique(units, return_counts=True)
        begins = np.ones(len(numbers), dtype=bool)
        begins[1:] = (numbers[1:] != numbers[:-1] + 1) | (weights[1:] != weights[:-1])
        first = np.flatnonzero(begins)
        last = np.append(first, len(numbers))[1:] - 1
        return cls(constant, np.stack([numbers[first], numbers[last] + 1, weights[first]]).astype(np.int32))

    @property
    def width(self) -> int:
        """Entries when everything is alive."""
        start, stop, weight = self.runs
        return self.constant + int(((stop - start) * weight).sum())

    @property
    def units(self) -> Integers:
        """Numbers of the units and their weights, shape (2, units); numbers ascend."""
        start, stop, weight = self.runs
        numbers = [np.arange(a, b, dtype=np.int32) for a, b in zip(start, stop, strict=True)]
        return np.stack([np.concatenate([*numbers, start[:0]]), weight.repeat(stop - start)])


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
        one = Axis.counting(np.zeros(0, dtype=np.int32), 1)
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
        numbers = np.repeat(np.arange(len(rows), dtype=np.int32), [axis.runs.shape[1] for axis in rows])
        self._store("runs", np.vstack([numbers, np.concatenate([axis.runs for axis in rows], axis=1)]))
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
        before = torch.cat([units.new_zeros(1), units.cumsum(0)])
        row, start, stop, weight = self.get_buffer("runs").unbind(0)
        live = self.get_buffer("constants").double().index_add(0, row, (before[stop] - before[start]) * weight)
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


def _shared_units(a: Axis, b: Axis, row: int) -> Integers | None:
    """Units of both axes with the products of their weights."""
    if not a.runs.size or not b.runs.size or a.runs[1, -1] <= b.runs[0, 0] or b.runs[1, -1] <= a.runs[0, 0]:
        return None
    (of_a, weights_a), (of_b, weights_b) = a.units, b.units
    units, at_a, at_b = np.intersect1d(of_a, of_b, assume_unique=True, return_indices=True)
    return np.stack([np.full_like(units, row), units, weights_a[at_a] * weights_b[at_b]]) if len(units) else None


def cost_graph(
    terms: Sequence[CostTerm], edges: tuple[Sequence[str], Sequence[str]], activation_bytes: Mapping[str, int]
) -> nx.DiGraph[str]:
    """One node per op and parameter, with the sums of its terms at full width."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edges_from(zip(*edges, strict=True))
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
