"""Ops that only move elements: their labels are found by running the very op on the label array."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fxcat.passes.graph.arguments import arguments, names_type, thaw
from fxcat.passes.graph.label_arrays import Labels, along, compress, frozen, reshape
from fxcat.passes.graph.meta import value_of
from fxcat.passes.rules.base import Moved, Replacement, Rule, Sample, Zero
from fxcat.passes.rules.flow import Flow
from fxcat.passes.rules.moved_labels import move
from fxcat.passes.rules.sizes import shape_read, sizes_left, units_of_size
from fxcat.passes.rules.table import decomposition, rule


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
        return args[0].new_empty(args[0].shape) if args else None

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
        return first.new_empty((*first.shape[:axis], sum(s[axis] for s in shapes), *first.shape[axis + 1 :]))

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


@rule(torch.stack)
class Sizeless(Movement):
    """Movements whose arguments state no sizes."""


@rule(torch.repeat_interleave, "repeat_interleave")
class RepeatEach(Movement):
    """Every slice several times. How long the result is need not be said."""

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node, "input", "repeats", "dim")
        given.pop("output_size", None)
        count: Any = given.pop("repeats")
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
        return along(found[0][1], found[0][0], value.dim()) if len(found) == 1 else labels

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        sizes = sizes_left(_sizes_of_expand(node), moved.shape, moved)
        source = value_of(node.all_input_nodes[0]).shape
        held = (*(False,) * (len(sizes) - len(source)), *(n > 1 for n in source))
        return Replacement(
            (node.args[0], tuple(-1 if u and h else s for u, h, s in zip(moved.has_units, held, sizes, strict=True))),
            {},
        )


def _sizes_of_expand(node: fx.Node) -> Any:
    return node.kwargs.get("size", node.args[1] if len(node.args) == 2 else node.args[1:])


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
