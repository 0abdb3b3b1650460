"""Copies of a network whose weights change while it trains: averages that must shrink with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import nn

from fxcat.errors import InputError
from fxcat.network.following import Led


class Copied(Protocol):
    """What is asked of a `GatedModule`."""

    network: nn.Module
    led: Led


class Copies:
    """The copies of a network that are still there, and how often their weights had been written to at first. A network
    and its copies share it."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Copied, int] = WeakKeyDictionary()

    def note(self, net: Copied) -> None:
        """A copy has been made."""
        self._found[net] = _writes(net)

    def forget(self, net: Copied) -> None:
        """It is given other weights as a whole: it is no average."""
        self._found.pop(net, None)

    def check(self, net: Copied, averages: Iterable[Copied]) -> None:
        """Raise `InputError` if there is an average of a network that is not among those that shrink with it.

        That is a copy that is written to, but neither by gradients of its own nor with a controller of its own.
        """
        changed = [
            c for c, before in self._found.items() if c is not net and c.led.by is None and _is_written(c, before)
        ]
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


def _is_written(copy: Copied, before: int) -> bool:
    return all(p.grad is None for p in copy.network.parameters()) and _writes(copy) != before


def _writes(net: Copied) -> int:
    # those made in inference mode do not count
    return sum(p._version for p in net.network.parameters() if not p.is_inference())
