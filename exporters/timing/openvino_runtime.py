"""How long ops and networks take in OpenVINO on the CPU, which reads the same ONNX files and tells the time of every
node that it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import nn

from fxcat.exporters.inputs import tensor_leaves
from fxcat.exporters.timing.files import exported, write_ops
from fxcat.exporters.timing.op_grid import Measured
from fxcat.exporters.timing.runs import Run, fast_median
from fxcat.network.latency import Instance

VERSIONS = {"openvino": ov.__version__}
_LAYOUT = "Reorder"
_WARM_UP = 3


def measure_ops(instances: Sequence[Instance], *, threads: int, repeats: int) -> list[Measured | None]:
    """Every op as a file of its own; None where it has no ONNX form, or OpenVINO does not run it."""
    return [_measured(instance, threads, repeats) for instance in instances]


def network_run(module: nn.Module, example: Any, *, batch: int, threads: int) -> Run:
    """One run of the module's ONNX file."""
    with exported(module, example, batch) as (path, arguments):
        request = _request(path, threads)
    values = [tensor.numpy() for tensor in tensor_leaves(arguments)]
    return lambda: request.infer(values)


def _request(path: Path, threads: int, **settings: Any) -> Any:
    settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core: Any = ov.Core()
    return core.compile_model(path, "CPU", settings).create_infer_request()


def _measured(instance: Instance, threads: int, repeats: int) -> Measured | None:
    _, inputs = instance
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "op.onnx"
        try:
            write_ops([instance], path)
            request = _request(path, threads, PERF_COUNT=True)
            values = [_values(x) for x in inputs]
            runs: list[list[tuple[str, float]]] = []
            for _ in range(_WARM_UP + repeats):
                request.infer(values)
                runs.append(_told(request))
        except Exception:  # whatever exporter and runtime have against it
            return None
    runs = runs[_WARM_UP:]
    kernel, layout = (
        fast_median([sum(ms for kind, ms in run if (kind == _LAYOUT) == is_layout) for run in runs])
        for is_layout in (False, True)
    )
    return Measured(kernel, layout, sum(kind != _LAYOUT for kind, _ in runs[-1]))


def _told(request: Any) -> list[tuple[str, float]]:
    """Kind and milliseconds of every node that was run."""
    nodes = [n for n in request.get_profiling_info() if n.status == ov.ProfilingInfo.Status.EXECUTED]
    return [(str(n.node_type), 1e3 * n.real_time.total_seconds()) for n in nodes]


def _values(tensor: torch.Tensor) -> Any:
    kind = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    if not tensor.is_floating_point():
        return np.zeros(tuple(tensor.shape), dtype=kind)
    return np.random.default_rng(0).uniform(0.5, 1.0, tuple(tensor.shape)).astype(kind)
