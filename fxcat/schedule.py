"""When in a run gates are trained."""

from __future__ import annotations

from fxcat.errors import InputError

EARLIEST, LATEST = 0.03, 0.1
"""Shares of the run between which gates begin if nothing else is said."""
MEASURED_FOR = 100
"""Steps for which worths are measured before that, if there are as many."""


def checked_warmup(total_steps: int, warmup: float | None, until: float, shrinks: int) -> float:
    """The share of the run at which gates begin. Raises `InputError` where the phases do not make a schedule."""
    if warmup is None and total_steps > 0:
        warmup = min(max(EARLIEST, MEASURED_FOR / total_steps), LATEST, until / 2)
    if total_steps < 1 or warmup is None or not 0 <= warmup < until <= 1 or shrinks < 0:
        raise InputError(
            f"total_steps={total_steps}, warmup={warmup}, until={until}, shrinks={shrinks} do not make a schedule",
            remedy="total_steps ≥ 1, 0 ≤ warmup < until ≤ 1 and shrinks ≥ 0",
        )
    return warmup
