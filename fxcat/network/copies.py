"""Copies of a network whose weights change while it trains: averages that must shrink with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.network.following import Led


class Copied(Protocol):
    """What is asked of a `GatedModule`."""

    network: nn.Module
    led: Led


class Copies:
    """The copies of a network that are still there, and what their weights were at first. A network and its copies
    share it."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Copied, _Weights] = WeakKeyDictionary()
        self._checks = 0

    def note(self, net: Copied) -> None:
        """A copy has been made."""
        self._found[net] = _Weights(_writes(net), *_bits(net))

    def forget(self, net: Copied) -> None:
        """It is given other weights as a whole: it is no average."""
        self._found.pop(net, None)

    def check(self, net: Copied, averages: Iterable[Copied], *, now: bool = False) -> None:
        """Raise `InputError` if there is an average of a network that is not among those that shrink with it.

        That is a copy that is written to, but neither by gradients of its own nor with a controller of its own. Torch
        counts no writes through `.data`: these are seen by the values, which are read `now`, and in more and more
        distant checks.
        """
        self._checks += 1
        reads = now or self._checks & (self._checks - 1) == 0
        others = [(c, before) for c, before in self._found.items() if c is not net and c.led.by is None]
        changed = [c for c, before in others if _is_written(c, before, reads)]
        known = {id(a) for a in averages} if changed else set[int]()
        if any(id(c) not in known for c in changed):
            raise InputError(
                "a copy of the network is changed while it trains (an average of its weights?), and would not "
                "become smaller with it",
                remedy="name it: GateController(…, averages=[average]); or delete the copy",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Copies:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Copies, ()  # of another process, or another time


class _Weights(NamedTuple):
    """Weights of a copy: how often they were written to; their forms; a sum of their bits."""

    writes: int
    forms: tuple[Any, ...]
    bits: int


def _is_written(copy: Copied, before: _Weights, reads: bool) -> bool:
    if any(p.grad is not None for p in copy.network.parameters()):
        return False
    if _writes(copy) != before.writes:
        return True
    if not reads:
        return False
    forms, bits = _bits(copy)
    return forms == before.forms and bits != before.bits  # what has other sizes or another type is no average any more


def _writes(net: Copied) -> int:
    # those made in inference mode do not count
    return sum(p._version for p in net.network.parameters() if not p.is_inference())


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(net: Copied) -> tuple[tuple[Any, ...], int]:
    """Forms of all plain weights, and a sum that no order of memory and no number of threads changes."""
    plain = [p.detach() for p in net.network.parameters() if type(p) is nn.Parameter and not p.is_meta]
    plain = [p for p in plain if p.element_size() in _INTEGERS]
    forms = tuple((p.shape, p.dtype) for p in plain)
    return forms, sum(int(p.view(_INTEGERS[p.element_size()]).sum(dtype=torch.int64)) for p in plain)
