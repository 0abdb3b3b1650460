"""Timing runs side by side."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch

_WARM_UP = 3
_LEAST = 0.1
"""Seconds of a repetition: what is quicker is run several times in it, so that a disturbance is in some of these only.
"""
Run = Callable[[], object]


@contextmanager
def threads_of_torch(threads: int) -> Generator[None]:
    """PyTorch has so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def often(repeats: int, seconds: float) -> int:
    """How often to run what takes so many seconds."""
    return max(repeats, math.ceil(repeats * _LEAST / max(seconds, 1e-6)))


def milliseconds(runs: Sequence[Run], repeats: int) -> list[list[float]]:
    """Of every run each time that it was made, `repeats` times, or more often if they are quick on average; they take
    turns, in another order every time, so that what else the machine does disturbs all alike."""
    taken: list[list[float]] = [[] for _ in runs]
    for repeat in range(_WARM_UP):
        _round(runs, taken, repeat)
    count = often(repeats, statistics.mean(each[-1] for each in taken) / 1e3)
    taken = [[] for _ in runs]
    for repeat in range(count):
        _round(runs, taken, repeat)
    return taken


def _round(runs: Sequence[Run], taken: list[list[float]], number: int) -> None:
    for i in range(len(runs)) if number % 2 else reversed(range(len(runs))):
        start = time.perf_counter()
        runs[i]()
        taken[i].append(1e3 * (time.perf_counter() - start))


def fast_median(taken: Sequence[float]) -> float:
    """The median of the faster half: disturbances only ever add time."""
    ordered = sorted(taken)
    return statistics.median(ordered[: max(1, (len(ordered) + 1) // 2)])
