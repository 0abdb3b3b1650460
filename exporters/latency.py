"""Latency in ONNX Runtime."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fxcat.exporters.verify import open_session


def measure_latency(
    path: str | os.PathLike[str],
    inputs: tuple[torch.Tensor, ...],
    *,
    batch: int = 1,
    repeats: int = 20,
    provider: str = "CPUExecutionProvider",
) -> float:
    """Median milliseconds of one call at the given batch size, after a warm-up."""
    return compare_latency([path], inputs, batch=batch, repeats=repeats, provider=provider)[0]


def compare_latency(
    paths: Sequence[str | os.PathLike[str]],
    inputs: tuple[torch.Tensor, ...],
    *,
    batch: int = 1,
    repeats: int = 50,
    provider: str = "CPUExecutionProvider",
) -> tuple[float, ...]:
    """Median milliseconds of each file; the calls alternate, so that a noisy machine disturbs all alike."""
    sessions = [open_session(Path(p), provider) for p in paths]
    values = [torch.zeros((batch, *x.shape[1:]), dtype=x.dtype).numpy() for x in inputs]
    feeds = [dict(zip([i.name for i in s.get_inputs()], values, strict=True)) for s in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    for repeat in range(repeats + 3):
        for i, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            start = time.perf_counter()
            session.run(None, feed)
            if repeat >= 3:
                times[i].append(1000 * (time.perf_counter() - start))
    return tuple(statistics.median(t) for t in times)
