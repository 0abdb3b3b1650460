"""Where gates go, and the graph with gates.

A dead unit must be exactly zero wherever a contraction consumes it. Walking back from the consumers, a gate is put
at the op that makes the unit non-zero, so that everything behind it keeps the zero. There it is folded into the
op's affine parameters if it has any, else the value is multiplied.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from fxcat.gates import SAMPLES
from fxcat.passes.arrays import leaves
from fxcat.passes.labels import Flow
from fxcat.passes.rules.table import Zero
from fxcat.passes.sections import Section
from fxcat.passes.units import NO_UNIT, Units


@dataclass(slots=True)
class Site:
    """A value that is gated: unit numbers (compressed array) or None, and the sections it closes."""

    units: torch.Tensor | None = None
    sections: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class GatedGraph:
    """The graph with gate nodes, the index tensors it reads, and the modules whose class folds a gate in."""

    graph: fx.Graph
    indices: tuple[torch.Tensor, ...]
    folded: dict[str, type[nn.Module]]


class _Demand:
    """Finds the sites that make values exactly zero for dead units (or, for a section, altogether)."""

    def __init__(self, flow: Flow, units: Units) -> None:
        self.flow = flow
        self.units = units
        self.sites: dict[fx.Node, Site] = {}
        self._expenses: dict[fx.Node, int] = {}
        self._carriers: dict[fx.Node, bool] = {}
        self._known: dict[int, torch.Tensor] = {}

    def for_consumers(self) -> None:
        """Gate what the consumers need, walking back from them; every node is visited once."""
        stack = [n for node, rule in self.flow.rules.items() if rule is not None for n in rule.needs_zero(node)]
        visited: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in visited or not self._has_units(node):
                continue
            visited.add(node)
            sources = self._sources(node, None)
            if sources is None:
                self.sites[node] = Site(self._numbers(node))
            elif self._any_will_do(node):
                stack.append(min(sources, key=self._expense))
            else:
                stack += sources

    def _any_will_do(self, node: fx.Node) -> bool:
        rule = self.flow.rules[node]
        return rule is not None and rule.zero_at(node) is Zero.ANY

    def _expense(self, start: fx.Node) -> int:
        """How many multiplications of whole values it takes to make a value's dead units zero."""
        stack = [(start, False)]
        while stack:
            node, ready = stack.pop()
            if node in self._expenses:
                continue
            sources = self._sources(node, None) if self._has_units(node) else []
            if sources is None:
                self._expenses[node] = 0 if node in self.sites or _folding(self.flow, node, Site()) else 1
            elif ready:
                costs = [self._expenses[s] for s in sources]
                self._expenses[node] = min(costs, default=0) if sources and self._any_will_do(node) else sum(costs)
            else:
                stack.append((node, True))
                stack += [(s, False) for s in sources]
        return self._expenses[start]

    def for_section(self, number: int, section: Section) -> None:
        """Gate what makes the section's exit zero altogether; if nothing inside can, the exit itself."""
        found = self._clean(section.exit, section.nodes)
        for site in found if found is not None else {section.exit}:
            self.sites.setdefault(site, Site()).sections.append(number)

    def _clean(self, start: fx.Node, inside: frozenset[fx.Node]) -> frozenset[fx.Node] | None:
        """The values inside a section to gate so that `start` is zero; None if that takes a value from outside."""
        memo: dict[fx.Node, frozenset[fx.Node] | None] = {}
        stack: list[tuple[fx.Node, bool]] = [(start, False)]
        while stack:
            node, ready = stack.pop()
            if node in memo:
                continue
            sources = self._sources(node, inside)
            if sources is None:
                memo[node] = None if node not in inside else frozenset({node})
            elif ready:
                memo[node] = self._combine(node, [memo[s] for s in sources])
            else:
                stack.append((node, True))
                stack += [(s, False) for s in sources if s not in memo]
        return memo[start]

    def _sources(self, node: fx.Node, inside: frozenset[fx.Node] | None) -> list[fx.Node] | None:
        """The inputs that have to be zero, or None if the value has to be gated itself."""
        if inside is not None and node not in inside:
            return None
        rule = self.flow.rules.get(node)
        if rule is None or rule.zero_at(node) is Zero.BREAKS:
            return None
        values = [n for n in node.all_input_nodes if self.flow.values.get(n) is not None]
        if inside is not None:
            return values
        carriers = [n for n in values if self._covers(n, node)]
        if rule.zero_at(node) is Zero.PRESERVES and not rule.movement and len(carriers) < len(values):
            return None
        return carriers or None

    def _combine(self, node: fx.Node, found: list[frozenset[fx.Node] | None]) -> frozenset[fx.Node]:
        possible = [f for f in found if f is not None]
        if self._any_will_do(node):
            # gates that are there already, and those that fold into parameters, cost nothing
            priced = [
                (sum(s not in self.sites and not _folding(self.flow, s, Site()) for s in f), len(f), i)
                for i, f in enumerate(possible)
            ]
            return possible[min(priced)[2]] if possible else frozenset({node})
        return frozenset().union(*possible) if len(possible) == len(found) else frozenset({node})

    def _numbers(self, node: fx.Node) -> torch.Tensor | None:
        labels = self.flow.values.get(node)
        if not isinstance(labels, torch.Tensor):
            return None
        if id(labels) not in self._known:
            self._known[id(labels)] = self.units.of(labels)
        return self._known[id(labels)]

    def _has_units(self, node: fx.Node) -> bool:
        if node not in self._carriers:
            arrays = leaves(self.flow.values.get(node))
            self._carriers[node] = any(bool((self.units.of_label[x] != NO_UNIT).any()) for x in arrays)
        return self._carriers[node]

    def _covers(self, source: fx.Node, node: fx.Node) -> bool:
        """Whether the source has units wherever the result has; movements (cat) only pass on what they were given."""
        rule = self.flow.rules[node]
        if rule is not None and rule.movement:
            return self._has_units(source)
        a, b = self._numbers(source), self._numbers(node)
        if a is None or b is None:
            return self._has_units(source)
        a = a.reshape((1,) * (b.dim() - a.dim()) + tuple(a.shape)) if a.dim() < b.dim() else a
        same = a.dim() == b.dim() and all(m == n or 1 in (m, n) for m, n in zip(a.shape, b.shape, strict=True))
        return not same or bool(((a != NO_UNIT) | (b == NO_UNIT)).all())


def find_sites(flow: Flow, units: Units, sections: Sequence[Section]) -> dict[fx.Node, Site]:
    """All gate sites: for units at their consumers' demand, for sections at what makes their exit zero."""
    demand = _Demand(flow, units)
    demand.for_consumers()
    for number, section in enumerate(sections):
        demand.for_section(number, section)
    return demand.sites


def insert_gates(graph: fx.Graph, flow: Flow, units: Units, sites: dict[fx.Node, Site]) -> GatedGraph:
    """A copy of the graph in which every site is gated; gate samples are attributes of the module `SAMPLES`."""
    gated = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = gated.node_copy(node, lambda n: copies[n])
    writer = _Writer(gated, units)
    folded: dict[str, type[nn.Module]] = {}
    for node in graph.nodes:
        site = sites.get(node)
        if site is None:
            continue
        target = copies[node]
        shape = node.meta["value"].shape
        with gated.inserting_before(target):
            gate = writer.gate(site)
        subclass = _folding(flow, node, site)
        if subclass is not None:
            folded[str(node.target)] = subclass
            target.args = (*target.args, gate)
            continue
        with gated.inserting_after(target):
            if site.units is not None and site.units.numel() > 1 and site.units.dim() == len(shape):
                with gated.inserting_before(target):
                    gate = gated.call_method("reshape", (gate, tuple(site.units.shape)))
            product = gated.call_function(operator.mul, (target, gate))
        target.replace_all_uses_with(product, delete_user_cb=lambda user, p=product: user is not p)
    return GatedGraph(gated, tuple(writer.indices), folded)


def _folding(flow: Flow, node: fx.Node, site: Site) -> type[nn.Module] | None:
    rule = flow.rules.get(node)
    if node.op != "call_module" or rule is None or len(node.args) != 1 or node.kwargs:
        return None
    if site.units is not None and site.units.numel() not in (1, site.units.shape[1]):
        return None
    return rule.gated_class(flow.module(node), node.meta["value"].shape)


class _Writer:
    """Writes the nodes that fetch a site's gate values: whole groups where possible, else an index into some."""

    def __init__(self, graph: fx.Graph, units: Units) -> None:
        self.graph = graph
        self.units = units
        self.indices: list[torch.Tensor] = []
        # the group of every unit; the last entry answers for NO_UNIT = -1
        self._owners = np.repeat(np.arange(-1, len(units.groups)), [0, *(g.count for g in units.groups)])
        self._owners = np.append(self._owners, NO_UNIT)
        # everything is fetched and built in front of the first op, in the order in which it is asked for
        self._top = next(n for n in graph.nodes if n.op != "placeholder")
        self._fetched: dict[str, fx.Node] = {}
        self._built: dict[bytes, fx.Node] = {}

    def gate(self, site: Site) -> fx.Node:
        gate = None if site.units is None else self._unit_gate(site.units.reshape(-1))
        for section in site.sections:
            scalar = self._fetch(f"section{section}")
            gate = scalar if gate is None else self.graph.call_function(operator.mul, (gate, scalar))
        assert gate is not None
        return gate

    def _unit_gate(self, numbers: torch.Tensor) -> fx.Node:
        key = numbers.numpy().tobytes()
        if key not in self._built:
            with self.graph.inserting_before(self._top):
                self._built[key] = self._assemble(numbers)
        return self._built[key]

    def _assemble(self, numbers: torch.Tensor) -> fx.Node:
        flat = numbers.numpy()
        owners = self._owners[flat]
        edges = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(flat)]
        pieces: list[int] = []
        for begin, end in itertools.pairwise(edges):
            group = self.units.groups[owners[begin]] if owners[begin] >= 0 else None
            whole = group is not None and end - begin == group.count
            if (
                group is None
                or not whole
                or not np.array_equal(flat[begin:end], np.arange(group.start, group.start + group.count))
            ):
                return self._by_index(flat, sorted(set(owners[owners >= 0].tolist())))
            pieces.append(int(owners[begin]))
        nodes = [self._fetch(f"group{i}") for i in pieces]
        return nodes[0] if len(nodes) == 1 else self.graph.call_function(torch.cat, (nodes,))

    def _by_index(self, flat: npt.NDArray[np.int64], groups: list[int]) -> fx.Node:
        # entry 0 of the concatenation is the constant one, for what is always live (number -1: the last of `base`)
        base = np.zeros(len(self._owners), dtype=np.int64)
        offset = 1
        for i in groups:
            group = self.units.groups[i]
            base[group.start : group.start + group.count] = np.arange(offset, offset + group.count)
            offset += group.count
        self.indices.append(torch.from_numpy(base[flat]))
        index = self._fetch(f"index{len(self.indices) - 1}")
        joined = self.graph.call_function(
            torch.cat, ([self._fetch("one"), *(self._fetch(f"group{i}") for i in groups)],)
        )
        return self.graph.call_function(torch.index_select, (joined, 0, index))

    def _fetch(self, name: str) -> fx.Node:
        if name not in self._fetched:
            with self.graph.inserting_before(self._top):
                self._fetched[name] = self.graph.create_node("get_attr", f"{SAMPLES}.{name}")
        return self._fetched[name]
