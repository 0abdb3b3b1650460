"""Along which axis of every value its channels lie, which labels they have, and how ops move them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import fx

from fxcat.passes.analysis.label_flow import LabelFlow
from fxcat.passes.graph.label_arrays import FROZEN, Grid, Integers, Labels, along, compress, join
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.rules.moved_labels import move


class Line(NamedTuple):
    """The labels along the only axis of a tensor along which they vary, at full length. `is_whole`: they vary along no
    other; else `axis` says nothing, and `labels` has each once."""

    axis: int
    labels: Integers
    is_whole: bool = True


Sorting: TypeAlias = "Callable[[Integers], Integers | None]"
"""The new order of an axis with some labels: new[i] = old[order[i]]; None if it stays as it is."""

Positions: TypeAlias = "torch.Tensor | tuple[Positions, ...] | None"
"""Of a value: where each channel came from."""


class ChannelLines:
    """Of a graph: labels that are united have one number here. A *component* is what values have in common: all labels
    that lie beside each other somewhere."""

    def __init__(self, flow: LabelFlow, graph: fx.Graph, left_out: Collection[fx.Node]) -> None:
        self.flow = flow
        self._roots = torch.from_numpy(flow.unions.roots())
        self.of = {n: [*self._found(flow.values.get(n), VALUE.get(n))] for n in graph.nodes if n not in left_out}
        """A line for every tensor of a value, None for one without labels that vary."""
        self.component: Integers = np.arange(flow.unions.count, dtype=np.int32)
        for line in (x for lines in self.of.values() for x in lines if x is not None):
            moving = line.labels[line.labels != FROZEN]
            join(self.component, np.repeat(moving[:1], len(moving)), moving)

    def resolved(self, labels: torch.Tensor) -> torch.Tensor:
        """With one number for all labels that are united; size 1 along every axis over which they do not vary."""
        return compress(self._roots[labels])

    def numbers(self, labels: torch.Tensor) -> Integers:
        """The same for labels along one axis, at full length."""
        return self._roots[labels].numpy()

    def members(self, component: int) -> list[int]:
        """The labels of a component, each once."""
        roots = self._roots.numpy()
        return np.flatnonzero((roots == np.arange(len(roots))) & (self.component == component)).tolist()

    def met(self, node: fx.Node) -> dict[int, list[Line]]:
        """What a node reads and gives, by the components of the labels in it."""
        found: dict[int, list[Line]] = {}
        for line in (x for n in (*node.all_input_nodes, node) for x in self.of.get(n, ()) if x is not None):
            for component in np.unique(self.component[line.labels[line.labels != FROZEN]]).tolist():
                found.setdefault(component, []).append(line)
        return found

    def moved(self, node: fx.Node, sorting: Sorting | None = None) -> list[torch.Tensor]:
        """Number the channels of a movement's inputs, one input after the other; what it makes of these numbers, for
        every tensor that it gives. `sorting`: the order, by its labels, in which every axis of the inputs is given."""
        given: dict[fx.Node, Any] = {}
        count = itertools.count()
        for source in node.all_input_nodes:
            if self.flow.values.get(source) is not None:
                given[source] = _positions(value_of(source), iter(self.of.get(source, ())), count, sorting)
        return list(_tensors(move(node, given, self.flow.root)))

    def _found(self, labels: Labels, value: Any) -> Iterator[Line | None]:
        if isinstance(labels, tuple):
            for item, part in zip(labels, value, strict=True):
                yield from self._found(item, part)
        elif isinstance(labels, Grid):
            numbers = [self.resolved(layer).numpy().reshape(-1) for layer in labels.layers]
            # a number that is computed of a weight has no channels
            yield Line(-1, np.unique(np.concatenate(numbers)), False) if numbers else None
        elif labels is not None:
            resolved = self.resolved(labels)
            axes = [a for a, size in enumerate(resolved.shape) if size > 1]
            numbers = resolved.numpy().reshape(-1)
            if len(axes) > 1:
                yield Line(-1, np.unique(numbers), False)
            else:
                yield Line(axes[0], numbers) if axes else None


def _positions(value: Any, lines: Iterator[Line | None], count: Iterator[int], sorting: Sorting | None) -> Positions:
    """The next number for every channel of a value, in another order if there is one; −1 for what has no channels."""
    if isinstance(value, tuple | list):
        items: Iterable[Any] = value
        return tuple(_positions(item, lines, count, sorting) for item in items)
    if not isinstance(value, torch.Tensor):
        return None
    line = next(lines)
    if line is None or not line.is_whole:
        return torch.full((1,) * value.dim(), -1, dtype=torch.int32)
    order = None if sorting is None else sorting(line.labels)
    numbers = torch.tensor(list(itertools.islice(count, len(line.labels))))
    return along(numbers if order is None else numbers[torch.from_numpy(order).long()], line.axis, value.dim())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _tensors(item)
