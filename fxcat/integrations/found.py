"""Which network with gates a trainer trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fxcat.checks import check_module
from fxcat.errors import InputError
from fxcat.gate_training.controller import GateController
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


def of_another_trainer(given: str, module: str) -> InputError:
    """What a callback says that is given to a trainer it was not made for. `given`: the trainer; `module`: which of
    `fxcat.integrations` has the callback for it."""
    return InputError(
        f"this GateCallback was given to {given}, for which it is not made",
        remedy=f"use the one of fxcat.integrations.{module}",
    )


def ended_early(controller: GateController) -> str:
    """What is said where a training ends before its gates are decided."""
    return (
        f"training ended in step {controller.steps}, before the gates' {controller.schedule.first_plain} steps: the "
        "network is cut to its target now, untrained"
    )


def copies_in(holders: Iterable[Any], net: GatedModule) -> list[GatedModule]:
    """Copies of a network in modules that objects hold as attributes: averages of its weights in a trainer's
    callbacks."""
    held = [v for holder in holders for v in vars(holder).values() if isinstance(v, nn.Module)]
    found = {id(m): m for module in held for m in module.modules() if isinstance(m, GatedModule) and m is not net}
    return list(found.values())
