"""Numbers and flags that a model changes from one forward pass to the next (`self.steps += 1`).

A graph is of one pass. So the next one is traced too, with stand-ins for the numbers that tell who asks for them.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import fx, nn

from fxcat.contents import full_name
from fxcat.errors import CaptureError
from fxcat.passes.merging import key_of
from fxcat.passes.nested import leaves

State: TypeAlias = dict[str, Any]
"""The attributes of a module."""


class Kept:
    """Stands for a number that every pass changes: it may be counted on, but must not reach anything else."""

    def _changed(self, other: object) -> Kept:
        if not isinstance(other, int | float | Kept):
            raise TypeError("a number that every forward pass changes is part of a result")
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __floordiv__ = __mod__ = _changed

    def _refused(self, *_: object) -> Any:
        raise TypeError("a number that every forward pass changes is asked for")

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __index__ = __int__ = __float__ = _refused
    __hash__ = object.__hash__


def changed_state(states: Sequence[tuple[State, State]]) -> list[tuple[State, str, Any]]:
    """What a pass has changed: where, its name, and what it is in the next pass. `states`: attributes now and before.

    A module that keeps a value of the pass too is left out: it finds that anew, with what it keeps beside it.
    """
    found: list[tuple[State, str, Any]] = []
    for now, before in states:
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


def check_next(graph: fx.Graph, changed: Sequence[tuple[State, str, Any]], trace: Callable[[], fx.Graph]) -> None:
    """Refuse a model whose next pass is another than the one that was traced. `trace`: traces that one."""
    for state, name, after in changed:
        state[name] = Kept() if type(after) in (int, float) else after
    try:
        following = trace()
    except CaptureError as error:
        raise _decides(changed) from error
    copies = dict(zip(following.nodes, graph.nodes, strict=False))
    same = len(following.nodes) == len(graph.nodes)
    if not same or any(key_of(b, copies) != key_of(a, {}) for b, a in copies.items()):
        raise _decides(changed)


def _decides(changed: Sequence[tuple[State, str, Any]]) -> CaptureError:
    names = ", ".join(dict.fromkeys(repr(name) for _, name, _ in changed))
    return CaptureError(
        f"what it computes depends on {names}, which changes from one forward pass to the next",
        remedy="keep it in a buffer, or change it outside of the forward pass",
    )


def _differs(before: Any, now: Any) -> bool:
    if now is before and type(now) not in (list, dict):
        return False
    if type(before) is type(now) and type(now) in _CONTAINERS and _holds_the_same(before, now):
        return False  # most of what a module has, and a quick test
    return _is_plain(before) and _is_plain(now) and type(before) is type(now) and before != now


_CONTAINERS = (list, dict, OrderedDict)


def _holds_the_same(before: Any, now: Any) -> bool:
    if len(before) != len(now):
        return False
    if type(now) is list:
        return all(map(operator.is_, before, now))
    return all(name in now and now[name] is value for name, value in before.items())


def _is_plain(value: Any) -> bool:
    return all(v is None or type(v) in (int, float, bool, str) for v in leaves(value))
