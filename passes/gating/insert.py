"""How a graph is gated at its sites, and the graph with gates.

A gate is folded into the affine parameters of its site's op if it has any, else the value is multiplied.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from fxcat.network.gates import SAMPLES
from fxcat.network.slot_values import GateLayout, GateSlot
from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.units import NO_UNIT, Units
from fxcat.passes.gating.sites import Site, folding_at
from fxcat.passes.gating.spread import Spread, spread_of
from fxcat.passes.graph.invocations import stands_for
from fxcat.passes.graph.meta import VALUE, stand_beside, take_all, value_of
from fxcat.passes.nodes.effects import changed_part_of
from fxcat.passes.rules.base import Counting, Folding
from fxcat.utils.made_classes import make_class


@dataclass(frozen=True, slots=True)
class Gating:
    """How one node is gated. Its module takes `arguments` at the end, or its module or function takes `counted` as the
    keyword `gate`; of a function parameters are `replaced`; its value is multiplied by `factor`. `ungated`: its module
    takes a gate, but not in this call."""

    arguments: tuple[GateSlot, ...] = ()
    replaced: tuple[tuple[fx.Node, GateSlot], ...] = ()
    counted: GateSlot | None = None
    function: Callable[..., Any] | None = None
    """What the node calls in place of its own function."""
    factor: GateSlot | None = None
    ungated: bool = False
    spread: Spread | None = None
    """Where the one gate that it has is for a value from before the axis with units was merged with others."""


@dataclass(frozen=True, slots=True)
class Gatings:
    """The gates of a graph, where each slot finds its values, and the modules whose class takes a gate."""

    of_node: Mapping[fx.Node, Gating]
    layout: GateLayout
    folded: Mapping[str, type[nn.Module]]


class _Placing:
    """Gives sites their slots, node by node."""

    def __init__(self, flow: LabelFlow, units: Units) -> None:
        self._flow, self._units = flow, units
        self.found: dict[fx.Node, Gating] = {}
        self.folded: dict[str, type[nn.Module]] = {}
        self._first: list[tuple[GateSlot, Site]] = []
        self._second: list[tuple[GateSlot, Site]] = []
        self._only: list[tuple[GateSlot, Site]] = []
        self._plain: list[tuple[GateSlot, Site]] = []

    def count(self, node: fx.Node, counting: Counting, site: Site | None) -> None:
        """What averages over units counts the live ones."""
        function = None if isinstance(counting.target, type) else counting.target
        spread = None if function is None else spread_of(self._flow, node.all_input_nodes[0], counting.labels)
        labels = counting.labels if spread is None else self._flow.of(spread.source)
        live = self._slot(Site(self._units.of_label[labels]), f"{node.name}_live", tuple(labels.shape))
        factor = None if site is None else self._beside(node, self._units.of_label[counting.labels], site)
        if isinstance(counting.target, type):
            self.folded[str(node.target)] = counting.target
        self.found[node] = Gating(counted=live, function=function, factor=factor, spread=spread)

    def _beside(self, node: fx.Node, counted: torch.Tensor, site: Site) -> GateSlot | None:
        """What a result is multiplied by besides: for sections, and for units that are not those that were counted."""
        others = None if site.units is None else site.units.masked_fill(torch.isin(site.units, counted), NO_UNIT)
        if others is not None and bool((others != NO_UNIT).any()):
            return self._slot(Site(others, site.sections), f"{node.name}_gate", tuple(others.shape))
        return self._slot(Site(None, site.sections), f"{node.name}_gate", (1,)) if site.sections else None

    def gate(self, node: fx.Node, site: Site) -> None:
        """A site is gated in its affine parameters if it has any, else by a multiplication."""
        shape = (1,) if site.units is None else tuple(site.units.shape)
        folding = folding_at(self._flow, node, shape)
        if folding is None:
            self._multiply(node, site, shape)
        elif isinstance(folding, Folding):
            path = str(node.target)
            self.folded[path] = folding.subclass
            scaled = self._scaling(site, node, [(path, name) for name in folding.parameters])
            self.found[node] = Gating(scaled or (self._slot(site, f"{node.name}_gate", (math.prod(shape),)),))
        else:
            pairs = [str(n.target).rpartition(".") for n in folding]
            scaled = self._scaling(site, node, [(path, name) for path, _, name in pairs])
            self.found[node] = Gating(replaced=tuple(zip(folding, scaled, strict=True)))

    def _multiply(self, node: fx.Node, site: Site, shape: tuple[int, ...]) -> None:
        spread = None if site.units is None else spread_of(self._flow, node, self._flow.of(node))
        if spread is not None:
            labels = self._flow.of(spread.source)
            site, shape = Site(self._units.of_label[labels], site.sections), tuple(labels.shape)
        self.found[node] = Gating(factor=self._slot(site, f"{node.name}_gate", shape), spread=spread)

    def _slot(self, site: Site, name: str, shape: tuple[int, ...]) -> GateSlot:
        self._plain.append((GateSlot(name, shape), site))
        return self._plain[-1][0]

    def _scaling(self, site: Site, node: fx.Node, parameters: Sequence[tuple[str, str]]) -> tuple[GateSlot, ...]:
        width = (value_of(node).shape[1],)
        found = tuple(GateSlot(f"{node.name}_{name}", width, (path, name)) for path, name in parameters)
        if len(found) == 2:
            self._first.append((found[0], site))
            self._second.append((found[1], site))
        else:
            self._only += [(each, site) for each in found]
        return found

    def also_ungated(self, nodes: Iterable[fx.Node]) -> None:
        """A module that is called several times may be gated in some calls only, where that is cheaper."""
        for node in nodes:
            path, gating = str(node.target), self.found.get(node, _NOT_GATED)
            if node.op == "call_module" and path in self.folded and not gating.arguments and gating.counted is None:
                self.folded[path] = _also_ungated(self.folded[path])
                self.found[node] = replace(gating, ungated=True)

    def layout(self) -> GateLayout:
        """Where each slot finds its values. The entries of a second parameter are those of the first."""
        distinct = [*self._first, *self._only, *self._plain]
        repeated = sum(math.prod(slot.shape) for slot, _ in self._second)
        return GateLayout(_gate_index(distinct, self._units), tuple(s for s, _ in self._second + distinct), repeated)


def place_gates(graph: fx.Graph, flow: LabelFlow, units: Units, sites: Mapping[fx.Node, Site]) -> Gatings:
    """How every site is gated: in the op itself (counted statistics, affine parameters), else by a multiplication."""
    placing = _Placing(flow, units)
    for node in graph.nodes:
        site, counting = sites.get(node), _counting(flow, units, node)
        if counting is not None:
            placing.count(node, counting, site)
        elif site is not None:
            placing.gate(node, site)
    placing.also_ungated(graph.nodes)
    return Gatings(placing.found, placing.layout(), placing.folded)


def insert_gates(graph: fx.Graph, gatings: Mapping[fx.Node, Gating], dtype: torch.dtype) -> fx.Graph:
    """A copy of the graph with gates; their values, of a type of numbers, are attributes of the module `SAMPLES`."""
    gated = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    plain: dict[fx.Node, fx.Node] = {}

    def read(slot: GateSlot) -> fx.Node:
        return gated.create_node("get_attr", f"{SAMPLES}.{slot.name}")

    def fitting(slot: GateSlot, node: fx.Node) -> fx.Node:
        """Of the type of a node's value, where another one would make that wider."""
        gate, value = read(slot), value_of(node)
        narrow = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype.itemsize < dtype.itemsize
        return gated.call_method("to", (gate, value.dtype)) if narrow else gate

    for node in graph.nodes:
        gating = gatings.get(node, _NOT_GATED)
        arguments = tuple(read(slot) for slot in gating.arguments)
        live = None if gating.counted is None else fitting(gating.counted, node)
        if live is not None and gating.spread is not None:
            live = gating.spread.insert(gated, live, node, copies.__getitem__)
        counted: dict[str, Any] = {} if live is None else {"gate": live}
        counted |= {UNGATED: True} if gating.ungated else {}
        factor = None if gating.factor is None else fitting(gating.factor, node)
        if factor is not None and gating.counted is None and gating.spread is not None:
            factor = gating.spread.insert(gated, factor, node, copies.__getitem__)
        scaled = {of: read(slot) for of, slot in gating.replaced}

        changed = changed_part_of(node)
        changed = changed if changed is not None and changed.op == "get_attr" else None

        def enter(
            source: fx.Node,
            scaled: Mapping[fx.Node, fx.Node] = scaled,
            changed: Container[fx.Node] = () if changed is None else (changed, node.args[0]),
        ) -> fx.Node:
            if source in changed:
                return plain[source]
            return scaled[source] if source in scaled else copies[source]

        if gating.function is None:
            target = gated.node_copy(node, enter)
        else:
            given = fx.map_arg((node.args, node.kwargs), enter)
            target = gated.create_node("call_function", gating.function, *given, name=node.name)
            take_all(target, node)
        target.args, target.kwargs = (*target.args, *arguments), {**target.kwargs, **counted}
        copies[node] = plain[node] = target
        if factor is not None:
            copies[node] = gated.call_function(operator.mul, (target, factor))
            stand_beside(copies[node], node)
            VALUE.set(copies[node], value_of(node))  # which tells its views
            stands_for(copies[node], node)
    for node in reversed(gated.nodes):
        if node.op == "get_attr" and not node.users:
            gated.erase_node(node)
    return gated


_NOT_GATED = Gating()
UNGATED = "fxcat_ungated"
"""Keyword argument of a module whose class takes a gate: this call has none."""


@cache
def _also_ungated(subclass: type[nn.Module]) -> type[nn.Module]:
    """The class of a module that is called both with and without a gate; as a direct subclass of the module's own."""
    if UNGATED in inspect.signature(subclass.forward).parameters:
        return subclass
    base = subclass.__bases__[0]

    def forward(self: Any, *args: Any, fxcat_ungated: bool = False, **kwargs: Any) -> Any:
        return base.forward(self, *args, **kwargs) if fxcat_ungated else subclass.forward(self, *args, **kwargs)

    return make_class(subclass.__name__, base, {**vars(subclass), "forward": forward}, (_also_ungated, (subclass,)))


def _gate_index(slots: list[tuple[GateSlot, Site]], units: Units) -> torch.Tensor:
    """For every entry of the slots the gates that it is the product of, shape (1 + deepest nesting, entries), int32.

    Numbers are those of the gate vector plus one; 0 stands for the constant one.
    """
    depth = max((len(site.sections) for _, site in slots), default=0)
    sizes = [math.prod(slot.shape) for slot, _ in slots]
    index = torch.zeros((1 + depth, sum(sizes)), dtype=torch.int32)
    for (_, site), entries in zip(slots, index.split(sizes, 1), strict=True):
        if site.units is not None:
            entries[0] = site.units.reshape(-1) + 1  # NO_UNIT = -1 becomes 0
        for row, section in enumerate(site.sections):
            entries[1 + row] = 1 + units.count + section
    return index


def _counting(flow: LabelFlow, units: Units, node: fx.Node) -> Counting | None:
    rule = flow.rules.get(node)
    counting = None if rule is None else rule.counting(flow, node)
    if counting is None or not bool((units.of_label[counting.labels] != NO_UNIT).any()):
        return None
    return counting
