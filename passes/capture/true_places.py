"""Where a condition holds, as an index of what is assigned: the same as the condition itself."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import torch
from torch import fx
from torch._ops import OpOverloadPacket

from fxcat.errors import CaptureError


def unknown_number(place: str) -> CaptureError:
    """What to raise at a place where a value has as many entries as other values say."""
    return CaptureError(
        "how many entries a value has depends on the values of a tensor",
        where=place,
        remedy="use torch.where(condition, a, b), or teach fxcat the module with a rule (fxcat.rules)",
    )


def tells_unknown_number(error: Exception) -> bool:
    """Whether an error of torch names an op whose result has as many entries as its values say (`nonzero`, `unique`,
    `masked_select`): without values it does not run."""
    if not isinstance(error, RuntimeError):
        return False
    ops = (getattr(torch.ops.aten, word, None) for word in set(re.findall(r"[a-z_]\w+", str(error))))
    overloads = (getattr(op, name) for op in ops if isinstance(op, OpOverloadPacket) for name in op.overloads())
    return any(torch.Tag.dynamic_output_shape in overload.tags for overload in overloads)


class TruePlaces:
    """What `torch.where(condition)` gives, of which only `x[places] = value` is known: how many there are, is not."""

    def __init__(self, condition: fx.Proxy, place: str) -> None:
        self.condition = condition
        self._place = place

    def _refuse(self, *_: Any) -> NoReturn:
        raise unknown_number(self._place)

    __iter__ = __len__ = __getitem__ = _refuse


def asks_for_places(target: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call gives the places where a condition holds, one tensor for each axis."""
    if target is torch.where:
        return len(args) == 1 and not kwargs
    return target in (torch.nonzero, "nonzero") and len(args) == 1 and kwargs == {"as_tuple": True}


def as_index(index: Any) -> Any:
    """An index for an assignment."""
    return index.condition if isinstance(index, TruePlaces) else index
