"""Entries that a mask picks: `value[mask] = number`, `value[mask] *= 2`, `value[mask] = other[mask].log()`.

How many there are depends on values. What is computed with them, entry by entry, is computed with all entries instead,
and `where` the mask holds it replaces the value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from fxcat.errors import CaptureError
from fxcat.passes.capture.proxy import ExampleProxy
from fxcat.passes.capture.tracing import Tracing
from fxcat.passes.graph.meta import path_of, value_of
from fxcat.passes.nodes.known import is_random, known_value
from fxcat.passes.rules.elementwise import Elementwise
from fxcat.passes.rules.table import function_rule, method_rule

Call: TypeAlias = Callable[..., fx.Node]
"""Makes a node of a function, or of a method by its name, and its arguments."""

_HARMLESS = 0.5
"""Stands in for entries that are not picked: functions of one number, and their derivatives, are finite there."""


@dataclass(frozen=True, slots=True)
class Picked:
    """The entries of `base` that `mask` picks, whose axes are those of `base` from `axis` on."""

    base: fx.Node
    mask: fx.Node
    axis: int

    @classmethod
    def of(cls, base: fx.Node, index: Any) -> Picked | None:
        """None if an index is more than a mask."""
        entries: list[Any] = list(index) if isinstance(index, tuple) else [index]
        masks = [i for i, e in enumerate(entries) if is_mask(e)]
        others = [e for i, e in enumerate(entries) if i not in masks]
        if len(masks) != 1 or any(e is not Ellipsis and e != slice(None) for e in others):
            return None
        mask, shape = entries[masks[0]], value_of(base).shape
        dims, axis = value_of(mask).dim(), masks[0]
        if Ellipsis in entries[: masks[0]]:
            axis = len(shape) - dims - (len(entries) - 1 - masks[0])
        return cls(base, mask, axis) if value_of(mask).shape == shape[axis : axis + dims] else None

    def takes(self, value: Any) -> bool:
        """Whether a value can be put in their place."""
        if isinstance(value, int | float) or self._chain(value) is not None:
            return True
        left = value_of(self.base).dim() - value_of(self.mask).dim()
        shape = value_of(value).shape
        return self.axis == 0 and not any(n > 1 for n in shape[: max(0, len(shape) - left)])

    def put(self, call: Call, value: Any) -> fx.Node:
        """`base` with a value in their place."""
        mask = self._whole_mask(call)
        if isinstance(value, int | float):
            return call(torch.masked_fill, self.base, mask, value)
        chain = self._chain(value)
        if chain is not None:
            value = self._everywhere(call, value, chain, mask)
        if value_of(value).dtype != value_of(self.base).dtype:
            value = call("to", value, value_of(self.base).dtype)
        while chain is None and value_of(value).dim() > value_of(self.base).dim() - self.axis:
            value = call("squeeze", value, 0)
        return call(torch.where, mask, value, self.base)

    def _whole_mask(self, call: Call) -> fx.Node:
        """The mask with axes for those of `base` that follow its own."""
        mask = self.mask
        for _ in range(value_of(self.base).dim() - self.axis - value_of(mask).dim()):
            mask = call(torch.unsqueeze, mask, -1)
        return mask

    def _chain(self, value: fx.Node) -> list[fx.Node] | None:
        """The nodes that compute a value, entry by entry, of what the mask picks from this and other values, those that
        pick among them; None if there is anything else to it."""
        found: dict[fx.Node, None] = {}
        stack = [value]
        while stack:
            node = stack.pop()
            result = value_of(node)
            if node in found or not isinstance(result, torch.Tensor) or not result.dim():
                continue
            if result.shape != value_of(value).shape:
                return None
            found[node] = None
            if self._is_like(node):
                continue
            if not _is_elementwise(node):
                return None
            stack += node.all_input_nodes
        return list(found) if any(self._is_like(n) for n in found) else None

    def _is_like(self, node: fx.Node) -> bool:
        """Whether a node picks the same entries of a value of the same shape."""
        if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
            return False
        other = Picked.of(node.args[0], node.args[1])
        same = other is not None and other.axis == self.axis and _is_equal(other.mask, self.mask)
        return same and value_of(node.args[0]).shape == value_of(self.base).shape

    def _everywhere(self, call: Call, value: fx.Node, chain: list[fx.Node], mask: fx.Node) -> fx.Node:
        """What a chain computes, for all entries."""
        places: dict[fx.Node, fx.Node] = {}
        unpicked = call(torch.logical_not, mask)
        order = {n: i for i, n in enumerate(value.graph.nodes)}
        for node in sorted(chain, key=order.__getitem__):
            if self._is_like(node):
                source: Any = node.args[0]
                harmless = _HARMLESS if value_of(node).dtype.is_floating_point else 1
                places[node] = call(torch.masked_fill, source, unpicked, harmless)
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: places.get(n, n))
            places[node] = call(node.target, *args, **kwargs)
        return places[value]


def _is_equal(a: Any, b: Any) -> bool:
    """Whether two arguments are the same, or are computed in the same way (`z[z > 1] = z[z > 1].log()`)."""
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_is_equal, a, b))
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return type(a) is type(b) and a == b
    computed = a.op in ("call_function", "call_method") and not is_random(a.target) and not a.kwargs and not b.kwargs
    return computed and (a.op, a.target) == (b.op, b.target) and _is_equal(a.args, b.args)


def with_places(index: Any, tracer: Tracing) -> Any:
    """An index in which masks of one axis that no input, not even its size, changes are the places where they hold: as
    many as there are in every pass. Of buffers, that they hold what they do is asserted."""
    entries = list(index) if isinstance(index, tuple) else [index]
    places = [_places(e, tracer) for e in entries]
    entries = [e if p is None else p for e, p in zip(entries, places, strict=True)]
    return tuple(entries) if isinstance(index, tuple) else entries[0]


def _places(entry: Any, tracer: Tracing) -> list[int] | None:
    if isinstance(entry, list) and entry and all(type(e) is bool for e in entry):  # pyright: ignore[reportUnknownVariableType]
        return [i for i, holds in enumerate(entry) if holds]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    value = entry.example if isinstance(entry, ExampleProxy) else entry
    if not isinstance(value, torch.Tensor) or value.dtype != torch.bool or value.dim() != 1:
        return None
    if not isinstance(entry, ExampleProxy):
        return None if value.is_meta else value.nonzero().flatten().tolist()
    known = known_value(entry.node, tracer.root, tracer.held)
    if known is None or known.finite or known.sizes:
        return None
    if known.held:
        same: Any = (entry == known.value).all()
        torch._assert(same, "a mask in a buffer was another one when the network was captured")  # pyright: ignore[reportPrivateUsage]
    return known.value.nonzero().flatten().tolist()


def is_mask(value: Any) -> bool:
    """Whether a node gives a tensor of truth values."""
    found = value_of(value) if isinstance(value, fx.Node) else None
    return isinstance(found, torch.Tensor) and found.dtype == torch.bool and found.dim() > 0


def picks(node: fx.Node) -> bool:
    """Whether a node picks entries by a mask: as many as there are."""
    index = node.args[1] if node.target is operator.getitem else None
    return any(is_mask(e) for e in (index if isinstance(index, tuple) else (index,)))


def check_none_left(graph: fx.Graph) -> None:
    """Takes away what is computed with entries that a mask picks where nobody reads it any more. Raises `CaptureError`
    for others."""
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        if picks(node) or (_is_elementwise(node) and not computed.isdisjoint(node.all_input_nodes)):
            computed.add(node)
    for node in reversed(graph.nodes) if computed else ():
        if node in computed and not node.users:
            graph.erase_node(node)
        elif picks(node):
            raise CaptureError(
                "a mask picks entries, as many as there are for these values",
                where=f"module {path_of(node) or '(root)'!r}",
                remedy="compute with all of them and torch.where, or teach fxcat the module with a rule (fxcat.rules)",
            )


def _is_elementwise(node: fx.Node) -> bool:
    known = function_rule(node.target) if node.op == "call_function" else None
    rule = method_rule(str(node.target)) if node.op == "call_method" else known
    return isinstance(rule, Elementwise) and not is_random(node.target)
