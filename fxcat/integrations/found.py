"""Which network with gates a trainer trains."""

from __future__ import annotations

from torch import nn

from fxcat.checks import check_module
from fxcat.errors import InputError
from fxcat.gated import GatedModule


def gated_in(module: nn.Module, name: str) -> GatedModule:
    """The one network with gates inside a module: the module itself, or wherever a trainer or the user's own module
    holds it. `name`: of the function that looks for it. Raises `InputError` for none or several."""
    check_module(module, name)
    found = [m for m in module.modules() if isinstance(m, GatedModule)]
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{name} found {len(found) or 'no'} networks with gates in {type(module).__name__}",
        remedy="train what fxcat.prepare returned, or one module that holds it"
        if not found
        else "prepare one network; several need a GateController each, in a loop of your own",
    )
