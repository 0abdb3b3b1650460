"""Gates of values whose units lie along an axis that is merged with others (`y.flatten(1)`).

How many entries a unit has there depends on the sizes of the images, or of the batch. So the gate is that of the value
from before the movements that merge the axes, spread over it and moved in the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.graph.meta import VALUE, forget_all, stand_beside, value_of
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
            forget_all(moved)
            new.append(moved)
            found = moved
        last = value_of(self.movements[-1])
        for _ in range(last.dim() - len(self.shape)):
            found = graph.call_function(operator.getitem, (found, 0))
            new.append(found)
        if len(self.shape) == last.dim() > 1 and self.shape[0] == 1:
            found = graph.call_function(operator.getitem, (found, slice(0, 1)))  # it is the same for all examples
            new.append(found)
        for node in new:
            assert isinstance(node, fx.Node)
            stand_beside(node, at)
            VALUE.set(node, value_of(self.source) if node in new[:2] else last)
        return found


def spread_of(flow: LabelFlow, node: fx.Node, labels: torch.Tensor) -> Spread | None:
    """How the gate of a node's value is spread; None if its units have an axis of their own, or always had none."""
    if not isinstance(flow.values.get(node), torch.Tensor) or not _is_merged(labels):
        return None  # of a weight, or with an axis of their own
    best: Spread | None = None
    for source, movements in _way_to(flow, node):
        found = Spread(source, movements, tuple(labels.shape))
        if movements and (best is None or _rank(flow, source) < _rank(flow, best.source)):
            best = found
    known = flow.of(node)
    return best if best is not None and (known.shape[0] > 1 or _rank(flow, best.source) < _rank(flow, node)) else None


def _way_to(flow: LabelFlow, node: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The values that a node's is made of entry by entry, each with the movements between, from the last to the
    first."""
    movements: tuple[fx.Node, ...] = ()
    while isinstance(flow.values.get(node), torch.Tensor):
        yield node, movements
        rule = flow.rules.get(node)
        sources = [n for n in node.all_input_nodes if isinstance(value_of(n), torch.Tensor)]
        if rule is not None and rule.movement and len(sources) == 1 and node.args[:1] == (sources[0],):
            movements = (node, *movements)
        else:
            alike = [s for s in sources if value_of(s).shape == value_of(node).shape and _has_units(flow, s)]
            passes = isinstance(rule, Elementwise)
            sources = [s for s in alike if passes or torch.equal(flow.of(s), flow.of(node))]
        if not sources:
            return
        node = sources[0]


def _rank(flow: LabelFlow, node: fx.Node) -> tuple[bool, int]:
    """Low where units do not lie along the axis of the batch, and have few entries."""
    labels = flow.of(node)
    return labels.shape[0] > 1, labels.numel()


def _is_merged(labels: torch.Tensor) -> bool:
    """Whether units may share an axis with others: with the batch, or so that a unit has several entries there."""
    if labels.shape[0] > 1:
        return True
    lines = (labels.movedim(axis, 0).flatten(1) for axis in range(labels.dim()) if labels.shape[axis] > 1)
    return any(len(line.unique(dim=0)) < len(line) for line in lines if len(line[:, 0].unique()) < len(line))


def _has_units(flow: LabelFlow, node: fx.Node) -> bool:
    found = flow.values.get(node)
    return isinstance(found, torch.Tensor) and found.numel() > 1
