"""What happened in a run, epoch by epoch."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from fxcat.checks import check_instance, check_integer, check_path
from fxcat.errors import InputError
from fxcat.utils.figures import new_figure, save_figure
from fxcat.utils.json_file import checked_content, read_json, write_json

_REMEDY = "give a file that History.save wrote"


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch. Losses are means per example, accuracies and cost fractions lie in [0, 1].

    `distillation_loss`: the training loss against the teacher, of which `train_loss` has nothing; None without one.
    `metrics`: means over the examples that were validated, of what `fit` was asked for.
    `open_sections`: how many sections are open. `open_units`: how many units every group of the start network has left
    (0: it has gone with a section), and 1 or 0 for every section, by their names in the start network.
    `latency`: expected milliseconds as a share of the start network's; None without a latency table.
    """

    epoch: int
    phase: str
    learning_rate: float
    train_loss: float
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    macs: float
    params: float
    undecided: int
    open_units: dict[str, int]
    open_sections: int = 0
    distillation_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    latency: float | None = None

    @property
    def loss(self) -> float:
        """That of the validation; without one that of the training."""
        return self.train_loss if self.val_loss is None else self.val_loss


@dataclass(slots=True)
class History:
    """Records of a run. `shrunk_at`: the epoch in which the structure became final.

    Raises `InputError` for anything else."""

    epochs: list[EpochRecord] = field(default_factory=list[EpochRecord])
    shrunk_at: int | None = None

    def __post_init__(self) -> None:
        check_instance(self.epochs, list, "History(epochs)", remedy="give a list of records, as fit() does")
        for record in self.epochs:
            check_instance(record, EpochRecord, "History(epochs)")
        check_integer(self.shrunk_at, "History(shrunk_at)", least=0, optional=True)

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the best validation accuracy (or loss) among those with the final structure."""
        final = [e for e in self.epochs if e.phase == "plain" and e.val_loss is not None]
        if not final:
            return None
        return max(final, key=lambda e: (e.val_accuracy if e.val_accuracy is not None else 0.0, -(e.val_loss or 0.0)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the records as JSON. Raises `StorageError` if the path cannot be written."""
        write_json(path, asdict(self), "history")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read what `save` wrote. Raises `StorageError` if the path cannot be read or holds something else."""
        return read_json(path, cls.of, "history", remedy=_REMEDY)

    @classmethod
    def of(cls, content: dict[str, Any]) -> History:
        """From the content of such a file. Raises `StorageError` for anything else."""

        def read() -> History:
            shrunk_at = _of_type("shrunk_at", content["shrunk_at"], int | None)
            return cls([_record(e) for e in content["epochs"]], shrunk_at)

        return checked_content(read, "history", remedy=_REMEDY)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Plot accuracy (or loss) and cost over the epochs into an image file.

        Raises `InputError` without matplotlib or without epochs, `StorageError` if the path cannot be written.
        """
        check_path(path)
        if not self.epochs:
            raise InputError("the history is empty", remedy="train for at least one epoch before plotting")
        figure = new_figure(8, 5)
        top, bottom = figure.subplots(2, 1, sharex=True)
        epochs = [e.epoch + 1 for e in self.epochs]
        if self.epochs[0].train_accuracy is not None:
            top.plot(epochs, [e.train_accuracy for e in self.epochs], label="training")
            if self.epochs[0].val_accuracy is not None:
                top.plot(epochs, [e.val_accuracy for e in self.epochs], label="validation")
            top.set_ylabel("accuracy")
        else:
            top.plot(epochs, [e.train_loss for e in self.epochs], label="training")
            top.set_ylabel("loss")
        bottom.plot(epochs, [e.macs for e in self.epochs], label="MACs")
        bottom.plot(epochs, [e.params for e in self.epochs], label="parameters")
        if self.epochs[0].latency is not None:
            bottom.plot(epochs, [e.latency for e in self.epochs], label="latency")
        if max(e.open_sections for e in self.epochs):
            sections = bottom.twinx()
            sections.step(epochs, [e.open_sections for e in self.epochs], where="mid", color="grey", label="sections")
            sections.set(ylabel="sections that are open", ylim=(0, None))
            sections.legend(loc="lower left")
        bottom.set(xlabel="epoch", ylabel="share of the start network", ylim=(0, 1.05))
        if self.shrunk_at is not None:
            for axes in (top, bottom):
                axes.axvline(self.shrunk_at + 1, color="grey", linestyle=":", label="shrunk")
        top.legend()
        bottom.legend()
        save_figure(figure, path)


def _record(content: dict[str, Any]) -> EpochRecord:
    """A record from JSON. Raises `TypeError` if a value is of another type."""
    for name, kind in get_type_hints(EpochRecord).items():
        if name in content:
            _of_type(name, content[name], kind)
    return EpochRecord(**content)


def _of_type(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is dict and isinstance(value, dict):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            _of_type(f"{name}[{key!r}]", item, get_args(kind)[1])
    elif get_origin(kind) is dict or not isinstance(value, kind | (int if isinstance(0.0, kind) else kind)):
        raise TypeError(f"{name} is a {type(value).__name__}")  # pyright: ignore[reportUnknownArgumentType]
    return value  # pyright: ignore[reportUnknownVariableType]
