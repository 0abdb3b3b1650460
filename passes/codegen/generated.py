"""A generated function: its source, compiled where it is needed, and pickled as what it is."""

from __future__ import annotations

import importlib
import itertools
import linecache
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fxcat.network.apart import GENERATED

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Generated:
    """Source of a function, and what the names in it mean. Can be pickled."""

    source: str
    name: str
    namespace: Mapping[str, Any]

    def defined(self) -> Callable[..., Any]:
        """Compile it; registered with linecache, as long as the function lives, so that tracebacks show it."""
        filename = f"{GENERATED} {next(_numbers)}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        namespace = dict(self.namespace)
        exec(compile(self.source, filename, "exec"), namespace)
        function = namespace[self.name]
        weakref.finalize(function, linecache.cache.pop, filename, None)
        return function

    def __reduce__(self) -> tuple[Any, ...]:
        modules = {n: v.__name__ for n, v in self.namespace.items() if isinstance(v, ModuleType)}
        others = {n: v for n, v in self.namespace.items() if n not in modules and n != "__builtins__"}
        return _generated, (self.source, self.name, others, modules)


def _generated(source: str, name: str, names: Mapping[str, Any], modules: Mapping[str, str]) -> Generated:
    return Generated(source, name, {**names, **{n: importlib.import_module(path) for n, path in modules.items()}})
