"""The state of an optimizer by the names of parameters: their numbers change when the network becomes smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.gate_training.watched import remove_theta


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Any]:
    """What `optimizer.state_dict()` says, with names for numbers; and the values of parameters that are not the
    network's, which nothing else stores."""
    names = _names(optimizer, network)
    state = optimizer.state_dict()
    remove_theta(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {id(p) for p in network.parameters()}
    others = {n: p.detach() for n, p in zip(names, parameters, strict=True) if id(p) not in own}
    return {"state": _renamed(state, dict(enumerate(names))), "others": others}


def set_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module, stored: Mapping[str, Any]) -> None:
    """Go on from it; the network has become as small as it was then."""
    names = _names(optimizer, network)
    numbers = {name: i for i, name in enumerate(names)}
    optimizer.load_state_dict(_renamed(stored["state"], numbers))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        if parameter in optimizer.state:
            _restore_types(optimizer.state[parameter], stored["state"]["state"][name])
        if name in stored["others"]:
            with torch.no_grad():
                parameter.copy_(stored["others"][name])


def check_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, stored: Mapping[str, Any], left: Mapping[str, Any]
) -> None:
    """Raise `InputError` if an optimizer of the whole network holds others than the stored one; `left`: by the names
    of what is left of the network."""
    whole = {name for name, _ in network.named_parameters()}
    names = iter(_names(optimizer, network))
    found = [[next(names) for _ in group["params"]] for group in optimizer.param_groups]
    found = [[n for n in group if n in left or n not in whole] for group in found]
    expected = [group["params"] for group in stored["state"]["param_groups"]]
    if found != expected:
        raise InputError(
            "the optimizer holds other parameters than that of the run that was stored, or in other groups",
            remedy="make the optimizer in the same way, from the parameters of the network that prepare() returned",
        )


def _names(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[str]:
    """For all its parameters in order; those that are not the network's are numbered."""
    own = {id(p): name for name, p in network.named_parameters()}
    names: list[str] = []
    others = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            others += id(parameter) not in own
            names.append(own.get(id(parameter), f"#{others}"))
    return names


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        **state,
        "state": {names.get(k, k): v for k, v in state["state"].items()},
        "param_groups": [{**g, "params": [names[p] for p in g["params"]]} for g in state["param_groups"]],
    }


def _restore_types(values: dict[str, Any], stored: Mapping[str, Any]) -> None:
    """`load_state_dict` gives all state the parameter's type; what had another one has it again."""
    for key, value in stored.items():
        if isinstance(value, torch.Tensor) and values[key].dtype != value.dtype:
            values[key] = value.to(values[key].device)
