"""Measuring for a `LatencyTable`: its ops, and the whole networks that calibrate it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fxcat.exporters.network_timings import eager_run, exported_run, milliseconds, undisturbed
from fxcat.exporters.op_file import with_values
from fxcat.exporters.op_grid import Measured, OpTable, Trial
from fxcat.exporters.op_timings import measure_ops
from fxcat.gated import GatedModule
from fxcat.network.latency import Instance
from fxcat.network.recipe import make_example

_WARM_UP = 2
_LEAST = 0.25
"""Random networks keep at least this share of every group."""
_CLOSED = 0.25
"""In every other one so many of the sections are closed."""

Setting = tuple[torch.Tensor, torch.Tensor]


class Asked(Protocol):
    """What of a table says how to measure."""

    @property
    def runtime(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def step(self) -> int: ...


def measured_ops(trials: Sequence[Trial], runtime: str, threads: int, repeats: int) -> dict[str, OpTable | None]:
    """Of every op what is known after all its instances were measured."""
    instances = [instance for trial in trials for instance in trial.all]
    if runtime == "onnxruntime":
        found = measure_ops(instances, threads=threads, repeats=repeats)
    else:
        found = _in_torch(instances, threads, repeats)
    tables: dict[str, OpTable | None] = {}
    start = 0
    for trial in trials:
        count = len(trial.all)
        tables[trial.op.key] = trial.table(found[start : start + count])
        start += count
    return tables


def _in_torch(instances: Sequence[Instance], threads: int, repeats: int) -> list[Measured | None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return [_eager(instance, repeats) for instance in instances]
    finally:
        torch.set_num_threads(before)


def _eager(instance: Instance, repeats: int) -> Measured | None:
    module, inputs = with_values(instance)
    taken: list[float] = []
    for _ in range(_WARM_UP + repeats):
        start = time.perf_counter()
        try:
            module(*inputs)
        except RuntimeError:  # no kernel for these sizes or types
            return None
        taken.append(1e3 * (time.perf_counter() - start))
    return Measured(undisturbed(taken[_WARM_UP:]), 0.0, 1)


def measured_networks(
    net: GatedModule, asked: Asked, *, count: int, repeats: int, seed: int
) -> list[tuple[Setting, float]]:
    """Settings (units, sections) of the dense network and of random smaller ones, and their milliseconds."""
    generator = torch.Generator().manual_seed(seed)
    units, example = net.gate_vector.unit_count, made_example(net)
    settings = [torch.ones_like(net.gate_vector.theta.detach(), device="cpu")]
    settings += [random_setting(net, asked.step, generator, closing=bool(i % 2)) for i in range(count - 1)]
    before = torch.get_num_threads()
    torch.set_num_threads(asked.threads)
    try:
        runs: list[Any] = []
        for setting in settings:
            small = net.finalized(setting.to(net.gate_vector.theta)).cpu()
            if asked.runtime == "torch":
                runs.append(eager_run(small, example, batch=asked.batch))
            else:
                runs.append(exported_run(small, example, batch=asked.batch, threads=asked.threads))
        taken = milliseconds(runs, repeats)
    finally:
        torch.set_num_threads(before)
    return [((s[:units], s[units:]), undisturbed(t)) for s, t in zip(settings, taken, strict=True)]


def made_example(net: GatedModule) -> Any:
    """The example that a network was prepared with, without its values."""
    example = net.recipe[-1].example
    return None if example is None else make_example(example)


def random_setting(net: GatedModule, step: int, generator: torch.Generator, *, closing: bool) -> torch.Tensor:
    """A 0/1 setting, shape (gates,): of every group the first units, so many that widths are multiples of `step`, and
    perhaps some sections closed."""
    setting = torch.ones_like(net.gate_vector.theta.detach(), device="cpu")
    start = 0
    for part in net.parts:
        drawn = float(torch.rand((), generator=generator))
        if part.kind == "units":
            kept = round((_LEAST + (1 - _LEAST) * drawn) * part.count / step) * step
            setting[start + min(part.count, max(1, kept)) : start + part.count] = 0.0
        elif closing and drawn < _CLOSED:
            setting[start] = 0.0
        start += part.count
    return setting
