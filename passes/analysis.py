"""All analyses of a captured graph, in order: labels → units → sections → costs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxcat.costs import CostTerm
from fxcat.passes import guards
from fxcat.passes.arrays import place
from fxcat.passes.capture import Captured
from fxcat.passes.chains import keep_rectangular
from fxcat.passes.costing import cost_terms, full_macs
from fxcat.passes.effects import needed, returned
from fxcat.passes.labels import Flow, flow_labels
from fxcat.passes.made_values import with_selections
from fxcat.passes.regions import Region
from fxcat.passes.rules.boundary import inside, owners, region_output
from fxcat.passes.sections import Section, find_sections
from fxcat.passes.tables import with_tables
from fxcat.passes.units import Units, resolve_units


@dataclass(frozen=True, slots=True)
class Options:
    """What `prepare` was asked for: kinds of gates, module paths to leave alone, whether to gate input features, and
    paths of modules whose Python is run as it is."""

    units: bool = True
    sections: bool = True
    ignore: tuple[str, ...] = ()
    inputs: bool = False
    python: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Options:
        """From the names and values of the fields, as JSON gives them."""
        flags = stored["units"], stored["sections"], tuple(stored["ignore"]), stored["inputs"]
        return cls(*flags, tuple(stored.get("python", ())))


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything known about a captured model."""

    captured: Captured
    options: Options
    flow: Flow
    units: Units
    sections: tuple[Section, ...]
    terms: tuple[CostTerm, ...]
    inference: frozenset[fx.Node]

    @property
    def graph(self) -> fx.Graph:
        """Its nodes hold example values."""
        return self.captured.graph

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.captured.regions


def analyse(
    captured: Captured,
    network: nn.Module,
    options: Options,
    frozen: Mapping[str, Mapping[int, torch.Tensor]] | None = None,
    joins: Container[fx.Node] | None = None,
) -> Analysis:
    """Analyse a graph whose nodes hold example values, over a network whose data do not matter.

    `frozen`: per parameter axis a mask of what must stay. `joins`: where sections may end (None: anywhere).
    """
    graph = captured.graph
    flow = flow_labels(graph, network, captured.batch, options.ignore, captured.orders)
    if flow.tables:
        captured = with_tables(captured, network, flow.tables)
        flow = flow_labels(graph, network, captured.batch, options.ignore, captured.orders)
    if flow.meetings and joins is None:
        found = with_selections(captured, network, flow)
        if found is not captured:
            captured = found
            flow = flow_labels(graph, network, captured.batch, options.ignore, captured.orders)
    _link_calls(flow, captured)
    guards.freeze_guarded(flow, captured.guards)
    for pin in captured.pins:
        guards.freeze_axis(flow, pin.node, pin.axis, place(inside(pin.node)), pin.reason)
    for name, axes in (frozen or {}).items():
        for axis, mask in axes.items():
            if axis in flow.parameters.get(name, {}):
                flow.freeze(flow.parameters[name][axis][mask], name, "frozen before the network shrank")
    chains = keep_rectangular(flow, graph)
    if not options.units:
        for block in flow.blocks:
            flow.freeze_block(block, "gates='layers': units are not gated")
    units = resolve_units(flow, chains)
    flow.release()
    inference = reached(graph, 0)
    found = find_sections(graph, full_macs(flow, graph)) if options.sections else ()
    found = [s for s in found if joins is None or s.join in joins]
    sections = tuple(s for s in found if not _holds_ignored(s, options.ignore))
    needed = inference | reached(graph, 1)
    terms = cost_terms(flow, units, sections, inference, needed)
    if captured.macs:
        terms += (CostTerm("between regions", captured.macs, 0, ()),)
    return Analysis(captured, options, flow, units, sections, terms, inference)


def _link_calls(flow: Flow, captured: Captured) -> None:
    """What all calls of a region pass to it is one value, and each of its ops costs as often as it is called."""
    for tie in captured.ties:
        flow.ties.setdefault(tie.entry, []).append(tie.source)
        flow.unite(flow.of(tie.source), flow.of(tie.entry))
    if any(count > 1 for count in captured.calls.values()):
        flow.repeats |= {n: captured.calls.get(number, 1) for n, number in owners(captured.graph).items()}


def reached(graph: fx.Graph, phase: int) -> frozenset[fx.Node]:
    """The nodes that the output of a phase needs (0: inference, 1: training)."""
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    stack: list[fx.Node] = []
    fx.map_arg(returned(output, phase), stack.append)
    stack += [n for n in graph.nodes if n.target is region_output and n.args[3] == phase]
    return frozenset(needed(graph, stack, phase))


def _holds_ignored(section: Section, ignored: Sequence[str]) -> bool:
    paths = [str(n.target) for n in section.nodes if n.op == "call_module"]
    return any(p == i or p.startswith(i + ".") for p in paths for i in ignored)
