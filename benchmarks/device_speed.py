"""What gates cost on a device: a gated step against a plain one, and a whole gated run against the dense one.

Eagerly, and compiled by `torch.compile`. Blocks of steps of both networks alternate; the device is waited for at both
ends of a block. A gated run shrinks while it trains: compiled, it is compiled anew then, and that time counts, as does
the dense network's. What does not work is a text instead of a number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from device_data import DeviceBatches
from torch import nn

import fxcat

BLOCK = 5


def measured(
    build: Callable[[], nn.Module],
    batches: DeviceBatches,
    *,
    compiled: bool,
    flops: float,
    blocks: int,
    steps: int,
    autocast: torch.dtype | None,
    backend: str,
) -> dict[str, Any]:
    """One row: gated ÷ plain for a step, and for a run of so many steps."""

    def prepared(module: nn.Module) -> Any:
        return torch.compile(module, backend=backend) if compiled else module

    row: dict[str, Any] = {}
    try:
        plain, gated = step_seconds(build, batches, prepared, blocks, autocast)
        row |= {"plain step ms": 1e3 * plain, "gated step ms": 1e3 * gated, "step ÷ plain": gated / plain}
        dense, pruned = (run_seconds(build(), batches, prepared, steps, f, autocast) for f in (None, flops))
        row |= {"dense run s": dense, "gated run s": pruned, "run ÷ dense": pruned / dense}
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
    return row


@dataclass
class _Training:
    """A network in training; `call`: as it is called, compiled or not; without a controller it is the plain one."""

    net: nn.Module
    call: Callable[[torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    autocast: torch.dtype | None
    controller: fxcat.GateController | None = None

    @classmethod
    def begin(cls, model: nn.Module, prepared: Callable[[nn.Module], Any], autocast: torch.dtype | None) -> _Training:
        """Without gates."""
        return cls(model, prepared(model.train()), _sgd(model.parameters()), autocast)

    @classmethod
    def begin_gated(
        cls,
        model: nn.Module,
        example: torch.Tensor,
        prepared: Callable[[nn.Module], Any],
        autocast: torch.dtype | None,
        **schedule: Any,
    ) -> _Training:
        """`schedule`: of the `GateController`."""
        net = fxcat.prepare(model, example.cpu(), verbose=False).to(example.device).train()
        optimizer = _sgd(net.weight_parameters())
        return cls(net, prepared(net), optimizer, autocast, fxcat.GateController(net, optimizer, **schedule))

    def train(self, some: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """Seconds of these steps."""
        _wait(next(self.net.parameters()).device)
        start = time.perf_counter()
        for x, y in some:
            with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
                loss = F.cross_entropy(self.call(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.controller is not None:
                self.controller.step()
        _wait(next(self.net.parameters()).device)
        return time.perf_counter() - start


def step_seconds(
    build: Callable[[], nn.Module],
    batches: DeviceBatches,
    prepared: Callable[[nn.Module], Any],
    blocks: int,
    autocast: torch.dtype | None,
) -> tuple[float, float]:
    """Medians of a plain and of a gated step, in the gated phase, before anything is removed."""
    some = [batch for _, batch in zip(range(BLOCK), batches, strict=False)]
    example = some[0][0][:1]
    plain = _Training.begin(build().to(example.device), prepared, autocast)
    far = {"target": fxcat.Target(flops=0.5), "total_steps": 100 * BLOCK * (blocks + 1), "warmup": 0.0, "until": 1.0}
    gated = _Training.begin_gated(build(), example, prepared, autocast, **far)
    times: dict[bool, list[float]] = {False: [], True: []}
    for block in range(blocks + 1):
        for which in (False, True) if block % 2 else (True, False):
            seconds = (gated if which else plain).train(some) / len(some)
            if block:  # the first one warms up
                times[which].append(seconds)
    return statistics.median(times[False]), statistics.median(times[True])


def run_seconds(
    model: nn.Module,
    batches: DeviceBatches,
    prepared: Callable[[nn.Module], Any],
    steps: int,
    flops: float | None,
    autocast: torch.dtype | None,
) -> float:
    """A whole run, the making of its batches too; `flops` None: without gates."""
    example = next(iter(batches))[0][:1]
    if flops is None:
        training = _Training.begin(model.to(example.device), prepared, autocast)
    else:
        schedule = {"target": fxcat.Target(flops=flops), "total_steps": steps}
        training = _Training.begin_gated(model, example, prepared, autocast, **schedule)
    return training.train(_endless(batches, steps))


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def _endless(batches: DeviceBatches, steps: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    done = 0
    while True:
        for batch in batches:
            if done == steps:
                return
            done += 1
            yield batch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
