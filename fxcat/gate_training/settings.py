"""What a run that goes on from a stored state must have in common with the one that was stored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

import torch

from fxcat.checks import check_instance, shown
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.network.gates import Values
from fxcat.network.recipe_schema import CLOSED, GATES
from fxcat.records import Pressure, Target
from fxcat.utils import schema

_COUNT = schema.integer(1 << 53)
_KINDS: dict[str, schema.Check] = {
    **{"settings": schema.named(schema.anything), "schedule": schema.row(_COUNT, _COUNT), "steps": _COUNT},
    **{"gates": GATES, "closed": CLOSED, "trains": schema.flag, "values": schema.choice(*get_args(Values))},
}
"""What is no tensor and no number in the state of a controller."""
OPTIONAL = ("slopes", "shared")
"""Tensors that are not there at first."""


def settings_of(net: GatedModule, target: Target | None, pressure: Pressure | None) -> dict[str, Any]:
    """Those of a `GateController` that are about the network and what it is to become."""
    return {
        "policy": net.policy,
        "limits": [asdict(x) for x in (*net.limits.groups, *net.limits.sections)] if net.limits else [],
        "target": None if target is None else _given(target),
        "pressure": None if pressure is None else _given(pressure),
        **({} if net.latency is None else {"latency": net.latency.label}),
    }


def _given(objective: Target | Pressure) -> dict[str, Any]:
    """The values of its fields; of costs that states of earlier versions lack only those that are given."""
    always = {"nu", "flops", "params", "layers"}
    return {name: value for name, value in asdict(objective).items() if value or name in always}


def check_stored(state: Any, own: Mapping[str, Any]) -> None:
    """Raise `InputError` for anything but a state of a `GateController`; `own`: one that is."""
    remedy = "give what the state_dict() of a GateController returned"
    check_instance(state, Mapping, "state", remedy=remedy)
    for name, value in sorted(own.items()):
        if name not in state:
            raise InputError(f"this is no state of a GateController: it has no {name!r}", remedy=remedy)
        try:
            _kind_of(name, value)(state[name], name)
        except ValueError as error:
            found = shown(state[name])
            raise InputError(f"this is no state of a GateController: its {name!r} is {found}", remedy=remedy) from error
    if all(list(map(list, state[name])) == own[name] for name in ("gates", "closed")):
        check_size(state, own["theta"])
    gates = state["theta"].shape
    for name, value in sorted(own.items()):
        is_per_gate = isinstance(value, torch.Tensor) and value.shape == own["theta"].shape
        if (is_per_gate or name in OPTIONAL) and state[name] is not None and state[name].shape != gates:
            found = f"its {name!r} has shape {tuple(state[name].shape)}, and its 'theta' {tuple(gates)}"
            raise InputError(f"this is no state of a GateController: {found}", remedy=remedy)


def _kind_of(name: str, own: Any) -> schema.Check:
    """What a value of a state may be, where one's own is this."""

    def like(value: Any, where: str) -> None:
        schema.tensor(value, where)
        types = (own.dtype, value.dtype)
        if value.dim() != own.dim() or (types[0] != types[1] and not all(t.is_floating_point for t in types)):
            raise ValueError(f"{where} is of another form")

    def count(value: Any, where: str) -> None:
        schema.number(value, where)
        if value < 0:
            raise ValueError(f"{where} is negative")

    if name in _KINDS:
        return _KINDS[name]
    return schema.optional(schema.tensor) if name in OPTIONAL else like if isinstance(own, torch.Tensor) else count


def check_size(state: Mapping[str, Any], theta: torch.Tensor) -> None:
    """Raise `InputError` unless it is for as many gates as are left."""
    found = tuple(state["theta"].shape)
    if found != tuple(theta.shape):
        raise InputError(
            f"this is no state of a GateController: its 'theta' has shape {found}, of {theta.numel()} gates",
            remedy="give what the state_dict() of a GateController returned",
        )


def warn_if_resumed(net: GatedModule) -> None:
    """Before the first step of a `GateController`: whether another state was to be loaded too."""
    if net.is_resumed:
        warnings.warn(
            "the network goes on from the midst of a training of its gates, and its GateController from the beginning: "
            "to resume the run, load the controller's state_dict() too",
            stacklevel=5,
        )
        net.is_resumed = False


def check_settings(now: Mapping[str, Any], then: Mapping[str, Any], *, may_grow: str) -> bool:
    """Whether a run that is to go on shall be longer than it was: `may_grow` is what says how long.

    Raises `InputError` if it is shorter, or anything else is other than it was."""
    for name, value in now.items():
        before = then.get(name)
        if before == value or (name == may_grow and isinstance(before, int) and before < value):
            continue
        longer = f"; {name} may be more than it was" if name == may_grow else ""
        raise InputError(
            f"the run that was stored had {name}={before!r}, this one has {value!r}",
            remedy=f"continue a run with the arguments that it was started with{longer}",
        )
    return now[may_grow] != then.get(may_grow)
