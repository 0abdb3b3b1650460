"""How long ops and networks take in PyTorch as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fxcat.exporters.inputs import at_batch, example_arguments
from fxcat.exporters.timing.instances import with_values
from fxcat.exporters.timing.op_grid import Measured
from fxcat.exporters.timing.runs import Run, fast_median, threads_of_torch
from fxcat.network.latency import Instance

VERSIONS: dict[str, str] = {}
_WARM_UP = 2


def measure_ops(instances: Sequence[Instance], *, threads: int, repeats: int) -> list[Measured | None]:
    """Every op by itself; None where there is no kernel for its sizes or types."""
    with threads_of_torch(threads), torch.inference_mode():
        return [_measured(instance, repeats) for instance in instances]


def network_run(module: nn.Module, example: Any, *, batch: int, threads: int) -> Run:
    """One run of the module itself, in inference mode."""
    return inference_run(module.eval(), at_batch(example_arguments(module, example), batch, seed=0))


def inference_run(network: Callable[..., Any], values: Sequence[Any]) -> Run:
    """One run of what is called with these values, in inference mode."""

    def run() -> object:
        with torch.inference_mode():
            return network(*values)

    return run


def _measured(instance: Instance, repeats: int) -> Measured | None:
    module, inputs = with_values(instance)
    taken: list[float] = []
    for _ in range(_WARM_UP + repeats):
        start = time.perf_counter()
        try:
            module(*inputs)
        except RuntimeError:
            return None
        taken.append(1e3 * (time.perf_counter() - start))
    return Measured(fast_median(taken[_WARM_UP:]), 0.0, 1)
