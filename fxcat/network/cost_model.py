"""The cost graph: what every op and parameter costs as a polynomial in the gates.

Each cost is coefficient × (live entries of up to three axes) × (one use at least in open sections only). An axis counts
its live entries as a constant plus a weighted sum of units, so the expected cost under independent gates is a
multilinear polynomial in θ: two axes that share a unit contribute E[ξ²] = θ, not θ².
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxcat.records import COUNTED, Cost
from fxcat.utils.constant_tables import Table

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
class Holding:
    """What lives while all `sections` are open and, if there are any, one of several uses lives (`any_of`)."""

    sections: tuple[int, ...] = ()
    any_of: tuple[Holding, ...] = ()

    @classmethod
    def of_uses(cls, uses: Collection[Collection[int]]) -> Holding:
        """Of what lives as long as one of its uses does. Each use: the sections that hold it; they nest."""
        distinct = {frozenset(use) for use in uses}
        common = frozenset.intersection(*distinct)
        rest = {use - common for use in distinct}
        if frozenset() in rest:
            return cls(tuple(sorted(common)))
        parts: list[set[frozenset[int]]] = []
        for use in sorted(rest, key=sorted):
            joined = [p for p in parts if any(use & other for other in p)]
            parts = [p for p in parts if p not in joined] + [set().union({use}, *joined)]
        if len(parts) == 1:  # sections that overlap and do not nest
            parts = [{use} for use in parts[0]]
        return cls(tuple(sorted(common)), tuple(cls.of_uses(part) for part in parts))

    @property
    def holders(self) -> frozenset[int]:
        """All sections that count."""
        return frozenset(self.sections).union(*(each.holders for each in self.any_of))

    @property
    def uses(self) -> Iterator[tuple[int, ...]]:
        """For every use the sections that hold it."""
        if not self.any_of:
            yield self.sections
        for each in self.any_of:
            for use in each.uses:
                yield (*self.sections, *use)

    @property
    def depth(self) -> int:
        """How often uses are chosen from within each other."""
        return max((1 + each.depth for each in self.any_of), default=0)


@dataclass(frozen=True, slots=True)
class CostTerm:
    """`macs` and `params` per combination of live entries of the axes, while `holding` lives.

    Every kind of cost in `COUNTED` is a field here."""

    owner: str
    macs: int
    params: int
    axes: tuple[Axis, ...]
    holding: Holding = Holding()

    @property
    def amounts(self) -> tuple[int, ...]:
        """The coefficient of every kind in `COUNTED`, in its order."""
        return tuple(getattr(self, kind) for kind in COUNTED)


class CostModel(nn.Module):
    """Evaluates all terms at once; differentiable in θ. Computes on the device of θ."""

    def __init__(self, terms: Sequence[CostTerm]) -> None:
        super().__init__()
        self._tables: dict[str, Table] = {}
        # Thousands of terms have few different axes, pairs of axes and holdings: each is computed once, and terms refer
        # to it by its row. Row 0 is what a term without one refers to: one entry, no units in common, always alive.
        one = Axis.counting(np.zeros(0, dtype=np.int32), 1)
        rows: dict[Axis, int] = {one: 0}
        holdings = _by_depth(terms)
        pairs: dict[tuple[int, int], int] = {}
        shared: list[Integers] = [np.zeros((3, 1), dtype=np.int32)]
        thirds: list[tuple[int, ...]] = []
        triples: list[Integers] = []
        index = np.zeros((max(1, len(terms)), 4), dtype=np.int64)

        def overlap(a: Axis, b: Axis) -> int:
            pair = rows.setdefault(a, len(rows)), rows.setdefault(b, len(rows))
            if pair not in pairs:
                found = _shared_units(a, b, len(shared))
                pairs[pair] = 0 if found is None else len(shared)
                shared.extend([] if found is None else [found])
            return pairs[pair]

        for i, term in enumerate(terms):
            a, b, *more = (*term.axes, one, one)[: max(2, len(term.axes))]
            found = overlap(a, b)
            index[i] = (rows[a], rows[b], found, holdings[term.holding])
            for c in more:
                assert len(more) == 1, f"{term.owner}: a cost over more than three axes"
                triples += _units_of_all(a, b, c, len(thirds))
                thirds.append((i, overlap(a, c), overlap(b, c), rows[c]))
        numbers = np.repeat(np.arange(len(rows), dtype=np.int32), [axis.runs.shape[1] for axis in rows])
        self._store("runs", np.vstack([numbers, np.concatenate([axis.runs for axis in rows], axis=1)]))
        self._store("shared", np.concatenate(shared, axis=1))
        self._store("index", index)
        self._thirds = len(thirds)
        if thirds:
            self._store("thirds", np.asarray(thirds, dtype=np.int64))
            self._store("triples", np.concatenate([np.zeros((3, 0), dtype=np.int32), *triples], axis=1))
        # sections count from 1 here: 0 fills the rows, and stands for what is always open
        self._store("holdings", _padded([[s + 1 for s in h.sections] for h in holdings], 0))
        self._levels = max(h.depth for h in holdings)
        for level in range(1, self._levels + 1):
            choices = [[holdings[each] for each in h.any_of] for h in holdings if h.depth == level]
            self._store(f"choices{level}", _padded(choices, -1))
        self._store("constants", np.asarray([axis.constant for axis in rows]))
        self._store("coefficients", np.asarray([t.amounts for t in terms] or [(0,) * len(COUNTED)]))
        self._overlaps = len(shared)

    def _store(self, name: str, values: npt.NDArray[np.integer[Any]]) -> None:
        self._tables[name] = Table(torch.from_numpy(values))

    def forward(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """Every kind of cost for gates or probabilities of shape (U,) and (S,).

        A double tensor of shape (kinds,), in the order of `COUNTED`: integers up to 2^53 are exact.
        """
        return (self.per_term(units, sections)[:, None] * self._table("coefficients", units)).sum(0)

    def _table(self, name: str, gates: torch.Tensor) -> torch.Tensor:
        return self._tables[name].on(gates.device)

    def per_term(self, units: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
        """Live combinations of every term, shape (terms,), in double precision."""
        units, sections = units.double(), sections.double()
        # one spare unit: a network may have sections only
        padded = torch.cat([units, units.new_zeros(1)])
        before = torch.cat([units.new_zeros(1), units.cumsum(0)])
        row, start, stop, weight = self._table("runs", units).unbind(0)
        live = self._table("constants", units).double().index_add(0, row, (before[stop] - before[start]) * weight)
        first, second, overlap, holding = self._table("index", units).unbind(1)
        combinations = live[first] * live[second]
        extra = padded.new_zeros(self._overlaps)
        variance = padded * (1 - padded)
        if self._overlaps > 1:
            pair, unit, weight = self._table("shared", units).unbind(0)
            extra = extra.index_add(0, pair, variance[unit] * weight)
            combinations = combinations + extra[overlap]
        if self._thirds:
            # E[XYZ] of sums of independent gates, by the covariances of two and the joint cumulant of all three
            term, with_first, with_second, third = self._table("thirds", units).unbind(1)
            row, unit, weight = self._table("triples", units).unbind(0)
            skew = variance * (1 - 2 * padded)
            of_all = extra.new_zeros(self._thirds).index_add(0, row, skew[unit] * weight)
            of_two = live[second[term]] * extra[with_first] + live[first[term]] * extra[with_second]
            combinations = combinations.index_copy(0, term, combinations[term] * live[third] + of_two + of_all)
        if sections.numel():
            combinations = combinations * self._alive(sections)[holding]
        return combinations

    def _alive(self, sections: torch.Tensor) -> torch.Tensor:
        """The probability that each holding lives; the uses to choose from are in no common section."""
        opened = torch.cat([sections.new_ones(1), sections])[self._table("holdings", sections)].prod(1)
        choices = [self._table(f"choices{level + 1}", sections) for level in range(self._levels)]
        plain = len(opened) - sum(len(c) for c in choices)
        alive, *rest = opened.split([plain, *(len(c) for c in choices)])
        for own, uses in zip(rest, choices, strict=True):
            gone = 1 - torch.cat([alive, alive.new_zeros(1)])[uses]
            alive = torch.cat([alive, own * (1 - gone.prod(1))])
        return alive

    def cost(self, units: torch.Tensor, sections: torch.Tensor) -> Cost[torch.Tensor]:
        """The same by name, as double scalars."""
        return Cost(*self(units, sections).unbind(0))

    def cost_of(self, setting: torch.Tensor, units: int) -> Cost[int]:
        """Of a 0/1 setting of shape (gates,), of which the first so many are `units`: whole numbers."""
        return Cost(*map(round, self(setting[:units], setting[units:]).tolist()))


def _by_depth(terms: Sequence[CostTerm]) -> dict[Holding, int]:
    """Numbers of all holdings, those that choose from others behind them."""
    found: dict[Holding, None] = {Holding(): None}
    stack = list(dict.fromkeys(t.holding for t in terms))
    while stack:
        holding = stack.pop()
        found[holding] = None
        stack += holding.any_of
    return {holding: i for i, holding in enumerate(sorted(found, key=lambda h: h.depth))}


def _padded(rows: Sequence[Sequence[int]], filler: int) -> npt.NDArray[np.int64]:
    width = max(len(row) for row in rows)
    return np.asarray([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.int64)


def _shared_units(a: Axis, b: Axis, row: int) -> Integers | None:
    """Units of both axes with the products of their weights."""
    if not a.runs.size or not b.runs.size or a.runs[1, -1] <= b.runs[0, 0] or b.runs[1, -1] <= a.runs[0, 0]:
        return None
    (of_a, weights_a), (of_b, weights_b) = a.units, b.units
    units, at_a, at_b = np.intersect1d(of_a, of_b, assume_unique=True, return_indices=True)
    return np.stack([np.full_like(units, row), units, weights_a[at_a] * weights_b[at_b]]) if len(units) else None


def _units_of_all(a: Axis, b: Axis, c: Axis, row: int) -> list[Integers]:
    """Units of three axes with the products of their weights, if there are any."""
    found = _shared_units(a, b, row)
    (of_c, weights) = c.units
    if found is None:
        return []
    units, at, at_c = np.intersect1d(found[1], of_c, assume_unique=True, return_indices=True)
    return [np.stack([np.full_like(units, row), units, found[2][at] * weights[at_c]])] if len(units) else []


def cost_graph(
    terms: Sequence[CostTerm], edges: tuple[Sequence[str], Sequence[str]], activation_bytes: Mapping[str, int]
) -> nx.DiGraph[str]:
    """One node per op and parameter, with the sums of its terms at full width."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edges_from(zip(*edges, strict=True))
    for name in (*graph, *(t.owner for t in terms)):
        graph.add_node(name, **dict.fromkeys(COUNTED, 0), activation_bytes=activation_bytes.get(name, 0), terms=[])
    for term in terms:
        data = graph.nodes[term.owner]
        width = 1
        for axis in term.axes:
            width *= axis.width
        for kind, amount in zip(COUNTED, term.amounts, strict=True):
            data[kind] += amount * width
        data["terms"].append(term)
    return graph
