"""`fit`: the provided training loop."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from fxcat.checkpoint import Checkpoints
from fxcat.controller import GateController
from fxcat.errors import InputError, TrainingError, located
from fxcat.gated import GatedModule
from fxcat.history import EpochRecord, History
from fxcat.losses import count_correct, cross_entropy
from fxcat.progress import Progress
from fxcat.recalibrate import recalibrate, recalibrated
from fxcat.records import Pressure, Target
from fxcat.run_state import RunState
from fxcat.tensorboard import TensorBoard

Loss = Callable[[Any, Any], torch.Tensor]
CALIBRATION_BATCHES = 16


@dataclass(slots=True)
class _Totals:
    """Sums over the batches of one pass."""

    loss: float = 0.0
    correct: int = 0
    examples: int = 0
    classified: bool = True

    def add(self, loss: float, correct: int | None, examples: int) -> None:
        self.loss += loss * examples
        self.correct += correct or 0
        self.examples += examples
        self.classified &= correct is not None

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.examples)

    @property
    def accuracy(self) -> float | None:
        return self.correct / max(1, self.examples) if self.classified else None


def fit(
    net: GatedModule,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    *,
    epochs: int,
    target: Target | None = None,
    pressure: Pressure | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    loss: Loss = cross_entropy,
    lr: float = 0.05,
    warmup: float = 0.1,
    until: float = 0.55,
    device: str | torch.device | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    log_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> History:
    """Train weights and gates together, shrink the network, and train the small one to the end.

    `train_loader`, `val_loader` yield `(inputs, targets)`; `train_loader` needs a length. Without `optimizer`: SGD with
    Nesterov momentum 0.9, weight decay 5e-4, `lr` with a short warm-up and cosine annealing, per step. With one, a
    given `scheduler` is stepped once per epoch. `warmup`, `until`: the shares of the run at which gates begin and
    end (see `GateController`).

    `checkpoint_dir`: receives after every epoch `last.safetensors`, all that the run goes on from, and keeps the one
    before as `previous.safetensors`. `best.safetensors`, which `load` reads, is the network of the best validation
    accuracy with the final structure. `resume`: go on from there, with the same arguments, a network that has just been
    prepared, and an optimizer and data loaders that have just been made; the weights will be those of a run that was
    not interrupted. A folder without checkpoints starts the run. Without `resume` those of an earlier run are replaced.

    `log_dir`: receives TensorBoard logs of every epoch (`pip install "fxcat[tensorboard]"`).

    Raises `InputError`, `TargetError`, `StorageError`, and `TrainingError` when the loss is not finite.
    """
    if epochs < 1 or not isinstance(train_loader, Sized) or not len(train_loader):
        raise InputError("fit() needs epochs ≥ 1 and a training loader that has a length > 0")
    if resume and checkpoint_dir is None:
        raise InputError("resume=True, and no checkpoints to go on from", remedy="give checkpoint_dir= too")
    place = torch.device(device) if device is not None else _best_device()
    net.to(place)
    steps = len(train_loader) * epochs
    settings = {
        "epochs": epochs,
        "steps_per_epoch": len(train_loader),
        "seed": seed,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "lr": lr if optimizer is None else None,
    }
    per_step: torch.optim.lr_scheduler.LRScheduler | None = None
    if optimizer is None:
        if scheduler is not None:
            raise InputError("a scheduler was given without its optimizer", remedy="pass optimizer= too")
        optimizer, per_step = _default_optimizer(net, lr, steps)
    controller = GateController(
        net,
        optimizer,
        target=target,
        pressure=pressure,
        total_steps=steps,
        warmup=warmup,
        until=until,
        seed=seed,
    )
    run = _Run(net, controller, optimizer, loss, place, per_step)
    loaders = {"train_loader": train_loader} | ({} if val_loader is None else {"val_loader": val_loader})
    state = RunState(settings, controller, scheduler if per_step is None else per_step, loaders, run.history)
    checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir)
    if checkpoints is not None:
        state.check_storable()
    found = checkpoints.newest() if checkpoints is not None and resume else None
    if found is not None:
        with located(str(checkpoint_dir)):
            run.recent.extend(_move(inputs, place) for inputs in state.restore(found))
    done = len(run.history.epochs)
    with TensorBoard(log_dir) as logs, Progress(steps, done * len(train_loader), enabled=progress) as bar:
        for epoch in range(done, epochs):
            record = run.epoch(epoch, train_loader, val_loader, bar)
            if scheduler is not None:
                scheduler.step()
            logs.write(record)
            if checkpoints is not None:
                recent = list(run.recent) if needs_recent(controller, len(train_loader)) else []
                checkpoints.save(state.collect(recent), net, best=run.history.best is record)
    net.eval()
    return run.history


def _default_optimizer(
    net: GatedModule, lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)


def needs_recent(controller: GateController, steps: int) -> bool:
    """Whether an epoch of so many steps may recalibrate before it has enough inputs of its own."""
    if controller.phase == "plain":
        return False
    return steps < CALIBRATION_BATCHES or controller.ends_within(CALIBRATION_BATCHES - 1)


def _best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Run:
    """State of one call of `fit`."""

    def __init__(
        self,
        net: GatedModule,
        controller: GateController,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        device: torch.device,
        per_step: torch.optim.lr_scheduler.LRScheduler | None,
    ) -> None:
        self.net, self.controller, self.optimizer, self.loss = net, controller, optimizer, loss
        self.device, self.per_step = device, per_step
        self.history = History()
        self.recent: deque[torch.Tensor] = deque(maxlen=CALIBRATION_BATCHES)

    def epoch(
        self, epoch: int, train_loader: Iterable[Any], val_loader: Iterable[Any] | None, bar: Progress
    ) -> EpochRecord:
        self.net.train()
        totals = _Totals()
        for step, (inputs, targets) in enumerate(train_loader):
            self._train_step(_move(inputs, self.device), _move(targets, self.device), totals, epoch, step)
            bar.update(epoch, totals.mean_loss, totals.accuracy, self._expected(), self.controller.undecided)
        validation = self._validate(val_loader) if val_loader is not None else None
        macs, params = self._expected()
        record = EpochRecord(
            epoch,
            self.controller.phase,
            self.optimizer.param_groups[0]["lr"],
            totals.mean_loss,
            totals.accuracy,
            None if validation is None else validation.mean_loss,
            None if validation is None else validation.accuracy,
            macs,
            params,
            self.controller.undecided,
            self.net.live_units(),
        )
        self.history.epochs.append(record)
        bar.finished(record)
        return record

    def _train_step(self, inputs: Any, targets: Any, totals: _Totals, epoch: int, step: int) -> None:
        output = self.net(inputs)
        loss = self.loss(output, targets)
        value = loss.item()
        if value != value or value in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is {value}",
                where=f"epoch {epoch}, step {step}; the weights are those before this step",
                remedy="lower the learning rate or check the data; the last checkpoint, if any, is intact",
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.recent.append(inputs)
        # a removal before the gated phase ends leaves what is computed as it was, statistics too
        if self.controller.step() and self.controller.phase == "plain":
            recalibrate(self.net, self.recent)
            self.history.shrunk_at = epoch
        if self.per_step is not None:
            self.per_step.step()
        totals.add(value, count_correct(output, targets), len(inputs))

    def _validate(self, loader: Iterable[Any]) -> _Totals:
        gated = self.controller.phase == "gated"
        with recalibrated(self.net, self.recent) if gated else nullcontext():
            self.net.eval()
            totals = _Totals()
            with torch.no_grad():
                for inputs, targets in loader:
                    output = self.net(_move(inputs, self.device))
                    targets = _move(targets, self.device)
                    totals.add(self.loss(output, targets).item(), count_correct(output, targets), len(inputs))
            self.net.train()
        return totals

    def _expected(self) -> tuple[float, float]:
        with torch.no_grad():
            cost = self.net.expected_cost()
        start = self.net.start_cost
        return cost.macs.item() / max(1, start.macs), cost.params.item() / max(1, start.params)


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
