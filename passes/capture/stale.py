"""What a model keeps from one forward pass to the next must not decide branches for good.

Heads of detectors keep the last shape that they saw, and a grid for it: a model that was run before it is captured
would skip the code that makes one for other sizes.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from fxcat.passes.capture.by_size import BySize
from fxcat.passes.capture.proxy import Stale
from fxcat.passes.graph.nested import leaves
from fxcat.passes.rules.leaves import is_leaf


def make_stale(twin: nn.Module) -> bool:
    """Take back what forward passes left in a model: sizes, and tensors that have none of their values from outside.

    An attribute that its class has too becomes that of the class again. Dicts that `forward` writes to compare sizes
    as numbers of the graph. Returns whether there was anything of the kind.
    """
    found = False
    for module in twin.modules():
        if is_leaf(module):
            continue
        state = vars(module)
        names, holders = _written(type(module))
        # a buffer that is not saved, and is replaced in every pass, is no more than an attribute
        state |= {
            n: module._buffers.pop(n) for n in names & module._non_persistent_buffers_set & module._buffers.keys()
        }
        for name in ((names | holders) & state.keys()) - _OF_TORCH:
            value = _before_any_pass(state[name], assigned=name in names)
            if value is state[name]:
                continue
            found = True
            if hasattr(type(module), name):
                del state[name]
            else:
                state[name] = value
    return found


_OF_TORCH = nn.Module().__dict__.keys()


def _before_any_pass(value: Any, *, assigned: bool) -> Any:
    """Something in the place of sizes and tensors that is like none that comes; other values as they are.

    `assigned`: the value is; if not, only elements of it are.
    """
    if type(value) in (dict, defaultdict, OrderedDict):
        known: dict[Any, Any] = value
        of_passes = all(isinstance(v, torch.Tensor | torch.Size) for v in leaves(tuple(known.values())))
        return BySize({} if of_passes else known, getattr(known, "default_factory", None))
    if not assigned and type(value) is not list:
        return value
    if isinstance(value, torch.Tensor):
        return value.new_empty((0,) * max(1, value.dim()))
    if type(value) is int or isinstance(value, torch.Size):
        return Stale()
    if isinstance(value, tuple | list) and value:
        kinds = {type(v) for v in value}  # pyright: ignore[reportUnknownVariableType]
        if kinds == {int}:
            return Stale()
        if kinds <= {torch.Tensor, torch.Size, tuple, list}:
            return type(value)(_before_any_pass(v, assigned=True) for v in value)
    return value


@cache
def _written(cls: type[nn.Module]) -> tuple[frozenset[str], frozenset[str]]:
    """The attributes that `forward`, or a method that it calls, assigns; and those of which it assigns elements."""
    assigned: set[str] = set()
    holders: set[str] = set()
    seen: set[str] = set()
    stack = ["forward"]
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        for base in cls.__mro__:  # a method may call the one that it overrides
            method = vars(base).get(name)
            method = inspect.unwrap(method) if isinstance(method, types.FunctionType) else None
            if method is None or method.__module__ == nn.Module.__module__:
                continue
            stack += method.__code__.co_names
            names, elements = _stored(method.__code__)
            assigned |= names
            holders |= elements
    return frozenset(assigned), frozenset(holders)


def _stored(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The attributes that some code sets to something new, and those of which it sets elements."""
    steps = list(dis.get_instructions(code))
    assigned: set[str] = set()
    counted: set[str] = set()
    holders: set[str] = set()
    last = ""
    for i, step in enumerate(steps):
        if step.opname == "STORE_ATTR":
            assigned.add(step.argval)
            if last.endswith("="):  # `self.count += 1` goes on from what it was
                counted.add(step.argval)
        elif step.opname == "STORE_SUBSCR":
            holders |= _indexed(steps, i)
        if step.opname not in ("SWAP", "CACHE"):
            last = step.argrepr if step.opname == "BINARY_OP" else ""
    return assigned - counted, holders


def _indexed(steps: Sequence[dis.Instruction], at: int) -> set[str]:
    """The attributes of which an instruction may set, or look up, an element: before it come the value that is indexed,
    and the index."""
    missing = 1
    while missing > 0 and at > 0:
        at -= 1
        if steps[at].opcode in dis.hasjrel or steps[at].opcode in dis.hasjabs:
            return _read(steps)
        missing -= dis.stack_effect(steps[at].opcode, steps[at].arg, jump=False)
    source = steps[at] if missing < 0 else steps[at - 1]  # one instruction may load both
    if source.opname == "LOAD_ATTR":
        return {source.argval}
    if source.opname == "BINARY_SUBSCR":
        return _indexed(steps, at - 1)
    if not source.opname.startswith("LOAD_FAST"):
        return _read(steps)
    loaded = source.argval if isinstance(source.argval, tuple) else (source.argval,)
    name = loaded[0] if missing < 0 else loaded[-1]
    stored = [i for i, s in enumerate(steps) if name in _set_by(s)]
    if any(len(_set_by(steps[i])) > 1 for i in stored):
        return _read(steps)
    return {steps[i - 1].argval for i in stored if steps[i - 1].opname == "LOAD_ATTR"}


def _set_by(step: dis.Instruction) -> tuple[str, ...]:
    """The local names that an instruction sets."""
    names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    if not step.opname.startswith("STORE_FAST"):
        return ()
    return names[:1] if step.opname == "STORE_FAST_LOAD_FAST" else names


def _read(steps: Sequence[dis.Instruction]) -> set[str]:
    return {s.argval for s in steps if s.opname in ("LOAD_ATTR", "LOAD_METHOD")}
