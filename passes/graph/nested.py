"""Nested values: lists, tuples, named tuples, mappings and dataclasses with tensors somewhere inside.

A template is such a value with a `Slot` in the place of every tensor.
"""

from __future__ import annotations

import builtins
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of tensor number `index`."""

    index: int


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same value with every leaf changed."""
    if _is_atom(value):
        return change(value)
    if is_record(value):  # first: one that is a mapping too is made from its fields
        return dataclasses.replace(value, **{n: map_leaves(v, change) for n, v in fields_of(value)})
    if isinstance(value, Mapping):
        items = {k: map_leaves(v, change) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
        return items if type(value) is dict else type(value)(items)  # pyright: ignore[reportCallIssue]
    if isinstance(value, tuple | list):
        parts: list[Any] = [map_leaves(v, change) for v in value]  # pyright: ignore[reportUnknownVariableType]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value)


def leaves(value: Any) -> Iterator[Any]:
    """The leaves in order."""
    if _is_atom(value):
        yield value
        return
    if is_record(value):
        value = [v for _, v in fields_of(value)]
    elif isinstance(value, Mapping):
        value = list(value.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, tuple | list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            if _is_atom(item):
                yield item
            else:
                yield from leaves(item)
    else:
        yield value


_ATOMS = frozenset((int, float, bool, str, type(None), torch.Tensor, torch.nn.Parameter))


def _is_atom(value: Any) -> bool:
    """Whether a value is quickly told to hold nothing. A proxy is asked for its type, not for what it stands for."""
    kind = type(value)
    return kind in _ATOMS or issubclass(kind, fx.Proxy)


def template(value: Any, kind: type | tuple[type, ...]) -> tuple[Any, list[Any]]:
    """A template of a value, and the leaves of the given type that its slots stand for."""
    found: list[Any] = []

    def replace(leaf: Any) -> Any:
        if not isinstance(leaf, kind):
            return leaf
        found.append(leaf)
        return Slot(len(found) - 1)

    return map_leaves(value, replace), found


def is_plain(value: Any) -> bool:
    """Whether all containers in a value are Python's own: those that a graph's output may hold."""
    if isinstance(value, tuple | list):
        return type(value) in (tuple, list) and all(is_plain(v) for v in value)
    if isinstance(value, Mapping):
        return type(value) is dict and all(is_plain(v) for v in value.values())
    return not is_record(value)


def lost_in_copy(value: Any) -> str | None:
    """Which part of a nested value a copy from its class and parts (`map_leaves`) would lack, None if it is whole."""
    if _is_atom(value):
        return None
    if isinstance(value, tuple | list):
        return next((lost for v in value if (lost := lost_in_copy(v))), None)
    if not is_record(value) and not isinstance(value, Mapping):
        return None
    name, held = type(value).__name__, getattr(value, "__dict__", {})  # pyright: ignore[reportUnknownArgumentType]
    try:
        copied = map_leaves(value, lambda leaf: leaf)
    except Exception as error:
        return f"{name} (which is not made from its parts: {error})"
    fields = dict(fields_of(value)) if is_record(value) else {}
    for key, part in held.items():
        if key not in fields and not (key in copied.__dict__ and _is_same(copied.__dict__[key], part)):
            return f"{name}.{key}"
    if isinstance(value, Mapping) and _kinds(copied) != _kinds(value):  # pyright: ignore[reportUnknownArgumentType]
        return f"{name}.items()"
    parts: list[Any] = [*fields.values()] if fields else [*value.values()]
    return next((lost for v in parts if (lost := lost_in_copy(v))), None)


def _kinds(mapping: Mapping[Any, Any]) -> list[tuple[Any, type]]:
    return [(key, type(part)) for key, part in mapping.items()]


def _is_same(copied: Any, original: Any) -> bool:
    if isinstance(original, Mapping | tuple | list):
        return type(copied) is type(original) and all(  # pyright: ignore[reportUnknownArgumentType]
            a is b for a, b in zip(leaves(copied), leaves(original), strict=False)
        )
    return copied is original or (isinstance(original, CONSTANTS) and copied == original)


def fill(pattern: Any, values: Sequence[Any] | Mapping[int, Any]) -> Any:
    """A template with values in its slots."""
    return map_leaves(pattern, lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf)


CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, type(None))


def unpack(graph: fx.Graph, node: fx.Node, pattern: Any, found: dict[int, fx.Node]) -> None:
    """Nodes that take a value apart as its template says, and check all the rest of it."""
    if isinstance(pattern, Slot):
        found[pattern.index] = node
    elif is_record(pattern):
        for name, item in fields_of(pattern):
            unpack(graph, graph.call_function(builtins.getattr, (node, name)), item, found)
    elif isinstance(pattern, Mapping):
        for key, item in pattern.items():  # pyright: ignore[reportUnknownVariableType]
            unpack(graph, graph.call_function(operator.getitem, (node, key)), item, found)
    elif isinstance(pattern, tuple | list):
        count: int = len(pattern)  # pyright: ignore[reportUnknownArgumentType]
        length = graph.call_function(builtins.len, (node,))
        equal = graph.call_function(operator.eq, (length, count))
        graph.call_function(torch._assert, (equal, f"captured with {count} values"))  # pyright: ignore[reportPrivateUsage]
        for i, item in enumerate(pattern):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            unpack(graph, graph.call_function(operator.getitem, (node, i)), item, found)
    else:
        same = operator.is_ if pattern is None or isinstance(pattern, bool) else operator.eq
        equal = graph.call_function(same, (node, pattern))
        graph.call_function(torch._assert, (equal, f"captured with {pattern!r}"))  # pyright: ignore[reportPrivateUsage]


def pack(graph: fx.Graph, pattern: Any, values: Sequence[fx.Node | None]) -> Any:
    """An argument of a node that rebuilds a value from its template."""
    if isinstance(pattern, Slot):
        return values[pattern.index]
    if is_record(pattern):
        fields = {n: pack(graph, v, values) for n, v in fields_of(pattern)}
        return graph.call_function(type(pattern), (), fields)
    if isinstance(pattern, Mapping):
        items = {k: pack(graph, v, values) for k, v in pattern.items()}  # pyright: ignore[reportUnknownVariableType]
        if type(pattern) is dict:  # pyright: ignore[reportUnknownArgumentType]
            return items
        return graph.call_function(type(pattern), ([(k, v) for k, v in items.items()],))
    if isinstance(pattern, tuple | list):
        parts: list[Any] = [pack(graph, v, values) for v in pattern]  # pyright: ignore[reportUnknownVariableType]
        if hasattr(pattern, "_fields"):  # pyright: ignore[reportUnknownArgumentType]
            return graph.call_function(type(pattern), tuple(parts))
        return parts if isinstance(pattern, list) else tuple(parts)
    return pattern


def is_record(value: Any) -> bool:
    """Whether a value is a dataclass."""
    return hasattr(type(value), "__dataclass_fields__") and type(value) is not Slot


def fields_of(value: Any) -> list[tuple[str, Any]]:
    """What a dataclass is made from."""
    return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init]
