"""Shorter calls: what a model does without arguments that may be left out, as a part of the whole call's graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxcat.errors import CaptureError
from fxcat.passes.capture.merge_phases import key_of, numbered
from fxcat.passes.capture.phases import Phases, Results, trace_phases
from fxcat.passes.capture.regions import Call
from fxcat.passes.capture.tracing import Guard
from fxcat.passes.nodes.effects import is_by_the_way, needed, without_result


@dataclass(frozen=True, slots=True)
class Shorter:
    """A call without some arguments, as a part of the graphs of the whole call: what it returns in either phase."""

    absent: tuple[str, ...]
    values: tuple[Any, ...]
    patterns: tuple[Any, ...]
    guards: tuple[Guard, ...]


def shorter_calls(model: nn.Module, call: Call, whole: Phases, results: Results) -> list[Shorter]:
    """The calls without arguments that may be left out, such as labels: one of them, or all that may be.

    Only those that do a part of what the whole call does, and compute with that: all weights are those of the whole.
    """
    parameters = call.bound.signature.parameters
    optional = [name for name in call.arguments if parameters[name].default is None]
    found = [s for name in optional if (s := _shorter(model, call, whole, results, (name,))) is not None]
    if len(found) > 1:
        together = _shorter(model, call, whole, results, tuple(name for s in found for name in s.absent))
        found += [] if together is None else [together]
    return found


def _shorter(model: nn.Module, call: Call, whole: Phases, results: Results, absent: tuple[str, ...]) -> Shorter | None:
    left = call.without(absent)
    if not left.tensors:
        return None
    try:
        found = trace_phases(model, left, results)
    except CaptureError:
        return None
    values, guards = list[Any](), list[Guard]()
    for phase, graph in enumerate(whole.graphs):
        part = found.graphs[phase % len(found.graphs)]
        places = _placed(part, graph, found.constants, whole.constants)
        if places is None:
            return None
        output = next(n for n in reversed(part.nodes) if n.op == "output")
        values.append(fx.map_arg(output.args[0], places.__getitem__))
        guards += [replace(g, node=places[g.node]) for g in found.guards if g.node in places]
    patterns = tuple(found.patterns[p % len(found.graphs)] for p in range(len(values)))
    return Shorter(absent, tuple(values), patterns, tuple(guards))


def _placed(
    part: fx.Graph, graph: fx.Graph, constants: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]
) -> dict[fx.Node, fx.Node] | None:
    """For every node of a graph the one of a larger graph that computes the same; functions that this lacks are added.

    None, and nothing is added, if there is more to it.
    """
    numbers: Counter[Any] = Counter()
    same = {n: n for n in graph.nodes}
    known = {numbered(numbers, key_of(n, same)): n for n in graph.nodes if n.op != "output"}
    numbers.clear()
    places: dict[fx.Node, fx.Node] = {}
    added: list[fx.Node] = []
    node = last = next(iter(graph.nodes))
    for node in part.nodes:
        if node.op == "output":
            break
        key = key_of(node, places)
        if node.op == "get_attr" and node.target in constants:
            value = constants[str(node.target)]
            equal = next((n for n, c in others.items() if c.shape == value.shape and torch.equal(c, value)), None)
            key = (node.op, equal, *key[2:])
        found = known.get(numbered(numbers, key))
        if found is None and node.op in ("call_function", "call_method") and not is_by_the_way(node):
            with graph.inserting_after(max([last, *(places[i] for i in node.all_input_nodes)])):
                found = graph.node_copy(node, places.__getitem__)
            added.append(found)
        if found is None:
            break
        places[node] = last = found
    if node.op != "output" or not _is_apart(graph, places, node):
        for new in reversed(added):
            graph.erase_node(new)
        return None
    return places


def _is_apart(graph: fx.Graph, places: Mapping[fx.Node, fx.Node], output: fx.Node) -> bool:
    """Whether a part of a graph is all that its results take: nothing else changes on the way what it computes."""
    results: list[fx.Node] = []
    fx.map_arg(output.args[0], lambda n: results.append(places[n]))
    return needed(graph, results) - without_result(graph) <= set(places.values())
