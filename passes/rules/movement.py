"""Ops that only move elements: their labels are found by running the very op on the label array."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments, names_type, thaw
from fxcat.passes.graph.label_arrays import Labels, compress, frozen, reshape
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Moved, Replacement, Rule, Sample, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.layouts import empty
from fxcat.passes.rules.moved_labels import move
from fxcat.passes.rules.sizes import sizes_left
from fxcat.passes.rules.table import rule


class Movement(Rule):
    """Any movement."""

    zero = Zero.PRESERVES
    movement = True
    views = True
    keeps_infinity = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return move(node, flow.values, flow.root)


class Reshaping(Movement):
    """Movements that keep the order of all elements."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels = flow.values[source]
        if not isinstance(labels, torch.Tensor):
            return move(node, flow.values, flow.root)
        return compress(reshape(labels, value_of(source).shape, value_of(node).shape))


@rule(
    "contiguous",
    "clone",
    "detach",
    torch.detach,
    "to",
    "type",
    "type_as",
    "float",
    "double",
    "half",
    "bfloat16",
    *("long", "int", "short", "bool", "cpu"),
    torch.clone,
    *(torch.resolve_conj, "resolve_conj", torch.resolve_neg, "resolve_neg"),
)
class Copy(Movement):
    """Ops that change neither shape nor order."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.values[node.all_input_nodes[0]]

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)


@rule(
    *(torch.permute, "permute", torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.t, "t"),
    *(torch.swapdims, "swapdims", torch.moveaxis, "moveaxis", torch.movedim, "movedim", torch.unsqueeze, "unsqueeze"),
    *(torch.adjoint, "adjoint"),
    *(torch.flip, "flip", torch.rot90, "rot90", torch.fliplr, "fliplr", torch.flipud, "flipud"),
)
class Axes(Movement):
    """Ops that reorder, add or turn round whole axes: they run on the compressed labels as they are."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels, rest = flow.of(source), node.args[1:]
        if node.op == "call_method":
            return getattr(labels, str(node.target))(*rest, **node.kwargs)
        assert callable(node.target)
        return node.target(labels, *rest, **{k: v for k, v in node.kwargs.items() if k != "input"})


@rule(torch.roll, "roll")
class Roll(Movement):
    """roll: what is left of an axis with units is rotated by what is left of the part that comes to the front."""

    def infer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        return empty(args[0].shape, args[0]) if args else None

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = flow.of(node.all_input_nodes[0])
        pairs = _rolled(node)
        if not pairs:
            flow.freeze(labels, node, "rolled over all axes at once")
            return frozen((1,) * labels.dim())
        return torch.roll(labels, [thaw(shift) for _, shift in pairs], [axis for axis, _ in pairs])

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        source, pairs = node.all_input_nodes[0], _rolled(node)
        left: dict[int, list[Any]] = {}
        for axis, shift in pairs:
            live, size = moved.source[axis], value_of(source).shape[axis]
            if live is None:
                left.setdefault(axis, []).append(shift)
            elif axis not in left:
                whole = sum(thaw(s) for a, s in pairs if a == axis) % size
                left[axis] = [int((live >= size - whole).sum())]
        flat = [(axis, shift) for axis, shifts in left.items() for shift in shifts]
        return Replacement((source, tuple(s for _, s in flat), tuple(a for a, _ in flat)), {})


def _rolled(node: fx.Node) -> list[tuple[int, Any]]:
    """The axes that a roll rotates, each with by how much; none where it rotates all elements as one axis."""
    given = arguments(node, "input", "shifts", "dims")
    dims = given.get("dims", ())
    rank = value_of(node).dim()
    if isinstance(dims, int):
        return [(dims % rank, given["shifts"])]
    shifts: Any = given["shifts"]
    shifts = shifts if isinstance(shifts, tuple | list) else (shifts,)
    return [(axis % rank, shift) for axis, shift in zip(dims, shifts, strict=bool(dims))]


@rule(torch.flatten, "flatten", nn.Flatten, torch.ravel, "ravel")
class Flatten(Reshaping):
    """flatten: it states no sizes."""

    def samples(self) -> tuple[Sample, ...]:
        return (Sample(nn.Flatten(), (2, 6, 3, 3)),)


@rule(torch.squeeze, "squeeze")
class Squeeze(Reshaping):
    """squeeze: an axis of units of which one is left stays."""

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        source = node.all_input_nodes[0]
        shape = value_of(source).shape
        chosen: Any = arguments(node, "input", "dim").get("dim", tuple(range(len(shape))))
        axes = {axis % len(shape) for axis in (chosen if isinstance(chosen, tuple | list) else (chosen,))}
        return Replacement((source, tuple(sorted(axis for axis in axes if shape[axis] == 1))), {})


@rule(torch.reshape, "reshape", "view")
class Reshape(Reshaping):
    """view and reshape: the sizes are in the arguments."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        if not names_type(node):
            return super().flow(flow, node)
        flow.freeze(flow.of(node.all_input_nodes[0]), node, "read as numbers of another type")
        return frozen((1,) * value_of(node).dim())

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        if names_type(node):
            return None
        given = node.kwargs.get("shape", node.args[1] if len(node.args) == 2 else node.args[1:])
        return Replacement((node.args[0], sizes_left(given, moved.shape, moved)), {})


@rule("reshape_as", "view_as")
class ReshapeAs(Reshaping):
    """The shape is that of another value: their units go together."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = super().flow(flow, node)
        assert isinstance(labels, torch.Tensor)
        flow.unite(labels, flow.of(node.all_input_nodes[-1]))
        return labels

    def zero_from(self, flow: Flow, node: fx.Node) -> tuple[fx.Node, ...]:
        return (node.all_input_nodes[0],)


@rule(torch.unflatten, "unflatten")
class Unflatten(Reshaping):
    """unflatten: one axis becomes several, whose sizes are in the arguments."""

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node, "input", "dim", "sizes")
        axis, sizes = given["dim"], given["sizes"]
        axis %= value_of(node.all_input_nodes[0]).dim()
        shape = moved.shape[axis : axis + len(thaw(sizes))]
        return Replacement((node.args[0], axis, sizes_left(sizes, shape, moved)), {})
