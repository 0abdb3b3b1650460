"""The optimizers that train a network's weights: whether they can, and when they make a step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from fxcat.errors import InputError, TrainingError
from fxcat.following import KEY, described, parsed
from fxcat.gated import GatedModule
from fxcat.whole import PLAIN, is_flat

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]

WAITS = 1000
"""So many calls in a row may come between two steps of the optimizers, while gradients are accumulated."""


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


def wrappers_of(optimizers: Any, inner: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """What trainers have wrapped round an optimizer, among what a user passed."""
    given = list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]  # pyright: ignore
    return [o for each in given for o in _all_in(each) if o.state is inner.state and o is not inner]  # pyright: ignore


def holding(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Those that hold weights of the network: others (of a discriminator beside it) say nothing of its gates."""
    own = {id(p) for p in net.network.parameters()}
    return [o for o in optimizers if any(id(p) in own for group in o.param_groups for p in group["params"])]


def check_weights(net: GatedModule, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise `InputError` unless they hold all weights that are trained. θ is the controller's, and taken out."""
    tensors = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    held = {id(p) for p in tensors}
    trained = {n: p for n, p in net.network.named_parameters() if p.requires_grad}
    missing = [n for n, p in trained.items() if id(p) not in held]
    if len(missing) == len(trained) and missing and is_flat(tensors, list(trained.values())):
        raise InputError("the optimizer holds flat tensors, and none of the gated network's weights", remedy=PLAIN)
    if missing:
        how_many = "none" if len(missing) == len(trained) else f"{len(trained) - len(missing)} of {len(trained)}"
        raise InputError(
            f"the optimizer holds {how_many} of the gated network's weights that are trained",
            where=missing[0],
            remedy="make it after prepare(): torch.optim.SGD(net.weight_parameters(), lr=…); pass several in a list; "
            "what shall not be trained: requires_grad_(False)",
        )
    for optimizer in optimizers:
        without_gates(optimizer, net)


def without_gates(optimizer: torch.optim.Optimizer, net: GatedModule) -> None:
    """Take θ out of an optimizer: the controller trains it."""
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not net.gate_vector.theta]


class Noticing(Protocol):
    """Wants to know of every optimizer that makes a step."""

    def notice(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer, any one, is about to make a step."""
        ...


class Notices:
    """Tells of the steps of all optimizers that there are: loops make new ones on the way (a stage with other weights,
    one per parameter whose steps are made within the backward pass)."""

    def __init__(self) -> None:
        self._told: WeakSet[Noticing] = WeakSet()
        self._handle: RemovableHandle | None = None

    def tell(self, about: Noticing) -> None:
        """From now on, as long as it is there."""
        self._told.add(about)
        self._handle = self._handle or register_optimizer_step_pre_hook(self._notice)

    def _notice(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for each in list(self._told):
            each.notice(optimizer)


NOTICES = Notices()


class Watched:
    """Tells the draws of a network when an optimizer makes a step, and when it clears the gradients; its state says how
    small the network was.

    A copy watches the copied optimizer and network.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        net: GatedModule,
        scaler: Any = None,
        wrappers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self._arguments = (optimizer, net, scaler)
        self._scale = 1.0
        self._watch_clearing(optimizer)
        for wrapper in wrappers:
            self._watch_clearing(wrapper, only_if_cleared=True)
        if hasattr(optimizer, "_optimizer_step_post_hooks"):  # else it makes its steps by those inside of it
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)
        if hasattr(optimizer, "_optimizer_state_dict_post_hooks"):
            optimizer.register_state_dict_post_hook(self._described)
            optimizer.register_load_state_dict_pre_hook(self._follow)

    def _watch_clearing(self, optimizer: torch.optim.Optimizer, *, only_if_cleared: bool = False) -> None:
        """`only_if_cleared`: a wrapper may leave the gradients as they are, all of them."""
        zero_grad, draws = optimizer.zero_grad, self._arguments[1].gate_vector.draws

        def watched_zero_grad(*args: Any, **kwargs: Any) -> None:
            zero_grad(*args, **kwargs)
            found = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
            left = next(found, None) if only_if_cleared else None
            if left is None or not bool(left.any()):
                draws.discard()

        optimizer.zero_grad = watched_zero_grad

    @property
    def is_heard(self) -> bool:
        """Whether every step of the optimizer is noticed."""
        return bool(getattr(type(self._arguments[0]).step, "hooked", False))

    def _before(self, *_: Any) -> None:
        scaler = self._arguments[2] or _scaler_of_step()
        # `update()` comes after the step
        self._scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0

    def _after(self, *_: Any) -> None:
        self._arguments[1].gate_vector.draws.use(self._scale)

    def _described(self, _: Any, state: dict[str, Any]) -> None:
        state[KEY] = described(self._arguments[1].recipe)

    def _follow(self, _: Any, state: dict[str, Any]) -> None:
        """Before a state is loaded: the network, and the optimizer with it, become as small as they were."""
        if KEY in state:
            gates, closed, *_ = parsed(state[KEY])
            self._arguments[1].follow(gates, closed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


class Steps:
    """Whether the optimizers of a network have made a step between two calls of its controller."""

    def __init__(self, net: GatedModule, watched: Sequence[Watched]) -> None:
        self._net, self._watched = net, list(watched)
        self._waited = 0

    def watch(self, another: Watched) -> None:
        """One that has come later."""
        self._watched.append(another)

    def have_been_made(self) -> bool:
        """Whether one has made a step since this was asked last, or may have: not of all they are noticed.

        Raises `TrainingError` if none does for too long."""
        if self._net.gate_vector.draws.have_stepped() or not all(w.is_heard for w in self._watched):
            self._waited = 0
            return True
        self._waited += 1
        if self._waited == WAITS:
            raise TrainingError(
                f"in {WAITS} calls of the controller's step() no optimizer that it knows made a step",
                remedy="pass the controller the optimizers whose step() the loop calls",
            )
        return False


def _scaler_of_step() -> torch.amp.GradScaler | None:
    """The scaler whose own `step` is calling, if one is: only it knows what the loss was multiplied with."""
    frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            found: torch.amp.GradScaler = frame.f_locals["self"]
            return found
        frame = frame.f_back
    return None
