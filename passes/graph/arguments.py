"""Arguments of nodes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import fx

from fxcat.passes.graph.meta import value_of

_NOTHING: Mapping[fx.Node, Any] = {}


def thaw(argument: Any, values: Mapping[fx.Node, Any] = _NOTHING) -> Any:
    """An argument with every node replaced by its value in `values`, or its example value; lists are plain, mutable
    lists."""
    if isinstance(argument, fx.Node):
        return values[argument] if values and argument in values else value_of(argument)
    if isinstance(argument, tuple):
        items: list[Any] = [thaw(a, values) for a in argument]  # pyright: ignore[reportUnknownVariableType]
        return type(argument)(*items) if hasattr(argument, "_fields") else tuple(items)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(argument, list):
        return [thaw(a, values) for a in argument]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(argument, dict):
        return {k: thaw(v, values) for k, v in argument.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(argument, slice):
        return slice(*(thaw(bound, values) for bound in (argument.start, argument.stop, argument.step)))
    return argument


def names_type(node: fx.Node) -> bool:
    """Whether a type is among the arguments: `view` then takes the bits for numbers of that type."""
    return any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values()))


def arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """Arguments of a call by name: the names of the positional ones, or those of a Python function's signature."""
    if names:
        return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return dict(_signature(node.target).bind(*node.args, **node.kwargs).arguments)


@cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)
