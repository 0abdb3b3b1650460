"""The signature that a `forward` shows: trainers choose by it what they pass on."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from fxcat.gated import GatedModule
from fxcat.passes.capture.regions import Region
from fxcat.utils.made_classes import make_class

_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def left_out(parameters: Iterable[inspect.Parameter], given: Collection[str]) -> tuple[str, ...]:
    """`*args` and `**kwargs` of a `forward` that were empty when it was captured with the arguments `given`: with
    others it cannot be called."""
    return tuple(p.name for p in parameters if p.kind in _STARS and p.name not in given)


def hide(function: Any, names: Collection[str]) -> None:
    """Let a function show its signature without some parameters."""
    written = inspect.signature(function)
    if names:
        function.__signature__ = written.replace(
            parameters=[p for p in written.parameters.values() if p.name not in names]
        )


def shown_by(base: type[nn.Module], inputs: Collection[str], regions: Collection[Region]) -> type[GatedModule]:
    """The class of a network with gates whose `forward` has the signature of the model's.

    `inputs`: arguments that were captured, of a model as a whole."""
    root = next((r for r in regions if not r.path), None)
    if regions and root is None:
        return _with_signature(base, ())  # its own Python takes what it takes
    given = inputs if root is None else root.arguments
    written = inspect.signature(base.forward).parameters
    if not set(given) <= written.keys():
        return GatedModule  # the model's `forward` is not that of its class
    return _with_signature(base, left_out(written.values(), given))


def _with_signature(base: type[nn.Module], hidden: tuple[str, ...]) -> type[GatedModule]:
    def forward(self: GatedModule, *args: Any, **kwargs: Any) -> Any:
        return self.run(args, kwargs)

    forward.__code__ = forward.__code__.replace()  # torch.compile counts by code how often it has compiled something
    forward.__signature__ = inspect.signature(base.forward)  # pyright: ignore[reportFunctionMemberAccess]
    hide(forward, hidden)
    forward.__qualname__, forward.__doc__ = GatedModule.forward.__qualname__, base.forward.__doc__
    members = {"forward": forward, "__module__": GatedModule.__module__, "__doc__": GatedModule.__doc__}
    made: Any = make_class(GatedModule.__name__, GatedModule, members, (_with_signature, (base, hidden)))
    return made
