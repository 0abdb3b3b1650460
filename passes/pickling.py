"""Graphs and what is known of them as bytes, for networks that are pickled."""

from __future__ import annotations

import importlib
import io
import pickle
from types import FunctionType
from typing import Any


def packed(value: Any) -> bytes:
    """A value with everything in it.

    Tensors too: to processes that are spawned, pickle sends them by file descriptor, and two views of one storage, as
    labels are, would need the same one twice, which it refuses.
    """
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def unpacked(content: bytes) -> Any:
    """What `packed` was given."""
    return pickle.loads(content)


class _Pickler(pickle.Pickler):
    """Knows functions that were made in functions, if they say under which name they can be found
    (`torch.nn.functional.max_pool2d`)."""

    def reducer_override(self, value: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(value, FunctionType) and "<locals>" in value.__qualname__:
            home = importlib.import_module(value.__module__)
            if getattr(home, value.__name__, None) is value:
                return _found, (value.__module__, value.__name__)
        return NotImplemented


def _found(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
