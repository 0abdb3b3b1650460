"""Runs of `fit` that can be interrupted, in this process or in one of their own, and what they end with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_task import Net, batches
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR, SequentialLR
from torch.utils.data import DataLoader

import fxcat
from fxcat.training.history import History

EXAMPLE = torch.zeros(1, 3, 8, 8)
TARGET = fxcat.Target(flops=0.4)


class Dropping(Net):
    """Its training depends on the global random state."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 4))  # pyright: ignore[reportAttributeAccessIssue]


Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
Scheduler = Callable[[torch.optim.Optimizer], LRScheduler]


@dataclass(frozen=True)
class Setup:
    """How a run is made."""

    optimizer: Optimizer | None = None
    scheduler: Scheduler | None = None
    target: fxcat.Target | None = TARGET
    pressure: fxcat.Pressure | None = None
    epochs: int = 8
    batch: int = 8
    seeded_loader: bool = False
    model: Callable[[], nn.Module] = Dropping


SETUPS = {
    "default": Setup(epochs=6),
    "sgd": Setup(
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
        lambda o: SequentialLR(
            o, [OneCycleLR(o, 0.1, total_steps=4), MultiStepLR(o, [2, 3], gamma=0.3)], milestones=[3]
        ),
        epochs=6,
        seeded_loader=True,
    ),
    "adamw": Setup(
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        target=None,
        pressure=fxcat.Pressure(nu=5.0, layers=0.3),
        epochs=6,
    ),
    "long epochs": Setup(epochs=4, batch=4),
}


@dataclass(frozen=True)
class Result:
    """What a run ends with."""

    net: fxcat.GatedModule
    history: History
    steps: int

    def same_as(self, other: Result) -> bool:
        ours, theirs = self.net.state_dict(), other.net.state_dict()
        equal = ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())
        return equal and self.history == other.history and not self.net.training


class Interrupted(Exception):
    """Raised in the midst of an epoch."""


class InterruptingLoss:
    """Cross-entropy that raises after so many calls."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop
        self.calls = 0

    def __call__(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.stop is not None and self.calls > self.stop:
            raise Interrupted
        return F.cross_entropy(output, labels)


def run(
    folder: Path | None, setup: Setup, *, resume: bool = False, stop: int | None = None, seed: int = 0, **options: Any
) -> Result:
    """One call of `fit` from new objects; `stop`: the number of losses after which it is interrupted."""
    torch.manual_seed(seed)
    net = fxcat.prepare(setup.model(), EXAMPLE, verbose=False)
    loss = InterruptingLoss(stop)
    optimizer = None if setup.optimizer is None else setup.optimizer(net.weight_parameters())
    scheduler = None if setup.scheduler is None or optimizer is None else setup.scheduler(optimizer)
    generator = torch.Generator().manual_seed(seed) if setup.seeded_loader else None
    train = DataLoader(batches(256), setup.batch, shuffle=True, generator=generator)
    given: dict[str, Any] = {
        "epochs": setup.epochs,
        "target": setup.target,
        "pressure": setup.pressure,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loss": loss,
        "checkpoint_dir": folder,
        "resume": resume,
        "progress": False,
        **options,
    }
    return Result(net, fxcat.fit(net, train, DataLoader(batches(64, 1), 32), **given), loss.calls)


def losses_per_epoch(setup: Setup) -> int:
    """Training steps, and two batches of validation."""
    return 256 // setup.batch + 2


def in_own_process(folder: str, result: str, moment: tuple[str, int] | None, slow: float) -> None:
    """A run in a process that is going to be killed; `result` receives what it ends with.

    `moment`: hang ("before" or "after", n) the n-th time that a file is put in its place. `slow`: seconds that this and
    bringing a file to the disk take longer.
    """
    torch.set_num_threads(1)
    _disturb_writing(Path(folder), moment, slow)
    done = run(Path(folder), SETUPS["sgd"], resume=True)
    history = json.dumps([asdict(e) for e in done.history.epochs])
    save_file(dict(done.net.state_dict()), f"{result}.new", {"history": history})
    Path(f"{result}.new").rename(result)


def _disturb_writing(folder: Path, moment: tuple[str, int] | None, slow: float) -> None:
    count, replace, sync = 0, os.replace, os.fsync

    def replaced(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        for time_of in ("before", "after"):
            if time_of == "after":
                replace(source, target)
            if (time_of, count) == moment:
                (folder / "hanging").touch()
                time.sleep(600)
            time.sleep(slow)

    def synced(handle: int) -> None:
        time.sleep(slow)
        sync(handle)

    os.replace, os.fsync = replaced, synced
