"""What training says of the gates: their values in a forward pass, and the loss's derivative at them.

It is taken where it arises, in the backward pass of that forward pass. θ has no gradient that people's loops could
clip, scale, add up or forget.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxcat.utils.processes import sum_over_processes, world_size

REMEMBERED = 16
"""So many forward passes may be computed again in a backward pass (activation checkpointing)."""

_NONE = -1
"""Torch's number of no backward pass."""


@dataclass(slots=True, eq=False)
class Draw:
    """One forward pass in training.

    `sample`: values of all gates, shape (gates,). `batch`: its examples. `gradient`: the derivative of what was
    differentiated at these values, the sum over all backward passes; None before the first. `scale`: what the loss had
    been multiplied with (`torch.amp.GradScaler`). `place`: where its inputs lie in memory.
    """

    sample: torch.Tensor
    batch: int
    place: tuple[Any, ...] = ()
    gradient: torch.Tensor | None = None
    scale: float = 1.0
    task: int = _NONE
    """The last backward pass that came to it, or that computed it again."""


class Draws:
    """The draws between two steps of the controller.

    A draw counts once a backward pass has come to it and the optimizer has made a step with the weights' gradients of
    the same backward pass. If they are cleared before (a batch that is skipped, a generator's pass through its
    discriminator), it does not. As long as no optimizer has made a step at all, that is not asked.
    """

    def __init__(self, *, is_heard: bool = False) -> None:
        self.is_heard = is_heard
        """Whether somebody takes them. Else those of the last backward pass are enough."""
        self.made = 0
        """Since the last `take`, also those that no backward pass came to."""
        self.reached = False
        """Whether a backward pass has come to any."""
        self._seen: list[Draw] = []
        self.used: list[Draw] = []
        """Those that count since the last `take`."""
        self._stepped, self._has_stepped = False, False
        self._recent: deque[Draw] = deque(maxlen=REMEMBERED)
        self._waiting: list[Draw] = []

    def add(self, draw: Draw) -> None:
        """A forward pass begins."""
        self._recent.append(draw)

    def again(self, place: tuple[Any, ...]) -> Draw | None:
        """The draw of the forward pass that a running backward pass computes again, with inputs at this place; None if
        no backward pass is running."""
        task = torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]
        if task == _NONE or not self._recent:
            return None
        same = [d for d in self._recent if d.place == place] or list(self._recent)
        # a graph is computed again from its end: of the same inputs the last pass comes first
        draw = next((d for d in reversed(same) if d.task != task), same[-1])
        draw.task = task
        return draw

    def see(self, draw: Draw, gradient: torch.Tensor, *, cleared: bool) -> None:
        """A backward pass has come to a draw; `cleared`: the gradients of earlier ones are gone."""
        task = torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]
        if cleared or not self.is_heard:
            self._seen = [d for d in self._seen if d.task == task]
        draw.task, self.reached = task, True
        if all(d is not draw for d in self._seen):
            self._seen.append(draw)
            draw.gradient = None
        draw.gradient = gradient if draw.gradient is None else draw.gradient + gradient

    def discard(self) -> None:
        """The weights' gradients have been cleared."""
        self._seen.clear()

    def use(self, scale: float) -> None:
        """The optimizer has made a step with the weights' gradients; the loss had been multiplied with `scale`."""
        for draw in self._seen:
            draw.scale = scale
        if self.is_heard:
            self.used += self._seen
        self._seen, self._stepped, self._has_stepped = [], True, True

    @property
    def were_late(self) -> bool:
        """Whether a backward pass has come to a forward pass that still waited for one at the last `take`."""
        return any(d.task != _NONE for d in self._waiting)

    def have_stepped(self) -> bool:
        """Whether the optimizer has made a step since this was asked last."""
        stepped, self._has_stepped = self._has_stepped, False
        return stepped

    def take(self) -> list[Draw]:
        """Those that count, once."""
        if not self._stepped:
            self.used, self._seen = self._seen, []
        taken, self.used, self.made = self.used, [], 0
        self._waiting = [d for d in self._recent if d.task == _NONE]
        return taken

    def withdraw(self) -> list[Draw]:
        """Those that the last backward pass came to: they are not the training's."""
        task = self._seen[-1].task if self._seen else None
        found = [d for d in self._seen if d.task == task]
        self._seen = [d for d in self._seen if d.task != task]
        return found

    def forget(self) -> None:
        """The gates have become others."""
        self.__init__(is_heard=self.is_heard)

    def __reduce__(self) -> tuple[Any, ...]:
        return Draws, ()  # a copy trains anew


class _Drawn(torch.autograd.Function):
    """Gate values as a function of θ: the straight-through estimator (arXiv 2205.04650). The derivative goes to the
    draws, and θ gets zeros: it takes part in whatever counts gradients (DistributedDataParallel), and changes none."""

    @staticmethod
    def forward(ctx: Any, theta: nn.Parameter, values: torch.Tensor, draw: Draw, draws: Draws) -> torch.Tensor:
        ctx.theta, ctx.draw, ctx.draws = theta, draw, draws
        return values

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        ctx.draws.see(ctx.draw, gradient.detach(), cleared=ctx.theta.grad is None)
        # people's loops scale it, also by a norm that is not finite, and may not clear it
        if ctx.theta.grad is not None:
            ctx.theta.grad = torch.zeros_like(ctx.theta.grad)
        return torch.zeros_like(gradient), None, None, None


def drawn(theta: nn.Parameter, values: torch.Tensor, draw: Draw, draws: Draws) -> torch.Tensor:
    """`values` of all gates, of which `draws` will know the derivative."""
    draws.made += 1
    result: torch.Tensor = _Drawn.apply(theta, values, draw, draws)
    return result


def as_one(draws: Sequence[Draw]) -> list[Draw]:
    """The draws of all processes as those of one on the joined batch; gradients are what the losses would have without
    a scale, in double precision. All processes have the same samples, in the same order."""
    found = [replace(d, gradient=d.gradient.double() / d.scale, scale=1.0) for d in draws if d.gradient is not None]
    if world_size() == 1 or not found:
        return found
    gradients = torch.stack([d.gradient for d in found if d.gradient is not None])
    sum_over_processes(gradients).div_(world_size())
    sizes = sum_over_processes(torch.tensor([d.batch for d in found], device=gradients.device)).tolist()
    return [replace(d, gradient=g, batch=b) for d, g, b in zip(found, gradients, sizes, strict=True)]


def place_of(arguments: Any) -> tuple[Any, ...]:
    """Where all tensors in nested arguments lie in memory."""
    if isinstance(arguments, torch.Tensor):
        try:
            return ((arguments.data_ptr(), tuple(arguments.shape)),)
        except RuntimeError:  # no memory of its own: it is being transformed by torch.func
            return ()
    if isinstance(arguments, dict):
        arguments = list(arguments.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(arguments, list | tuple):
        return tuple(place for a in arguments for place in place_of(a))  # pyright: ignore[reportUnknownVariableType]
    return ()


def batch_size(arguments: Iterable[Any]) -> int | None:
    """The length of the first list or tensor among arguments, or inside of their tuples and mappings."""
    for argument in arguments:
        if isinstance(argument, list) or (isinstance(argument, torch.Tensor) and argument.dim() > 0):
            return len(argument)  # pyright: ignore[reportUnknownArgumentType]
        inner: Any = argument.values() if isinstance(argument, Mapping) else argument
        if isinstance(argument, tuple | Mapping) and (found := batch_size(inner)) is not None:
            return found
    return None
