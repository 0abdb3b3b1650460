"""The graphs of a model and of its modules out of a flat one: each calls those of the modules inside."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxcat.network.gates import SAMPLES
from fxcat.passes.codegen.flat_calls import Flat
from fxcat.passes.graph.invocations import Key
from fxcat.passes.graph.meta import VALUE, take_all
from fxcat.passes.graph.nested import Slot, fields_of, is_record, leaves, pack


@dataclass(slots=True)
class _Scope:
    """A graph that is being made: of a call, or of the model itself (`key` is None)."""

    key: Key | None
    path: str
    values: tuple[fx.Node | None, ...] = ()
    """What the slots of its arguments stand for."""
    graph: fx.Graph = field(default_factory=fx.Graph)
    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict[fx.Node, fx.Node])
    taken: list[fx.Node] = field(default_factory=list[fx.Node])
    """Parts of what modules returned."""


class Folder:
    """Makes the graphs of one flat graph."""

    def __init__(self, flat: Flat, foldable: Collection[str]) -> None:
        self._flat = flat
        self._borders = {k: b for k, b in flat.borders.items() if k[0] in foldable}
        self._made: dict[Key, fx.Graph] = {}

    def run(self) -> tuple[fx.Graph, dict[Key, fx.Graph]]:
        root = _Scope(None, "")
        scopes = [root]
        for node in self._flat.nodes:
            wanted = [k for k in self._flat.chains[node] if k in self._borders]
            depth = 0
            while depth < min(len(scopes) - 1, len(wanted)) and scopes[depth + 1].key == wanted[depth]:
                depth += 1
            while len(scopes) - 1 > depth:
                self._close(scopes.pop(), scopes[-1])
            for key in wanted[depth:]:
                scopes.append(self._opened(key, scopes[-1]))
            if node is not self._flat.output:
                self._copy(node, scopes[-1])
        output = self._flat.output
        take_all(root.graph.output(fx.map_arg(output.args[0], lambda n: self._in(root, n))), output)
        _erase_unread(root)
        return root.graph, self._made

    def _copy(self, node: fx.Node, scope: _Scope) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._in(scope, n))
        target = node.target if node.op != "call_module" else _relative(node, scope)
        # in modules new names, which do not tell where they stand: those that do the same have the same code
        name = node.name if scope.key is None else None
        copy = scope.nodes[node] = scope.graph.create_node(node.op, target, args, kwargs, name)
        take_all(copy, node)

    def _in(self, scope: _Scope, node: fx.Node) -> fx.Node:
        """A value in a scope."""
        found = scope.nodes.get(node)
        if found is None:
            assert node.op == "get_attr", f"{node} does not enter {scope.path!r}"
            name = node.name if scope.key is None else None
            found = scope.nodes[node] = scope.graph.create_node("get_attr", _relative(node, scope), (), {}, name)
            take_all(found, node)
        return found

    def _opened(self, key: Key, outer: _Scope) -> _Scope:
        """A scope with its placeholders."""
        border = self._borders[key]
        numbers = border.call.values
        values: list[fx.Node | None] = []
        for value, number in zip(border.values, numbers, strict=True):
            # what the module does not read is passed all the same where it is at hand: what was given twice, and else
            # the latest form of the value
            given = [v for v, n in zip(values, numbers, strict=False) if n == number and v is not None]
            spare = given or [n for n in reversed(self._flat.known.get(number, [])) if n in outer.nodes]
            values.append(value or (spare[0] if spare else None))
        scope = _Scope(key, f"{key[0].removeprefix(self._flat.prefix)}.", tuple(values))
        is_read = [v is not None for v in values]
        is_tensor = [v is not None and isinstance(VALUE.get(v), torch.Tensor) for v in values]
        entering = self._flat.placeholders(scope.graph, key, border.arguments, is_read, is_tensor)
        for slot, value in enumerate(values):
            if value is not None:
                scope.nodes.setdefault(value, entering[slot])
        return scope

    def _close(self, scope: _Scope, outer: _Scope) -> None:
        """Let the outer scope call the module of a scope."""
        assert scope.key is not None
        border = self._borders[scope.key]
        call = border.call
        scope.graph.output(
            pack(scope.graph, call.result, [None if n is None else self._in(scope, n) for n in border.results])
        )
        _erase_unread(scope)
        self._made[scope.key] = scope.graph
        values = [None if v is None else self._in(outer, v) for v in scope.values]
        args, kwargs = pack(outer.graph, (call.arguments, dict(call.keywords or {})), values)
        called = outer.graph.create_node("call_module", scope.path[len(outer.path) : -1], args, kwargs)
        if isinstance(call.result, tuple | list):
            VALUE.set(called, tuple(None if n is None else VALUE.get(n) for n in border.results))
        for result, value in zip(border.results, self._taken(outer, called, call.result), strict=True):
            if result is not None:
                outer.nodes.setdefault(result, value)

    def _taken(self, outer: _Scope, called: fx.Node, pattern: Any) -> list[fx.Node]:
        """What a module returned, taken apart: a node for every slot."""
        found: dict[int, fx.Node] = {}
        left: list[tuple[fx.Node, Any]] = [(called, pattern)]
        while left:
            node, part = left.pop()
            if isinstance(part, Slot):
                found[part.index] = node
                continue
            for function, name, inner in _parts(part):
                if any(isinstance(leaf, Slot) for leaf in leaves(inner)):
                    outer.taken.append(outer.graph.call_function(function, (node, name)))
                    left.append((outer.taken[-1], inner))
        return [found[i] for i in range(len(found))]


def _parts(pattern: Any) -> Iterator[tuple[Callable[..., Any], Any, Any]]:
    """How the parts of a nested value are read: function, name, and the template of the part."""
    if is_record(pattern):
        yield from ((builtins.getattr, name, part) for name, part in fields_of(pattern))
    elif isinstance(pattern, Mapping):
        yield from ((operator.getitem, name, part) for name, part in pattern.items())
    elif isinstance(pattern, tuple | list):
        yield from ((operator.getitem, i, part) for i, part in enumerate(pattern))


def _erase_unread(scope: _Scope) -> None:
    for node in reversed(scope.taken):
        if not node.users:
            scope.graph.erase_node(node)


def _relative(node: fx.Node, scope: _Scope) -> str:
    """What a node is about, as seen from the module of a scope."""
    target = str(node.target)
    return target if target.startswith(f"{SAMPLES}.") else target.removeprefix(scope.path)
