"""The ways to call a model: graphs of their own for each, in inference and in training, out of the one of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxcat.passes.graph.meta import BOTH_PHASES, CALLS, COUNTS, PHASE, RESULTS
from fxcat.passes.graph.nested import pack
from fxcat.passes.nodes.cleanup import remove_dead
from fxcat.passes.nodes.effects import needed, returned


@dataclass(frozen=True, slots=True)
class Way:
    """A way to call a model, without the arguments `absent`: the graph of inference and, if it differs, of training."""

    absent: tuple[str, ...]
    graphs: tuple[fx.Graph, ...]


def split_phases(graph: fx.Graph) -> tuple[Way, ...]:
    """The ways to call a model.

    The graph of inference has only what its output needs. That of training has all that the model runs then: a norm
    whose result nobody reads updates its statistics too, and dropout draws numbers.
    """
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    ways, modes = CALLS.get(output, ((),)), 2 if BOTH_PHASES.get(output) else 1
    patterns = RESULTS.get(output, (None,) * len(ways) * modes)
    counts = COUNTS.get(output, ((),))
    if len(ways) == modes == 1 and patterns == (None,) and counts[0] == counts[-1]:
        return (Way((), (graph,)),)
    found: list[Way] = []
    for i, absent in enumerate(ways):
        own = patterns[i * modes : (i + 1) * modes]
        inference, training = (_part(graph, (i, p), absent, own[p % modes]) for p in range(2))
        same = modes == 1 and len(inference.nodes) == len(training.nodes) and counts[0] == counts[-1]
        found.append(Way(absent, (inference,) if same else (inference, training)))
    return tuple(found)


def _part(graph: fx.Graph, of: tuple[int, int], absent: Sequence[str], pattern: Any) -> fx.Graph:
    """What a way and phase runs, without what would need arguments that are absent, or what only another way needs.

    A graph that is there for both phases has what training runs.
    """
    phase = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    phase.graph_copy(graph, copies)
    way, number = of
    result = fx.map_arg(returned(output, number, way), copies.__getitem__)
    returning = phase.output(result if pattern is None else pack(phase, pattern, result))
    counts = COUNTS.get(output, ((),))
    COUNTS.set(returning, (counts[number % len(counts)],))
    _erase_from(phase, {n for n in phase.nodes if n.op == "placeholder" and n.target in absent})
    if number == 0 and BOTH_PHASES.get(output):
        remove_dead(phase, number)
    else:
        left = set(phase.nodes)
        _erase_from(phase, {copies[n] for n in _of_other_ways(graph, output, way) if copies[n] in left})
        _remove_inference(phase)
    return phase


def _of_other_ways(graph: fx.Graph, output: fx.Node, way: int) -> set[fx.Node]:
    """What only other ways to call the model than this one need in training."""
    ways = range(len(CALLS.get(output, ((),))))
    found = [needed(graph, _nodes_in(returned(output, 1, i)), 1) for i in ways]
    return set[fx.Node]().union(*found) - found[way]


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def _remove_inference(graph: fx.Graph) -> None:
    """Erase what only inference runs, what takes its results, and the gates that only these read."""
    wanted = needed(graph, [n for n in graph.nodes if n.op == "output"], 1)
    gone: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in wanted and (PHASE.get(node) == 0 or any(i in gone for i in node.all_input_nodes)):
            gone.add(node)
    for node in reversed(graph.nodes):
        if node in gone or (node.op == "get_attr" and not node.users and node not in wanted):
            graph.erase_node(node)


def _erase_from(graph: fx.Graph, nodes: set[fx.Node]) -> None:
    """Erase nodes and all that takes their values."""
    gone = set(nodes)
    for node in graph.nodes:
        if not gone.isdisjoint(node.all_input_nodes):
            gone.add(node)
    for node in reversed(graph.nodes):
        if node in gone:
            graph.erase_node(node)
