"""How long ops and networks take in PyTorch where `torch.compile` has made kernels of its own for them.

Ops are timed as they are: compiling each at every width would take hours. Whole networks are compiled, and calibrate
what is left of their times: products run in the same kernels, most of what only passes values on in none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fxcat.errors import ExportError
from fxcat.exporters.inputs import at_batch, example_arguments
from fxcat.exporters.timing.eager import inference_run, measure_ops
from fxcat.exporters.timing.runs import Run, threads_of_torch

__all__ = ["VERSIONS", "measure_ops", "network_run"]
VERSIONS: dict[str, str] = {}


def network_run(module: nn.Module, example: Any, *, batch: int, threads: int) -> Run:
    """One run of the compiled module, in inference mode. Raises `ExportError` if it cannot be compiled."""
    values = at_batch(example_arguments(module, example), batch, seed=0)
    run = inference_run(torch.compile(module.eval(), dynamic=False), values)
    try:
        with threads_of_torch(threads):
            run()
    except Exception as error:  # of dynamo, inductor, or the C++ compiler that this calls
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ExportError(
            f"torch.compile cannot compile it: {type(error).__name__}: {reason}",
            where=type(module).__name__,
            remedy="see whether torch.compile(model) works on this machine; it needs a C++ compiler",
        ) from error
    return run
