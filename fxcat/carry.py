"""What follows a network when it becomes smaller: optimizer state, and averaged copies of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.gated import GatedModule, Shrunk
from fxcat.slicing import select

Axes = Mapping[int, torch.Tensor]


def shrink_all(
    net: GatedModule, keep: torch.Tensor, optimizer: torch.optim.Optimizer, averages: Sequence[nn.Module] = ()
) -> Shrunk:
    """Remove what `keep` (0/1, shape (gates,)) leaves out from a network, its optimizer's state and its averages.

    Raises `PlanError`, and `InputError` when optimizer state has a shape that says nothing about which entries belong
    to which; then nothing has changed.
    """
    before = dict(net.network.named_parameters())
    shapes = {name: p.shape for name, p in before.items()}
    for name, parameter in before.items():
        _check_state(name, parameter, optimizer)
    shrunk = net.shrink(keep)
    for average in averages:
        average_net(average).shrink(keep)
    for name, axes in shrunk.keep.items():
        if name in before:
            _slice_state(optimizer.state.get(before[name], {}), shapes[name], axes)
    _forget(optimizer, before, {id(p) for p in net.network.parameters()})
    return shrunk


def average_net(average: nn.Module) -> GatedModule:
    """The gated network in an averaged copy (`torch.optim.swa_utils.AveragedModel`), or that is one itself."""
    found = average if isinstance(average, GatedModule) else getattr(average, "module", None)
    if not isinstance(found, GatedModule):
        raise InputError(
            f"a {type(average).__name__} among averages= holds no gated network",
            remedy="make it from the network that prepare() returned: AveragedModel(net)",
        )
    return found


def _check_state(name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, torch.Tensor) and value.numel() > 1 and not _follows(value.shape, parameter.shape):
            raise InputError(
                f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape "
                f"{tuple(parameter.shape)}: it cannot shrink with it",
                where=name,
                remedy="use an optimizer whose state has the parameters' shapes (SGD, Adam, AdamW, RMSprop, …)",
            )


def _follows(shape: torch.Size, parameter: torch.Size) -> bool:
    """Factored second moments (Adafactor) have size 1 along some axes."""
    return len(shape) == len(parameter) and all(a in (1, b) for a, b in zip(shape, parameter, strict=True))


def _slice_state(state: dict[str, Any], shape: torch.Size, axes: Axes) -> None:
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.numel() > 1:
            state[key] = select(value, {a: index for a, index in axes.items() if value.shape[a] == shape[a]})


def _forget(optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter], left: set[int]) -> None:
    """Take the parameters that have gone out of the optimizer."""
    gone = {id(p): p for p in before.values() if id(p) not in left}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
