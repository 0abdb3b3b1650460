"""Which call of which module makes a node, and what modules were called with and returned.

A graph is flat. This is what is needed to give every module its own part of the code again (`folding.py`): where the
model's Python entered and left a module while it was traced.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import fx

from fxcat.passes.graph.meta import VALUE_NUMBERS
from fxcat.passes.graph.nested import CONSTANTS, Slot, leaves, lost_in_copy, template

Key: TypeAlias = tuple[str, int]
"""The path of a module, and how often it had been called before."""

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a module that is none of the graph's nodes: templates of arguments and result, and what their slots
    stand for, nodes while they are traced, later numbers of values (None: of a node that has gone).

    `outer`: the call in which it is made, None for the model's own. `is_nested`: whether arguments and result are
    tensors, numbers and flags in containers, else there are no templates. `hooked`: the module had hooks, and what they
    do has been captured as a part of it.
    """

    outer: Key | None
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] | None = None
    values: tuple[Any, ...] = ()
    result: Any = None
    results: tuple[Any, ...] = ()
    is_nested: bool = True
    hooked: bool = False


class Calls:
    """The calls of one trace."""

    def __init__(self) -> None:
        self.found: dict[Key, Invocation] = {}
        self._counts: Counter[str] = Counter()
        self._entered: list[str] = []
        self._open: list[tuple[Key, Any]] = []

    @property
    def innermost(self) -> Key | None:
        """The call that is being made."""
        return self._open[-1][0] if self._open else None

    def enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        values = not kwargs and all(isinstance(a, fx.Proxy) for a in args)  # most calls are of nothing else
        given = ((tuple(map(Slot, range(len(args)))), {}), tuple(a.node for a in args)) if values else None
        given = given or _template((args, kwargs))  # now: lists may change
        self._open.append(((path, self._counts[path]), given))
        self._counts[path] += 1
        self._entered.append(path)

    def leave(self, result: Any, *, hooked: bool) -> None:
        """The innermost call returns."""
        key, given = self._open.pop()
        returned = _template(result)
        if given is None or returned is None:
            self.found[key] = Invocation(self.innermost, is_nested=False, hooked=hooked)
        else:
            (arguments, keywords), values = given
            self.found[key] = Invocation(self.innermost, arguments, keywords, values, *returned, hooked=hooked)

    def mark(self) -> Any:
        """What `forget` goes back to."""
        return len(self.found), len(self._open), len(self._entered)

    def forget(self, mark: Any) -> None:
        """Go back to an earlier state."""
        found, opened, entered = mark
        for key in list(self.found)[found:]:
            del self.found[key]
        del self._open[opened:]
        self._counts.subtract(self._entered[entered:])
        del self._entered[entered:]


def _template(value: Any) -> tuple[Any, tuple[fx.Node, ...]] | None:
    """A template and what its slots stand for; None if there is more to a value."""
    if isinstance(value, fx.Proxy):
        return Slot(0), (value.node,)
    try:
        if lost_in_copy(value) is not None:
            return None
        pattern, found = template(value, fx.Proxy)
    except Exception:  # what classes do that are made from parts
        return None
    known = all(isinstance(leaf, (Slot, *CONSTANTS)) for leaf in leaves(pattern))
    return (pattern, tuple(p.node for p in found)) if known else None


Invocations: TypeAlias = Mapping[Key, Invocation]


def number_values(
    graph: fx.Graph, traced: Iterable[Invocations], copies: Mapping[fx.Node, fx.Node]
) -> tuple[Invocations, ...]:
    """Give every value of a graph its number, and the calls these in place of nodes; `copies`: of the nodes in it."""
    for node in graph.nodes:
        VALUE_NUMBERS.set(node, (next(_numbers),))
    present = set(graph.nodes)

    def number(node: fx.Node) -> int | None:
        copy = copies.get(node)
        return VALUE_NUMBERS.of(copy)[0] if copy is not None and copy in present else None

    def numbered(call: Invocation) -> Invocation:
        return replace(call, values=tuple(map(number, call.values)), results=tuple(map(number, call.results)))

    return tuple({key: numbered(call) for key, call in calls.items()} for calls in traced)


def stands_for(new: fx.Node, old: fx.Node) -> None:
    """A rewrite puts the value of a node in the place of another one's."""
    VALUE_NUMBERS.set(new, (*VALUE_NUMBERS.get(new, ()), *VALUE_NUMBERS.get(old, ())))


def below(prefix: str, calls: Invocations) -> Invocations:
    """Calls in a module as those of the whole model; `prefix`: its path, with a dot at its end if it has one."""

    def moved(key: Key) -> Key:
        return f"{prefix}{key[0]}", key[1]

    return {
        moved(key): call if call.outer is None else replace(call, outer=moved(call.outer))
        for key, call in calls.items()
    }
