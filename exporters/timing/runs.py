"""Timing runs side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch

_WARM_UP = 3
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


def milliseconds(runs: Sequence[Run], repeats: int) -> list[list[float]]:
    """Of every run each time that it was made; they take turns, in another order every time, so that what else the
    machine does disturbs all alike."""
    taken: list[list[float]] = [[] for _ in runs]
    for repeat in range(_WARM_UP + repeats):
        order = range(len(runs)) if repeat % 2 else reversed(range(len(runs)))
        for i in order:
            start = time.perf_counter()
            runs[i]()
            if repeat >= _WARM_UP:
                taken[i].append(1e3 * (time.perf_counter() - start))
    return taken


def undisturbed(taken: Sequence[float]) -> float:
    """The median of the faster half: disturbances only ever add time."""
    ordered = sorted(taken)
    return statistics.median(ordered[: max(1, (len(ordered) + 1) // 2)])
