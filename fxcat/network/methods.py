"""The model's own methods, run by a network with gates: where they call `forward`, its gates are drawn."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

Run = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a network's `forward` with gates, on positional and named arguments."""


class Methods:
    """Which threads are in a method of the model now. A copy begins with none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._here = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return Methods, ()

    @property
    def is_inside(self) -> bool:
        """Whether this thread is in a method, and not in the `forward` that this calls."""
        return getattr(self._here, "is_inside", False)

    @contextmanager
    def entered(self, network: nn.Module, run: Run) -> Generator[None, None, None]:
        """Calls of `network` by this thread go to `run`, for a block; those of other threads go on as they are."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            own = types.MethodType(type(network).forward, network)
            if not self.is_inside:
                return own(*args, **kwargs)
            self._here.is_inside = False
            try:
                return run(own, args, kwargs)
            finally:
                self._here.is_inside = True

        with self._lock:
            self._inside += 1
            if self._inside == 1:
                network.forward = forward
        self._here.is_inside = True
        try:
            yield
        finally:
            self._here.is_inside = False
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    del network.forward


class Turns:
    """A lock that a copy has anew: threads that train one network take turns."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Turns, ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
