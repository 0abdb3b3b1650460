"""A network with gates shows the signature of the model's `forward`: trainers choose by it what they pass on."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from fxcat.gated import GatedModule
from fxcat.passes.capture import Captured
from fxcat.passes.codegen import original_class
from fxcat.passes.made_classes import make_class

_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def shown_by(network: nn.Module, captured: Captured) -> type[GatedModule]:
    """The class of a network with gates whose `forward` has the signature of the model's.

    `*args` and `**kwargs` that were empty in the example are left out: with others the network could not be called.
    """
    root = next((r for r in captured.regions if not r.path), None)
    if captured.regions and root is None:
        return _with_signature(original_class(network), ())  # its own Python takes what it takes
    given = {str(n.target) for n in captured.graph.nodes if n.op == "placeholder"} if root is None else root.arguments
    base = original_class(network)
    parameters = list(inspect.signature(base.forward).parameters.values())[1:]
    if not set(given) <= {p.name for p in parameters}:
        return GatedModule  # this object's `forward` is not that of its class
    return _with_signature(base, tuple(p.name for p in parameters if p.kind in _STARS and p.name not in given))


def _with_signature(model: type[nn.Module], left_out: tuple[str, ...]) -> type[GatedModule]:
    def forward(self: GatedModule, *args: Any, **kwargs: Any) -> Any:
        return self.run(args, kwargs)

    written = inspect.signature(model.forward)
    shown = [p for p in written.parameters.values() if p.name not in left_out]
    forward.__signature__ = written.replace(parameters=shown)  # pyright: ignore[reportFunctionMemberAccess]
    forward.__qualname__, forward.__doc__ = GatedModule.forward.__qualname__, model.forward.__doc__
    members = {"forward": forward, "__module__": GatedModule.__module__, "__doc__": GatedModule.__doc__}
    made: Any = make_class(GatedModule.__name__, GatedModule, members, (_with_signature, (model, left_out)))
    return made
