"""Gates of values whose units lie along an axis that is merged with others (`y.flatten(1)`).

How many entries a unit has there depends on the sizes of the images, or of the batch. So the gate is that of the value
from before the movements that merge the axes, spread over it and moved in the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxcat.passes.invocations import same_place
from fxcat.passes.labels import Flow
from fxcat.passes.rules.elementwise import Elementwise


@dataclass(frozen=True, slots=True)
class Spread:
    """The value that a gate is spread over, the movements that follow, in order, and the shape of the labels that the
    gate is for."""

    source: fx.Node
    movements: tuple[fx.Node, ...]
    shape: tuple[int, ...]

    def insert(self, graph: fx.Graph, gate: fx.Node, at: fx.Node, enter: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """The gate as it is for a value, at the end of a graph with gates. `at`: the node that has it; `enter`: the
        nodes of that graph for those of the one without."""
        found = graph.call_method("expand_as", (gate, enter(self.source)))
        found = graph.call_method("contiguous", (found,))  # of what is expanded there is no view of another shape
        new = [found.args[0], found]
        for movement in self.movements:
            moved = graph.node_copy(movement, lambda n, m=movement, f=found: f if n is m.args[0] else enter(n))
            moved.meta = {}
            new.append(moved)
            found = moved
        last = self.movements[-1].meta["value"]
        for _ in range(last.dim() - len(self.shape)):
            found = graph.call_function(operator.getitem, (found, 0))
            new.append(found)
        if len(self.shape) == last.dim() > 1 and self.shape[0] == 1:
            found = graph.call_function(operator.getitem, (found, slice(0, 1)))  # it is the same for all examples
            new.append(found)
        for node in new:
            assert isinstance(node, fx.Node)
            node.meta |= same_place(at) | {"value": self.source.meta["value"] if node in new[:2] else last}
        return found


def spread_of(flow: Flow, node: fx.Node, labels: torch.Tensor) -> Spread | None:
    """How the gate of a node's value is spread; None if its units have an axis of their own, or always had none."""
    movements: list[fx.Node] = []
    current = node
    while flow.of(current).numel() >= labels.numel():
        rule = flow.rules.get(current)
        value = current.meta["value"]
        sources = [n for n in current.all_input_nodes if isinstance(n.meta["value"], torch.Tensor)]
        if rule is None or not sources:
            return None
        if not rule.movement:
            if not isinstance(rule, Elementwise):
                return None
            alike = [s for s in sources if s.meta["value"].shape == value.shape and _has_labels(flow, s, labels)]
            if not alike:
                return None
            current = alike[0]
        elif len(sources) == 1 and current.args[:1] == (sources[0],):
            movements.append(current)
            current = sources[0]
        else:
            return None
        if not isinstance(flow.values.get(current), torch.Tensor):
            return None
    return Spread(current, tuple(movements[::-1]), tuple(labels.shape)) if movements else None


def _has_labels(flow: Flow, node: fx.Node, labels: torch.Tensor) -> bool:
    found = flow.values.get(node)
    return isinstance(found, torch.Tensor) and found.numel() <= labels.numel() and found.numel() > 1
