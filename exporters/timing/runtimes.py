"""The runtimes that can be timed: each is a file, which is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

from torch import nn

from fxcat.exporters.timing.op_grid import Measured
from fxcat.exporters.timing.runs import Run
from fxcat.network.latency import Instance

Runtime = Literal["onnxruntime", "openvino", "torch", "torch.compile"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
EXTRAS: dict[Runtime, str] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""What of fxcat's extras installs a runtime."""


class Timer(Protocol):
    """What a file says of its runtime, on the CPU, with so many threads. `VERSIONS`: of its packages."""

    VERSIONS: dict[str, str]

    def measure_ops(self, instances: Sequence[Instance], *, threads: int, repeats: int) -> list[Measured | None]:
        """Of every op its time; None where the runtime has no form of it, or it does not run."""
        ...

    def network_run(self, module: nn.Module, example: Any, *, batch: int, threads: int) -> Run:
        """One run of a network, to be timed."""
        ...


def timer(runtime: Runtime) -> Timer:
    """Raises `ModuleNotFoundError` if a package is missing."""
    if runtime == "onnxruntime":
        from fxcat.exporters.timing import onnx_runtime

        return onnx_runtime
    if runtime == "openvino":
        from fxcat.exporters.timing import openvino_runtime

        return openvino_runtime
    if runtime == "torch.compile":
        from fxcat.exporters.timing import compiled

        return compiled
    from fxcat.exporters.timing import eager

    return eager
