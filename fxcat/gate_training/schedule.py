"""The phases of a run: when gates begin and end, and when what is dead may leave in between."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from fxcat.errors import InputError

Phase = Literal["warm-up", "gated", "plain"]

EARLIEST, LATEST = 0.03, 0.1
"""Shares of the run between which gates begin if nothing else is said."""
MEASURED_FOR = 100
"""Steps for which worths are measured before that, if there are as many."""

TOO_MANY = 3
"""So many times the steps that were said are a mistake, more likely than not."""


UNTIL, SHRINKS = 0.55, 8
"""The share of a run at which the gates are decided, and how often it shrinks before, unless something else is said."""


def check_schedule(total_steps: int | None, warmup: float | None, until: float, shrinks: int) -> None:
    """Raise `InputError` where these do not make a schedule; `total_steps`: None if they are not known yet."""
    steps_fit = total_steps is None or total_steps >= 1
    if steps_fit and 0 <= (warmup or 0.0) < until <= 1 and shrinks >= 0:
        return
    given = {"total_steps": total_steps, "warmup": warmup, "until": until, "shrinks": shrinks}
    said = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    raise InputError(f"{said} do not make a schedule", remedy="total_steps ≥ 1, 0 ≤ warmup < until ≤ 1 and shrinks ≥ 0")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps are numbered from 0. `first_gated`, `first_plain`: the first of these phases; in between, what is dead may
    leave the network `shrinks` times."""

    first_gated: int
    first_plain: int
    shrinks: int

    @classmethod
    def of(cls, total_steps: int, warmup: float | None, until: float, shrinks: int) -> Schedule:
        """The phases of a run, by shares of it. Raises `InputError` where these do not make a schedule."""
        check_schedule(total_steps, warmup, until, shrinks)
        share = warmup
        if share is None:
            share = min(max(EARLIEST, MEASURED_FOR / total_steps), LATEST, until / 2)
        first = round(share * total_steps)
        plain = max(first + 1, round(until * total_steps))
        return cls(first, plain, min(shrinks, plain - first))  # at most after every step

    def phase(self, step: int) -> Phase:
        """Where a step belongs."""
        if step < self.first_gated:
            return "warm-up"
        return "gated" if step < self.first_plain else "plain"

    def progress(self, step: int) -> float:
        """How far the gated phase has come before a step, in [0, 1]."""
        return min(1.0, max(0.0, (step - self.first_gated) / self.gated))

    def check_end(self, steps: int, total: int) -> None:
        """Warn once if far more steps have been made than were said: those may have been epochs, and then hardly any
        step decided on the gates."""
        if steps == TOO_MANY * total:
            warnings.warn(
                f"optimizers have made {steps} steps, and GateController was told total_steps={total}: the gates were "
                f"decided in the first {self.first_plain}. total_steps= counts steps of the optimizer, not epochs",
                stacklevel=4,
            )

    @property
    def gated(self) -> int:
        """Steps of the gated phase, at least 1."""
        return max(1, self.first_plain - self.first_gated)

    def may_shrink(self, step: int) -> bool:
        """Whether it is time, before a step, to remove what is dead."""
        parts = self.shrinks + 1
        return any(step == self.first_gated + round(self.gated * i / parts) for i in range(1, parts))
