"""Ops that only move elements: their labels are found by running the very op on the label array."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxcat.passes.arguments import arguments, thaw
from fxcat.passes.chains import move
from fxcat.passes.rules.table import Labels, Moved, Replacement, Rule, Sample, Zero, rule

if TYPE_CHECKING:
    from fxcat.passes.labels import Flow


class Movement(Rule):
    """Any movement."""

    zero = Zero.PRESERVES
    movement = True

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return move(node, flow.values, flow.root)


@rule("contiguous", "clone", "detach", "to", "float", torch.clone)
class Copy(Movement):
    """Ops that change neither shape nor order."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        return flow.values[node.all_input_nodes[0]]


@rule(
    *(torch.permute, "permute", torch.transpose, "transpose", torch.swapaxes, "swapaxes", torch.t, "t"),
    *(torch.movedim, "movedim", torch.unsqueeze, "unsqueeze", torch.squeeze, "squeeze"),
)
class Axes(Movement):
    """Ops that reorder, add or drop whole axes: they run on the compressed labels as they are."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        if node.target in (torch.squeeze, "squeeze"):
            return move(node, flow.values, flow.root)
        source = node.all_input_nodes[0]
        labels, rest = flow.of(source), node.args[1:]
        if node.op == "call_method":
            return getattr(labels, str(node.target))(*rest, **node.kwargs)
        assert callable(node.target)
        return node.target(labels, *rest, **{k: v for k, v in node.kwargs.items() if k != "input"})


@rule(torch.flatten, "flatten", nn.Flatten)
class Flatten(Movement):
    """flatten: states no sizes."""

    def samples(self) -> tuple[Sample, ...]:
        return (Sample(nn.Flatten(), (2, 6, 3, 3)),)


@rule(torch.reshape, "reshape", "view")
class Reshape(Movement):
    """view and reshape: the sizes are in the arguments."""

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = node.kwargs.get("shape", node.args[1] if len(node.args) == 2 else node.args[1:])
        if isinstance(given, fx.Node) and not isinstance(given.meta["value"], int):
            return None  # another value's shape: it has changed with that value
        sizes = list(given) if isinstance(given, tuple | list) else [given]
        for axis, size in enumerate(sizes):
            stale = moved.is_stale(size) if isinstance(size, fx.Node) else moved.has_units[axis] and size != -1
            if stale:
                sizes[axis] = moved.shape[axis]
        return Replacement((node.args[0], tuple(sizes)), {})


@rule(torch.unflatten, "unflatten")
class Unflatten(Movement):
    """unflatten: one axis becomes several, whose sizes are in the arguments."""

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        given = arguments(node, "input", "dim", "sizes")
        axis, sizes = given["dim"], given["sizes"]
        axis %= node.all_input_nodes[0].meta["value"].dim()
        return Replacement((node.args[0], axis, moved.shape[axis : axis + len(sizes)]), {})


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
        dims = node.meta["value"].dim()
        axis %= dims
        labels = [flow.of(s) for s in sources]
        other = [max(x.shape[a] for x in labels) for a in range(dims)]
        full = [
            x.expand([s.meta["value"].shape[axis] if a == axis else other[a] for a in range(dims)])
            for x, s in zip(labels, sources, strict=True)
        ]
        return torch.cat(full, axis)


@rule(torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split")
class Split(Movement):
    """chunk and split: after removal, a split into what is left of each piece."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        axis = _split_axis(node)
        source = node.all_input_nodes[0]
        labels = flow.of(source)
        labels = labels.expand([source.meta["value"].shape[a] if a == axis else s for a, s in enumerate(labels.shape)])
        return tuple(torch.split(labels, [piece.shape[axis] for piece in node.meta["value"]], axis))

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        axis = _split_axis(node)
        pieces: Any = moved.result
        sizes = [
            piece.shape[axis] if live[axis] is None else len(live[axis])
            for piece, live in zip(node.meta["value"], pieces, strict=True)
        ]
        total = sum(sizes)
        count: Any = node.args[1] if len(node.args) > 1 else None
        is_chunk = node.target in (torch.chunk, "chunk")
        if is_chunk and isinstance(count, int) and sizes == [len(p) for p in torch.empty(total).chunk(count)]:
            return None
        return Replacement(
            (node.all_input_nodes[0], sizes, axis), {}, "split" if node.op == "call_method" else torch.split
        )


def _split_axis(node: fx.Node) -> int:
    axis: Any = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    return axis % node.all_input_nodes[0].meta["value"].dim()


@rule(
    *(torch.stack, torch.unbind, "unbind", torch.flip, "flip", torch.roll, "roll", "repeat"),
    *(torch.repeat_interleave, "repeat_interleave"),
)
class Sizeless(Movement):
    """Movements whose arguments state no sizes."""


@rule("expand")
class Expand(Movement):
    """expand: new axes, and axes of size 1 that grow; those with units keep the size they have."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        labels = flow.of(node.all_input_nodes[0])
        return labels.reshape((1,) * (node.meta["value"].dim() - labels.dim()) + tuple(labels.shape))

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        sizes: Any = node.args[1:]
        sizes = list(sizes[0]) if isinstance(sizes[0], tuple | list) else list(sizes)
        return Replacement((node.args[0], *(-1 if u else s for u, s in zip(moved.has_units, sizes, strict=True))), {})


@rule("expand_as", torch.narrow, "narrow")
class Sized(Movement):
    """Movements with no rewrite of their own: units are frozen, for sizes may be written into the model."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        moved = move(node, flow.values, flow.root)
        source = node.all_input_nodes[0]
        if flow.of(source).numel() > 1:
            flow.freeze(flow.of(source), node, "units along an axis whose size is written into the model")
        return moved


@rule(operator.getitem)
class Item(Movement):
    """Indexing: an element of a tuple, or slices of a tensor."""

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        labels = flow.values[source]
        if isinstance(labels, tuple):
            return labels[node.args[1]]  # pyright: ignore
        if labels is None:
            return None
        return move(node, flow.values, flow.root)

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        index: Any = thaw(node.args[1])
        entries: list[Any] = list(index) if isinstance(index, tuple) else [index]
        if not isinstance(source.meta["value"], torch.Tensor) or any(e is None or e is Ellipsis for e in entries):
            return None
        for axis, entry in enumerate(entries):
            live = moved.source[axis] if axis < len(moved.source) else None
            if live is None:
                continue
            size = source.meta["value"].shape[axis]
            if isinstance(entry, slice):
                start, stop, step = entry.indices(size)
                if step != 1:
                    return None
                begin, end = int((live < start).sum()), int((live < stop).sum())
                entries[axis] = slice(begin, end) if (begin, end) != (0, len(live)) else slice(None)
            elif isinstance(entry, int):
                entries[axis] = int((live < entry % size).sum())
        return Replacement((source, tuple(entries) if isinstance(index, tuple) else entries[0]), {})


@rule(F.pad, nn.ZeroPad2d)
class Pad(Rule):
    """Zero padding. What it adds along an axis with units are new units that are zero already."""

    zero = Zero.PRESERVES

    def zero_at(self, node: fx.Node) -> Zero:
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return Zero.PRESERVES if node.op == "call_module" or mode != "constant" or not value else Zero.BREAKS

    def flow(self, flow: Flow, node: fx.Node) -> Labels:
        source = node.all_input_nodes[0]
        labels, shape = flow.of(source), node.meta["value"].shape
        axis = next((a for a, s in enumerate(labels.shape) if s > 1), None)
        if axis is None or shape[axis] == source.meta["value"].shape[axis]:
            return labels
        amounts = _pad_amounts(node)
        if amounts is None or labels.numel() != labels.shape[axis]:
            flow.freeze(labels, node, "padded along the units' axis")
            return torch.zeros((1,) * len(shape), dtype=torch.int64)
        before, after = amounts[2 * (len(shape) - 1 - axis) :][:2]
        flat = labels.reshape(-1)
        new = flow.fresh(before + after, str(node.meta.get("path")), producer=False)
        full = torch.cat([new[:before], flat, new[before:]])
        return full.reshape([-1 if a == axis else 1 for a in range(len(shape))])

    def reshaped(self, node: fx.Node, moved: Moved) -> Replacement | None:
        amounts = _pad_amounts(node)
        source = node.all_input_nodes[0]
        shape = source.meta["value"].shape
        if amounts is None:
            return None
        for axis, live in enumerate(moved.result):
            at = 2 * (len(shape) - 1 - axis)
            if isinstance(live, torch.Tensor) and at < len(amounts):
                before = int((live < amounts[at]).sum())
                after = int((live >= amounts[at] + shape[axis]).sum())
                amounts[at : at + 2] = [before, after]
        return Replacement((source, amounts, *node.args[2:]), {k: v for k, v in node.kwargs.items() if k != "pad"})


def _pad_amounts(node: fx.Node) -> list[int] | None:
    given: Any = node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else None)
    if node.op == "call_module" or given is None or not all(isinstance(a, int) and a >= 0 for a in given):
        return None
    return list(given)
