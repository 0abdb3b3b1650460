"""What trains the weights in `fit`: an optimizer, its schedule, and mixed precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    ) -> WeightTraining:
        """Move the network to the device; without an optimizer make the default of `fit`, for so many steps.

        Raises `InputError` for a scheduler without its optimizer.
        """
        if optimizer is None and scheduler is not None:
            raise InputError("a scheduler was given without its optimizer", remedy="pass optimizer= too")
        net.to(device)
        is_default = optimizer is None
        if optimizer is None:
            optimizer = torch.optim.SGD(net.weight_parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)
        scaler = torch.amp.GradScaler(device.type, enabled=autocast is torch.float16)
        return cls(optimizer, scheduler, is_default, device, autocast, scaler)

    def cast(self) -> torch.autocast:
        """Context of forward passes."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def step(self, loss: torch.Tensor) -> None:
        """One step of the weights down the gradient of the loss."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def after_step(self) -> None:
        """Follow the schedule, also where the weights have not been trained in a step."""
        if self.scheduler is not None and self.is_default:
            self.scheduler.step()

    def after_epoch(self) -> None:
        """Follow the schedule."""
        if self.scheduler is not None and not self.is_default:
            self.scheduler.step()

    def settings(self) -> dict[str, Any]:
        """What a run that goes on must have again, by the names of `fit`'s arguments."""
        named = not self.is_default
        return {
            "optimizer": type(self.optimizer).__name__ if named else None,
            "scheduler": type(self.scheduler).__name__ if named and self.scheduler is not None else None,
            "lr": None if named else self.optimizer.defaults["lr"],
            "autocast": None if self.autocast is None else str(self.autocast),
        }
