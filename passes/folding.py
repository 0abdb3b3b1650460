"""Folding: a flat graph as one graph per module, each of which calls those of the modules inside.

In: the graphs of all ways and phases in which a model runs, and what its modules were called with when it was captured.
Out: the graphs of the model, of the modules that have one of their own, and the modules that have none. A module has,
if everywhere its nodes stand together, take nothing but its arguments and what it holds, and give nothing but its
result, and if they are the same in all of its calls. Nodes of the others are part of the graph around them.
"""

from __future__ import annotations

import builtins
import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxcat.gates import SAMPLES
from fxcat.passes.effects import UNCAST
from fxcat.passes.invocations import CALL, VALUE, Invocation, Invocations, Key
from fxcat.passes.nested import Slot, fields_of, is_record, leaves, map_leaves, pack, unpack

PATTERN = "pattern"
"""Key in the `meta` of a placeholder: the template of the argument."""

ABSENT = "absent"
"""Key in the `meta` of a placeholder: what is not to be in the argument."""

SAME_AS = "same_as"
"""Key in the `meta` of a placeholder: the parameter that was given the same value at capture."""


@dataclass(frozen=True, slots=True)
class Unread:
    """In the place of the template of an argument that nothing reads."""


@dataclass(frozen=True, slots=True)
class Folded:
    """The graphs of the model, one for every way and phase; of modules by their paths, one for every phase, or a single
    one, each by what it says; the paths of the modules that have none; and of those that only pass on what they get,
    and are not called any more."""

    outer: tuple[tuple[fx.Graph, ...], ...]
    inner: Mapping[str, Mapping[str, fx.Graph]]
    flat: frozenset[str]
    uncalled: frozenset[str]


Signatures = Callable[[str], inspect.Signature | None]
"""The parameters of the `forward` of the module at a path, with `self`; None if it is not there."""


def fold(
    ways: Sequence[Sequence[fx.Graph]], calls: Sequence[Invocations], prefix: str, signatures: Signatures
) -> Folded:
    """Fold the graphs of all ways to call a model, in each of its phases; `calls` in inference and in training.

    `prefix`: of the paths of calls, where the graphs are those of a module inside, with a dot at its end.
    """
    flats = [[_Flat(g, calls[p], prefix, signatures) for p, g in enumerate(way)] for way in ways]
    known = {key[0]: call for of_phase in calls for key, call in of_phase.items() if key[0].startswith(prefix)}
    present = {key[0] for way in flats for flat in way for key in flat.spans}
    foldable = {path for path, call in known.items() if not call.hooked}
    foldable -= {key[0] for way in flats for flat in way for key in flat.spans.keys() - flat.borders.keys()}
    while True:
        made = [[flat.folded(foldable) for flat in way] for way in flats]
        inner = _common([[graphs for _, graphs in way] for way in made], foldable)
        if len(inner) == len(foldable):
            break
        foldable = set(inner)
    apart = frozenset(path for path, call in known.items() if not call.hooked and path not in inner)
    outer = tuple(tuple(graph for graph, _ in way) for way in made)
    return Folded(outer, inner, apart, frozenset(inner.keys() - present))


def _common(
    ways: Sequence[Sequence[Mapping[Key, fx.Graph | None]]], foldable: Collection[str]
) -> dict[str, Mapping[str, fx.Graph]]:
    """The graphs, one for every phase or one for both, of the modules whose calls have the same in all ways."""
    found: dict[str, tuple[dict[str, fx.Graph], ...]] = {path: ({}, {}) for path in foldable}
    failed: set[str] = set()
    for way in ways:
        for phase, graphs in enumerate(way):
            for (path, _), graph in graphs.items():
                if graph is None:
                    failed.add(path)
                    continue
                # a graph of one phase only is that of both
                for p in (0, 1) if len(way) == 1 else (phase,):
                    found[path][p][_text(graph)] = graph
    return {
        path: phases[0] | phases[1]
        for path, phases in found.items()
        if path not in failed and all(len(texts) < 2 for texts in phases)
    }


def _text(graph: fx.Graph) -> str:
    """What a graph says; the same for graphs that do the same with the same names."""
    return repr([(n.op, n.target, n.args, n.kwargs, n.name, *(n.meta.get(k) for k in _SAID)) for n in graph.nodes])


_SAID = (UNCAST, PATTERN, SAME_AS)


@dataclass(slots=True)
class _Span:
    """The nodes of one call in a graph: where they stand, what they take and what is taken from them."""

    first: int
    last: int = -1
    count: int = 0
    inputs: dict[fx.Node, None] = field(default_factory=dict[fx.Node, None])
    outputs: dict[fx.Node, None] = field(default_factory=dict[fx.Node, None])
    values: dict[int, fx.Node] = field(default_factory=dict[int, fx.Node])
    keeps_to_itself: bool = True


@dataclass(frozen=True, slots=True)
class _Border:
    """What the slots of a call stand for in a graph; None for what nothing reads, of the arguments or the result."""

    call: Invocation
    arguments: Mapping[str, Any]
    values: tuple[fx.Node | None, ...]
    results: tuple[fx.Node | None, ...]


class _Flat:
    """A flat graph, and the calls in it that can be folded."""

    def __init__(self, graph: fx.Graph, calls: Invocations, prefix: str, signatures: Signatures) -> None:
        self.calls, self.prefix, self.signatures = calls, prefix, signatures
        self.nodes = [n for n in graph.nodes if n.op != "get_attr"]
        self.output = self.nodes[-1]
        self.chains = self._find_chains()
        self.spans = self._find_spans()
        self.borders = {key: b for key, span in self.spans.items() if (b := self._border(key, span)) is not None}
        self.known: dict[int | None, list[fx.Node]] = {}
        for node in self.nodes:
            for number in node.meta.get(VALUE, ()):
                self.known.setdefault(number, []).append(node)

    def _find_chains(self) -> dict[fx.Node, tuple[Key, ...]]:
        """For every node the calls in which it is made, outer ones first. One that a rewrite has put in belongs to the
        node behind it."""
        chains: dict[fx.Node, tuple[Key, ...]] = {}
        known: dict[Key | None, tuple[Key, ...]] = {None: ()}
        latest: tuple[Key, ...] = ()
        for node in reversed(self.nodes):
            if CALL in node.meta or "path" in node.meta or node.op in ("placeholder", "output"):
                latest = self._chain(node.meta.get(CALL), known)
            chains[node] = latest
        return chains

    def _chain(self, key: Key | None, known: dict[Key | None, tuple[Key, ...]]) -> tuple[Key, ...]:
        found = known.get(key)
        if found is None:
            assert key is not None
            call = self.calls.get(key)
            found = known[key] = (*self._chain(None if call is None else call.outer, known), key)
        return found

    def _find_spans(self) -> dict[Key, _Span]:
        spans: dict[Key, _Span] = {}
        for place, node in enumerate(self.nodes):
            chain = self.chains[node]
            for key in chain:
                span = spans.setdefault(key, _Span(place))
                span.last, span.count = place, span.count + 1
                span.values |= dict.fromkeys(node.meta.get(VALUE, ()), node)
                span.keeps_to_itself &= node.op != "call_module" or self._holds(key, node)
            for source in node.all_input_nodes:
                if source.op == "get_attr":
                    for key in chain:
                        if not self._holds(key, source):
                            spans[key].inputs[source] = None
                    continue
                theirs = self.chains[source]
                depth = next((i for i, (a, b) in enumerate(zip(chain, theirs, strict=False)) if a != b), None)
                depth = min(len(chain), len(theirs)) if depth is None else depth
                for key in chain[depth:]:
                    spans[key].inputs[source] = None
                for key in theirs[depth:]:
                    spans[key].outputs[source] = None
        return spans

    def _holds(self, key: Key, node: fx.Node) -> bool:
        """Whether a module holds the module, parameter or buffer that a node is about."""
        return str(node.target).startswith((f"{key[0].removeprefix(self.prefix)}.", f"{SAMPLES}."))

    def _border(self, key: Key, span: _Span) -> _Border | None:
        arguments = self._arguments(key)
        if arguments is None or not span.keeps_to_itself or span.last - span.first + 1 != span.count:
            return None
        call = self.calls[key]
        values, results = _matched(span.inputs, call.values), _matched(span.outputs, call.results)
        if values is None or results is None:
            return None
        found: list[fx.Node | None] = []
        for result, number in zip(results, call.results, strict=True):
            through = next((v for v, n in zip(values, call.values, strict=True) if v and n == number), None)
            found.append(result or (None if number is None else span.values.get(number)) or through)
        return _Border(call, arguments, tuple(values), tuple(found))

    def folded(self, foldable: Collection[str]) -> tuple[fx.Graph, dict[Key, fx.Graph | None]]:
        """The graph around the calls of the modules at these paths, and the graphs of these (None: it has none)."""
        graph, made = _Folder(self, foldable).run()
        gone = [key for key in self.calls if key[0] in foldable and key not in self.spans]
        return graph, {**made, **{key: self._passing(key) for key in gone}}

    def _passing(self, key: Key) -> fx.Graph | None:
        """The graph of a call that makes no nodes: it gives what it takes."""
        call, graph = self.calls[key], fx.Graph()
        arguments = self._arguments(key)
        if arguments is None or not set(call.results) <= set(call.values):
            return None
        entering = self.placeholders(graph, key, arguments, [True] * len(call.values))
        results = [entering[call.values.index(number)] for number in call.results]
        graph.output(pack(graph, call.result, results))
        return graph

    def _arguments(self, key: Key) -> Mapping[str, Any] | None:
        """Templates of the arguments of a call, by the parameters of `forward`; None where that cannot be told."""
        call, signature = self.calls.get(key), self.signatures(key[0])
        if call is None or signature is None or not call.is_nested or call.hooked:
            return None
        try:
            bound = signature.bind(None, *call.arguments, **(call.keywords or {}))
        except TypeError:
            return None
        return dict(list(bound.arguments.items())[1:])

    def placeholders(
        self, graph: fx.Graph, key: Key, arguments: Mapping[str, Any], is_read: Sequence[bool]
    ) -> dict[int, fx.Node]:
        """Begin the graph of a call; returns what the slots of its arguments are there. `is_read`: per slot."""
        signature, numbers = self.signatures(key[0]), self.calls[key].values
        assert signature is not None
        first: dict[int | None, str] = {}
        holders: dict[str, fx.Node] = {}
        for name, pattern in arguments.items():
            kind = signature.parameters[name].kind
            stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(kind, "")
            holder = holders[name] = graph.placeholder(stars + name)
            # conditions on what nothing reads would only refuse what could as well be given
            holder.meta[PATTERN] = map_leaves(
                pattern, lambda leaf: Unread() if isinstance(leaf, Slot) and not is_read[leaf.index] else leaf
            )
            if isinstance(pattern, Slot):
                number = numbers[pattern.index]
                if number is not None and number in first:
                    holder.meta[SAME_AS] = first[number]
                first.setdefault(number, name)
        entering: dict[int, fx.Node] = {}
        for name, pattern in arguments.items():
            if any(isinstance(leaf, Slot) for leaf in leaves(pattern)):
                unpack(graph, holders[name], pattern, entering)
        for slot, value in entering.items():
            if not is_read[slot] and value.op != "placeholder":
                graph.erase_node(value)
        told = {p.index for p in arguments.values() if isinstance(p, Slot)}
        for slot, number in enumerate(numbers):
            other = numbers.index(number)
            if other != slot and number is not None and is_read[slot] and not {slot, other} <= told:
                same = graph.call_function(operator.is_, (entering[slot], entering[other]))
                graph.call_function(torch._assert, (same, "captured with one value in both places"))  # pyright: ignore[reportPrivateUsage]
        return entering


def _matched(nodes: Collection[fx.Node], numbers: Sequence[int | None]) -> list[fx.Node | None] | None:
    """The node of every slot, None where there is none; None altogether if a node has no slot."""
    found: list[fx.Node | None] = [None] * len(numbers)
    left: list[fx.Node] = []
    for node in nodes:
        own = node.meta.get(VALUE, ())
        at = next((i for i, n in enumerate(numbers) if n in own and found[i] is None), None)
        if at is None:
            left.append(node)
        else:
            found[at] = node
    free = [i for i, n in enumerate(found) if n is None and numbers.count(numbers[i]) == 1]
    if len(left) > 1 or (left and len(free) != 1):
        return None
    for node in left:  # a rewrite has put another value in the place of the one
        found[free[0]] = node
    return found


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


class _Folder:
    """Makes the graphs of one flat graph."""

    def __init__(self, flat: _Flat, foldable: Collection[str]) -> None:
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
        root.graph.output(fx.map_arg(output.args[0], lambda n: self._in(root, n))).meta = dict(output.meta)
        _erase_unread(root)
        return root.graph, self._made

    def _copy(self, node: fx.Node, scope: _Scope) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._in(scope, n))
        target = node.target if node.op != "call_module" else _relative(node, scope)
        # in modules new names, which do not tell where they stand: those that do the same have the same code
        name = node.name if scope.key is None else None
        copy = scope.nodes[node] = scope.graph.create_node(node.op, target, args, kwargs, name)
        copy.meta = dict(node.meta)

    def _in(self, scope: _Scope, node: fx.Node) -> fx.Node:
        """A value in a scope."""
        found = scope.nodes.get(node)
        if found is None:
            assert node.op == "get_attr", f"{node} does not enter {scope.path!r}"
            name = node.name if scope.key is None else None
            found = scope.nodes[node] = scope.graph.create_node("get_attr", _relative(node, scope), (), {}, name)
            found.meta = dict(node.meta)
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
        entering = self._flat.placeholders(scope.graph, key, border.arguments, is_read)
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
        yield from ((operator.getitem, name, part) for name, part in pattern.items())  # pyright: ignore
    elif isinstance(pattern, tuple | list):
        yield from ((operator.getitem, i, part) for i, part in enumerate(pattern))  # pyright: ignore


def _erase_unread(scope: _Scope) -> None:
    for node in reversed(scope.taken):
        if not node.users:
            scope.graph.erase_node(node)


def _relative(node: fx.Node, scope: _Scope) -> str:
    """What a node is about, as seen from the module of a scope."""
    target = str(node.target)
    return target if target.startswith(f"{SAMPLES}.") else target.removeprefix(scope.path)
