"""Latency of ONNX files in ONNX Runtime, alone or side by side."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fxcat.errors import InputError
from fxcat.exporters.inputs import at_batch
from fxcat.exporters.runtime import CPU, feed, open_session

_WARM_UP = 3
_TYPES = {
    "tensor(float16)": torch.float16,
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def measure_latency(
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | tuple[Any, ...] | None = None,
    *,
    repeats: int = 20,
    provider: str = CPU,
) -> float:
    """Median milliseconds of one run of one example, after a warm-up. Inputs are random; their shapes are those of
    `example_inputs`, else those that the file states. A file whose batch is fixed runs at that."""
    return _medians([_runner(path, example_inputs, 1, provider)], repeats)[0]


def compare_latency(
    path_a: str | os.PathLike[str],
    path_b: str | os.PathLike[str],
    example_inputs: torch.Tensor | tuple[Any, ...] | None = None,
    *,
    batch: int = 1,
    repeats: int = 50,
    provider: str = CPU,
) -> tuple[float, float]:
    """The same of two files, at a batch size. Their runs alternate, so that a noisy machine disturbs both alike."""
    a, b = _medians([_runner(p, example_inputs, batch, provider) for p in (path_a, path_b)], repeats)
    return a, b


def _runner(path: str | os.PathLike[str], given: Any, batch: int, provider: str) -> Callable[[], object]:
    session = open_session(path, provider)
    examples = _stated_inputs(session, path) if given is None else given if isinstance(given, tuple) else (given,)
    fixed = all(isinstance(size, int) for entry in session.get_inputs() for size in entry.shape[:1])
    values = feed(session, at_batch(examples, None if fixed else batch, seed=0))
    return lambda: session.run(None, values)


def _stated_inputs(session: Any, path: str | os.PathLike[str]) -> tuple[torch.Tensor, ...]:
    """The inputs that a file declares, without values; a dynamic batch is 1."""
    found: list[torch.Tensor] = []
    for entry in session.get_inputs():
        sizes = entry.shape[1:]
        if entry.type not in _TYPES or not entry.shape or any(not isinstance(s, int) for s in sizes):
            raise InputError(
                f"the input {entry.name} is a {entry.type} of shape {entry.shape}: its sizes are not known",
                where=os.fspath(path),
                remedy="give example_inputs",
            )
        batch = entry.shape[0] if isinstance(entry.shape[0], int) else 1
        found.append(torch.empty((batch, *sizes), dtype=_TYPES[entry.type], device="meta"))
    return tuple(found)


def _medians(runs: list[Callable[[], object]], repeats: int) -> list[float]:
    if repeats < 1:
        raise InputError(f"repeats={repeats} measures nothing", remedy="give at least 1")
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(_WARM_UP + repeats):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if repeat >= _WARM_UP:
                taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(t) for t in times]
