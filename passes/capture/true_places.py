"""Where a condition holds, as an index of what is assigned: the same as the condition itself."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import fx

from fxcat.errors import CaptureError


class TruePlaces:
    """What `torch.where(condition)` gives, of which only `x[places] = value` is known: how many there are, is not."""

    def __init__(self, condition: fx.Proxy, place: str) -> None:
        self.condition = condition
        self._place = place

    def _refuse(self, *_: Any) -> NoReturn:
        raise CaptureError(
            "how many entries a value has depends on the values of a tensor",
            where=self._place,
            remedy="use torch.where(condition, a, b), or teach fxcat the module with a rule (fxcat.rules)",
        )

    __iter__ = __len__ = __getitem__ = _refuse


def asks_for_places(target: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call gives the places where a condition holds, one tensor for each axis."""
    if target is torch.where:
        return len(args) == 1 and not kwargs
    return target in (torch.nonzero, "nonzero") and len(args) == 1 and kwargs == {"as_tuple": True}


def as_index(index: Any) -> Any:
    """An index for an assignment."""
    return index.condition if isinstance(index, TruePlaces) else index
