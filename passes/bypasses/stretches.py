"""Stretches: parts of a graph with a single way through, from a layer to the nonlinearity behind it.

In: a graph whose nodes hold example values, and its label flow. Out: `Stretch`es, and why other layers begin none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.analysis.sections import constant_nodes, dominators
from fxcat.passes.bypasses.activations import is_activation
from fxcat.passes.bypasses.windows import Window, is_convolution, is_maximum, window_of
from fxcat.passes.graph.meta import NO_GRAD, VALUE, value_of
from fxcat.passes.nodes.effects import without_result
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.linear import Linear, LinearFunction


@dataclass(frozen=True, slots=True)
class Stretch:
    """Nodes between `entry` (exclusive) and `exit` (inclusive); all that enters passes `entry`, all that leaves `exit`.

    `layers`: convolutions, or linear layers, in order. `windows`: of the ops that have one, in order.
    """

    entry: fx.Node
    exit: fx.Node
    layers: tuple[fx.Node, ...]
    nodes: frozenset[fx.Node]
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Unfit:
    """A layer that begins no stretch, and why."""

    layer: fx.Node
    reason: str


def find_stretches(graph: fx.Graph, flow: LabelFlow) -> tuple[tuple[Stretch, ...], tuple[Unfit, ...]]:
    """All stretches in graph order, none of which overlap, and the layers that are in none."""
    finder = _Finder(graph, flow)
    stretches: list[Stretch] = []
    unfit: list[Unfit] = []
    taken: set[fx.Node] = set()
    for layer in filter(finder.is_layer, graph.nodes):
        if layer in taken:
            continue
        found = finder.at(layer)
        if isinstance(found, Unfit):
            unfit.append(found)
        else:
            stretches.append(found)
            taken |= found.nodes
    return tuple(stretches), tuple(unfit)


@dataclass(frozen=True, slots=True)
class _Step:
    """A node on the way, and what lies between it and the one before."""

    node: fx.Node
    between: frozenset[fx.Node]


class _Finder:
    """Follows the single way that leads on from a layer."""

    def __init__(self, graph: fx.Graph, flow: LabelFlow) -> None:
        self.flow = flow
        self.constants = constant_nodes(graph)
        self.before = dominators(graph, self.constants)
        self.behind = _post_dominators(graph, self.constants)
        self.leading: set[fx.Node] = set()
        """The nodes from which a way leads to another layer."""
        for node in reversed(graph.nodes):
            if any(self.is_layer(u) or u in self.leading for u in node.users):
                self.leading.add(node)

    def is_layer(self, node: fx.Node) -> bool:
        """Whether a node is a convolution or a linear layer, with a batch axis."""
        rule = self.flow.rules.get(node)
        if isinstance(rule, Linear | LinearFunction):
            return value_of(node).dim() > 1 and value_of(node).dim() == self._source(node).dim()
        return is_convolution(rule) and self._window(node) is not None

    def at(self, layer: fx.Node) -> Stretch | Unfit:
        """The stretch that begins with a layer."""
        entry = self.before.get(layer)
        if not isinstance(entry, fx.Node) or layer.all_input_nodes[0] is not entry:
            return Unfit(layer, "what enters it does not come from one value")
        steps = self._to_nonlinearity(layer) if layer in self.leading else []
        if (steps[-1].node if steps else layer) not in self.leading:
            return Unfit(layer, "it gives the network's output")
        if any(NO_GRAD.has(n) for n in (layer, *(step.node for step in steps))):
            return Unfit(layer, "it is computed under torch.no_grad()")
        if not steps:
            return Unfit(layer, "no nonlinearity follows it, or none on a single way through ops that are known")
        nodes = [n for step in steps for n in (*step.between, step.node)]
        layers = tuple(step.node for step in steps if self.is_layer(step.node))
        windows = tuple(w for step in steps if (w := self._window(step.node)) is not None)
        return Stretch(entry, steps[-1].node, layers, frozenset(nodes), windows)

    def _to_nonlinearity(self, layer: fx.Node) -> list[_Step]:
        """The steps up to the first activation or, if another layer comes first, to the last maximum pooling before
        that; none if there is neither."""
        steps = [_Step(layer, frozenset())]
        pooled = 0
        for step in self._way(layer):
            if pooled and self.is_layer(step.node):
                break
            steps.append(step)
            if any(is_activation(n, self.flow.rules.get(n)) for n in (step.node, *step.between)):
                return steps
            if is_maximum(self.flow.rules.get(step.node)):
                pooled = len(steps)
        return steps[:pooled]

    def _way(self, node: fx.Node) -> Iterator[_Step]:
        """What follows a node, as long as there is a single way and it is known how that changes sizes."""
        linear = not is_convolution(self.flow.rules.get(node))
        while True:
            following = self.behind.get(node)
            if not isinstance(following, fx.Node) or self.before.get(following) is not node:
                return
            between = self._between(node, following)
            known = all(isinstance(self.flow.rules.get(n), Elementwise) for n in between)
            if not known or not self._passes(following, linear):
                return
            yield _Step(following, between)
            node = following

    def _passes(self, node: fx.Node, linear: bool) -> bool:
        """Whether a stretch may go on through a node: no movement, nothing unknown, no other kind of layer."""
        rule, value = self.flow.rules.get(node), VALUE.get(node)
        if rule is None or rule.movement or not isinstance(value, torch.Tensor):
            return False
        if self.is_layer(node):
            return linear != is_convolution(rule)
        if self._window(node) is not None:
            return not linear  # the channels of linear layers lie where a pooling has positions
        return value.shape == self._source(node).shape and rule.macs(self.flow, node) == ()

    def _between(self, first: fx.Node, last: fx.Node) -> frozenset[fx.Node]:
        found: set[fx.Node] = set()
        stack = list(last.all_input_nodes)
        while stack:
            node = stack.pop()
            if node is not first and node not in found and node not in self.constants:
                found.add(node)
                stack += node.all_input_nodes
        return frozenset(found)

    def _window(self, node: fx.Node) -> Window | None:
        return window_of(node, self.flow.rules.get(node), self._module(node))

    def _module(self, node: fx.Node) -> torch.nn.Module | None:
        return self.flow.module(node) if node.op == "call_module" else None

    @staticmethod
    def _source(node: fx.Node) -> torch.Tensor:
        return value_of(node.all_input_nodes[0])


def _post_dominators(graph: fx.Graph, constants: set[fx.Node]) -> dict[object, object]:
    """For every node the nearest one that each of its ways to a result passes; `"exit"` where there is none."""
    unread = without_result(graph)
    edges: list[tuple[object, object]] = []
    for node in graph.nodes:
        if node not in constants and node not in unread:
            readers = [u for u in node.users if u not in unread]
            edges += [(u, node) for u in readers] or [("exit", node)]
    flow: nx.DiGraph[object] = nx.DiGraph(edges)
    return nx.immediate_dominators(flow, "exit")
