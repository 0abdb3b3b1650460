"""The functions that users call: `prepare` and `finalize`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.gated import GatedModule
from fxcat.passes.analysis import Options
from fxcat.passes.compile import build
from fxcat.passes.example import find_example_inputs
from fxcat.report import prepared

_GATES = {"units+layers": (True, True), "units": (True, False), "layers": (False, True)}


def prepare(
    model: nn.Module,
    example_inputs: torch.Tensor | tuple[Any, ...] | None = None,
    *,
    gates: Literal["units+layers", "units", "layers"] = "units+layers",
    ignore: Sequence[str] = (),
    verbose: bool = True,
) -> GatedModule:
    """Capture a model, find what can be removed from it, and insert gates. The model itself is not touched.

    `example_inputs`: a tensor (N, C, H, W), or a tuple with one tensor per argument of `forward`; only shapes and
    types matter. Found from the model if not given. `gates`: what may be removed. `ignore`: paths of modules that
    stay as they are, with all they hold. `verbose`: print what was found and what is left alone, and why.

    Raises `InputError`, `CaptureError` (module path, source line, reason) and `NothingToPruneError`.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"prepare() got a {type(model).__name__}, not a torch.nn.Module")
    if gates not in _GATES:
        raise InputError(f"gates={gates!r} is unknown", remedy=f"choose one of {', '.join(map(repr, _GATES))}")
    inputs = find_example_inputs(model) if example_inputs is None else example_inputs
    units, sections = _GATES[gates]
    _check_ignored(model, ignore)
    net = build(model, inputs, Options(units, sections, tuple(ignore)))
    if verbose:
        sys.stdout.write(prepared(net) + "\n")
    return net


def _check_ignored(model: nn.Module, ignore: Sequence[str]) -> None:
    if isinstance(ignore, str):
        raise InputError(f"ignore={ignore!r} is one string", remedy=f"write ignore=[{ignore!r}]")
    known = dict(model.named_modules(remove_duplicate=False))
    unknown = [path for path in ignore if path not in known]
    if unknown:
        raise InputError(
            f"ignore= names {unknown[0]!r}, which is no module of {type(model).__name__}",
            remedy="use the names of model.named_modules()",
        )


def finalize(net: GatedModule) -> nn.Module:
    """The plain, smaller module: what is closed (θ ≤ ½) is gone, and no gate is left. `net` stays as it is.

    The result computes what `net.eval()` computes; it is an instance of the model's own class (with a `forward` of its
    own), on the same device, in the same train or eval mode. Names and `state_dict` keys of what is left are unchanged.

    Raises `InputError` for anything but a `GatedModule`, and `PlanError` if a group that is needed has no unit left.
    """
    if not isinstance(net, GatedModule):
        raise InputError(
            f"finalize() got a {type(net).__name__}, not a GatedModule", remedy="pass what fxcat.prepare returned"
        )
    return net.finalized()
