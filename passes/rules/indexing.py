"""Indexing: elements of tuples, slices of tensors, lookups in tables, and values with some slices replaced."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxcat.passes.arguments import thaw
from fxcat.passes.arrays import compress, frozen
from fxcat.passes.rules.movement import Movement
from fxcat.passes.rules.table import Labels, Moved, Replacement, Rule, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow


@rule(operator.getitem)
class Item(Movement):
    """Indexing: an element of a tuple, slices of a tensor, or a lookup in a table."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        labels = flow.values[source]
        if isinstance(labels, tuple):
            return labels[node.args[1]]  # pyright: ignore
        if labels is None:
            return None
        index: Any = node.args[1]
        entries = index if isinstance(index, tuple) else (index,)
        lookups = [e for e in entries if isinstance(e, list) or _is_tensor(e)]
        if lookups:
            return _look_up(flow, node, source, entries)
        for axis, entry in _by_axis(entries, labels.dim()):
            if isinstance(entry, slice) and labels.shape[axis] > 1 and thaw(entry.step) not in (None, 1):
                flow.freeze(labels, node, "units along an axis that is sliced with a step")
        found = _indexed(labels, source.meta["value"].shape, entries)
        return compress(found) if found.numel() else frozen((1,) * node.meta["value"].dim())

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if not isinstance(source.meta["value"], torch.Tensor):
            return None
        index: Any = node.args[1]
        entries: list[Any] = list(index) if isinstance(index, tuple) else [index]
        shape = source.meta["value"].shape
        position = 0
        for axis, entry in _by_axis(entries, len(shape)):
            while entries[position] is not entry:
                position += 1
            live = moved.source[axis]
            known = thaw(entry)
            if live is not None and isinstance(known, slice):
                start, stop, _ = known.indices(shape[axis])
                begin, end = int((live < start).sum()), int((live < stop).sum())
                entries[position] = slice(begin, end) if (begin, end) != (0, len(live)) else slice(None)
            elif live is not None and isinstance(known, int):
                entries[position] = int((live < known % shape[axis]).sum())
            position += 1
        return Replacement((source, tuple(entries) if isinstance(index, tuple) else entries[0]), {})


def _indexed(labels: torch.Tensor, shape: torch.Size, entries: Any) -> torch.Tensor:
    """Labels of a part of a value; axes without units stay as short as they are."""
    mapped = iter(_by_axis(entries, labels.dim()))
    index: list[Any] = []
    for entry in entries:
        if entry is None or entry is Ellipsis:
            index.append(entry)
            continue
        axis, known = next(mapped)[0], thaw(entry)
        if labels.shape[axis] == 1 and isinstance(known, int):
            known = 0 if shape[axis] else known
        elif labels.shape[axis] == 1:
            known = slice(None)
        index.append(known)
    return labels[tuple(index)]


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and isinstance(argument.meta["value"], torch.Tensor)


def _by_axis(entries: Any, dims: int) -> list[tuple[int, Any]]:
    """The entries of an index that stand for one axis each, with that axis."""
    result: list[tuple[int, Any]] = []
    given = [e for e in entries if e is not None]
    axis = 0
    for entry in given:
        if entry is Ellipsis:
            axis = dims - (len(given) - 1 - given.index(Ellipsis))
        else:
            result.append((axis, entry))
            axis += 1
    return result


def _look_up(flow: Flow, node: fx.Node, source: fx.Node, entries: Any) -> Labels:
    """Slices of a table, by a tensor of numbers along one axis; what else is looked up is frozen."""
    labels = flow.of(source)
    *before, index = entries
    whole = all(isinstance(e, slice) and e == slice(None) for e in before)
    if whole and _is_tensor(index) and index.meta["value"].dtype != torch.bool and labels.dim() > 1:
        axis = len(before)
        first = labels.narrow(axis, 0, 1)
        flow.unite(labels, first)
        if first.numel() == 1:
            flow.freeze(first, node, "units along an axis that is looked up")
        inner = (1,) * index.meta["value"].dim()
        return first.reshape(*first.shape[:axis], *inner, *first.shape[axis + 1 :])
    flow.freeze(labels, node, "lookup by values")
    return frozen((1,) * node.meta["value"].dim())


@rule(torch.slice_scatter)
class SliceScatter(Rule):
    """A value with some slices replaced by another value: both have the same units."""

    zero = Zero.PRESERVES

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        base, part = (flow.of(n) for n in node.all_input_nodes[:2])
        axis: Any = node.args[2]
        if base.shape[axis] > 1 or part.shape[axis] > 1:
            flow.freeze((base, part), node, "units along an axis that is assigned in part")
            return torch.zeros_like(base)
        flow.unite(base, part)
        return min(base, part, key=lambda x: x.numel())

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return tuple(node.all_input_nodes[:2])
