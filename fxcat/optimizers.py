"""The optimizers that train a network's weights: whether they can, and when they make a step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fxcat.draws import Draws
from fxcat.errors import InputError
from fxcat.gated import GatedModule

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def as_list(optimizers: Any) -> list[torch.optim.Optimizer]:
    """One optimizer or several, without what trainers wrap round them (an attribute `optimizer` or `_optimizer`).

    Raises `InputError` for anything else.
    """
    given = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]  # pyright: ignore
    found = [_unwrapped(each) for each in given]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if not found:
        raise InputError("there is no optimizer", remedy="pass the optimizer of the weights, or a list of several")
    return found


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, name, None)
        if isinstance(inner, torch.optim.Optimizer):
            return _unwrapped(inner)
    if not isinstance(optimizer, torch.optim.Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise InputError(
            f"a {type(optimizer).__name__} is no torch.optim.Optimizer",
            remedy="pass the optimizer of the weights, or a list of several",
        )
    return optimizer


def check_weights(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise `InputError` unless they hold all weights that are trained; θ is the controller's, and taken out of them."""
    held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    trained = {n: p for n, p in net.network.named_parameters() if p.requires_grad}
    missing = [n for n, p in trained.items() if id(p) not in held]
    if missing:
        how_many = "none" if len(missing) == len(trained) else f"{len(trained) - len(missing)} of {len(trained)}"
        raise InputError(
            f"the optimizer holds {how_many} of the gated network's weights that are trained",
            where=missing[0],
            remedy="make it after prepare(): torch.optim.SGD(net.weight_parameters(), lr=…); of several optimizers pass "
            "a list; what shall not be trained: requires_grad_(False)",
        )
    theta = net.gate_vector.theta
    for group in (g for o in optimizers for g in o.param_groups):
        group["params"] = [p for p in group["params"] if p is not theta]


class Watched:
    """Tells the draws of a network when an optimizer makes a step, and when it clears the gradients.

    A copy watches the copied optimizer and network.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, draws: Draws, scaler: Any = None) -> None:
        self._arguments = (optimizer, draws, scaler)
        self._scale = 1.0
        zero_grad = optimizer.zero_grad

        def watched_zero_grad(*args: Any, **kwargs: Any) -> None:
            draws.discard()
            zero_grad(*args, **kwargs)

        optimizer.zero_grad = watched_zero_grad
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, *_: Any) -> None:
        scaler = self._arguments[2] or _scaler_of_step()
        # `update()` comes after the step
        self._scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0

    def _after(self, *_: Any) -> None:
        self._arguments[1].use(self._scale)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


def _scaler_of_step() -> torch.amp.GradScaler | None:
    """The scaler whose own `step` is calling, if one is: only it knows what the loss was multiplied with."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            found: torch.amp.GradScaler = frame.f_locals["self"]
            return found
        frame = frame.f_back
    return None


def check_state(network: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Raise `InputError` if what an optimizer keeps of a weight cannot shrink with it."""
    for name, parameter in network.named_parameters():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensor = _immovable(value, parameter.shape)
                if tensor is not None:
                    raise _cannot_shrink(optimizer, key, tensor, name, parameter)


def _cannot_shrink(
    optimizer: torch.optim.Optimizer, key: Any, tensor: torch.Tensor, name: str, parameter: nn.Parameter
) -> InputError:
    return InputError(
        f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(tensor.shape)} for a parameter of shape "
        f"{tuple(parameter.shape)}: it cannot shrink with it",
        where=name,
        remedy="use an optimizer whose state has the parameters' shapes (SGD, Adam, AdamW, RMSprop, …)",
    )


def follows(shape: torch.Size, parameter: torch.Size) -> bool:
    """Whether state of a shape can lose what the parameter loses. Factored second moments (Adafactor) have size 1 along
    some axes; single numbers stay."""
    if shape.numel() <= 1:
        return True
    return len(shape) == len(parameter) and all(a in (1, b) for a, b in zip(shape, parameter, strict=True))


def _immovable(value: Any, shape: torch.Size) -> torch.Tensor | None:
    """A tensor in a value of an optimizer's state that cannot shrink with a parameter of a shape: of another shape, or
    in an object that is no container."""
    if isinstance(value, torch.Tensor):
        return None if follows(value.shape, shape) else value
    if isinstance(value, dict):
        value = list(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list | tuple):
        found = (_immovable(v, shape) for v in value)  # pyright: ignore[reportUnknownVariableType]
        return next((t for t in found if t is not None), None)
    inside = vars(value) if hasattr(value, "__dict__") and not isinstance(value, type) else {}
    return next((t for v in inside.values() if (t := _immovable(v, torch.Size())) is not None), None)
