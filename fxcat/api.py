"""The functions that users call: `prepare` and `finalize`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.passes.analysis import Options
from fxcat.passes.compile import build
from fxcat.passes.example import find_example_inputs

_GATES = {"units+layers": (True, True), "units": (True, False), "layers": (False, True)}


def prepare(
    model: nn.Module,
    example_inputs: torch.Tensor | tuple[Any, ...] | None = None,
    *,
    gates: Literal["units+layers", "units", "layers"] = "units+layers",
    ignore: Sequence[str] = (),
) -> GatedModule:
    """Capture a model, find what can be removed from it, and insert gates. The model itself is not touched."""
    if not isinstance(model, nn.Module):
        raise InputError(f"prepare() got a {type(model).__name__}, not a torch.nn.Module")
    if gates not in _GATES:
        raise InputError(f"gates={gates!r} is unknown", remedy=f"choose one of {', '.join(map(repr, _GATES))}")
    inputs = find_example_inputs(model) if example_inputs is None else example_inputs
    units, sections = _GATES[gates]
    return build(model, inputs, Options(units, sections, tuple(ignore)))


def finalize(net: GatedModule) -> nn.Module:
    """The plain, smaller module: what is closed (θ ≤ ½) is gone, and no gate is left. `net` stays as it is."""
    return net.finalized()
