"""All analyses of a captured graph, in order: labels → units → sections → costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from fxcat.network.cost_model import CostTerm
from fxcat.passes.analysis import guards
from fxcat.passes.analysis.chains import keep_rectangular
from fxcat.passes.analysis.costing import cost_terms, full_macs
from fxcat.passes.analysis.flow_labels import flow_labels
from fxcat.passes.analysis.sections import Section, find_sections
from fxcat.passes.analysis.tables import with_tables
from fxcat.passes.analysis.units import resolve_units
from fxcat.passes.analysis.units_before import keep_units
from fxcat.passes.analysis.weights import settle
from fxcat.passes.gating.made_values import with_selections
from fxcat.passes.graph.label_arrays import place
from fxcat.passes.graph.meta import BOTH_PHASES, PHASE
from fxcat.passes.nodes.effects import needed, returned
from fxcat.passes.pipeline import Step
from fxcat.passes.rules.boundary import inside, owners, region_output
from fxcat.passes.work import Work


def _labelled(work: Work) -> Work:
    captured = work.captured
    flow = flow_labels(captured.graph, work.network, captured.batch, work.options.ignore, captured.orders)
    return replace(work, flow=flow)


def _with_tables(work: Work) -> Work:
    """Labels again, where the graph has other nodes."""
    if not work.flow.tables:
        return work
    return _labelled(replace(work, captured=with_tables(work.captured, work.network, work.flow.tables)))


def _with_selections(work: Work) -> Work:
    """Labels again, likewise."""
    if not work.flow.meetings:
        return work
    captured = with_selections(work.captured, work.network, work.flow)
    return work if captured is work.captured else _labelled(replace(work, captured=captured))


def _with_calls_tied(work: Work) -> Work:
    """What all calls of a region pass to it is one value, and each of its ops costs as often as it is called."""
    flow, captured = work.flow, work.captured
    for tie in captured.ties:
        flow.ties.setdefault(tie.entry, []).append(tie.source)
        flow.unite(flow.of(tie.source), flow.of(tie.entry))
    if any(count > 1 for count in captured.calls.values()):
        flow.repeats |= {n: captured.calls.get(number, 1) for n, number in owners(captured.graph).items()}
    return work


def _pinned(work: Work) -> Work:
    """What Python decided by, what regions need, and what was another unit, or none, before the network shrank."""
    flow = work.flow
    guards.freeze_guarded(flow, work.captured.guards)
    for pin in work.captured.pins:
        guards.freeze_axis(flow, pin.node, pin.axis, place(inside(pin.node)), pin.reason)
    keep_units(flow, work.before)
    return work


def _rectangular(work: Work) -> Work:
    chains = keep_rectangular(work.flow, work.graph)
    if work.flow.weights or work.flow.doubtful:
        settle(work.flow)  # which axes have units is known when all are rectangular, but may freeze some
        chains = keep_rectangular(work.flow, work.graph)
    if not work.options.units:
        for block in work.flow.unions.blocks:
            work.flow.unions.freeze_block(block, "gates='layers': units are not gated")
    return replace(work, chains=chains)


def _resolved(work: Work) -> Work:
    units = resolve_units(work.flow, work.chains)
    return replace(work, units=units)


def _with_sections(work: Work) -> Work:
    found = find_sections(work.graph, full_macs(work.flow)) if work.options.sections else ()
    found = [s for s in found if work.joins is None or s.join in work.joins]
    return replace(work, sections=tuple(s for s in found if not _holds_ignored(s, work.options.ignore)))


def _with_costs(work: Work) -> Work:
    inference = reached(work.graph, 0)
    needed = inference | reached(work.graph, 1) if _has_phases(work.graph) else inference
    terms = cost_terms(work.flow, work.units, work.sections, inference, needed)
    if work.captured.macs:
        terms += (CostTerm("between regions", work.captured.macs, 0, ()),)
    return replace(work, inference=inference, terms=terms)


LABELS = Step("labels", _labelled, needs=("captured",), gives=("flow",))
TABLES = Step("tables", _with_tables, needs=("flow",), gives=("flow",), rewrites=True)
MADE_VALUES = Step("selections", _with_selections, needs=("flow",), gives=("flow",), rewrites=True)
CALLS = Step("calls", _with_calls_tied, needs=("flow",))
PINS = Step("pins", _pinned, needs=("flow",))
CHAINS = Step("chains", _rectangular, needs=("flow",), gives=("chains",))
UNITS = Step("units", _resolved, needs=("flow", "chains"), gives=("units",))
SECTIONS = Step("sections", _with_sections, needs=("flow", "units"), gives=("sections",))
COSTS = Step("costs", _with_costs, needs=("flow", "units", "sections"), gives=("inference", "terms"))
ANALYSES = (LABELS, TABLES, MADE_VALUES, CALLS, PINS, CHAINS, UNITS, SECTIONS, COSTS)
"""From a graph to what can go of it, and what that costs."""


def reached(graph: fx.Graph, phase: int) -> frozenset[fx.Node]:
    """The nodes that the output of a phase needs (0: inference, 1: training)."""
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    stack: list[fx.Node] = []
    fx.map_arg(returned(output, phase), stack.append)
    stack += [n for n in graph.nodes if n.target is region_output and n.args[3] == phase]
    return frozenset(needed(graph, stack, phase))


def _has_phases(graph: fx.Graph) -> bool:
    """Whether training may run other nodes than inference does."""
    return any(PHASE.has(n) or BOTH_PHASES.has(n) or n.target is region_output for n in graph.nodes)


def _holds_ignored(section: Section, ignored: Sequence[str]) -> bool:
    paths = [str(n.target) for n in section.nodes if n.op == "call_module"]
    return any(p == i or p.startswith(i + ".") for p in paths for i in ignored)
