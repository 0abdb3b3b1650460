"""Numbers and flags that a model changes from one forward pass to the next (`self.steps += 1`).

A graph is of one pass. So the next one is traced too, with stand-ins for the numbers that tell who asks for them, and
what becomes of them: generated code does the same.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, TypeAlias

from torch import fx, nn

from fxcat.errors import CaptureError
from fxcat.network.module_state import full_name
from fxcat.passes.capture.merge_phases import key_of
from fxcat.passes.capture.module_states import State, holds_the_same
from fxcat.passes.graph.nested import leaves

Count: TypeAlias = tuple[str, str, Any]
"""What a pass does to the state of a module: its path, the name of the attribute, and what that becomes: a constant, or
an expression of nested tuples, `("+", (path, name), 1)`."""


def _changing(symbol: str, *, swapped: bool = False) -> Callable[[Kept, Any], Kept]:
    def call(self: Kept, other: Any) -> Kept:
        if not isinstance(other, int | float | Kept):
            raise TypeError("a number that every forward pass changes is part of a result")
        sides = self.expression, other.expression if isinstance(other, Kept) else other
        return Kept((symbol, *(sides[::-1] if swapped else sides)))

    return call


class Kept:
    """Stands for a number that every pass changes: it may be counted on, but must not reach anything else."""

    def __init__(self, expression: tuple[Any, ...]) -> None:
        """`expression`: how it is computed; a path and a name where it is read."""
        self.expression = expression

    __add__, __radd__ = _changing("+"), _changing("+", swapped=True)
    __sub__, __rsub__ = _changing("-"), _changing("-", swapped=True)
    __mul__, __rmul__ = _changing("*"), _changing("*", swapped=True)
    __truediv__, __floordiv__, __mod__ = _changing("/"), _changing("//"), _changing("%")

    def _refused(self, *_: object) -> Any:
        raise TypeError("a number that every forward pass changes is asked for")

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __index__ = __int__ = __float__ = _refused
    __hash__ = object.__hash__


def changed_state(states: Sequence[tuple[str, State, State]]) -> list[tuple[State, str, Any]]:
    """What a pass has changed: where, its name, and what it is in the next pass. `states`: paths of modules, their
    attributes now and before.

    A module that keeps a value of the pass too is left out: it finds that anew, with what it keeps beside it.
    """
    found: list[tuple[State, str, Any]] = []
    for _, now, before in states:
        names = [n for n, v in before.items() if n != "training" and n in now and _differs(v, now[n])]
        if names and not any(
            isinstance(v, fx.Proxy) for n in now for v in leaves(now[n]) if now[n] is not before.get(n)
        ):
            found += [(now, n, now[n]) for n in names]
    return found


def left_values(states: Sequence[tuple[str, State, State]]) -> set[str]:
    """Attributes in which a pass has left a value of its own, by full names, but those that were None, which nobody
    takes for a value. `states`: paths of modules, their attributes now and before."""
    return {
        full_name(path, name)
        for path, now, before in states
        for name, value in now.items()
        if name not in _OF_TORCH
        and before.get(name, _ABSENT) is not value
        and before.get(name, _ABSENT) is not None
        and any(isinstance(v, fx.Proxy) for v in leaves(value))
    }


_ABSENT = object()
_OF_TORCH = nn.Module().__dict__.keys()


def check_next(
    graph: fx.Graph,
    changed: Sequence[tuple[State, str, Any]],
    trace: Callable[[], fx.Graph],
    states: Mapping[str, State],
) -> tuple[Count, ...]:
    """What a pass does to the state of the model. Refuses one whose next pass is another than the one that was traced.

    `trace`: traces that one. `states`: the attributes of all modules, by path.
    """
    paths = {id(state): path for path, state in states.items()}
    for state, name, after in changed:
        state[name] = Kept((paths[id(state)], name)) if type(after) in (int, float) else after
    try:
        following = trace()
    except CaptureError as error:
        raise _decides(changed) from error
    copies = dict(zip(following.nodes, graph.nodes, strict=False))
    same = len(following.nodes) == len(graph.nodes)
    if not same or any(key_of(b, copies) != key_of(a, {}) for b, a in copies.items()):
        raise _decides(changed)
    known = {(id(state), name) for state, name, _ in changed}
    left = [
        (path, name, value)
        for path, state in states.items()
        for name, value in state.items()
        if isinstance(value, Kept) or (id(state), name) in known
    ]
    counts = [(p, n, v.expression if isinstance(v, Kept) else v) for p, n, v in left]
    return tuple(c for c in counts if isinstance(c[2], int | float | str | tuple | None) and c[2] != c[:2])


def lines_of(counts: Sequence[Count], this: str, paths: Container[str]) -> list[str]:
    """Python that does the same to the modules that are left, at these paths of the one that is called `this`."""
    found = [c for c in counts if c[1].isidentifier() and all(p in paths for p in (c[0], *_paths_in(c[2])))]
    if not found:
        return []
    targets, values = zip(*((_attribute(this, p, n), _code(this, v)) for p, n, v in found), strict=True)
    return [f"{', '.join(targets)} = {', '.join(values)}"]


def _paths_in(value: Any) -> list[str]:
    if not isinstance(value, tuple):
        return []
    if len(value) == 2:
        return [value[0]]
    return [path for part in value[1:] for path in _paths_in(part)]


def _code(this: str, value: Any) -> str:
    if not isinstance(value, tuple):
        return repr(value)
    if len(value) == 2:
        return _attribute(this, *value)
    symbol, left, right = value
    return f"({_code(this, left)} {symbol} {_code(this, right)})"


def _attribute(this: str, path: str, name: str) -> str:
    for part in path.split(".") if path else ():
        this = f"{this}.{part}" if part.isidentifier() and not keyword.iskeyword(part) else f"getattr({this}, {part!r})"
    return f"{this}.{name}"


def _decides(changed: Sequence[tuple[State, str, Any]]) -> CaptureError:
    names = ", ".join(dict.fromkeys(repr(name) for _, name, _ in changed))
    return CaptureError(
        f"what it computes depends on {names}, which changes from one forward pass to the next",
        remedy="keep it in a buffer, or change it outside of the forward pass",
    )


def _differs(before: Any, now: Any) -> bool:
    if now is before and type(now) not in (list, dict):
        return False
    if holds_the_same(before, now):
        return False  # most of what a module has, and a quick test
    return _is_plain(before) and _is_plain(now) and type(before) is type(now) and before != now


def _is_plain(value: Any) -> bool:
    return all(v is None or type(v) in (int, float, bool, str) for v in leaves(value))
