"""Indexing: elements of tuples, slices of tensors, lookups in tables, and values with some slices replaced."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Labels, compress, frozen
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Moved, Replacement, Rule, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.movement import Movement
from fxcat.passes.rules.table import decomposition, rule


@rule(operator.getitem)
class Item(Movement):
    """Indexing: an element of a tuple, slices of a tensor, or a lookup in a table."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Of a table that is read at integer places."""
        table, places = args
        if not (isinstance(table, torch.Tensor) and isinstance(places, torch.Tensor) and table.dim()):
            return None
        if places.dtype not in (torch.int64, torch.int32) or not (table.is_contiguous() and places.is_contiguous()):
            return None
        return empty((*places.shape, *table.shape[1:]), table)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        labels = flow.values[source]
        if isinstance(labels, tuple):
            return labels[node.args[1]]  # pyright: ignore[reportArgumentType, reportCallIssue]
        if labels is None:
            return None
        labels = flow.of(source)
        index: Any = node.args[1]
        entries = index if isinstance(index, tuple) else (index,)
        lists = [e for e in entries if isinstance(e, list)]
        if any(_is_tensor(e) for e in entries) or len(lists) > 1 or not all(_is_plain(e) for e in lists):
            return _look_up(flow, node, source, entries)
        apart = [a for a, e in _by_axis(entries, labels.dim()) if _takes_apart(e)]
        if lists and len(apart) > 1 and any(labels.shape[a] > 1 for a in apart):
            flow.freeze(labels, node, "indices along several axes at once")  # they would be paired
        found = _indexed(labels, value_of(source).shape, entries)
        return compress(found) if found.numel() else frozen((1,) * value_of(node).dim())

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if not isinstance(value_of(source), torch.Tensor):
            return None
        index: Any = node.args[1]
        entries: list[Any] = list(index) if isinstance(index, tuple) else [index]
        shape = value_of(source).shape
        position = 0
        for axis, entry in _by_axis(entries, len(shape)):
            while entries[position] is not entry:
                position += 1
            live = moved.source[axis]
            known = thaw(entry)
            if live is not None and _takes_apart(known):
                entries[position] = _places_left(known, live, shape[axis])
            elif live is not None and isinstance(known, slice):
                start, stop, _ = known.indices(shape[axis])
                begin, end = int((live < start).sum()), int((live < stop).sum())
                entries[position] = slice(begin, end) if (begin, end) != (0, len(live)) else slice(None)
            elif live is not None and isinstance(known, int):
                entries[position] = int((live < known % shape[axis]).sum())
            position += 1
        return Replacement((source, tuple(entries) if isinstance(index, tuple) else entries[0]), {})


def _is_plain(entry: list[Any]) -> bool:
    """Whether a list among the entries of an index holds nothing but numbers."""
    return all(isinstance(e, int) and not isinstance(e, bool) for e in entry)


def _takes_apart(entry: Any) -> bool:
    """Whether an entry of an index is a list, or a slice with a step."""
    return isinstance(entry, list) or (isinstance(entry, slice) and thaw(entry.step) not in (None, 1))


def _places_left(entry: Any, live: torch.Tensor, size: int) -> Any:
    """What is left of a list of numbers or of a slice with a step, counted in what is left of its axis."""
    position = torch.full((size,), -1)
    position[live] = torch.arange(len(live))
    left: list[int] = [p for p in position[entry].tolist() if p >= 0]
    steps = {b - a for a, b in itertools.pairwise(left)}
    if isinstance(entry, slice) and len(steps) == 1 and min(steps) > 0:
        step = steps.pop()
        return slice(left[0], left[-1] + 1, step)
    return left


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
            known = [0] if isinstance(known, list) else slice(None)
        index.append(known)
    return labels[tuple(index)]


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and isinstance(value_of(argument), torch.Tensor)


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
    """Slices of a value, by tensors of numbers along neighbouring axes; what else is looked up is frozen."""
    labels = flow.of(source)
    looked_up = [a for a, e in enumerate(entries) if _is_tensor(e) and value_of(e).dtype != torch.bool]
    whole = all(a in looked_up or (isinstance(e, slice) and e == slice(None)) for a, e in enumerate(entries))
    if whole and looked_up == list(range(looked_up[0], looked_up[-1] + 1)) and labels.dim() > len(looked_up):
        first = labels
        for axis in looked_up:
            first = first.narrow(axis, 0, 1)
        flow.unite(labels, first)
        if first.numel() == 1:
            flow.freeze(labels, node, "units along an axis that is looked up")
        inner = (1,) * (value_of(node).dim() - labels.dim() + len(looked_up))
        return first.reshape(*first.shape[: looked_up[0]], *inner, *first.shape[looked_up[-1] + 1 :])
    flow.freeze(labels, node, "lookup by values")
    return frozen((1,) * value_of(node).dim())


@decomposition(torch.select)
@decomposition(torch.Tensor.select)
def select(input: Any, dim: int, index: Any) -> Any:
    """One slice by indexing."""
    value = value_of(input.node) if isinstance(input, fx.Proxy) else input
    if not isinstance(dim, int):
        return NotImplemented
    sliced: Any = input
    return sliced[(*(slice(None),) * (dim % value.dim()), index)]


@rule(torch.slice_scatter, "slice_scatter", names=("input", "src", "dim", "start", "end", "step"))
@rule(torch.select_scatter, "select_scatter", names=("input", "src", "dim", "index"))
class SliceScatter(Rule):
    """A value with some slices replaced by another value: both have the same units."""

    zero = Zero.PRESERVES

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given = arguments(node, *self.names)
        base, part = flow.of(given["input"]), flow.of(given["src"])
        axis: int = thaw(given.get("dim", 0)) % base.dim()
        if part.dim() < base.dim():
            part = part.unsqueeze(axis)
        if base.shape[axis] == part.shape[axis] == 1:
            flow.unite(base, part)
            return min(base, part, key=lambda x: x.numel())
        written = self._written(node)
        if written is None:
            flow.freeze((base, part), node, "units along an axis that is assigned in part")
            return torch.zeros_like(base)
        size = value_of(given["input"]).shape[axis]
        base = base.expand([size if a == axis else n for a, n in enumerate(base.shape)])
        flow.unite(base.narrow(axis, written.start, len(written)), part)
        return base

    def _written(self, node: fx.Node) -> range | None:
        """The indices that are assigned, if they are neighbours."""
        given = {k: thaw(v) for k, v in arguments(node, *self.names).items()}
        if "index" in given or given.get("step", 1) != 1:
            return None
        return range(given["input"].shape[given.get("dim", 0)])[given.get("start") : given.get("end")]

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given, written = arguments(node, *self.names), self._written(node)
        axis: int = thaw(given.get("dim", 0)) % value_of(node).dim()
        live = moved.source[axis]
        if live is None or written is None:
            return None
        ends = (int((live < end).sum()) for end in (written.start, written.stop))
        return Replacement((given["input"], given["src"], axis, *ends), {})

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        given = arguments(node, *self.names)
        return given["input"], given["src"]
