"""Batches that the weights do not see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fxcat.errors import InputError


class HeldOut:
    """Batches over and over."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._rest: Iterator[Any] = iter(())

    def next(self) -> tuple[Any, Any]:
        """The next one; the first after the last. Raises `InputError` if there is none at all."""
        for rest in (self._rest, iter(self._batches)):
            self._rest = rest
            found = next(rest, None)
            if found is not None:
                return found
        raise InputError("held_out= has no batch", remedy="give a data loader, or a list of (inputs, targets)")
