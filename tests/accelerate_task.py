"""Somebody's loop with Accelerate, and what two processes do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from small_task import Net, batches
from torch import distributed
from torch.utils.data import DataLoader

import fxcat

EXAMPLE = torch.zeros(1, 3, 8, 8)
TARGET = fxcat.Target(flops=0.4)
EPOCHS, BATCHES = 8, 8


def prepared() -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), EXAMPLE, verbose=False).train()


class Run:
    """`parts`: batches per step; `before`: whether the controller is made before Accelerate wraps things."""

    def __init__(self, parts: int = 1, *, before: bool = False, steps: int | None = None, **options: Any) -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts, **options)
        net = prepared()
        optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
        each = BATCHES // self.accelerator.num_processes if before else BATCHES
        loader = DataLoader(batches(32 * BATCHES), 32 // self.accelerator.num_processes)
        total = steps or EPOCHS * math.ceil(each / parts)
        made = {"target": TARGET, "total_steps": total}
        if before:
            self.controller = fxcat.GateController(net, optimizer, **made)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(net, optimizer, loader)
        if not before:
            self.controller = fxcat.GateController(self.accelerator.unwrap_model(self.model), self.optimizer, **made)
        self.accelerator.register_for_checkpointing(self.controller)
        self.net = net

    def epochs(self, first: int = 0, last: int = EPOCHS, *, clip: float | None = None) -> Iterator[int]:
        """Train, and say which epoch has ended."""
        for epoch in range(first, last):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(F.cross_entropy(self.model(x), y))
                    if clip is not None and self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.controller.step()
            yield epoch

    def all(self, **options: Any) -> Run:
        """The whole run."""
        for _ in self.epochs(**options):
            pass
        return self


def train_together(folder: Path) -> None:
    """What each of two processes does."""
    run = Run()
    sizes, same = [], []
    for epoch in run.epochs():
        run.accelerator.save_state(str(folder / str(epoch)))
        weights = torch.cat([p.detach().flatten() for p in run.net.weight_parameters()])
        everyone = run.accelerator.gather(weights[None])
        same.append(torch.equal(everyone[0], everyone[1]))
        sizes.append(len(weights))
    for epoch in (1, 6):
        again = Run()
        again.accelerator.load_state(str(folder / str(epoch)))
        again.all(first=epoch + 1)
        for name, value in run.net.state_dict().items():
            assert torch.equal(value, again.net.state_dict()[name]), (epoch, name)
    result = {"macs": run.net.hard_cost().macs, "same": all(same), "sizes": sizes}
    torch.save(result, folder / f"{run.accelerator.process_index}.pt")
    # together: a process that ends while the other still talks to it may be aborted
    distributed.barrier()
    distributed.destroy_process_group()
