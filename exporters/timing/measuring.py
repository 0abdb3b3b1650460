"""Measuring for a `LatencyTable`: its ops, and the whole networks that calibrate it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fxcat.exporters.timing.op_grid import OpTable, Trial
from fxcat.exporters.timing.runs import fast_median, milliseconds, threads_of_torch
from fxcat.exporters.timing.runtimes import Timer
from fxcat.gated import GatedModule
from fxcat.network.recipe import make_example

_LEAST = 0.25
"""Random networks keep at least this share of every group."""
_CLOSED = 0.25
"""In every other one so many of the sections are closed."""

Setting = tuple[torch.Tensor, torch.Tensor]


class _Asked(Protocol):
    """What of a table says how to measure."""

    @property
    def batch(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def step(self) -> int: ...


def measured_ops(trials: Sequence[Trial], by: Timer, threads: int, repeats: int) -> dict[str, OpTable | None]:
    """Of every op what is known after all its instances were measured."""
    found = by.measure_ops([i for trial in trials for i in trial.all], threads=threads, repeats=repeats)
    tables: dict[str, OpTable | None] = {}
    start = 0
    for trial in trials:
        count = len(trial.all)
        tables[trial.op.key] = trial.table(found[start : start + count])
        start += count
    return tables


def measured_networks(
    net: GatedModule, asked: _Asked, by: Timer, *, count: int, repeats: int, seed: int
) -> list[tuple[Setting, float]]:
    """Settings (units, sections) of the dense network and of random smaller ones, from narrow to wide, and their
    milliseconds."""
    generator = torch.Generator().manual_seed(seed)
    units, example = net.gate_vector.unit_count, made_example(net)
    settings = [torch.ones_like(net.gate_vector.theta.detach(), device="cpu")]
    settings += [
        random_setting(net, asked.step, generator, closing=bool(i % 2), level=(i + 0.5) / (count - 1))
        for i in range(count - 1)
    ]
    with threads_of_torch(asked.threads):
        small = (net.finalized(setting.to(net.gate_vector.theta)).cpu() for setting in settings)
        runs = [by.network_run(s, example, batch=asked.batch, threads=asked.threads) for s in small]
        taken = milliseconds(runs, repeats)
    return [((s[:units], s[units:]), fast_median(t)) for s, t in zip(settings, taken, strict=True)]


def made_example(net: GatedModule) -> Any:
    """The example that a network was prepared with, without its values."""
    example = net.recipe[-1].example
    return None if example is None else make_example(example)


def random_setting(
    net: GatedModule, step: int, generator: torch.Generator, *, closing: bool, level: float = 0.5
) -> torch.Tensor:
    """A 0/1 setting, shape (gates,): of every group the first units, so many that widths are multiples of `step`, and
    perhaps some sections closed. `level`: half of the groups are wider than this, between the least and the whole."""
    bent = math.log(level) / math.log(0.5)
    setting = torch.ones_like(net.gate_vector.theta.detach(), device="cpu")
    start = 0
    for part in net.parts:
        drawn = float(torch.rand((), generator=generator))
        if part.kind == "units":
            kept = round((_LEAST + (1 - _LEAST) * drawn**bent) * part.count / step) * step
            setting[start + min(part.count, max(1, kept)) : start + part.count] = 0.0
        elif closing and drawn < _CLOSED:
            setting[start] = 0.0
        start += part.count
    return setting
