"""What a network costs where it is deployed: ONNX Runtime on the CPU, one thread, batch 1, beside the dense network."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import nn

import fxcat

WARM_UP = 10


def latency(model: nn.Module, dense: nn.Module, example: torch.Tensor, repeats: int = 200) -> dict[str, float]:
    """Median milliseconds of the network, and the ratio to the median of the dense one.

    Runs of the two alternate, and the order within a pair too: what else the machine does disturbs both alike.
    """
    example = example[:1].cpu().contiguous()
    with tempfile.TemporaryDirectory() as folder:
        sessions = [_session(m, Path(folder) / f"{i}.onnx", example) for i, m in enumerate((model, dense))]
    feeds = [{s.get_inputs()[0].name: example.numpy()} for s in sessions]
    times: list[list[float]] = [[], []]
    for repeat in range(WARM_UP + repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            start = time.perf_counter()
            sessions[which].run(None, feeds[which])
            if repeat >= WARM_UP:
                times[which].append(1e3 * (time.perf_counter() - start))
    own, reference = (statistics.median(t) for t in times)
    return {"latency ms": own, "latency ÷ dense": own / reference}


def _session(model: nn.Module, path: Path, example: torch.Tensor) -> Any:
    fxcat.export_onnx(copy.deepcopy(model).cpu().float().eval(), path, example)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
