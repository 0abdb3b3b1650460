"""`fit`: the provided training loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fxcat.checks import check_integer, plain_number
from fxcat.data.batches import Repeated, Unpack
from fxcat.data.losses import Loss, cross_entropy, own_loss
from fxcat.errors import FxcatError, InputError, StorageError, located
from fxcat.gate_training.arguments import check_fit_arguments
from fxcat.gate_training.controller import GateController
from fxcat.gated import GatedModule
from fxcat.records import Pressure, Target
from fxcat.training.checkpoints import Checkpoints
from fxcat.training.distillation import distillation_loss
from fxcat.training.epochs import Batches, Metric, TrainingRun, needs_recent
from fxcat.training.history import EpochRecord, History
from fxcat.training.progress import Progress
from fxcat.training.run_state import RunState
from fxcat.training.teacher import WEIGHT, DistillationLoss, Teacher, teacher_settings
from fxcat.training.tensorboard import TensorBoard
from fxcat.training.weights import Scheduler, WeightTraining
from fxcat.utils.modes import in_eval
from fxcat.utils.processes import is_main, joined

PathLike = str | os.PathLike[str]
Callback = Callable[[EpochRecord, GatedModule], Any]


class EarlyStopping:
    """A callback of `fit`: ends the training when the validation (without one the training) loss has not become smaller
    for `patience` epochs, counted from when the structure is final."""

    def __init__(self, patience: int) -> None:
        check_integer(patience, "patience", least=1)
        self.patience = patience
        self._best, self._since = float("inf"), 0

    def __call__(self, record: EpochRecord, net: GatedModule) -> bool:
        """Whether to end after this epoch."""
        if record.phase != "plain":
            return False
        self._since = 0 if record.loss < self._best else self._since + 1
        self._best = min(self._best, record.loss)
        return self._since >= self.patience


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
    loss: Loss | None = cross_entropy,
    lr: float = 0.05,
    schedule_per: Literal["epoch", "step"] = "epoch",
    clip_norm: float | None = None,
    accumulate: int = 1,
    averages: Sequence[Any] = (),
    steps_per_epoch: int | None = None,
    unpack: Unpack | None = None,
    metrics: Mapping[str, Metric] | None = None,
    callbacks: Sequence[Callback] = (),
    warmup: float | None = None,
    until: float = 0.55,
    held_out: Iterable[Any] | None = None,
    section_differences: bool = False,
    teacher: nn.Module | bool | None = None,
    distillation: DistillationLoss = distillation_loss,
    distillation_weight: float = WEIGHT,
    autocast: torch.dtype | None = None,
    device: str | torch.device | None = None,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    log_dir: PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
) -> History:
    """Train weights and gates together, shrink the network, and train the small one to the end.

    `train_loader`, `val_loader`, `held_out` yield `(inputs, targets)`: a tensor, or a tuple or dict of arguments of
    `forward`; or a dict with such names, which is the targets too; or a tensor that is both; `unpack` makes pairs of
    anything else. `train_loader` needs a length, or `steps_per_epoch`: so many of its batches are an epoch, and the
    next goes on where it ended. `loss(output, targets)` returns a scalar tensor, the mean over a batch; None: the model
    returns it (`output.loss`). `target` or `pressure`: what decides the size.

    Without `optimizer`: SGD with Nesterov momentum 0.9, weight decay 5e-4, `lr` with a short warm-up and cosine
    annealing per step. With one, a given `scheduler` is stepped once per epoch (`ReduceLROnPlateau` by the validation
    loss), or with `schedule_per="step"` per step. `autocast`: `torch.bfloat16` or `torch.float16`: mixed precision;
    with the latter the loss is scaled. `clip_norm`: of all weights' gradients together. `accumulate`: batches per step.
    `averages`: copies (`torch.optim.swa_utils.AveragedModel(net)`) that take in the weights after every step.

    `metrics`: functions of output and targets, averaged over what is validated, by names. `callbacks`: called with the
    record of every epoch and the network; the training ends when one returns True (`EarlyStopping`). Modules that are
    in `eval()` while the network is in `train()` stay so (frozen batch normalization).

    `warmup`, `until`: the shares of the run at which gates begin and end (see `GateController`). `held_out`: batches
    that the ratios of `policy="ratio"` learn from; without them every fourth training batch of the gated phase serves,
    and the weights do not see it in that epoch. `section_differences`: measure what a section is worth by two forward
    passes, one section per step.

    `teacher`: what the network learns from beside the targets: True for a frozen copy of the network as it is now, with
    all gates open (for a pretrained start), or any module that takes the same inputs. Of every batch then
    (1 − w) · `loss` + w · `distillation(output, teacher_output)` is minimised, w = `distillation_weight`, weights and
    gates alike; by default `distillation_loss`, another temperature is `functools.partial(distillation_loss,
    temperature=4.0)`. The teacher is moved to the device, runs in `eval()`, under the same `autocast`, without
    gradients, and is never changed; afterwards its modules are in the modes that they were in. The history has its loss
    apart, `train_loss` and what is validated are of `loss` alone, and so is what ratios learn from `held_out`. A run is
    resumed with the teacher that it had.

    `checkpoint_dir`: receives files after every epoch (see `Checkpoints`). `resume`: go on from them, with the same
    arguments, a network that has just been prepared, and an optimizer and loaders that have just been made; the weights
    will be those of a run that was not interrupted. `epochs` may be more than it was: gates keep the phases that they
    were begun with, the schedule of the learning rate becomes that of so many epochs, and what is added is plain
    training. A folder without checkpoints starts the run. `log_dir`: receives
    TensorBoard logs of every epoch (`pip install "fxcat[tensorboard]"`).

    Started by `torchrun`, all processes train one network, each on its share of every batch (`train_loader` with a
    `DistributedSampler`), and rank 0 writes and prints. A run may be resumed by another number of processes, with as
    many steps per epoch as before.

    Raises `InputError` (arguments that do not fit each other, or a checkpoint of another run), `TargetError`
    (unreachable), `StorageError` (a folder or checkpoint that cannot be used), `TrainingError` (a loss that is not
    finite). Source: arXiv 2411.09127; 2010.12021 for `policy="ratio"`.
    """
    check_fit_arguments(**locals())
    epochs, seed, accumulate, lr = int(epochs), int(seed), int(accumulate), float(lr)  # of NumPy, too
    clip_norm, distillation_weight = plain_number(clip_norm), float(distillation_weight)
    if steps_per_epoch is not None:
        train_loader = Repeated(train_loader, int(steps_per_epoch))
    batches = Batches(train_loader, val_loader, held_out, unpack, accumulate)
    _check(batches, epochs, checkpoint_dir, resume)
    minimised = own_loss if loss is None else loss
    with joined(device) as place:
        batches.check_split()
        weights = WeightTraining.begin(
            *(net, batches.steps * epochs, place, optimizer, scheduler, lr, autocast),
            epochs=epochs,
            schedule_per=schedule_per,
            clip_norm=clip_norm,
            averages=averages,
        )
        controller = GateController(
            net,
            weights.optimizer,
            target=target,
            pressure=pressure,
            total_steps=batches.steps * epochs,
            warmup=warmup,
            until=until,
            averages=averages,
            loss=minimised if net.policy == "ratio" else cross_entropy,
            scaler=weights.scaler,
            seed=seed,
        )
        taught = Teacher.begin(net, teacher, distillation, distillation_weight, place)
        run = TrainingRun(
            *(controller, weights, batches, minimised, taught),
            section_differences=section_differences,
            metrics=metrics,
        )
        with nullcontext() if taught is None else in_eval(taught.module):
            _train(run, epochs, seed, checkpoint_dir, log_dir, callbacks, resume=resume, progress=progress)
    return run.history


def _check(batches: Batches, epochs: int, checkpoint_dir: PathLike | None, resume: bool) -> None:
    if epochs < 1 or batches.accumulate < 1 or not batches.batches:
        raise InputError(
            "fit() needs epochs ≥ 1, accumulate ≥ 1 and a training loader that has a length > 0",
            remedy="of a loader without a length say steps_per_epoch=",
        )
    if resume and checkpoint_dir is None:
        raise InputError("resume=True, and no checkpoints to go on from", remedy="give checkpoint_dir= too")


def _train(
    run: TrainingRun,
    epochs: int,
    seed: int,
    checkpoint_dir: PathLike | None,
    log_dir: PathLike | None,
    callbacks: Sequence[Callback],
    *,
    resume: bool,
    progress: bool,
) -> None:
    """All epochs that are left, with what is written and shown beside them."""
    steps = run.batches.steps
    settings = {"epochs": epochs, "steps_per_epoch": steps, "seed": seed, **run.weights.settings()}
    settings |= teacher_settings(run.teacher)
    state = RunState(settings, run.controller, run.weights, run.batches.named(), run.history)
    checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir)
    if checkpoints is not None:
        try:
            _begin(run, state, checkpoints, resume=resume)
        except FxcatError:
            run.net.unfinished = None  # it has not begun
            raise
    done = len(run.history.epochs)
    bar = Progress(steps * epochs, done * steps, epochs=epochs, enabled=progress and is_main())
    with TensorBoard(log_dir if is_main() else None) as logs, bar:
        for epoch in range(done, epochs):
            record = run.epoch(epoch, bar)
            logs.write(record)
            run.weights.after_epoch(record.loss)
            if checkpoints is not None:
                _save(run, state, checkpoints)
            if any([_ends(callback(record, run.net)) for callback in callbacks]):
                break
    run.finish()
    run.net.eval()


def _ends(said: Any) -> bool:
    """Whether a callback has asked for the end. Raises `InputError` for what is neither True nor False nor None: what
    a last line happens to return (`net.eval()`) must not end the training."""
    if said is not None and not isinstance(said, bool | np.bool_):
        raise InputError(
            f"one of callbacks= returned a {type(said).__name__}",
            remedy="return True where the training shall end, else False or nothing",
        )
    return bool(said)


def _begin(run: TrainingRun, state: RunState, checkpoints: Checkpoints, *, resume: bool) -> None:
    """Raise now what storing would raise after the first epoch; go on from the newest checkpoint if there is one."""
    state.check_storable()
    found = checkpoints.newest() if resume else None
    if found is not None:
        with located(str(checkpoints.folder)):
            run.restored(_restored(state, found))


def _restored(state: RunState, found: Mapping[str, Any]) -> list[Any]:
    """Go on from a stored state. Raises `StorageError` where its parts are not what they were when it was stored."""
    try:
        return state.restore(found)
    except FxcatError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise StorageError(
            f"the state in the checkpoint cannot be used: {type(error).__name__}: {error}",
            remedy="restore the checkpoint from a copy, or remove it to start anew",
        ) from error


def _save(run: TrainingRun, state: RunState, checkpoints: Checkpoints) -> None:
    recent = list(run.recent) if needs_recent(state.controller, run.batches.steps) else []
    newest = run.history.epochs[-1]
    checkpoints.save(state.collect(recent), state.controller.net, best=run.history.best is newest)
