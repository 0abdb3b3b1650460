"""What is said of a file that was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    `bytes`: with external weights, if any. `operators`: ONNX operator → number of nodes. `max_error`: the largest
    difference from PyTorch over all `batches`, relative to max(1, max |output|); one batch means that it is fixed.
    `latency_ms`: median milliseconds at the first batch in ONNX Runtime on `provider`; `compared_latency_ms`: of the
    module to compare with. Without verification there are no batches, and the others are None.
    `predicted_latency_ms`: what the `LatencyTable` says that the network had when it was finalized, of a run as in
    `predicted_for` (runtime, device, threads, batch); None without a table.
    """

    path: Path
    bytes: int
    opset: int
    operators: Mapping[str, int]
    batches: tuple[int, ...] = ()
    max_error: float | None = None
    provider: str | None = None
    latency_ms: float | None = None
    compared_latency_ms: float | None = None
    predicted_latency_ms: float | None = None
    predicted_for: str | None = None
