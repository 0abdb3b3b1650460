"""How long ops and networks take in ONNX Runtime on the CPU: it tells the time of every node of a file."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from torch import nn

from fxcat.exporters.runtime import CPU, feed
from fxcat.exporters.timing.files import exported, write_ops
from fxcat.exporters.timing.op_grid import Measured
from fxcat.exporters.timing.runs import Run
from fxcat.network.latency import Instance

VERSIONS = {"onnxruntime": ort.__version__}
_LAYOUT = ("ReorderInput", "ReorderOutput", "Transpose")
_WARM_UP = 3
_FASTEST = 0.5
"""Share of the runs, the fastest, that count: what else the machine does only ever adds."""
_LARGEST = 1 << 28
"""Bytes of the weights and inputs of one file, so that it fits into memory, and not into any cache."""
_MOST = 160
"""Ops in one file."""


def measure_ops(instances: Sequence[Instance], *, threads: int, repeats: int) -> list[Measured | None]:
    """Of every op its time; None where it has no ONNX form, or does not run."""
    found: list[Measured | None] = []
    for chunk in _chunks(instances):
        found += _measured(chunk, threads, repeats)
    return found


def network_run(module: nn.Module, example: Any, *, batch: int, threads: int) -> Run:
    """One run of the module's ONNX file."""
    with exported(module, example, batch) as (path, arguments):
        options = _session_options(threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session: Any = ort.InferenceSession(str(path), options, providers=[CPU])
    values = feed(session, arguments)
    return lambda: session.run(None, values)


def _chunks(instances: Sequence[Instance]) -> list[list[Instance]]:
    chunks: list[list[Instance]] = [[]]
    size = 0
    for module, inputs in instances:
        own = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers(), *inputs))
        if chunks[-1] and (size + own > _LARGEST or len(chunks[-1]) == _MOST):
            chunks.append([])
            size = 0
        chunks[-1].append((module, inputs))
        size += own
    return chunks


def _measured(instances: Sequence[Instance], threads: int, repeats: int) -> list[Measured | None]:
    try:
        return list(_profiled(instances, threads, repeats))
    except Exception:  # whatever exporter and runtime have against one of them
        if len(instances) == 1:
            return [None]
    half = len(instances) // 2
    return _measured(instances[:half], threads, repeats) + _measured(instances[half:], threads, repeats)


def _profiled(instances: Sequence[Instance], threads: int, repeats: int) -> list[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        path, fused = Path(folder) / "ops.onnx", Path(folder) / "fused.onnx"
        names = write_ops(instances, path)
        ort.InferenceSession(str(path), _session_options(threads, optimized=fused), providers=[CPU])
        model = onnx.load(str(fused))
        owners = _owners(model.graph, names)
        onnx.save(model, str(fused))
        options = _session_options(threads, profile=Path(folder) / "profile")
        session = ort.InferenceSession(str(fused), options, providers=[CPU])
        rng = np.random.default_rng(0)
        feed = {i.name: _values(i, rng) for i in session.get_inputs()}
        for _ in range(_WARM_UP + repeats):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _per_op(events, model.graph, owners, len(instances))


def _session_options(threads: int, *, optimized: Path | None = None, profile: Path | None = None) -> Any:
    """Of a session with so many threads, that logs errors only. `optimized`: where to write the file as it is run;
    `profile`: where to write what every node of such a file takes."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimized already
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return options


def _values(entry: Any, rng: np.random.Generator) -> Any:
    if entry.type in ("tensor(float)", "tensor(double)", "tensor(float16)"):
        kind = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}[entry.type]
        return rng.uniform(0.5, 1.0, entry.shape).astype(kind)
    return np.zeros(entry.shape, dtype={"tensor(bool)": np.bool_, "tensor(int32)": np.int32}.get(entry.type, np.int64))


def _owners(graph: onnx.GraphProto, names: Sequence[Sequence[str]]) -> dict[str, int]:
    """For every node, which gets a name of its own, the op that it is a part of: that whose inputs it reads."""
    owner = {name: i for i, group in enumerate(names) for name in group}
    found: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        node.name = f"node_{number}"
        reads = [owner[name] for name in node.input if name in owner]
        if reads:
            found[node.name] = reads[0]
            owner.update(dict.fromkeys(node.output, reads[0]))
    return found


def _per_op(events: Any, graph: onnx.GraphProto, owners: dict[str, int], count: int) -> list[Measured]:
    durations: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
    kernel, layout, nodes = [0.0] * count, [0.0] * count, [0] * count
    for node in graph.node:
        if node.name in owners and node.name in durations:
            taken = sorted(durations[node.name][_WARM_UP:])
            time = sum(taken[: max(1, math.ceil(_FASTEST * len(taken)))]) / max(1, math.ceil(_FASTEST * len(taken)))
            i = owners[node.name]
            is_layout = node.op_type in _LAYOUT[:2]
            layout[i] += time * is_layout
            kernel[i] += time * (not is_layout)
            nodes[i] += not is_layout
    return [Measured(*each) for each in zip(kernel, layout, nodes, strict=True)]
