"""Sizes among the arguments of nodes: whose they are, and what is left of them after removal."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.arguments import thaw
from fxcat.passes.graph.label_arrays import FROZEN, Grid
from fxcat.passes.graph.meta import VALUE, value_of
from fxcat.passes.rules.base import Moved, Share, Size
from fxcat.passes.rules.flow import Flow


def size_read(size: Any) -> tuple[fx.Node, int] | None:
    """The tensor and the axis whose size an argument is, where that is read from the tensor just so."""
    if not isinstance(size, fx.Node):
        return None
    if size.target == "size" and isinstance(value_of(size), int):
        axis: Any = size.args[1] if len(size.args) > 1 else size.kwargs["dim"]
        return (size.all_input_nodes[0], axis) if isinstance(axis, int) else None
    if size.target is not operator.getitem or not isinstance(size.args[1], int):
        return None
    tensor = shape_read(size.args[0])
    return None if tensor is None else (tensor, size.args[1])


def shape_read(shape: Any) -> fx.Node | None:
    """The tensor whose whole shape an argument is."""
    if not isinstance(shape, fx.Node) or not isinstance(value_of(shape), torch.Size):
        return None
    plain = (shape.target is getattr and shape.args[1] == "shape") or (shape.target == "size" and len(shape.args) == 1)
    return shape.all_input_nodes[0] if plain else None


def units_of_size(flow: Flow, size: Any) -> torch.Tensor | None:
    """Labels of the axis whose size an argument is, 1-D; None if that has no units, or others beside them."""
    found = size_read(size)
    if found is None:
        return None
    tensor, axis = found
    labels = flow.values.get(tensor)
    if isinstance(labels, Grid):
        return flow.lines(tensor)[axis]
    if not isinstance(labels, torch.Tensor) or labels.numel() == 1 or labels.numel() != labels.shape[axis]:
        return None
    return flow.axis(tensor, axis)


def sizes_left(given: Any, shape: tuple[int, ...], moved: Moved) -> tuple[Any, ...]:
    """Sizes among the arguments after removal, where what is left of the axes that they state has this shape."""
    if isinstance(given, fx.Node) and not isinstance(value_of(given), int):
        wanted = enumerate(zip(moved.number(given), shape, strict=True))
        return tuple(Size(given, axis) if number == size else size for axis, (number, size) in wanted)
    sizes: list[Any] = list(given) if isinstance(given, tuple | list) else [given]
    for axis, size in enumerate(sizes):
        if isinstance(size, fx.Node) and (moved.number(size) != shape[axis] or _is_right_by_chance(size, moved)):
            sizes[axis] = Share(size, shape[axis])
        elif not isinstance(size, fx.Node) and size != -1:
            sizes[axis] = shape[axis]
    return tuple(sizes)


def _is_right_by_chance(size: fx.Node, moved: Moved) -> bool:
    """Whether a size counts the batch, and is rounded from a width that has changed (batch · width // 2): what it is
    for the examples it need not be for other batches."""
    if all(axis not in (0, None) for _, axis in asked_sizes(size)):
        return False
    stack, seen = [size], set[fx.Node]()
    while stack:
        node = stack.pop()
        numbers = [i for i in node.all_input_nodes if isinstance(VALUE.get(i), int)]
        if node.target in (operator.floordiv, operator.truediv) and any(
            moved.number(i) != value_of(i) for i in numbers
        ):
            return True
        seen.add(node)
        stack += [i for i in numbers if i not in seen]
    return False


def is_width(flow: Flow, tensor: fx.Node, axis: int | None) -> bool:
    """Whether the size of an axis is that of a parameter, or there is a unit at every index: no input changes it."""
    if tensor.op == "get_attr":
        return True
    labels = flow.values[tensor]
    if axis is None or not isinstance(labels, torch.Tensor) or labels.shape[axis] == 1:
        return False  # along an axis of one there may be units or, as well, examples
    line = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0]
    return bool((line > FROZEN).all()) and len(line.unique()) == value_of(tensor).shape[axis]


def asked_sizes(node: fx.Node) -> Iterator[tuple[fx.Node, int | None]]:
    """The tensors and axes (None: all) from whose sizes a number is computed."""
    stack: list[tuple[fx.Node, int | None]] = [(node, None)]
    seen: set[tuple[fx.Node, int | None]] = set()
    while stack:
        current, index = stack.pop()
        if (current, index) in seen or isinstance(VALUE.get(current), torch.Tensor):
            continue
        seen.add((current, index))
        tensors = [i for i in current.all_input_nodes if isinstance(VALUE.get(i), torch.Tensor)]
        if tensors and (current.target == "size" or current.args[1:] == ("shape",)):
            yield tensors[0], index if index is not None else _size_axis(current)
            continue
        item = current.args[1] if current.target is operator.getitem else None
        if isinstance(item, slice):
            chosen = range(len(thaw(current.args[0])))[thaw(item)]
            stack += [
                (i, a) for i in current.all_input_nodes[:1] for a in (chosen if index is None else [chosen[index]])
            ]
            continue
        follow = item if isinstance(item, int) else None
        stack += [(i, follow) for i in current.all_input_nodes]


def _size_axis(node: fx.Node) -> int | None:
    """The axis that `x.size(axis)` asks for; no axis for attributes that are not the shape."""
    if node.target == "size":
        given = node.args[1] if len(node.args) > 1 else None
        return given if isinstance(given, int) else None
    return None
