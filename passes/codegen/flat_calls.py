"""The calls of modules in a flat graph: where their nodes stand, and which have all that a graph of their own needs."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxcat.network.gates import SAMPLES
from fxcat.passes.graph.invocations import Invocation, Invocations, Key
from fxcat.passes.graph.meta import CALL, PATTERN, SAME_AS, VALUE_NUMBERS, has_place
from fxcat.passes.graph.nested import Slot, leaves, map_leaves, pack, unpack


@dataclass(frozen=True, slots=True)
class Unread:
    """In the place of the template of an argument that nothing reads."""


Signatures = Callable[[str], inspect.Signature | None]
"""The parameters of the `forward` of the module at a path, with `self`; None if it is not there."""


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
class Border:
    """What the slots of a call stand for in a graph; None for what nothing reads, of the arguments or the result."""

    call: Invocation
    arguments: Mapping[str, Any]
    values: tuple[fx.Node | None, ...]
    results: tuple[fx.Node | None, ...]


class Flat:
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
            for number in VALUE_NUMBERS.get(node, ()):
                self.known.setdefault(number, []).append(node)

    def _find_chains(self) -> dict[fx.Node, tuple[Key, ...]]:
        """For every node the calls in which it is made, outer ones first. One that a rewrite has put in belongs to the
        node behind it."""
        chains: dict[fx.Node, tuple[Key, ...]] = {}
        known: dict[Key | None, tuple[Key, ...]] = {None: ()}
        latest: tuple[Key, ...] = ()
        for node in reversed(self.nodes):
            if has_place(node) or node.op in ("placeholder", "output"):
                latest = self._chain(CALL.get(node), known)
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
                span.values |= {number: node for number in VALUE_NUMBERS.get(node, ())}
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

    def _border(self, key: Key, span: _Span) -> Border | None:
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
        return Border(call, arguments, tuple(values), tuple(found))

    def passing(self, key: Key) -> fx.Graph | None:
        """The graph of a call that makes no nodes: it gives what it takes."""
        call, graph = self.calls[key], fx.Graph()
        arguments = self._arguments(key)
        if arguments is None or not set(call.results) <= set(call.values):
            return None
        entering = self.placeholders(graph, key, arguments, [True] * len(call.values), [False] * len(call.values))
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
        self,
        graph: fx.Graph,
        key: Key,
        arguments: Mapping[str, Any],
        is_read: Sequence[bool],
        is_checked: Sequence[bool],
    ) -> dict[int, fx.Node]:
        """Begin the graph of a call; returns what the slots of its arguments are there. Per slot: whether it is read,
        and whether what is given must be a tensor (else sizes, or several values)."""
        signature, numbers = self.signatures(key[0]), self.calls[key].values
        assert signature is not None
        first: dict[int | None, str] = {}
        holders: dict[str, fx.Node] = {}
        for name, pattern in arguments.items():
            kind = signature.parameters[name].kind
            stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(kind, "")
            holder = holders[name] = graph.placeholder(stars + name)
            # conditions on what nothing reads would only refuse what could as well be given
            PATTERN.set(
                holder,
                map_leaves(
                    pattern, lambda leaf: Unread() if isinstance(leaf, Slot) and not is_checked[leaf.index] else leaf
                ),
            )
            if isinstance(pattern, Slot):
                number = numbers[pattern.index]
                if number is not None and number in first:
                    SAME_AS.set(holder, first[number])
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
        own = VALUE_NUMBERS.get(node, ())
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
