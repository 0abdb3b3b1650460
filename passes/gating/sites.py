"""Where gates go.

A dead unit must be exactly zero wherever a contraction consumes it. Walking back from the consumers, a gate is put
at the op that makes the unit non-zero, so that everything behind it keeps the zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.sections import Section
from fxcat.passes.analysis.units import NO_UNIT, Units
from fxcat.passes.graph.label_arrays import leaves
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.nodes.effects import changed_later
from fxcat.passes.rules.asking import ask
from fxcat.passes.rules.base import Folding, Zero


@dataclass(slots=True)
class Site:
    """A value that is gated: unit numbers (compressed array) or None, and the sections it closes."""

    units: torch.Tensor | None = None
    sections: list[int] = field(default_factory=list[int])


class _Demand:
    """Finds the sites that make values exactly zero for dead units (or, for a section, altogether)."""

    def __init__(self, flow: LabelFlow, units: Units) -> None:
        self.flow = flow
        self.units = units
        self.sites: dict[fx.Node, Site] = {}
        self._of_label = units.of_label.numpy()
        self._expenses: dict[fx.Node, int] = {}
        self._known_sources: dict[fx.Node, list[fx.Node] | None] = {}
        """Of values outside of any section: walks come by most of them several times."""
        self._carriers: dict[fx.Node, bool] = {}
        self._known: dict[int, torch.Tensor] = {}
        self._changed = changed_later(flow.values)
        """What a later op changes in place: that has to see all of it; and what is in the memory of such a buffer."""
        self._holding: dict[int, bool] = {}

    def for_consumers(self) -> None:
        """Gate what the consumers need, walking back from them; every node is visited once."""
        stack = [
            n
            for node, rule in self.flow.rules.items()
            if rule is not None
            for n in ask(rule.needs_zero, self.flow, node)
        ]
        visited: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in visited or not self._has_units(node) or self._is_folded(node):
                continue  # no op mixes the entries of a batch
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
        seen: set[fx.Node] = set()
        while stack:
            node, ready = stack.pop()
            if node in self._expenses or (node in seen and not ready):
                continue
            seen.add(node)
            sources = self._sources(node, None) if self._has_units(node) else []
            if sources is None:
                self._expenses[node] = 0 if node in self.sites or folding_at(self.flow, node, (1,)) else 1
            elif ready:
                costs = [self._expenses.get(s, 0) for s in sources]  # a region may be called with its own result
                self._expenses[node] = min(costs, default=0) if sources and self._any_will_do(node) else sum(costs)
            else:
                stack.append((node, True))
                stack += [(s, False) for s in sources]
        return self._expenses[start]

    def for_section(self, number: int, section: Section) -> None:
        """Gate what makes the section's exit zero altogether; if nothing inside can, the exit itself."""
        sites: set[fx.Node] = set()
        for part in section.parts:
            found = self._clean(part.exit, part.nodes)
            sites |= found if found is not None else {part.exit}
        for site in sites:
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
                gatable = node in inside and isinstance(VALUE.get(node), torch.Tensor)
                memo[node] = frozenset({node}) if gatable else None
            elif ready:
                memo[node] = self._combine(node, [memo[s] for s in sources])
            else:
                stack.append((node, True))
                stack += [(s, False) for s in sources if s not in memo]
        return memo[start]

    def _sources(self, node: fx.Node, inside: frozenset[fx.Node] | None) -> list[fx.Node] | None:
        """The inputs that have to be zero, or None if the value has to be gated itself.

        `inside`: what a section holds; of a value that is used elsewhere it has to stay what it is."""
        if inside is not None:
            return self._found_sources(node, inside) if node in inside else None
        if node not in self._known_sources:
            self._known_sources[node] = self._found_sources(node, None)
        return self._known_sources[node]

    def _found_sources(self, node: fx.Node, inside: frozenset[fx.Node] | None) -> list[fx.Node] | None:
        rule = self.flow.rules.get(node)
        if rule is None or rule.zero_at(node) is Zero.BREAKS:
            return None
        # softmax and its like make zeros of minus infinity: a gate before it would give 0 · ∞, which is no number
        if not rule.keeps_infinity and any(self._is_infinite(n) for n in node.all_input_nodes):
            return None
        given = [n for n in rule.zero_from(self.flow, node) if _holds_tensors(value_of(n))]
        values = [n for n in given if self._can_be_gated(n)]
        if any(n in self._changed for n in values):
            return None
        # no gate multiplies several values at once, but each of them where it is taken
        several = (n for n in values if not isinstance(value_of(n), torch.Tensor) and n is not node)
        if any(self._sources(n, inside) is None for n in several):
            return None
        # a section closes as a whole, and is a question of all values; units are one of those along the same labels
        if inside is not None:
            enough = len(values) == len(given) or (values and rule.zero_at(node) is Zero.ANY)
            return values if enough else None
        known = rule.carriers(self.flow, node)
        carriers = [n for n in values if self._covers(n, node)] if known is None else list(known)
        unfolded = isinstance(self.flow.values[node], torch.Tensor) and not self._is_folded(node)
        if unfolded and any(self._is_folded(n) for n in carriers):
            return None  # a gate per batch entry would not fit another batch size: gate what comes out of the fold
        # a sum with something that has no units is not zero where the other is; a movement has nothing to add
        if rule.zero_at(node) is Zero.PRESERVES and not rule.movement and len(carriers) < len(given):
            return None
        return carriers or None

    def _can_be_gated(self, node: fx.Node) -> bool:
        value = value_of(node)
        numbers = not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex()
        return numbers and self.flow.values.get(node) is not None

    def _is_infinite(self, start: fx.Node) -> bool:
        stack, seen = [start], set[fx.Node]()
        while stack:
            node = stack.pop()
            rule = self.flow.rules.get(node)
            if rule is not None and rule.infinite_at(self.flow, node):
                return True
            if (rule is None or rule.keeps_infinity) and node not in seen:
                seen.add(node)
                stack += node.all_input_nodes
        return False

    def _combine(self, node: fx.Node, found: list[frozenset[fx.Node] | None]) -> frozenset[fx.Node] | None:
        possible = [f for f in found if f is not None]
        # no gate multiplies several values at once: their elements are gated one by one
        itself = frozenset({node}) if isinstance(value_of(node), torch.Tensor) else None
        if self._any_will_do(node):
            # gates that are there already, and those that fold into parameters, cost nothing
            priced = [
                (sum(s not in self.sites and not folding_at(self.flow, s, (1,)) for s in f), len(f), i)
                for i, f in enumerate(possible)
            ]
            return possible[min(priced)[2]] if possible else itself
        return frozenset().union(*possible) if len(possible) == len(found) else itself

    def _numbers(self, node: fx.Node) -> torch.Tensor | None:
        labels = self.flow.values.get(node)
        if not isinstance(labels, torch.Tensor):
            return None
        if id(labels) not in self._known:
            self._known[id(labels)] = self.units.of(labels)
        return self._known[id(labels)]

    def _has_units(self, node: fx.Node) -> bool:
        if node not in self._carriers:
            self._carriers[node] = any(self._holds_units(x) for x in leaves(self.flow.values.get(node)))
        return self._carriers[node]

    def _is_folded(self, node: fx.Node) -> bool:
        """Whether units share an axis with the batch: heads that were folded into it, or channels that it was folded
        into."""
        if node in self.flow.folded:
            return True
        labels = self.flow.values.get(node)
        computed = node.op not in ("get_attr", "placeholder")
        if not computed or not isinstance(labels, torch.Tensor) or labels.dim() < 2 or labels.shape[0] == 1:
            return False
        numbers = self._numbers(node)
        return numbers is not None and bool((numbers != numbers[:1]).any())

    def _holds_units(self, labels: torch.Tensor) -> bool:
        # most values share their label array with others; the flow keeps all arrays, so that ids stay theirs
        if id(labels) not in self._holding:
            self._holding[id(labels)] = bool((self._of_label[labels.numpy()] != NO_UNIT).any())
        return self._holding[id(labels)]

    def _covers(self, source: fx.Node, node: fx.Node) -> bool:
        """Whether the source has units wherever the result has; movements (cat) only pass on what they were given."""
        rule = self.flow.rules[node]
        if rule is not None and rule.movement:
            return self._has_units(source)
        if self.flow.values.get(source) is self.flow.values.get(node):
            return True
        a, b = self._numbers(source), self._numbers(node)
        if a is None or b is None:
            return self._has_units(source)
        a = a.reshape((1,) * (b.dim() - a.dim()) + tuple(a.shape)) if a.dim() < b.dim() else a
        same = a.dim() == b.dim() and all(m == n or 1 in (m, n) for m, n in zip(a.shape, b.shape, strict=True))
        return not same or bool(((a != NO_UNIT) | (b == NO_UNIT)).all())


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensors, value)))


def find_sites(flow: LabelFlow, units: Units, sections: Sequence[Section]) -> dict[fx.Node, Site]:
    """All gate sites: for units at their consumers' demand, for sections at what makes their exit zero."""
    demand = _Demand(flow, units)
    demand.for_consumers()
    for number, section in enumerate(sections):
        demand.for_section(number, section)
    return demand.sites


def folding_at(flow: LabelFlow, node: fx.Node, shape: tuple[int, ...]) -> Folding | tuple[fx.Node, ...] | None:
    """How a gate of some shape, (1,) or as many axes as the value, folds into a node's module, or into which of its
    inputs."""
    rule = flow.rules.get(node)
    if rule is None or (math.prod(shape) != 1 and (len(shape) < 2 or math.prod(shape) != shape[1])):
        return None
    if node.op == "call_function":
        return rule.folding_call(node) or None
    value = value_of(node)
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(value, torch.Tensor):
        return None
    return rule.folding(flow.module(node), value.shape)
