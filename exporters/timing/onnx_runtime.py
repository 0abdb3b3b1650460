"""How long ops and networks take in ONNX Runtime on the CPU: it tells the time of every node of a file."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from fxcat.exporters.runtime import CPU, feed
from fxcat.exporters.timing.files import exported, write_ops
from fxcat.exporters.timing.op_grid import Measured
from fxcat.exporters.timing.runs import Run, often
from fxcat.network.latency import Instance

VERSIONS = {"onnxruntime": ort.__version__}
_LAYOUT = ("ReorderInput", "ReorderOutput")
_WARM_UP = 3
_PASSES = 3
"""So often every file is loaded and run, one after another."""
_FASTEST = 0.5
"""Share of the runs, the fastest, that count: what else the machine does only ever adds."""
_LEAST = 1e-4
"""Milliseconds of a node: none takes no time."""
_LARGEST = 1 << 28
"""Bytes of the weights and inputs of one file, so that it fits into memory, and not into any cache."""
_MOST = 160
"""Ops in one file."""


def measure_ops(instances: Sequence[Instance], *, threads: int, repeats: int) -> list[Measured | None]:
    """Of every op its time; None where it has no ONNX form, or does not run. All are run in several passes, so that a
    machine that is slow for a while slows none of them alone."""
    passes = min(_PASSES, repeats)
    with tempfile.TemporaryDirectory() as folder:
        files = [f for chunk in _chunks(instances) for f in _files(chunk, Path(folder), threads, repeats // passes)]
        for _ in range(passes - 1):
            for file in files:
                if file is not None:
                    file.run(threads, repeats // passes)
    return [measured for file in files for measured in ([None] if file is None else file.measured())]


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


class _File:
    """Ops side by side in an optimised ONNX file, and how long each of its nodes took in every run; beside them one
    that does next to nothing, which tells how much of every time is that of writing it down."""

    def __init__(self, instances: Sequence[Instance], folder: Path, threads: int) -> None:
        path, self._path = folder / "ops.onnx", folder / "fused.onnx"
        names = write_ops([*instances, (nn.ReLU(), (torch.empty(1, device="meta"),))], path, inside=True)
        ort.InferenceSession(str(path), _session_options(threads, optimized=self._path), providers=[CPU])
        path.unlink()
        model = onnx.load(str(self._path))
        self._owners, self._count = _owners(model.graph, names), len(instances)
        self._kinds = {node.name: node.op_type for node in model.graph.node}
        onnx.save(model, str(self._path))
        self._taken: dict[str, list[float]] = defaultdict(list)

    def run(self, threads: int, repeats: int) -> None:
        """Run all so many times, after a warm-up."""
        options = _session_options(threads, profile=self._path.with_name("profile"))
        session = ort.InferenceSession(str(self._path), options, providers=[CPU])
        rng = np.random.default_rng(0)
        _run_often(session, {i.name: _values(i, rng) for i in session.get_inputs()}, repeats)
        told = Path(session.end_profiling())
        durations: dict[str, list[float]] = defaultdict(list)
        for event in json.loads(told.read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                durations[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
        told.unlink()
        for name, taken in durations.items():
            self._taken[name] += taken[_WARM_UP:]

    def measured(self) -> list[Measured]:
        """Of every op."""
        times = {name: self._time(name) for name in self._owners if name in self._taken}
        idle = min((taken for name, taken in times.items() if self._owners[name] == self._count), default=0.0)
        kernel, layout, nodes = [0.0] * self._count, [0.0] * self._count, [0] * self._count
        for name, taken in times.items():
            i, is_layout = self._owners[name], self._kinds[name] in _LAYOUT
            if i < self._count:
                (layout if is_layout else kernel)[i] += max(_LEAST, taken - idle)
                nodes[i] += not is_layout
        return [Measured(*each) for each in zip(kernel, layout, nodes, strict=True)]

    def _time(self, name: str) -> float:
        """Milliseconds of a node."""
        taken = sorted(self._taken[name])[: max(1, math.ceil(_FASTEST * len(self._taken[name])))]
        return sum(taken) / len(taken)


def _files(instances: Sequence[Instance], folder: Path, threads: int, repeats: int) -> list[_File | None]:
    """Files of these ops, which were run so many times; None in the place of an op that cannot be."""
    try:
        file = _File(instances, Path(tempfile.mkdtemp(dir=folder)), threads)
        file.run(threads, repeats)
        return [file]
    except Exception:  # whatever exporter and runtime have against one of them
        if len(instances) == 1:
            return [None]
    half = len(instances) // 2
    return [f for part in (instances[:half], instances[half:]) for f in _files(part, folder, threads, repeats)]


def _run_often(session: Any, values: dict[str, Any], repeats: int) -> None:
    """Run `repeats` times, quick ones more often, after a warm-up."""
    seconds = 0.0
    for _ in range(_WARM_UP):
        start = time.perf_counter()
        session.run(None, values)
        seconds = time.perf_counter() - start
    for _ in range(often(repeats, seconds)):
        session.run(None, values)


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
    """For every node, which gets a name of its own, the op that it is a part of: that whose inputs it reads. What only
    shows the result is no part of it."""
    owner = {name: i for i, group in enumerate(names) for name in group}
    shown = _showing(graph)
    found: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        node.name = f"node_{number}"
        reads = [owner[name] for name in node.input if name in owner]
        if reads and node.output[0] not in shown:
            found[node.name] = reads[0]
            owner.update(dict.fromkeys(node.output, reads[0]))
    return found


def _showing(graph: onnx.GraphProto) -> set[str]:
    """The values that `write_ops` adds to show entries of results."""
    makers = {node.output[0]: node for node in graph.node}
    found: set[str] = set()
    for output in graph.output:
        node = makers.get(output.name)
        if node is None or node.op_type != "Slice":
            continue
        found.add(output.name)
        before = makers.get(node.input[0])
        if before is not None and before.op_type == "Reshape":
            found.add(before.output[0])
    return found
