"""Movements that put values together and take them apart along an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.arguments import arguments, thaw
from fxcat.passes.graph.label_arrays import Labels, compress
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Moved, Replacement
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.movement import Movement
from fxcat.passes.rules.table import decomposition, rule


@rule(torch.cat, torch.concat, torch.concatenate)
class Concatenation(Movement):
    """cat, on label arrays that are expanded along the concatenated axis only."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        if kwargs or len(args) != 2 or args[1] < 0:
            return None
        tensors, axis = args
        shapes = [t.shape for t in tensors]
        rest = {(s[:axis], s[axis + 1 :]) for s in shapes}
        if len(rest) > 1 or len({t.dtype for t in tensors}) > 1:
            return None
        first = tensors[0]
        return empty((*first.shape[:axis], sum(s[axis] for s in shapes), *first.shape[axis + 1 :]), first)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        sources: Any = node.kwargs.get("tensors", node.args[0] if node.args else ())
        axis = int(node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0))  # pyright: ignore[reportArgumentType]
        dims = value_of(node).dim()
        axis %= dims
        if isinstance(sources, fx.Node):  # one value with all pieces, such as a chunk's
            known: Any = flow.values[sources]
            labels, shapes = list(known), [v.shape for v in value_of(sources)]
        else:
            labels, shapes = [flow.of(s) for s in sources], [value_of(s).shape for s in sources]
        if all(x.shape[axis] == 1 for x in labels):
            # units lie along other axes, whose slices run through all pieces
            for piece in labels[1:]:
                flow.unite(labels[0], piece)
            return min(labels, key=lambda x: x.numel())
        other = [max(x.shape[a] for x in labels) for a in range(dims)]
        full = [
            x.expand([shape[axis] if a == axis else other[a] for a in range(dims)])
            for x, shape in zip(labels, shapes, strict=True)
        ]
        return torch.cat(full, axis)


@rule(torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split")
class Split(Movement):
    """chunk and split: after removal, a split into what is left of each piece."""

    def axis(self, node: fx.Node) -> int:
        """The axis that is split."""
        return _axis(node, 2)

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        axis = self.axis(node)
        source = node.all_input_nodes[0]
        labels = flow.of(source)
        if labels.shape[axis] == 1:
            return (labels,) * len(value_of(node))
        labels = _full_along(axis, labels, value_of(source).shape)
        return tuple(torch.split(labels, [piece.shape[axis] for piece in value_of(node)], axis))

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        axis = self.axis(node)
        pieces: Any = moved.result
        if all(live[axis] is None for live in pieces):
            return None
        sizes = [
            piece.shape[axis] if live[axis] is None else len(live[axis])
            for piece, live in zip(value_of(node), pieces, strict=True)
        ]
        total = sum(sizes)
        count: Any = node.args[1] if len(node.args) > 1 else None
        is_chunk = node.target in (torch.chunk, "chunk")
        if is_chunk and isinstance(count, int) and sizes == [len(p) for p in torch.empty(total).chunk(count)]:
            return None
        return Replacement(
            (node.all_input_nodes[0], sizes, axis), {}, "split" if node.op == "call_method" else torch.split
        )


@decomposition(torch.split_with_sizes)
@decomposition(torch.Tensor.split_with_sizes)
def split_with_sizes(input: Any, split_sizes: Any, dim: int = 0) -> Any:
    """`split` by another name."""
    return input.split(split_sizes, dim)


@rule(torch.vsplit, "vsplit", along=0)
@rule(torch.hsplit, "hsplit", along=1)
@rule(torch.dsplit, "dsplit", along=2)
class SplitAlong(Split):
    """The same along an axis of their own."""

    def __init__(self, along: int) -> None:
        self.along = along

    def axis(self, node: fx.Node) -> int:
        return 0 if value_of(node.all_input_nodes[0]).dim() == 1 else self.along


def _full_along(axis: int, labels: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Labels expanded to the value's size along one axis."""
    return labels.expand([shape[a] if a == axis else size for a, size in enumerate(labels.shape)])


def _axis(node: fx.Node, position: int) -> int:
    """The argument `dim` of a node, counted from the first axis."""
    axis: Any = node.kwargs.get("dim", node.args[position] if len(node.args) > position else 0)
    return axis % value_of(node.all_input_nodes[0]).dim()


@rule(torch.unbind, "unbind")
class Unbind(Movement):
    """unbind, on label arrays that are expanded along that axis only."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        axis = _axis(node, 1)
        labels = _full_along(axis, flow.of(source), value_of(source).shape)
        return tuple(compress(x) for x in labels.unbind(axis))


@rule(torch.stack)
class Sizeless(Movement):
    """Movements whose arguments state no sizes."""


@rule(torch.narrow, "narrow")
class Narrow(Movement):
    """A slice of one axis; after removal, what is left of it."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        axis, start, length = self._slice(node)
        labels = flow.of(node.all_input_nodes[0])
        return labels if labels.shape[axis] == 1 else compress(labels.narrow(axis, start, length))

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        axis, start, length = self._slice(node)
        live = moved.source[axis]
        if live is None:
            return None
        begin, end = int((live < start).sum()), int((live < start + length).sum())
        return Replacement((node.all_input_nodes[0], axis, begin, end - begin), {})

    @staticmethod
    def _slice(node: fx.Node) -> tuple[int, int, int]:
        """Axis, start and length."""
        given = {k: thaw(v) for k, v in arguments(node, "input", "dim", "start", "length").items()}
        shape = given["input"].shape
        axis, start = given["dim"] % len(shape), int(given["start"])
        return axis, start % shape[axis] if start < 0 else start, given["length"]
