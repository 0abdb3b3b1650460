"""The attributes of all modules of a model: what a pass has changed of them, and how they are put back."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeAlias

import torch
from torch import nn

from fxcat.passes.capture.by_size import BySize

State: TypeAlias = dict[str, Any]
"""The attributes of a module."""

_COPIED = frozenset({list, dict, set, OrderedDict, BySize})
"""Kinds of attributes in which a pass may leave something; hooks are in the last but one."""


_FLAT = (torch.Tensor, nn.Module, int, float, str, NoneType)


@dataclass(frozen=True, slots=True)
class _Before:
    """Attributes of a module before a pass. `copies`: of containers, by their names. `is_flat`: whether these hold
    nothing in which a pass may leave something."""

    path: str
    state: State
    values: State
    copies: State
    is_flat: bool

    @property
    def is_untouched(self) -> bool:
        """Whether all is as it was, as far as a quick look tells: most modules leave nothing behind."""
        now, before = self.state, self.values
        if now.keys() != before.keys() or not all(map(operator.is_, now.values(), before.values())):
            return False
        return self.is_flat and all(
            holds_the_same(copy, before[name]) for name, copy in self.copies.items() if copy or before[name]
        )


def _before(path: str, state: State) -> _Before:
    copies = {n: v.copy() for n, v in state.items() if type(v) in _COPIED}
    held = (x for v in copies.values() if v for x in (v.values() if isinstance(v, dict) else v))
    return _Before(path, state, dict(state), copies, all(isinstance(x, _FLAT) for x in held))


class ModuleStates:
    """The attributes of all modules of a twin, as they are when this is made."""

    def __init__(self, twin: nn.Module) -> None:
        self.by_path: dict[str, State] = {path: vars(m) for path, m in twin.named_modules()}
        self._before = [_before(path, state) for path, state in self.by_path.items()]

    def touched(self) -> list[tuple[str, State, State]]:
        """Of modules that may not be as they were: paths, attributes now and before."""
        return [(b.path, b.state, b.values | b.copies) for b in self._before if not b.is_untouched]

    def take_back(self) -> None:
        """What a pass left there is of another graph than the next one."""
        for _, state, known in self.touched():
            kept = {n: v for n, v in state.items() if n not in known and n.startswith("_tensor_constant")}
            state.clear()
            state.update({n: v.copy() if type(v) in _COPIED else v for n, v in known.items()} | kept)


def hooks_of(touched: list[tuple[str, State, State]]) -> Iterator[tuple[State, str, Any]]:
    """What a pass has registered: where, under which name, and all that is registered there."""
    for _, now, before in touched:
        for name, known in before.items():
            if type(known) is OrderedDict and (known or now[name]) and known != now[name]:
                yield now, name, now[name]


def holds_the_same(before: Any, now: Any) -> bool:
    """Whether two containers of one kind hold the same objects; False for kinds that are not looked into."""
    if type(before) is not type(now) or type(now) not in _LOOKED_INTO or len(before) != len(now):
        return False
    if type(now) is list:
        return all(map(operator.is_, before, now))
    return all(name in now and now[name] is value for name, value in before.items())


_LOOKED_INTO = (list, dict, OrderedDict)
