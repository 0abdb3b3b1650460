"""Nested values as JSON and tensors, and back: nothing but data goes into a file or comes out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from fxcat.errors import InputError


def pack(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """What `json` can write of a value; its tensors are added to `tensors`, by names that begin with `name`.

    Takes numbers, texts, None, tensors, and lists, tuples, dicts and Counters of them. Raises `InputError`, with the
    place inside the value, for anything else.
    """
    kind = type(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if kind is list:
        return [pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]
    if kind in (tuple, torch.Size):
        return {"tuple": [pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]}
    if isinstance(value, dict):
        items = [[pack(k, tensors, f"{name}.key"), pack(v, tensors, f"{name}.{k}")] for k, v in value.items()]
        return {"counter" if isinstance(value, Counter) else "dict": items}
    raise InputError(
        f"a {kind.__module__}.{kind.__qualname__} cannot be stored: it is neither a tensor nor plain data",
        where=name,
        remedy="keep numbers, texts, tensors, and lists or dicts of them, in the state",
    )


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The value that was packed. Raises `KeyError`, `TypeError` or `ValueError` for what `pack` has not made."""
    if isinstance(packed, list):
        return [unpack(v, tensors) for v in packed]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(packed, dict):
        return packed
    [(kind, content)] = packed.items()  # pyright: ignore[reportUnknownVariableType]
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unpack(v, tensors) for v in content)
    items = {unpack(k, tensors): unpack(v, tensors) for k, v in content}
    if kind == "counter":
        return Counter(items)
    if kind == "dict":
        return items
    raise ValueError(f"{kind!r} is no kind of value")
