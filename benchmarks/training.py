"""Training without gates, as `fxcat.fit` trains: the recipe that all methods of a comparison share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn


class Batches(Protocol):
    """Batches (images, labels) of one epoch; `labels`: all of them."""

    @property
    def labels(self) -> torch.Tensor: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


class PlainRun:
    """Training without gates: SGD as `fit` makes it, one schedule with a warm-up over all steps."""

    def __init__(self, model: nn.Module, lr: float, steps: int, autocast: torch.dtype | None = None) -> None:
        self.model, self.autocast = model, autocast
        parameters = list(model.parameters())
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps + 1, pct_start=0.1)

    def epoch(self, batches: Iterable[Any], regularise: Callable[[nn.Module], None] | None = None) -> None:
        self.model.train()
        for x, y in batches:
            with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
                loss = F.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            if regularise is not None:
                regularise(self.model)
            self.optimizer.step()
            self.schedule.step()


def train_plainly(
    model: nn.Module, batches: Batches, epochs: int, lr: float, autocast: torch.dtype | None = None
) -> None:
    """A whole run with a schedule of its own."""
    run = PlainRun(model, lr, epochs * len(batches), autocast)
    for _ in range(epochs):
        run.epoch(batches)


def accuracy(model: nn.Module, batches: Batches) -> float:
    """Share of the images whose class is found."""
    model.eval()
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(batches.labels)
