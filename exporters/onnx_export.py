"""`export_onnx`: a module as an ONNX file that was run in ONNX Runtime before it gets its name.

In: a plain module. Out: the file and an `ExportReport`. The file is written under a temporary name in the target's
folder and moved when everything is checked; a failure leaves what was there before.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from fxcat.errors import ExportError, InputError, StorageError
from fxcat.exporters.latency import measure_latency
from fxcat.exporters.verify import compare_outputs, provider_for
from fxcat.passes.example import find_example_inputs

BATCHES = (1, 4)
"""Batch sizes at which the file is compared with the module."""
TOLERANCE = 1e-4
"""Largest difference, relative to max(1, max |output|)."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written. `max_error`: largest difference over all `batches`, relative to max(1, max |output|); None
    without verification. `latency_ms`: median milliseconds at batch 1 in ONNX Runtime on `provider`."""

    path: Path
    bytes: int
    opset: int
    operators: Mapping[str, int]
    batches: tuple[int, ...]
    max_error: float | None
    provider: str
    latency_ms: float | None


def export_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | tuple[Any, ...] | None = None,
    *,
    verify: bool = True,
) -> ExportReport:
    """Export `module` in inference mode with a dynamic batch, verified in ONNX Runtime at batch 1 and 4.

    `example_inputs`: a tensor of shape (N, …) or one per argument of `forward`; found from the model if not given.
    The module and its train/eval flags are as before afterwards.

    Raises `StorageError` (the path cannot be written), `InputError`, and `ExportError` (the exporter failed, or the
    file does not compute what the module computes); then there is no new file, and an older one is untouched.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"export_onnx() got a {type(module).__name__}, not a torch.nn.Module")
    target = Path(path)
    _check_writable(target)
    inputs = _inputs(module, example_inputs)
    with _in_eval(module), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder) / target.name
        _export(module, temporary, inputs)
        model = onnx.load(str(temporary), load_external_data=False)
        provider = provider_for(module)
        error = latency = None
        if verify:
            _check_model(temporary, model)
            error = compare_outputs(module, temporary, inputs, BATCHES, TOLERANCE, provider)
            latency = measure_latency(temporary, inputs, provider=provider)
        report = ExportReport(
            path=target,
            bytes=sum(f.stat().st_size for f in Path(folder).iterdir()),
            opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
            operators=dict(Counter(n.op_type for n in model.graph.node)),
            batches=BATCHES if verify else (),
            max_error=error,
            provider=provider,
            latency_ms=latency,
        )
        # weights beyond 2 GB lie in files beside the model: the model itself moves last
        for file in sorted(Path(folder).iterdir(), key=lambda f: f == temporary):
            shutil.move(str(file), target.parent / file.name)
    return report


def _inputs(module: nn.Module, example_inputs: torch.Tensor | tuple[Any, ...] | None) -> tuple[torch.Tensor, ...]:
    given = find_example_inputs(module) if example_inputs is None else example_inputs
    values = given if isinstance(given, tuple) else (given,)
    for value in values:
        if not isinstance(value, torch.Tensor) or not value.dim():
            raise InputError(
                f"an example input is a {type(value).__name__}", remedy="give tensors with a batch dimension"
            )
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    # Two examples: a batch of one would be baked in as a constant.
    return tuple(torch.randn((2, *v.shape[1:]), generator=generator, dtype=v.dtype).to(device) for v in values)


def _export(module: nn.Module, path: Path, inputs: tuple[torch.Tensor, ...]) -> None:
    batch = torch.export.Dim("batch")
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                module, inputs, dynamo=True, dynamic_shapes=tuple({0: batch} for _ in inputs), verbose=False
            )
            program.save(str(path))
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"torch.onnx.export cannot export {type(module).__name__}: {reason[0] if reason else type(error).__name__}",
            remedy="see the cause above; fxcat adds no operators, so the unpruned model fails in the same way",
        ) from error


def _check_model(path: Path, model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise ExportError(f"the exported file is not valid ONNX: {error}") from error
    foreign = sorted({n.domain for n in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise ExportError(f"the exported file needs operators of the domains {foreign}")


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise StorageError("the path is a folder", where=str(path), remedy="give the name of a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise StorageError(
            f"the folder cannot be written: {error}", where=str(path.parent), remedy="make it, or choose another"
        ) from error


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    flags = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in flags.items():
            part.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals and logs every missing optional operator."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
