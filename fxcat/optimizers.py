"""The optimizers that train a network's weights: whether they can, and when they make a step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxcat.errors import InputError
from fxcat.following import KEY, described, parsed
from fxcat.gated import GatedModule

PLACE = "fxcat_theta"
"""In an optimizer's state: the group that θ was in, and its number there."""

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def as_list(optimizers: Any) -> list[torch.optim.Optimizer]:
    """All optimizers that there are: one or several, and those inside of others (Lookahead, SAM) and of what trainers
    wrap round them; of several with one state the innermost.

    Raises `InputError` where there is none.
    """
    given = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]  # pyright: ignore
    by_state: dict[int, torch.optim.Optimizer] = {}
    for each in given:  # pyright: ignore[reportUnknownVariableType]
        found = _all_in(each)
        if not found:
            raise InputError(
                f"a {type(each).__name__} is no torch.optim.Optimizer",  # pyright: ignore[reportUnknownArgumentType]
                remedy="pass the optimizer of the weights, or a list of several",
            )
        by_state |= {id(o.state): o for o in found}
    if not by_state:
        raise InputError("there is no optimizer", remedy="pass the optimizer of the weights, or a list of several")
    return list(by_state.values())


def _all_in(value: Any, depth: int = 3) -> list[torch.optim.Optimizer]:
    """Optimizers in an object, the outermost first."""
    own = [value] if isinstance(value, torch.optim.Optimizer) else []
    attributes = vars(value) if hasattr(value, "__dict__") else {}
    inside: list[Any] = [v for k, v in attributes.items() if k not in ("state", "param_groups", "defaults")]
    inside += [x for v in inside if isinstance(v, list | tuple) for x in v]  # pyright: ignore
    holders = [v for v in inside if hasattr(v, "param_groups")] if depth else []
    return [*own, *(o for v in holders for o in _all_in(v, depth - 1))]


def check_weights(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise `InputError` unless they hold all weights that are trained."""
    held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    trained = {n: p for n, p in net.network.named_parameters() if p.requires_grad}
    missing = [n for n, p in trained.items() if id(p) not in held]
    if missing:
        how_many = "none" if len(missing) == len(trained) else f"{len(trained) - len(missing)} of {len(trained)}"
        raise InputError(
            f"the optimizer holds {how_many} of the gated network's weights that are trained",
            where=missing[0],
            remedy="make it after prepare(): torch.optim.SGD(net.weight_parameters(), lr=…); pass several in a list; "
            "what shall not be trained: requires_grad_(False)",
        )


class Watched:
    """Tells the draws of a network when an optimizer makes a step, and when it clears the gradients; its state says how
    small the network was.

    θ is the controller's, and no longer there. In the state it still has its place: an optimizer that is made in the
    same way can be given the state before there is a controller. `theta`: its group, and what came after it there.

    A copy watches the copied optimizer and network.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        net: GatedModule,
        scaler: Any = None,
        theta: tuple[int, tuple[nn.Parameter, ...]] | None = None,
    ) -> None:
        self._theta = theta or _place_of(net.gate_vector.theta, optimizer)
        self._arguments = (optimizer, net, scaler, self._theta)
        self._scale = 1.0
        zero_grad, draws = optimizer.zero_grad, net.gate_vector.draws

        def watched_zero_grad(*args: Any, **kwargs: Any) -> None:
            draws.discard()
            zero_grad(*args, **kwargs)

        optimizer.zero_grad = watched_zero_grad
        if hasattr(optimizer, "_optimizer_step_post_hooks"):  # else it makes its steps by those inside of it
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)
        if hasattr(optimizer, "_optimizer_state_dict_post_hooks"):  # else its state is that of those inside
            optimizer.register_state_dict_post_hook(self._described)
            optimizer.register_load_state_dict_pre_hook(self._follow)

    def _before(self, *_: Any) -> None:
        scaler = self._arguments[2] or _scaler_of_step()
        # `update()` comes after the step
        self._scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0

    def _after(self, *_: Any) -> None:
        self._arguments[1].gate_vector.draws.use(self._scale)

    def _described(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state[KEY] = described(self._arguments[1].recipe)
        if self._theta is not None:
            number, after = self._theta
            left = {id(p) for p in optimizer.param_groups[number]["params"]}
            ids: list[int] = state["param_groups"][number]["params"]
            place = len(ids) - sum(id(p) in left for p in after)
            new = 1 + max((i for g in state["param_groups"] for i in g["params"]), default=-1)
            _set_ids(state, number, [*ids[:place], new, *ids[place:]])
            state[PLACE] = (number, new)

    def _follow(self, _: Any, state: dict[str, Any]) -> None:
        """Before a state is loaded: the network, and the optimizer with it, become as small as they were."""
        if KEY in state:
            gates, closed, _ = parsed(state[KEY])
            self._arguments[1].follow(gates, closed)
        remove_theta(state)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


def watch_all(optimizers: Sequence[torch.optim.Optimizer], net: GatedModule, scaler: Any = None) -> list[Watched]:
    """Watch the optimizers of a network, and take θ out of them. Some may share their groups."""
    watched = [Watched(o, net, scaler) for o in optimizers]
    for group in (g for o in optimizers for g in o.param_groups):
        group["params"] = [p for p in group["params"] if p is not net.gate_vector.theta]
    return watched


def _place_of(theta: nn.Parameter, optimizer: torch.optim.Optimizer) -> tuple[int, tuple[nn.Parameter, ...]] | None:
    """The number of its group in an optimizer, and what comes after it there; None if it is not there."""
    for number, group in enumerate(optimizer.param_groups):
        found = [p is theta for p in group["params"]]
        if True in found:
            return number, tuple(group["params"][found.index(True) + 1 :])
    return None


def remove_theta(state: dict[str, Any]) -> None:
    """Take the place of θ out of an optimizer's state, if it has one."""
    if PLACE in state:
        number, theta = state.pop(PLACE)
        _set_ids(state, number, [i for i in state["param_groups"][number]["params"] if i != theta])


def _set_ids(state: dict[str, Any], number: int, ids: list[int]) -> None:
    """Other parameters in a group of an optimizer's state; the group itself may be somebody else's."""
    groups = list(state["param_groups"])
    groups[number] = {**groups[number], "params": ids}
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
