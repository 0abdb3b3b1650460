"""Movements that repeat: copies along axes, and axes of size 1 that grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.arguments import arguments
from fxcat.passes.graph.label_arrays import Labels, along
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Moved, Replacement
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.moved_labels import move
from fxcat.passes.rules.movement import Movement
from fxcat.passes.rules.sizes import shape_read, sizes_left, units_of_size
from fxcat.passes.rules.table import decomposition, rule


@rule("repeat", torch.tile, "tile")
class Repeat(Movement):
    """Copies along axes; as often as another value has units, where there was one."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source, value = node.all_input_nodes[0], value_of(node)
        counts = self.counts(node)
        if flow.of(source).numel() == 1:
            new = value.dim() - value_of(source).dim()
            single = [a for a in range(len(counts)) if a < new or value_of(source).shape[a - new] == 1]
            found = [(a, units) for a in single if (units := units_of_size(flow, counts[a])) is not None]
            if len(found) == 1 and len(counts) == value.dim():
                return along(found[0][1], found[0][0], value.dim())
            if 1 in single and len(counts) == value.dim() and _is_for_heads(node, counts[1]):
                return along(flow.fresh(value.shape[1], str(node), producer=False), 1, value.dim())
        return move(node, flow.values, flow.root)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        counts = self.counts(node)
        if len(counts) != len(moved.shape):
            left = tuple(self.kept(c, moved) if isinstance(c, fx.Node) else c for c in counts)
            return Replacement((node.args[0], left), {}) if left != tuple(counts) else None
        source = value_of(node.all_input_nodes[0]).shape
        source = (1,) * (len(counts) - len(source)) + tuple(source)
        left = tuple(
            (c if units else self.kept(c, moved)) if isinstance(c, fx.Node) else size if units and one == 1 else c
            for c, units, one, size in zip(counts, moved.has_units, source, moved.shape, strict=True)
        )
        return Replacement((node.args[0], left), {}) if left != tuple(counts) else None

    @staticmethod
    def kept(count: fx.Node, moved: Moved) -> Any:
        """A count that is made of the size of an axis with units keeps its number."""
        number = value_of(count)
        return count if moved.number(count) == number else number

    @staticmethod
    def counts(node: fx.Node) -> Any:
        """How many copies along each axis."""
        given = node.kwargs.get("repeats", node.kwargs.get("dims"))
        given = given if given is not None else node.args[1] if len(node.args) == 2 else node.args[1:]
        return given if isinstance(given, tuple | list) else (given,)


@rule(torch.repeat_interleave, "repeat_interleave")
class RepeatEach(Movement):
    """Every slice several times. How long the result is need not be said.

    Every example as often as there are heads, which are folded into the batch, is a copy for each of them."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        given, value = arguments(node, "input", "repeats", "dim"), value_of(node)
        count: Any = given["repeats"]
        labels = flow.of(node.all_input_nodes[0])
        if given.get("dim") == 0 and type(count) is int and count > 1 and labels.numel() == 1 and value.dim() > 2:
            return along(flow.fresh(count, str(node), producer=False).repeat(len(value) // count), 0, value.dim())
        return move(node, flow.values, flow.root)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node, "input", "repeats", "dim")
        given.pop("output_size", None)
        count: Any = given.pop("repeats")
        if type(count) is int and moved.has_units[0] and given.get("dim") == 0 and moved.source[0] is None:
            count = count * moved.shape[0] // len(value_of(node))
        if isinstance(count, fx.Node) and isinstance(value_of(count), int):
            count = Repeat.kept(count, moved)
        return Replacement((given.pop("input"), count), given)


@rule("expand", torch.broadcast_to)
class Expand(Movement):
    """expand: new axes, and axes of size 1 that grow; those with units keep the size they have."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels, value = flow.of(source), value_of(node)
        new = value.dim() - labels.dim()
        labels = labels.reshape((1,) * new + tuple(labels.shape))
        given: Any = _sizes_of_expand(node)
        whole = shape_read(given)
        if labels.numel() == 1 and whole is not None:
            other = flow.values[whole]
            return other if isinstance(other, torch.Tensor) and other.numel() == max(other.shape) else labels
        if labels.numel() > 1 or not isinstance(given, tuple | list):
            return labels
        grown = [a for a in range(value.dim()) if a < new or value_of(source).shape[a - new] == 1 < value.shape[a]]
        found = [(a, units) for a in grown if (units := units_of_size(flow, given[a])) is not None]
        # as often as another value has units: it has the same
        if not found and 1 in grown and new == 0 and _is_for_heads(node, given[1]):
            return along(flow.fresh(value.shape[1], str(node), producer=False), 1, value.dim())
        return along(found[0][1], found[0][0], value.dim()) if len(found) == 1 else labels

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        sizes = sizes_left(_sizes_of_expand(node), moved.shape, moved)
        source = value_of(node.all_input_nodes[0]).shape
        held = (*(False,) * (len(sizes) - len(source)), *(n > 1 for n in source))
        return Replacement(
            (node.args[0], tuple(-1 if u and h else s for u, h, s in zip(moved.has_units, held, sizes, strict=True))),
            {},
        )


def _is_for_heads(node: fx.Node, count: Any) -> bool:
    """Whether a value is copied so many times along its second axis, and this is then folded into the batch, as heads
    are: what it meets there may tell that each copy is that of a head."""
    value = value_of(node)
    folded = (value.shape[0] * value.shape[1], *value.shape[2:])
    users = [u for u in node.users if isinstance(value_of(u), torch.Tensor)]
    return type(count) is int and count > 1 and bool(users) and all(value_of(u).shape == folded for u in users)


def _sizes_of_expand(node: fx.Node) -> Any:
    return node.kwargs.get("size", node.args[1] if len(node.args) == 2 else node.args[1:])


@decomposition(torch.broadcast_tensors)
def broadcast_tensors(*tensors: Any) -> Any:
    """Each as the one that has the shape of all, if there is one."""
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = tuple(tensors[0])
    shapes = [(value_of(t.node) if isinstance(t, fx.Proxy) else t).shape for t in tensors]
    whole = torch.broadcast_shapes(*shapes)
    if whole not in shapes:
        return NotImplemented
    first = tensors[shapes.index(whole)]
    return tuple(t if shape == whole else t.expand_as(first) for t, shape in zip(tensors, shapes, strict=True))
