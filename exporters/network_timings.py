"""How long whole networks take in a runtime, several side by side."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import nn

from fxcat.exporters.form import Form
from fxcat.exporters.inputs import at_batch, example_arguments
from fxcat.exporters.onnx_file import write_file
from fxcat.exporters.op_timings import session_options
from fxcat.exporters.runtime import CPU, feed

_WARM_UP = 3
Run = Callable[[], object]


def exported_run(module: nn.Module, example: Any, *, batch: int, threads: int) -> Run:
    """One run of the module's ONNX file."""
    arguments = at_batch(example_arguments(module, example), batch, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_file(module, path, arguments, Form(dynamic_batch=False), verify=False)
        options = session_options(threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session: Any = ort.InferenceSession(str(path), options, providers=[CPU])
    values = feed(session, arguments)
    return lambda: session.run(None, values)


def eager_run(module: nn.Module, example: Any, *, batch: int) -> Run:
    """One run of the module itself, in inference mode."""
    values = at_batch(example_arguments(module, example), batch, seed=0)
    module = module.eval()

    def run() -> object:
        with torch.inference_mode():
            return module(*values)

    return run


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
