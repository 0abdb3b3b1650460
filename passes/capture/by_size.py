"""A dict that a model keeps from one forward pass to the next, while it is traced.

Keys that hold sizes are found by comparing these as numbers of the graph: what one size is kept for is no guard on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fxcat.passes.capture.proxy import ExampleProxy
from fxcat.passes.capture.texts import sizes_in
from fxcat.passes.graph.nested import leaves

_NONE = object()


class BySize(dict[Any, Any]):
    """Entries whose keys hold proxies are kept beside the others. `default`: as that of a `defaultdict`."""

    takes_texts = True

    def __init__(self, known: dict[Any, Any], default: Callable[[], Any] | None = None) -> None:
        super().__init__(known)
        self._default = default
        self._kept: list[tuple[Any, Any]] = []

    def _find(self, key: Any) -> Any:
        key = sizes_in(key)
        if not _holds_sizes(key):
            return super().get(key, _NONE)
        return next((value for known, value in (*self._kept, *super().items()) if _are_same(known, key)), _NONE)

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not _NONE

    def __getitem__(self, key: Any) -> Any:
        found = self._find(key)
        if found is _NONE and self._default is not None:
            found = self[key] = self._default()
        if found is _NONE:
            raise KeyError("a key that holds sizes" if _holds_sizes(key) else key)
        return found

    def get(self, key: Any, default: Any = None) -> Any:
        found = self._find(key)
        return default if found is _NONE else found

    def __setitem__(self, key: Any, value: Any) -> None:
        key = sizes_in(key)
        if not _holds_sizes(key):
            super().__setitem__(key, value)
            return
        self._kept = [(known, v) for known, v in self._kept if not _are_same(known, key)]
        self._kept.append((key, value))

    def pop(self, key: Any, default: Any = _NONE) -> Any:
        found = self._find(key)
        if found is _NONE and default is _NONE:
            raise KeyError(key)
        key = sizes_in(key)
        self._kept = [(known, v) for known, v in self._kept if v is not found or not _are_same(known, key)]
        if not _holds_sizes(key):
            super().pop(key, None)
        return default if found is _NONE else found

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def clear(self) -> None:
        super().clear()
        self._kept.clear()

    def copy(self) -> BySize:
        result = BySize(dict(super().items()), self._default)
        result._kept = list(self._kept)
        return result

    def __len__(self) -> int:
        return super().__len__() + len(self._kept)

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield from (key for key, _ in self._kept)


def _holds_sizes(key: object) -> bool:
    return any(isinstance(part, ExampleProxy) for part in leaves(key))


def _are_same(known: Any, key: Any) -> bool:
    """Whether two keys are equal; sizes of different values are compared in the graph, which is a guard."""
    if isinstance(known, tuple) and isinstance(key, tuple):
        return len(known) == len(key) and all(_are_same(a, b) for a, b in zip(known, key, strict=True))
    if isinstance(known, ExampleProxy) and isinstance(key, ExampleProxy) and known.node is key.node:
        return True
    return bool(known == key)
