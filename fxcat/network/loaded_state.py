"""What `load_state_dict` gives a network with gates, checked before anything of the network changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.network.following import left_to_close, parsed
from fxcat.network.gates import GateVector
from fxcat.network.program import Program
from fxcat.network.recipe import Gates, Recipe

WRAPPED = ("module", "_orig_mod")
"""Attributes in which wrappers (`DistributedDataParallel`, `torch.compile`) hold what they wrap: all names begin so."""


class Loading(Protocol):
    """A `GatedModule`, as far as it is asked here."""

    network: nn.Module
    gate_vector: GateVector
    program: Program
    recipe: Recipe

    def get_extra_state(self) -> torch.Tensor: ...
    def add_biases(self, paths: Sequence[str]) -> None: ...
    def follow(self, gates: Gates, closed: Sequence[Sequence[int]]) -> None: ...


def make_ready(net: Loading, state: dict[str, Any], prefix: str) -> bool:
    """Bring a network and a state together: names of the plain model become those of the network, and the network
    becomes as small as the one that the state is of. Returns whether what trained that one had not ended.

    Raises `InputError` for a state that does not fit; then the network is as it was.
    """
    others = [key for key in state if not isinstance(key, str)]  # pyright: ignore[reportUnnecessaryIsInstance]
    if others:
        raise InputError(f"this is no state of a network: it has a key {others[0]!r}", remedy="give a state_dict()")
    names = list(net.network.state_dict())
    is_gated = any(k.startswith(f"{prefix}network.") for k in state)
    if not is_gated and any(prefix + n in state for n in names):  # that of the model
        said = "the state is that of a smaller network without gates"
        if net.recipe[-1].closed:
            said = "the state is that of a network without gates, and this one has become smaller"
        _check_shapes(state, prefix, _shapes(net.network), said)
        for name in [n for n in names if prefix + n in state]:
            state[f"{prefix}network.{name}"] = state.pop(prefix + name)
        state.setdefault(f"{prefix}gate_vector.theta", net.gate_vector.theta.detach())
    elif not is_gated:
        _check_wrapping(state, prefix, names)
    if f"{prefix}_extra_state" not in state:
        said = "the state does not say how small its network was"
        _check_shapes(state, f"{prefix}network.", _shapes(net.network), said)
    gates, closed, biases, unfinished = parsed(state.setdefault(f"{prefix}_extra_state", net.get_extra_state()))
    left = left_to_close(net.recipe, gates, closed)
    if left:
        found = net.program.shapes_after(net.network, left)
        known = {n: shape for n, shape in found.items() if n in names}
        _check_shapes(state, f"{prefix}network.", known, "the state does not hold the network that it says")
    new = [path for path in biases if path not in net.recipe[-1].biases]
    if new:
        net.add_biases(new)
    net.follow(gates, closed)
    return unfinished


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in network.state_dict().items() if isinstance(t, torch.Tensor)}


def _check_shapes(state: Mapping[str, Any], prefix: str, wanted: Mapping[str, torch.Size], said: str) -> None:
    for name, shape in wanted.items():
        given = state.get(prefix + name)
        if isinstance(given, torch.Tensor) and given.shape != shape:
            raise InputError(
                f"{said}: a shape {tuple(given.shape)} where {tuple(shape)} belongs; nothing has been loaded",
                where=name,
                remedy="load the state_dict() of a network with gates, or, before anything has left, that of the model "
                "at full size; what finalize() returned goes through fxcat.save and fxcat.load",
            )


def _check_wrapping(state: Mapping[str, Any], prefix: str, names: Sequence[str]) -> None:
    own = [k.removeprefix(prefix) for k in state if k.startswith(prefix)]
    for wrapping in (f"{attribute}." for attribute in WRAPPED):
        inner = [k.removeprefix(wrapping) for k in own if k.startswith(wrapping)]
        if any(k.startswith("network.") or k in names for k in inner):
            raise InputError(
                f"the names in the state begin with {wrapping!r}: it is that of what was wrapped round the network",
                remedy="save that of the network itself, or take the beginning off: "
                f"{{k.removeprefix({wrapping!r}): v for k, v in state.items()}}",
            )
