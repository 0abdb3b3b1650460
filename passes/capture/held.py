"""Buffers that no forward pass changes: their values may decide branches, which generated code then asserts."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import nn

from fxcat.network.module_state import full_name
from fxcat.passes.rules.leaves import is_leaf


def held_buffers(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """By their names the buffers that no method of their module seems to change, but `__init__`."""
    return {
        full_name(path, name): buffer
        for path, module in model.named_modules(remove_duplicate=False)
        if module._buffers and not is_leaf(module)
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta and name not in _changed(type(module))
    }


@cache
def _changed(cls: type[nn.Module]) -> frozenset[str]:
    """The attributes that methods of a class set, or of which they call a method that changes values in place."""
    methods = [
        function.__code__
        for base in cls.__mro__
        if base not in (nn.Module, object)
        for name, function in vars(base).items()
        if isinstance(function, types.FunctionType) and name != "__init__"
    ]
    return frozenset(name for code in methods for name in _changed_by(code))


def _changed_by(code: types.CodeType) -> Iterator[str]:
    steps = [s for s in dis.get_instructions(code) if s.opname != "CACHE"]
    for i, step in enumerate(steps):
        following = steps[i + 1] if i + 1 < len(steps) else step
        if step.opname == "STORE_ATTR":
            yield step.argval
        elif step.opname == "LOAD_ATTR" and following.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if following.argval.endswith("_") and not following.argval.endswith("__"):
                yield step.argval
        elif step.opname == "STORE_SUBSCR":  # of one of those that were read before
            yield from (s.argval for s in steps[:i] if s.opname == "LOAD_ATTR")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _changed_by(inner)
