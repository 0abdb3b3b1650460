"""What trains the weights in `fit`: an optimizer, its schedule, and mixed precision."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fxcat.errors import InputError
from fxcat.gated import GatedModule

Scheduler = torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True, slots=True)
class WeightTraining:
    """`is_default`: optimizer and scheduler are those of `fit`, and the scheduler is stepped per step, not per epoch.

    `autocast`: the type that ops are cast to where they can be; `scaler`: of the loss, for float16.
    """

    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    is_default: bool
    device: torch.device
    autocast: torch.dtype | None
    scaler: torch.amp.GradScaler
    per_step: bool = False
    """The scheduler is stepped per step."""
    clip_norm: float | None = None
    """Highest norm of all weights' gradients together."""
    averages: tuple[Any, ...] = ()
    """Averaged copies of the network, that take in its weights after every step."""

    @classmethod
    def begin(
        cls,
        net: GatedModule,
        steps: int,
        device: torch.device,
        optimizer: torch.optim.Optimizer | None,
        scheduler: Scheduler | None,
        lr: float,
        autocast: torch.dtype | None,
        *,
        epochs: int,
        schedule_per: Literal["epoch", "step"] = "epoch",
        clip_norm: float | None = None,
        averages: Sequence[Any] = (),
    ) -> WeightTraining:
        """Move the network to the device; without an optimizer make the default of `fit`, for so many steps in all
        epochs. Warns of a scheduler that is made for steps and follows epochs.

        Raises `InputError` for a scheduler without its optimizer, and an optimizer that evaluates the loss itself.
        """
        if optimizer is None and scheduler is not None:
            raise InputError("a scheduler was given without its optimizer", remedy="pass optimizer= too")
        if isinstance(optimizer, list | tuple):
            raise InputError(
                "fit() takes one optimizer, not several",
                remedy="give it groups of parameters, or use GateController, which takes a list, in a loop of your own",
            )
        if optimizer is not None and _needs_closure(optimizer):
            raise InputError(
                f"{type(optimizer).__name__} evaluates the loss in its steps, which fit() does not offer",
                remedy="use another optimizer, or GateController in a loop of your own",
            )
        own = getattr(scheduler, "optimizer", optimizer)
        if optimizer is not None and own is not optimizer and getattr(own, "state", None) is not optimizer.state:
            raise InputError(
                "the scheduler is that of another optimizer", remedy="make it with the optimizer that is passed"
            )
        net.to(device)
        is_default = optimizer is None
        if optimizer is None:
            optimizer = torch.optim.SGD(net.weight_parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
            warm_up = min(0.5, max(0.1, 2 / (steps + 1)))  # two steps at least
            total = max(3, steps + 1)  # it divides by the length of its parts
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=warm_up)
        scaler = torch.amp.GradScaler(device.type, enabled=autocast is torch.float16)
        per_step = is_default or schedule_per == "step"
        if not per_step and steps > epochs and _length(scheduler) >= steps:
            warnings.warn(
                f"{type(scheduler).__name__} is made for as many steps as the run has, and makes one an epoch: say "
                'schedule_per="step"',
                stacklevel=3,
            )
        return cls(optimizer, scheduler, is_default, device, autocast, scaler, per_step, clip_norm, tuple(averages))

    def cast(self) -> torch.autocast:
        """Context of forward passes."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients to those of the weights."""
        self.scaler.scale(loss).backward()

    def step(self, net: GatedModule) -> None:
        """One step of the weights down their gradients, which are cleared."""
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(net.weight_parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        for average in self.averages:
            average.update_parameters(net)

    def after_step(self) -> None:
        """Follow the schedule, also where the weights have not been trained in a step."""
        if self.scheduler is not None and self.per_step:
            self.scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Follow the schedule; `loss`: what one that waits for a plateau looks at."""
        if self.scheduler is None or self.per_step:
            return
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss)
        else:
            self.scheduler.step()

    def scheduled(self, losses: Sequence[float], steps: int) -> list[dict[str, Any]]:
        """Take a scheduler that has just been made to where it is after epochs of so many steps that ended with these
        losses; returns what of every group of the optimizer it decides, by name."""
        if self.scheduler is None:
            return []
        groups = self.optimizer.param_groups
        before = [_options(g) for g in groups]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            for loss in losses:
                for _ in range(steps):
                    self.after_step()
                self.after_epoch(loss)
        after = [_options(g) for g in groups]
        return [
            {k: v for k, v in new.items() if k == "lr" or v != old.get(k)}
            for old, new in zip(before, after, strict=True)
        ]

    def settings(self) -> dict[str, Any]:
        """What a run that goes on must have again, by the names of `fit`'s arguments."""
        named = not self.is_default
        return {
            "optimizer": type(self.optimizer).__name__ if named else None,
            "scheduler": type(self.scheduler).__name__ if named and self.scheduler is not None else None,
            "lr": None if named else self.optimizer.defaults["lr"],
            "autocast": None if self.autocast is None else str(self.autocast),
            "clip_norm": self.clip_norm,
            "averages": len(self.averages),
        }


def _length(scheduler: Any) -> int:
    """How many steps a scheduler is made for, where it says so; 0 else."""
    found = (getattr(scheduler, name, None) for name in ("total_steps", "T_max"))
    return next((n for n in found if isinstance(n, int)), 0)


def _needs_closure(optimizer: Any) -> bool:
    if not isinstance(optimizer, torch.optim.Optimizer):
        return False
    parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    return any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {k: copy.copy(v) for k, v in group.items() if k != "params"}
