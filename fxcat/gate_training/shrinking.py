"""What follows a network when it becomes smaller: optimizer state, and averaged copies of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.gate_training.optimizer_shapes import check_state, sliced
from fxcat.gate_training.optimizers import keep_in
from fxcat.gated import GatedModule
from fxcat.network.program import Shrunk


def shrink_all(
    net: GatedModule,
    keep: torch.Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
    averages: Sequence[nn.Module] = (),
    *,
    loaded: bool = False,
) -> Shrunk:
    """Remove what `keep` (0/1, shape (gates,)) leaves out from a network, its optimizers' state and its averages.

    `loaded`: an optimizer's state may be loaded already from a network that was as small.

    Raises `PlanError`, and `InputError` when optimizer state has a shape that says nothing about which entries belong
    to which; then nothing has changed.
    """
    copied = [average_net(average) for average in averages]
    net.copies.check(net, copied, now=True)
    following = _following(net, copied, keep, loaded)
    before = dict(net.network.named_parameters())
    shapes = {name: p.shape for name, p in before.items()}
    check_state(net.network, optimizers, loaded=loaded)
    shrunk = net.removed(keep)
    for average in following:
        average.removed(keep.to(average.gate_vector.theta.device))
    left = {id(p) for p in net.network.parameters()}
    for optimizer in optimizers:
        for name, axes in shrunk.keep.items():
            state = optimizer.state.get(before[name]) if name in before else None
            if state:
                optimizer.state[before[name]] = sliced(state, shapes[name], axes)
        _forget(optimizer, before, left)
    return shrunk


def _following(
    net: GatedModule, averages: Sequence[GatedModule], keep: torch.Tensor, loaded: bool
) -> list[GatedModule]:
    """The averages that are still as large as the network. Raises `InputError` where one has lost other gates."""
    own, wanted = net.recipe[-1].closed, net.recipe[-1].after(keep).closed
    # where one is given its own state first, it is as small already as the network is about to be
    left = [a for a in averages if not (loaded and a.recipe[-1].closed[: len(wanted)] == wanted)]
    if any(a.recipe[-1].closed != own for a in left):
        raise InputError(
            "an average has lost other gates than the network that it is of",
            remedy="make it anew: AveragedModel(net); load states of one and the same step",
        )
    return left


def averages_of(net: GatedModule, averages: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """Those that follow a network, each once. Raises `InputError` for what is no copy of it."""
    found: dict[int, nn.Module] = {}
    for average in averages:
        found.setdefault(id(average_net(average)), average)
    for average in found.values():
        copied = average_net(average)
        own, its = net.recipe[-1], copied.recipe[-1]
        if copied is net or (own.gates, own.shapes) != (its.gates, its.shapes):
            what = "the network itself" if copied is net else "of another network"
            raise InputError(
                f"a {type(average).__name__} among averages= is {what}, and no copy of the one that is trained",
                remedy="make it from the network that prepare() returned: AveragedModel(net)",
            )
    return tuple(found.values())


def average_net(average: Any) -> GatedModule:
    """The one gated network in an averaged copy (`torch.optim.swa_utils.AveragedModel`), or that is one itself."""
    inside = [average] if isinstance(average, nn.Module) else getattr(average, "__dict__", {}).values()
    holders = [v for v in inside if isinstance(v, nn.Module)]
    found = list({id(m): m for holder in holders for m in holder.modules() if isinstance(m, GatedModule)}.values())
    if len(found) > 1:
        raise InputError(
            f"a {type(average).__name__} among averages= holds {len(found)} gated networks",
            remedy="give the averaged one itself, such as ema.ema_model",
        )
    if not found:
        raise InputError(
            f"a {type(average).__name__} among averages= holds no gated network",
            remedy="make it from the network that prepare() returned: AveragedModel(net)",
        )
    return found[0]


def _forget(optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter], left: set[int]) -> None:
    """Take the parameters that have gone out of the optimizer."""
    gone = {id(p): p for p in before.values() if id(p) not in left}
    for group in optimizer.param_groups:
        keep_in(group, lambda p: id(p) not in gone)
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
