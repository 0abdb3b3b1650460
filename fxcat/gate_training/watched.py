"""What the optimizers of a network do: when they make a step, clear gradients, and what their state says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxcat.errors import TrainingError
from fxcat.gate_training.optimizers import NAMES, keep_in, wrappers_of
from fxcat.gated import GatedModule
from fxcat.network.following import KEY, described, parsed

PLACE = "fxcat_theta"
"""In an optimizer's state: the group that θ was in, and its number there."""

WAITS = (256, 1000)
"""Between two steps of the optimizers, while gradients are accumulated, may come so many calls in a row in short runs,
and in long ones; in others ten times as many as there are steps in all."""


_Place = tuple[int, tuple[nn.Parameter, ...], str]
"""Where θ was in an optimizer: its group, what came after it there, its name there."""


class _Watched:
    """Tells the draws of a network when an optimizer makes a step, and when it clears the gradients; its state says how
    small the network was.

    θ is the controller's, and no longer there. In the state it still has its place: an optimizer that is made in the
    same way can be given the state before there is a controller. `wrappers`: what trainers have wrapped round it.

    A copy watches the copied optimizer and network.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        net: GatedModule,
        scaler: Any = None,
        theta: _Place | None = None,
        wrappers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self._theta = theta or _place_of(net.gate_vector.theta, optimizer)
        self._arguments = (optimizer, net, scaler, self._theta)
        self._scale = 1.0
        self._watch_clearing(optimizer)
        for wrapper in wrappers:
            self._watch_clearing(wrapper, only_if_cleared=True)
        if hasattr(optimizer, "_optimizer_step_post_hooks"):  # else it makes its steps by those inside of it
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)
        if hasattr(optimizer, "_optimizer_state_dict_post_hooks"):  # else its state is that of those inside
            optimizer.register_state_dict_post_hook(self._described)
            optimizer.register_load_state_dict_pre_hook(self._follow)

    def _watch_clearing(self, optimizer: torch.optim.Optimizer, *, only_if_cleared: bool = False) -> None:
        """`only_if_cleared`: a wrapper may leave the gradients as they are, all of them."""
        zero_grad, vector = optimizer.zero_grad, self._arguments[1].gate_vector

        def watched_zero_grad(*args: Any, **kwargs: Any) -> None:
            zero_grad(*args, **kwargs)
            found = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
            left = next(found, None) if only_if_cleared else None
            if left is None or not bool(left.any()):
                vector.draws.discard()
                vector.theta.grad = None  # it was scaled with the others, by a norm that need not have been finite

        optimizer.zero_grad = watched_zero_grad

    @property
    def is_heard(self) -> bool:
        """Whether every step of the optimizer is noticed."""
        return bool(getattr(type(self._arguments[0]).step, "hooked", False))

    def _before(self, *_: Any) -> None:
        without_gates(self._arguments[1], [self._arguments[0]])  # they may have been added with the weights
        scaler = self._arguments[2] or _scaler_of_step()
        # `update()` comes after the step
        self._scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0

    def _after(self, *_: Any) -> None:
        self._arguments[1].gate_vector.draws.use(self._scale)

    def _described(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state[KEY] = described(self._arguments[1].recipe)
        if self._theta is not None:
            number, after, name = self._theta
            left = {id(p) for p in optimizer.param_groups[number]["params"]}
            ids: list[int] = state["param_groups"][number]["params"]
            place = len(ids) - sum(id(p) in left for p in after)
            new = 1 + max((i for g in state["param_groups"] for i in g["params"]), default=-1)
            _replace(state, number, slice(place, place), [new], [name])
            state[PLACE] = (number, new)

    def _follow(self, _: Any, state: dict[str, Any]) -> None:
        """Before a state is loaded: the network, and the optimizer with it, become as small as they were."""
        if KEY in state:
            gates, closed, *_ = parsed(state[KEY])
            self._arguments[1].follow(gates, closed)
        remove_theta(state)
        without_gates(self._arguments[1], [self._arguments[0]])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


class Steps:
    """Whether the optimizers of a network have made a step between two calls of its controller."""

    def __init__(self, net: GatedModule, watched: Sequence[_Watched], total: int) -> None:
        self._net, self._watched = net, list(watched)
        self._waited, self._waits = 0, min(max(WAITS[0], 10 * total), WAITS[1])

    def watch(self, *others: _Watched) -> None:
        """Some that have come later."""
        self._watched += others

    def have_been_made(self, *, may_wait: bool) -> bool:
        """Whether one has made a step since this was asked last, or may have: not of all they are noticed.

        Raises `TrainingError` if none does for too long, unless it may: no gate is trained any more."""
        if self._net.gate_vector.draws.have_stepped() or not all(w.is_heard for w in self._watched):
            self._waited = 0
            return True
        self._waited += 1
        if self._waited >= self._waits and not may_wait:
            raise TrainingError(
                f"in {self._waits} calls of the controller's step() no optimizer that it knows made a step",
                remedy="pass the controller the optimizers whose step() the loop calls",
            )
        return False


def watch_all(
    optimizers: Sequence[torch.optim.Optimizer], net: GatedModule, scaler: Any = None, *, given: Any = ()
) -> list[_Watched]:
    """Watch the optimizers of a network, and take θ out of them. Some may share their groups. `given`: what the user
    passed, with what trainers have wrapped round them."""
    watched = [_Watched(o, net, scaler, wrappers=wrappers_of(given, o)) for o in optimizers]
    without_gates(net, optimizers)
    return watched


def without_gates(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Take θ out of optimizers: the controller trains it."""
    theta = net.gate_vector.theta
    for group in (g for o in optimizers for g in o.param_groups):
        if any(p is theta for p in group["params"]):
            keep_in(group, lambda p: p is not theta)


def _place_of(theta: nn.Parameter, optimizer: torch.optim.Optimizer) -> _Place | None:
    """Where θ is in an optimizer; None if it is not there."""
    for number, group in enumerate(optimizer.param_groups):
        found = [p is theta for p in group["params"]]
        if True in found:
            place = found.index(True)
            return number, tuple(group["params"][place + 1 :]), group[NAMES][place] if NAMES in group else ""
    return None


def remove_theta(state: dict[str, Any]) -> None:
    """Take the place of θ out of an optimizer's state, if it has one."""
    if PLACE in state:
        number, theta = state.pop(PLACE)
        ids: list[int] = state["param_groups"][number]["params"]
        if theta in ids:
            place = ids.index(theta)
            _replace(state, number, slice(place, place + 1), [], [])


def _replace(state: dict[str, Any], number: int, part: slice, ids: list[int], names: list[str]) -> None:
    """Other parameters in a part of a group of an optimizer's state; the group itself may be somebody else's."""
    groups = list(state["param_groups"])
    group = {**groups[number]}
    for key, values in (("params", ids), (NAMES, names)):
        if key in group:
            own = list(group[key])
            own[part] = values
            group[key] = own
    groups[number] = group
    state["param_groups"] = groups


def _scaler_of_step() -> torch.amp.GradScaler | None:
    """The scaler whose own `step` is calling, if one is: only it knows what the loss was multiplied with."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            found: torch.amp.GradScaler = frame.f_locals["self"]
            return found
        frame = frame.f_back
    return None
