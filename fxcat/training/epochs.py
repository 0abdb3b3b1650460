"""One run of `fit`: its epochs, steps and validation."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fxcat.data.batches import Batch, HeldOut, Unpack, call, moved, read_batch
from fxcat.data.losses import Loss, checked, count_correct
from fxcat.errors import InputError, TrainingError
from fxcat.gate_training.controller import GateController
from fxcat.training.batch_norm_statistics import recalibrated, replace_statistics
from fxcat.training.history import EpochRecord, History
from fxcat.training.progress import Progress
from fxcat.training.teacher import Teacher
from fxcat.training.weights import WeightTraining
from fxcat.utils.modes import Frozen
from fxcat.utils.processes import check_loader_is_split, from_main, parallel, set_epoch, sum_over_processes

Metric = Callable[[Any, Any], Any]
CALIBRATION_BATCHES = 16


@dataclass(slots=True)
class Totals:
    """Sums over the batches of one pass."""

    loss: float = 0.0
    correct: int = 0
    examples: int = 0
    classified: bool = True
    distillation: float = 0.0

    def add(self, loss: float, correct: int | None, examples: int, distillation: float = 0.0) -> None:
        """Add a batch: the means of its losses, how many are right (None if it is no classifier), its size."""
        self.loss += loss * examples
        self.distillation += distillation * examples
        self.correct += correct or 0
        self.examples += examples
        self.classified &= correct is not None

    def joined(self, device: torch.device) -> Totals:
        """Sums over all processes too."""
        own = [self.loss, self.correct, self.examples, not self.classified, self.distillation]
        total = sum_over_processes(torch.tensor(own, dtype=torch.float64, device=device))
        loss, correct, examples, others, distillation = total.tolist()
        return Totals(loss, int(correct), int(examples), not bool(others), distillation)

    @property
    def mean_loss(self) -> float:
        """Per example."""
        return self.loss / max(1, self.examples)

    @property
    def mean_distillation(self) -> float:
        """Per example."""
        return self.distillation / max(1, self.examples)

    @property
    def accuracy(self) -> float | None:
        """Share that is right; None if it is no classifier."""
        return self.correct / max(1, self.examples) if self.classified else None


@dataclass(frozen=True, slots=True)
class Batches:
    """Data loaders; `held_out`: for `policy="ratio"`, without it some of the training batches serve. `unpack`: makes
    pairs of inputs and targets of what they yield. `accumulate`: training batches per step of the weights."""

    train: Iterable[Any]
    validation: Iterable[Any] | None = None
    held_out: Iterable[Any] | None = None
    unpack: Unpack | None = None
    accumulate: int = 1

    @property
    def batches(self) -> int:
        """Training batches per epoch; 0 if the loader does not say."""
        if not isinstance(self.train, Sized):
            return 0
        try:
            return len(self.train)
        except TypeError:  # a DataLoader has one only if its data set has
            return 0

    @property
    def steps(self) -> int:
        """Steps of the weights per epoch."""
        return math.ceil(self.batches / self.accumulate)

    def check_split(self) -> None:
        """Raise `InputError` if the processes would not train on equal shares of the data."""
        check_loader_is_split(self.train, "train_loader")
        if self.held_out is not None:
            check_loader_is_split(self.held_out, "held_out")

    def named(self) -> dict[str, Any]:
        """Those that there are, by the names of `fit`'s arguments."""
        loaders = {"train_loader": self.train, "val_loader": self.validation, "held_out": self.held_out}
        return {name: loader for name, loader in loaders.items() if loader is not None}


class TrainingRun:
    """State of one call of `fit`. `section_differences`, `metrics`: as there."""

    def __init__(
        self,
        controller: GateController,
        weights: WeightTraining,
        batches: Batches,
        loss: Loss,
        teacher: Teacher | None,
        *,
        section_differences: bool = False,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        self.net, self.controller, self.weights = controller.net, controller, weights
        self.batches, self.loss, self.teacher = batches, loss, teacher
        self.device, self.section_differences = weights.device, section_differences
        self.history = History()
        self.recent: deque[Any] = deque(maxlen=CALIBRATION_BATCHES)
        self.metrics = dict(metrics or {})
        self._frozen = Frozen(self.net)
        self._model = parallel(self.net)
        self._taken: set[tuple[torch.Size, ...]] = set()
        """Shapes of inputs that the network has taken in training."""

    def restored(self, recent: Iterable[Any]) -> None:
        """Go on after network and controller have taken over a stored state; `recent`: inputs seen before."""
        self.recent.extend(moved(inputs, self.device) for inputs in recent)
        self._model = parallel(self.net)

    def epoch(self, epoch: int, bar: Progress) -> EpochRecord:
        """Train for one epoch, and validate."""
        batches = self.batches
        self._frozen.train()
        set_epoch(batches.train, epoch)
        held_out = None if batches.held_out is None else HeldOut(batches.held_out)
        totals, made = Totals(), 0
        for step, group in enumerate(grouped(batches.train, batches.accumulate, batches.batches)):
            read = [read_batch(found, self.net, batches.unpack).to(self.device) for found in group]
            if self.controller.wants_held_out and held_out is None:
                self._follow(self.controller.step(held_out=(read[0].inputs, read[0].targets)), epoch)
            else:
                taught = [self._taught(batch) for batch in read]
                for batch, its in zip(read, taught, strict=True):
                    self._backward(batch, its, len(read), totals, f"epoch {epoch}, step {step}")
                self.weights.step(self.net)
                closure = self._closure(read[-1], taught[-1]) if self.section_differences else None
                extra = held_out.next() if held_out is not None and self.controller.wants_held_out else None
                self._follow(self.controller.step(closure=closure, held_out=extra), epoch)
            self.weights.after_step()
            bar.update(epoch, totals.mean_loss, totals.accuracy, self._expected(), self.controller.undecided)
            made = step + 1
        if made < batches.steps:
            warnings.warn(
                f"train_loader was to yield {batches.steps} steps in an epoch, and yielded {made}: schedules end late; "
                "say steps_per_epoch=",
                stacklevel=2,
            )
        training = totals.joined(self.device)
        return self._recorded(epoch, training, *self._validate(batches.validation), bar)

    def finish(self) -> None:
        """End the gated phase if the run has ended before it."""
        self._follow(self.controller.finish(), len(self.history.epochs) - 1)

    def _taught(self, batch: Batch) -> Any:
        """What the teacher makes of a batch; None without one."""
        if self.teacher is None:
            return None
        with self.weights.cast(), self._taking("the teacher"):
            return self.teacher.output(self.net, batch.inputs)

    @contextmanager
    def _taking(self, what: str, loader: str = "train_loader", *, first: bool | None = None) -> Generator[None]:
        """What goes wrong with the first batch of its shapes is a mistake in what is passed, and no fault of the
        training."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            first = not self.recent if first is None else first
            if not first or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0] if str(error) else "no reason given"
            raise InputError(
                f"{what} does not take what {loader} yields: {type(error).__name__}: {reason}",
                remedy="call it with what one batch holds; targets come last in a batch (see unpack=)"
                if not self.recent
                else "leave out batches of shapes that it cannot be trained with: DataLoader(…, drop_last=True), if it "
                "is the last and smaller",
            ) from error

    def _backward(self, batch: Batch, taught: Any, parts: int, totals: Totals, where: str) -> None:
        """Add the gradients of a batch, one of several parts of a step, and note its losses."""
        with torch.enable_grad(), self.weights.cast():
            shapes = tuple(t.shape for t in tree_leaves(batch.inputs) if isinstance(t, torch.Tensor))
            with self._taking("the network", first=shapes not in self._taken):
                output = call(self._model, self.net, batch.inputs)
            self._taken.add(shapes)
            with self._taking("loss="):
                losses = self._losses(output, batch.targets, taught)
        values = [loss.item() for loss in losses]
        for value, by in zip(values, ("loss", "distillation"), strict=False):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value}" + (" against the teacher" if by == "distillation" else ""),
                    where=f"{where}; the weights are those before this step",
                    remedy="lower the learning rate or check the data; the last checkpoint, if any, is intact",
                )
        objective = self._objective(losses)
        depends = objective.requires_grad
        if depends:
            self.weights.backward(objective / parts if parts > 1 else objective)
            depends = bool(self.recent) or any(p.grad is not None for p in self.net.weight_parameters())
        if not depends:
            raise InputError("loss= returned a number that no weight depends on", remedy="do not detach it")
        self.recent.append(batch.inputs)
        totals.add(values[0], count_correct(output, batch.targets), batch.size, sum(values[1:]))

    def _losses(self, output: Any, targets: Any, taught: Any) -> list[torch.Tensor]:
        """The task's loss, and with a teacher that against it."""
        losses = [checked(self.loss(output, targets))]
        return losses if self.teacher is None else [*losses, checked(self.teacher.loss(output, taught))]

    def _objective(self, losses: list[torch.Tensor]) -> torch.Tensor:
        return losses[0] if self.teacher is None else self.teacher.mixed(losses[0], losses[1])

    def _closure(self, batch: Batch, taught: Any) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            with self.weights.cast():
                output = call(self.net, self.net, batch.inputs)
                return self._objective(self._losses(output, batch.targets, taught))

        return loss

    def _follow(self, shrunk: bool, epoch: int) -> None:
        """What a smaller network needs."""
        if not shrunk:
            return
        # a removal before the gated phase ends leaves what is computed as it was, statistics too
        if self.controller.phase == "plain":
            replace_statistics(self.net, list(self.recent))
            self.history.shrunk_at = epoch

    def _validate(self, loader: Iterable[Any] | None) -> tuple[Totals | None, dict[str, float]]:
        from_main(*self.net.buffers())  # statistics of normalisations are each process's own
        if loader is None:
            return None, {}
        gated = self.controller.phase == "gated"
        with recalibrated(self.net, self.recent) if gated else nullcontext():
            self.net.eval()
            totals, sums = Totals(), dict.fromkeys(self.metrics, 0.0)
            with torch.no_grad(), self.weights.cast():
                for found in loader:
                    batch = read_batch(found, self.net, self.batches.unpack).to(self.device)
                    with self._taking("the network", "val_loader", first=not totals.examples):
                        output = call(self.net, self.net, batch.inputs)
                    with self._taking("loss=", "val_loader", first=not totals.examples):
                        loss = checked(self.loss(output, batch.targets)).item()
                    totals.add(loss, count_correct(output, batch.targets), batch.size)
                    for name, metric in self.metrics.items():
                        sums[name] += _number(name, metric(output, batch.targets)) * batch.size
            self._frozen.train()
        values = torch.tensor([*sums.values()], dtype=torch.float64, device=self.device)
        joined = totals.joined(self.device)
        if not joined.examples:
            raise InputError(
                "val_loader yields nothing, or nothing more",
                remedy="give what can be iterated over anew in every epoch (loaders, lists, no generator), or none",
            )
        means = (sum_over_processes(values) / joined.examples).tolist()
        return joined, dict(zip(sums, means, strict=True))

    def _recorded(
        self, epoch: int, training: Totals, validation: Totals | None, metrics: dict[str, float], bar: Progress
    ) -> EpochRecord:
        (macs, params), live = self._expected(), self.net.live_units()
        record = EpochRecord(
            epoch,
            self.controller.phase,
            self.weights.optimizer.param_groups[0]["lr"],
            training.mean_loss,
            training.accuracy,
            None if validation is None else validation.mean_loss,
            None if validation is None else validation.accuracy,
            macs,
            params,
            self.controller.undecided,
            live,
            sum(live[s.name] for s in self.net.start_structure.sections),
            None if self.teacher is None else training.mean_distillation,
            metrics,
            self._expected_latency(),
        )
        self.history.epochs.append(record)
        bar.finished(record)
        return record

    def _expected(self) -> tuple[float, float]:
        with torch.no_grad():
            cost = self.net.expected_cost()
        start = self.net.start_cost
        return cost.macs.item() / max(1, start.macs), cost.params.item() / max(1, start.params)

    def _expected_latency(self) -> float | None:
        """As a share of the start network's; None without a latency table."""
        if self.net.latency is None:
            return None
        return float(self.net.latency_share(self.net.gate_vector.theta.detach()))


def _number(name: str, value: Any) -> float:
    """What a metric gives."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the metric {name!r} gives a {type(value).__name__}, not a number", remedy="return the mean over the batch"
        ) from error


def needs_recent(controller: GateController, steps: int) -> bool:
    """Whether an epoch of so many steps may recalibrate before it has enough inputs of its own."""
    if controller.phase == "plain":
        return False
    return steps < CALIBRATION_BATCHES or controller.ends_within(CALIBRATION_BATCHES - 1)


def grouped(loader: Iterable[Any], size: int, count: int) -> Iterator[list[Any]]:
    """What a loader yields, at most `count`, in lists of so many; the last one may be shorter."""
    rest = itertools.islice(loader, count)
    while group := list(itertools.islice(rest, size)):
        yield group
