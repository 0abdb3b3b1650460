"""`fit`: the provided training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch

from fxcat.checkpoint import Checkpoints
from fxcat.controller import GateController
from fxcat.distributed import check_loader_is_split, is_main, joined
from fxcat.errors import InputError, located
from fxcat.gated import GatedModule
from fxcat.history import History
from fxcat.losses import cross_entropy
from fxcat.progress import Progress
from fxcat.records import Pressure, Target
from fxcat.run_state import RunState
from fxcat.tensorboard import TensorBoard
from fxcat.training_run import Batches, TrainingRun, needs_recent

Scheduler = torch.optim.lr_scheduler.LRScheduler


def fit(
    net: GatedModule,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    *,
    epochs: int,
    target: Target | None = None,
    pressure: Pressure | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Scheduler | None = None,
    loss: Callable[[Any, Any], torch.Tensor] = cross_entropy,
    lr: float = 0.05,
    warmup: float = 0.1,
    until: float = 0.55,
    held_out: Iterable[Any] | None = None,
    section_differences: bool = False,
    autocast: torch.dtype | None = None,
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

    `held_out`: batches that the ratios of `policy="ratio"` learn from; without them every fourth training batch of the
    gated phase serves, and the weights do not see it in that epoch. `section_differences`: measure what sections are
    worth by the difference of two forward passes, one section per step, which makes steps of the gated phase longer by
    those passes.

    `autocast`: `torch.bfloat16` or `torch.float16`: train in mixed precision; with the latter the loss is scaled.

    `checkpoint_dir`: receives after every epoch `last.safetensors`, all that the run goes on from, and keeps the one
    before as `previous.safetensors`. `best.safetensors`, which `load` reads, is the network of the best validation
    accuracy with the final structure. `resume`: go on from there, with the same arguments, a network that has just been
    prepared, and an optimizer and data loaders that have just been made; the weights will be those of a run that was
    not interrupted. A folder without checkpoints starts the run. Without `resume` those of an earlier run are replaced.

    `log_dir`: receives TensorBoard logs of every epoch (`pip install "fxcat[tensorboard]"`).

    Started by `torchrun`, all processes train one network, each on its share of every batch (`train_loader` with a
    `DistributedSampler`), and rank 0 writes and prints. A run may be resumed by another number of processes, with as
    many steps per epoch as before: other batch sizes per process.

    Raises `InputError`, `TargetError`, `StorageError`, and `TrainingError` when the loss is not finite.
    """
    if epochs < 1 or not isinstance(train_loader, Sized) or not len(train_loader):
        raise InputError("fit() needs epochs ≥ 1 and a training loader that has a length > 0")
    if resume and checkpoint_dir is None:
        raise InputError("resume=True, and no checkpoints to go on from", remedy="give checkpoint_dir= too")
    if optimizer is None and scheduler is not None:
        raise InputError("a scheduler was given without its optimizer", remedy="pass optimizer= too")
    steps = len(train_loader)
    settings = {
        "epochs": epochs,
        "steps_per_epoch": steps,
        "seed": seed,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "lr": lr if optimizer is None else None,
        "autocast": None if autocast is None else str(autocast),
    }
    batches = Batches(train_loader, val_loader, held_out)
    with joined(device) as place:
        for name, loader in (("train_loader", train_loader), ("held_out", held_out)):
            if loader is not None:
                check_loader_is_split(loader, name)
        net.to(place)
        per_step: Scheduler | None = None
        if optimizer is None:
            optimizer, per_step = _default_optimizer(net, lr, steps * epochs)
        scaler = torch.amp.GradScaler(place.type, enabled=autocast is torch.float16)
        controller = GateController(
            net,
            optimizer,
            target=target,
            pressure=pressure,
            total_steps=steps * epochs,
            warmup=warmup,
            until=until,
            loss=loss,
            scaler=scaler if scaler.is_enabled() else None,
            seed=seed,
        )
        run = TrainingRun(
            controller,
            loss,
            place,
            per_step,
            section_differences=section_differences,
            autocast=autocast,
            scaler=scaler,
        )
        state = RunState(settings, controller, per_step or scheduler, scaler, batches.named(), run.history)
        checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir)
        if checkpoints is not None:
            _begin(run, state, checkpoints, resume=resume)
        bar = Progress(steps * epochs, len(run.history.epochs) * steps, enabled=progress and is_main())
        with TensorBoard(log_dir if is_main() else None) as logs, bar:
            for epoch in range(len(run.history.epochs), epochs):
                logs.write(run.epoch(epoch, batches, bar))
                if scheduler is not None:
                    scheduler.step()
                if checkpoints is not None:
                    _save(run, state, checkpoints, steps)
    net.eval()
    return run.history


def _begin(run: TrainingRun, state: RunState, checkpoints: Checkpoints, *, resume: bool) -> None:
    """Raise now what storing would raise after the first epoch; go on from the newest checkpoint if there is one."""
    state.check_storable()
    found = checkpoints.newest() if resume else None
    if found is not None:
        with located(str(checkpoints.folder)):
            run.restored(state.restore(found))


def _save(run: TrainingRun, state: RunState, checkpoints: Checkpoints, steps: int) -> None:
    recent = list(run.recent) if needs_recent(state.controller, steps) else []
    newest = run.history.epochs[-1]
    checkpoints.save(state.collect(recent), state.controller.net, best=run.history.best is newest)


def _default_optimizer(
    net: GatedModule, lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.1)
