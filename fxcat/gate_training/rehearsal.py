"""Whether an optimizer goes on with weights that have become smaller, tried on copies before anything is removed.

Some choose the form of their state by the sizes of a parameter (factored second moments from a certain width on), which
no look at the state tells.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.gate_training.optimizer_shapes import Axes, sliced


def rehearse(optimizers: Iterable[torch.optim.Optimizer], network: nn.Module) -> None:
    """Raise `InputError` if an optimizer cannot make a step with parameters of which one channel is left.

    An optimizer of which no copy can make a step at full size either is let pass. Nothing is changed.
    """
    names = {p: name for name, p in network.named_parameters()}
    for optimizer in optimizers:
        _rehearse(optimizer, names)


def _rehearse(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> None:
    for group, parameter in _kinds(optimizer):
        axes = {a: torch.zeros(1, dtype=torch.int64) for a in range(min(2, parameter.dim()))}
        if _fails(optimizer, group, parameter, {}) is not None:
            continue
        error = _fails(optimizer, group, parameter, axes)
        if error is not None:
            name = type(optimizer).__name__
            raise InputError(
                f"{name} cannot go on with a parameter that has become smaller: {type(error).__name__}: {error}",
                where=names.get(parameter),
                remedy="use an optimizer whose state has the same form at all sizes (SGD, Adam, AdamW, RMSprop, …), or "
                f"arguments of {name} with which it has",
            )


def _kinds(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
    """One parameter of every kind: by group, rank, and what is kept of it."""
    known = set[Any]()
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            kind = state and (number, parameter.dim(), frozenset(state))
            if kind and kind not in known:
                known.add(kind)
                yield group, parameter


def _fails(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter, axes: Axes
) -> Exception | None:
    """What a copy raises that makes a step with what `axes` leave of a parameter; None if nothing."""
    small = nn.Parameter(sliced(parameter.detach(), parameter.shape, axes).clone())
    small.grad = torch.full_like(small, 1e-3)
    state = copy.deepcopy(sliced(optimizer.state[parameter], parameter.shape, axes))
    others = copy.deepcopy({k: v for k, v in group.items() if k != "params"})
    trial = type(optimizer).__new__(type(optimizer))
    try:
        trial.__setstate__(
            {
                "defaults": dict(optimizer.defaults),
                "state": defaultdict(dict, {small: state}),
                "param_groups": [{**others, "params": [small]}],
            }
        )
        trial.step()
    except Exception as error:  # whatever somebody else's optimizer raises
        return error
    return None
