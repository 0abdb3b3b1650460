"""Functions and methods that keep their results (`functools.lru_cache`), as they are while a model is traced.

What they return for proxies, or for the copy of a model that is traced, is of this one graph only, and must not stay.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn

from fxcat.passes.capture.proxy import ExampleProxy
from fxcat.passes.graph.nested import leaves

KEEPING_RESULTS: type[Any] = type(functools.cache(len))
_WITH_FUNCTION = (staticmethod, classmethod, types.MethodType)
"""Types of values that hold a function. Other values are not asked: what stands in for a missing package raises."""


def keeps_results(value: Any) -> bool:
    return isinstance(value, KEEPING_RESULTS)


def forgetting(function: Any) -> Callable[..., Any]:
    """What keeps results as what does not keep those of proxies and modules."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        passing = any(isinstance(a, ExampleProxy | nn.Module) for a in leaves((args, kwargs)))
        return (function.__wrapped__ if passing else function)(*args, **kwargs)

    return call


@contextmanager
def results_forgotten(traced: Iterable[nn.Module], modules: Iterable[str]) -> Generator[None]:
    """While a model is traced: no method of its layers keeps results, nor what decorators hide in a method or in a
    function of these Python modules."""
    classes = {c for cls in {type(m) for m in traced} for c in cls.__mro__ if issubclass(c, nn.Module)}
    functions: list[Any] = []
    cells = [cell for name in modules for cell in _hidden_in(name, len(vars(sys.modules[name])))]
    with ExitStack() as stack:
        for cls in classes:
            for name, value in list(vars(cls).items()):
                functions.append(value)
                if keeps_results(value):
                    stack.enter_context(patch.object(cls, name, forgetting(value)))
        for cell in {id(cell): cell for cell in (*cells, *_hidden(functions))}.values():
            stack.callback(setattr, cell, "cell_contents", cell.cell_contents)
            cell.cell_contents = forgetting(cell.cell_contents)
        yield


@functools.cache
def _hidden_in(module: str, size: int) -> tuple[types.CellType, ...]:
    """The same of all functions of a Python module with so many names."""
    return tuple(_hidden(vars(sys.modules[module]).values()))


def _hidden(values: Iterable[Any]) -> Iterator[types.CellType]:
    """The places in the closures of functions, and of functions in these, of what keeps results."""
    stack, seen = [v.__func__ if isinstance(v, _WITH_FUNCTION) else v for v in values], set[int]()
    while stack:
        function = stack.pop()
        if not isinstance(function, types.FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if keeps_results(held):
                yield cell
            elif isinstance(held, types.FunctionType):
                stack.append(held)
