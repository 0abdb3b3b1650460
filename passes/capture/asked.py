"""Arguments that hold others: for which keys `forward` asks that an example lacks, and the condition, as code, under
which those of a later call are like those of the example.

A graph knows nothing of a key that was missing: where `forward` would have done something else with it, it decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from fxcat.passes.graph.nested import Slot

Absent: TypeAlias = Mapping[tuple[Any, ...], frozenset[Any] | None]
"""For every dict among the arguments, by the way to it (the name of the argument, then keys and positions), the keys
that were asked for and are not there; None if all that is in it was asked for."""

_EVERY = object()


class Asked(dict[Any, Any]):
    """A dict that notes for which keys it was asked in vain."""

    def __init__(self, known: dict[Any, Any], missed: set[Any]) -> None:
        super().__init__(known)
        self._missed = missed

    def _has(self, key: Any) -> bool:
        if super().__contains__(key):
            return True
        self._missed.add(key)
        return False

    def __contains__(self, key: object) -> bool:
        return self._has(key)

    def __missing__(self, key: Any) -> Any:
        self._missed.add(key)
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        return super().__getitem__(key) if self._has(key) else default

    def pop(self, key: Any, *default: Any) -> Any:
        self._has(key)
        return super().pop(key, *default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self._has(key)
        return super().setdefault(key, default)

    def _all(self) -> None:
        self._missed.add(_EVERY)

    def __iter__(self) -> Iterator[Any]:
        self._all()
        return super().__iter__()

    def __len__(self) -> int:
        self._all()
        return super().__len__()

    def __bool__(self) -> bool:
        return super().__len__() > 0

    def __eq__(self, other: object) -> bool:
        self._all()
        return super().__eq__(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def keys(self) -> Any:
        self._all()
        return super().keys()

    def values(self) -> Any:
        self._all()
        return super().values()

    def items(self) -> Any:
        self._all()
        return super().items()

    def copy(self) -> dict[Any, Any]:
        self._all()
        return dict(super().items())


class Asking:
    """Dicts that are given to a `forward`, once or several times, and what it asked them for."""

    def __init__(self) -> None:
        self._missed: dict[tuple[Any, ...], set[Any]] = {}

    def watched(self, value: Any, *way: Any) -> Any:
        """A value whose dicts note what they are asked for; they are taken by `forward` for what they are."""
        if type(value) is dict:
            known: dict[Any, Any] = value
            missed = self._missed.setdefault(way, set())
            return Asked({k: self.watched(v, *way, k) for k, v in known.items()}, missed)
        if type(value) in (tuple, list):
            return type(value)(self.watched(v, *way, i) for i, v in enumerate(value))
        return value

    @property
    def absent(self) -> Absent:
        return {way: None if _EVERY in missed else frozenset(missed) for way, missed in self._missed.items()}


def plain(value: Any) -> Any:
    """A result in which the dicts of `Asking` are dicts."""
    if type(value) in (dict, Asked):
        return {k: plain(dict.__getitem__(value, k)) for k in dict.keys(value)}
    if type(value) in (tuple, list):
        return type(value)(plain(v) for v in value)
    return value


def conditions(code: str, pattern: Any, absent: Absent, names: dict[str, Any], *way: Any) -> Iterator[str]:
    """Python expressions, all of them true if what some code gives has the parts of a template, and no part that
    `forward` looked for in vain. `names`: what they mean; keys that are no text get one there."""
    if isinstance(pattern, Slot):
        yield f"not _isinstance({code}, _others)"
    elif pattern is None or isinstance(pattern, bool):
        yield f"({code} is {pattern})"
    elif isinstance(pattern, Mapping):
        yield f"_isinstance({code}, _mapping)"
        missed = absent.get(way, frozenset())
        if missed is None:
            yield f"(_len({code}) == {len(pattern)})"  # pyright: ignore[reportUnknownArgumentType]
        yield from (f"not ({_key(key, names)} in {code})" for key in sorted(missed or (), key=repr))
        for key, part in pattern.items():  # pyright: ignore[reportUnknownVariableType]
            yield f"({_key(key, names)} in {code})"
            yield from conditions(f"{code}[{_key(key, names)}]", part, absent, names, *way, key)
    elif type(pattern) in (tuple, list):
        yield f"_isinstance({code}, _sequence)"
        yield f"(_len({code}) == {len(pattern)})"
        for i, part in enumerate(pattern):
            yield from conditions(f"{code}[{i}]", part, absent, names, *way, i)


def _key(key: Any, names: dict[str, Any]) -> str:
    if type(key) in (str, int):
        return repr(key)
    return next((n for n, v in names.items() if v is key), None) or _named(key, names)


def _named(key: Any, names: dict[str, Any]) -> str:
    name = f"_key_{len(names)}"
    names[name] = key
    return name
