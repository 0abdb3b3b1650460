"""Whether somebody passed a network with gates."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxcat.checks import check_instance, check_module
from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.network.loaded_state import WRAPPED
from fxcat.network.weight_checks import check_whole

_DEEPEST = 4
"""So many wrappers may lie round each other."""


def check_gated(net: Any, name: str) -> None:
    """Raise `InputError` for anything but a network with gates, and for one whose weights have no values. `name`: of
    the function that got it, "fit()"."""
    inside, path = _inside(net)
    if path and inside is not None:
        inside.check_weights()  # what wraps it may have split them
    remedy = f"pass the network inside: net{path}" if path else "pass what fxcat.prepare returned"
    check_instance(net, GatedModule, name, remedy=remedy)
    check_whole(net.network)


def check_without_gates(value: Any, name: str) -> None:
    """Raise `InputError` for anything but a module, and for one with gates in it, which is to be finalized before it is
    exported. `name`: of the function that got it, "export_onnx()"."""
    check_module(value, name)
    gated = next((path for path, module in value.named_modules() if isinstance(module, GatedModule)), None)
    if gated is not None:
        raise InputError("the module still has gates", where=gated, remedy="export fxcat.finalize(net) instead")


def _inside(wrapper: Any) -> tuple[GatedModule | None, str]:
    """The network that something wraps, and where it is in there."""
    found, path = wrapper, ""
    while not isinstance(found, GatedModule):
        name = next((n for n in WRAPPED if isinstance(getattr(found, n, None), nn.Module)), None)
        if name is None or path.count(".") == _DEEPEST:
            return None, ""
        found, path = getattr(found, name), f"{path}.{name}"
    return found, path
