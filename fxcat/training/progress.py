"""What is seen of a run of `fit`: a bar on a terminal, a renewed line in a notebook, elsewhere a line an epoch."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fxcat.training.history import EpochRecord

RENEWED_EVERY = 0.2
"""Seconds between two looks of a notebook's line: each is a message to the browser."""
BAR, TIME = 16, 7
"""Widths of the bar and of the time that is left, in characters."""


class Display(Protocol):
    """Where progress is shown."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def step(self, title: str, figures: str) -> None:
        """One step more."""
        ...

    def line(self, text: str) -> None:
        """A line that stays."""
        ...


class Progress:
    """All steps of a run: epoch, loss, accuracy, expected cost, and how many gates are still undecided.

    On a terminal there is one bar, above which a line stays for every finished epoch; in a notebook one line is renewed
    below those lines. A log, a pipe or a file gets these lines alone, whole, each as soon as its epoch has ended.
    `epochs`: of the whole run.
    """

    def __init__(self, steps: int, done: int = 0, *, epochs: int, enabled: bool) -> None:
        self._display = _display(steps, done) if enabled else None
        self._epochs = epochs

    def __enter__(self) -> Progress:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()

    def update(
        self, epoch: int, loss: float, accuracy: float | None, cost: tuple[float, float], undecided: int
    ) -> None:
        """Advance by one step."""
        if self._display is None:
            return
        right = "" if accuracy is None else f" accuracy {accuracy:.1%}"
        figures = f"loss {loss:.3f}{right} MACs {cost[0]:.1%} parameters {cost[1]:.1%} undecided {undecided}"
        self._display.step(f"epoch {epoch + 1}/{self._epochs}", figures)

    def finished(self, record: EpochRecord) -> None:
        """Leave a line for a finished epoch."""
        if self._display is None:
            return
        seen = "" if record.val_accuracy is None else f", validation {record.val_accuracy:.1%}"
        taught = "" if record.distillation_loss is None else f", against the teacher {record.distillation_loss:.3f}"
        timed = "" if record.latency is None else f", latency {record.latency:.1%}"
        self._display.line(
            f"epoch {record.epoch + 1}/{self._epochs} ({record.phase}): loss {record.train_loss:.3f}{taught}{seen}, "
            f"MACs {record.macs:.1%}, parameters {record.params:.1%}{timed}, undecided {record.undecided}"
        )


def _display(steps: int, done: int) -> Display:
    console = Console()
    if console.is_jupyter:
        return NotebookLine(steps, done)
    return Bar(console, steps, done) if console.is_terminal else Lines()


class Lines:
    """For what is no screen: nothing but the lines."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def step(self, title: str, figures: str) -> None: ...

    def line(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()  # somebody may be reading the log


class Bar:
    """On a terminal: a bar over all steps."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done, figures="")

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def step(self, title: str, figures: str) -> None:
        count = 2 * len(str(self._bar.tasks[0].total)) + 1
        room = self._bar.console.width - len(title) - BAR - count - TIME - 4  # else rich cuts all columns alike
        figures = figures if len(figures) <= room else figures[: max(0, room - 1)] + "…"
        self._bar.update(self._task, advance=1, description=title, figures=figures)

    def line(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


class NotebookLine:
    """In a notebook: one line that is renewed, by what IPython has for it (rich's bars would need ipywidgets)."""

    def __init__(self, steps: int, done: int) -> None:
        self._steps, self._done = steps, done
        self._handle: Any = None
        self._shown_at = 0.0

    def start(self) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]  # only where a notebook has brought it

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def stop(self) -> None:
        self._renew("")

    def step(self, title: str, figures: str) -> None:
        self._done += 1
        if time.monotonic() - self._shown_at >= RENEWED_EVERY:
            self._shown_at = time.monotonic()
            self._renew(f"{title} {self._done}/{self._steps} {figures}")

    def line(self, text: str) -> None:
        sys.stdout.write(text + "\n")

    def _renew(self, text: str) -> None:
        self._handle.update({"text/plain": text}, raw=True)
