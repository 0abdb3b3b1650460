"""Classes that are made at run time: a network with them can be pickled (`torch.save`, processes that are spawned)."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn

How = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that can be pickled, and its arguments: it makes the class again."""

_HOW = "_fxcat_made_by"


class Made(type):
    """The type of such classes; they are pickled as what makes them again."""


def make_class(name: str, base: type[nn.Module], members: Mapping[str, Any], how: How) -> type[nn.Module]:
    """A subclass with other members."""
    made: Any = _made_like(type(base))(name, (base,), {**members, _HOW: how})
    return made


def gated_class(base: type[nn.Module], forward: Callable[..., Any], how: How) -> type[nn.Module]:
    """A subclass of a layer's class whose `forward` takes gates too."""
    members = {"forward": forward, "__module__": forward.__module__}
    return make_class(f"Gated{base.__name__}", base, members, how)


def made_by(made: type) -> How:
    """How a class was made."""
    how: How = vars(made)[_HOW]
    return how


@cache
def _made_like(metaclass: type) -> Callable[..., type]:
    """`Made`, for classes whose base has a metaclass of its own."""
    if issubclass(metaclass, Made):
        return metaclass
    kind = Made if metaclass is type else type(Made.__name__, (Made, metaclass), {})
    copyreg.pickle(kind, made_by)  # pyright: ignore[reportArgumentType]
    return kind
