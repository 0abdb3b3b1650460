"""The graph of one region out of that of all, over its own module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import fx

from fxcat.passes.capture.asked import Absent
from fxcat.passes.capture.regions import Region
from fxcat.passes.codegen.signatures import signature_of
from fxcat.passes.graph.meta import ABSENT, BOTH_PHASES, COUNTS, PATH, PATTERN
from fxcat.passes.graph.nested import pack, unpack
from fxcat.passes.nodes.effects import needed
from fxcat.passes.rules.boundary import owners, region_input, region_output


def region_graph(graph: fx.Graph, number: int, region: Region, forward: Callable[..., Any]) -> fx.Graph:
    """The graph of one region over its own module: it takes its arguments apart and puts its results together."""
    results = [n for n in graph.nodes if n.target is region_output and n.args[1] == number]
    inside = _inside(graph, number)
    result = fx.Graph()
    found: dict[int, fx.Node] = {}
    for name, pattern in region.arguments.items():
        parameter = signature_of(forward).parameters[name]
        unpack(result, _placeholder(result, parameter, pattern, region.absent), pattern, found)
    for node in result.nodes:
        PATH.set(node, "")
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in inside:
            continue
        if node.target is region_input:
            copies[node] = found[node.args[2]]
            continue
        copy = copies[node] = result.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copy.target = str(node.target).removeprefix(f"{region.path}.")
    phases: list[Any] = []
    for phase, pattern in enumerate(region.results):
        values = [copies[n.args[0]] for n in results if n.args[3] == phase]
        phases.append(pack(result, pattern, values))
    output = result.output(phases[0] if len(phases) == 1 else tuple(phases))
    if len(phases) > 1:
        BOTH_PHASES.set(output, True)
    if any(region.counts):
        COUNTS.set(output, region.counts)
    return result


def _inside(graph: fx.Graph, number: int) -> set[fx.Node]:
    """The nodes of a region, with the parameters that they read. Some reach no result, but update statistics."""
    inside = [n for n, owner in owners(graph).items() if owner == number and n.target is not region_output]
    inside += [n.all_input_nodes[0] for n in graph.nodes if n.target is region_output and n.args[1] == number]
    return needed(graph, inside, ends={n for n in inside if n.target is region_input})


def _placeholder(graph: fx.Graph, parameter: inspect.Parameter, pattern: Any, absent: Absent) -> fx.Node:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    node = graph.placeholder(stars + parameter.name)
    PATTERN.set(node, pattern)
    ABSENT.set(node, absent)
    return node
