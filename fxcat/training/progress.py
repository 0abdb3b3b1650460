"""The progress bar of `fit`."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fxcat.training.history import EpochRecord


class Progress:
    """One bar over all steps: epoch, loss, accuracy, expected cost, and how many gates are still undecided."""

    def __init__(self, steps: int, done: int = 0, *, enabled: bool) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            disable=not enabled,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, figures="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(
        self, epoch: int, loss: float, accuracy: float | None, cost: tuple[float, float], undecided: int
    ) -> None:
        """Advance by one step."""
        right = "" if accuracy is None else f" accuracy {accuracy:.1%}"
        figures = f"loss {loss:.3f}{right} MACs {cost[0]:.1%} parameters {cost[1]:.1%} undecided {undecided}"
        self._bar.update(self._task, advance=1, description=f"epoch {epoch + 1}", figures=figures)

    def finished(self, record: EpochRecord) -> None:
        """Leave a line for a finished epoch."""
        if self._bar.disable:
            return
        seen = "" if record.val_accuracy is None else f", validation {record.val_accuracy:.1%}"
        taught = "" if record.distillation_loss is None else f", against the teacher {record.distillation_loss:.3f}"
        timed = "" if record.latency is None else f", latency {record.latency:.1%}"
        self._bar.console.print(
            f"epoch {record.epoch + 1} ({record.phase}): loss {record.train_loss:.3f}{taught}{seen}, "
            f"MACs {record.macs:.1%}, parameters {record.params:.1%}{timed}, undecided {record.undecided}",
            highlight=False,
        )
