"""`export_onnx`: a module as an ONNX file that was run in ONNX Runtime before it gets its name.

In: a plain module. Out: the file and an `ExportReport`. A failure leaves no file, and an older one as it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcat.checks import as_path, check_flag, check_integer, check_module
from fxcat.errors import ExportError, InputError, StorageError
from fxcat.exporters.inputs import batch_of, example_arguments, has_images
from fxcat.exporters.latency import measure_latency
from fxcat.exporters.program import build_program, inference_copy, strip_metadata
from fxcat.exporters.runtime import provider_for
from fxcat.exporters.staging import staged
from fxcat.exporters.tracing import trace_program
from fxcat.exporters.verify import BATCHES, FileFacts, check_file, compare_outputs, trials
from fxcat.gated import GatedModule
from fxcat.passes.exclusive import ONE_AT_A_TIME

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    `bytes`: with external weights, if any. `operators`: ONNX operator → number of nodes. `max_error`: the largest
    difference from PyTorch over all `batches`, relative to max(1, max |output|); one batch means that it is fixed.
    `latency_ms`: median milliseconds at the first batch in ONNX Runtime on `provider`. Without verification there are
    no batches, and the last three are None.
    """

    path: Path
    bytes: int
    opset: int
    operators: Mapping[str, int]
    batches: tuple[int, ...] = ()
    max_error: float | None = None
    provider: str | None = None
    latency_ms: float | None = None


def export_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | list[torch.Tensor] | tuple[Any, ...] | None = None,
    *,
    verify: bool = True,
    opset: int | None = None,
    dynamic_batch: bool = True,
) -> ExportReport:
    """Export `module` in inference mode with a dynamic batch, verified in ONNX Runtime at batch 1 and 4.

    `example_inputs`: a tensor of shape (N, …), a tuple of the arguments of `forward`, or a dict with their names; found
    from the module if not given. Only shapes matter: tensors may be on the meta device. `opset`: the exporter's default
    if not given.
    Weights beyond 2 GB lie in `<path>.data`. The module is not touched.

    `dynamic_batch=False`: the file takes the batch size of the example inputs only, and is verified on them and on
    random ones. So it is always where an argument is a list of images (C, H, W), as for detectors: their number and
    sizes are those of the example (`report.batches` tells), and each is an input of its own.

    Raises `StorageError` (the path cannot be written), `InputError`, and `ExportError` (the export failed, or the
    file does not compute what the module computes).
    """
    check_module(module, "export_onnx()")
    gated = next((path for path, part in module.named_modules() if isinstance(part, GatedModule)), None)
    if gated is not None:
        raise InputError("the module still has gates", where=gated, remedy="export fxcat.finalize(net) instead")
    check_integer(opset, "opset", least=1, optional=True)
    check_flag(verify, "verify")
    check_flag(dynamic_batch, "dynamic_batch")
    target = as_path(path)
    with ONE_AT_A_TIME, staged(target) as temporary:
        arguments = example_arguments(module, example_inputs)
        reference = inference_copy(module)
        images = has_images(arguments)
        dynamic = dynamic_batch and not images
        inputs = trials(arguments, dynamic)
        if images:
            program = trace_program(reference, inputs[0], opset)
        else:
            program = build_program(reference, arguments, opset, dynamic)
        strip_metadata(program.model)
        _write(program, temporary)
        facts = _facts(temporary, opset)
        size = sum(f.stat().st_size for f in temporary.parent.iterdir())
        report = ExportReport(target, size, facts.opset, facts.operators)
        if verify:
            agreement = compare_outputs(temporary, reference, inputs, provider_for(module))
            latency = measure_latency(temporary, arguments, provider=agreement.provider)
            report = ExportReport(
                *(target, size, facts.opset, facts.operators),
                batches=BATCHES if dynamic else (batch_of(arguments),),
                max_error=agreement.max_error,
                provider=agreement.provider,
                latency_ms=latency,
            )
    _log.info("wrote %s: %d nodes, %.1f MB", target, sum(report.operators.values()), size / 1e6)
    return report


def _write(program: Any, path: Path) -> None:
    try:
        program.save(path)  # one file; from about 2 GB on, torch puts the weights beside it
    except OSError as error:
        raise StorageError(
            f"the file cannot be written: {error}",
            where=str(path.parent.parent),
            remedy="make room, or choose another path",
        ) from error


def _facts(path: Path, opset: int | None) -> FileFacts:
    facts = check_file(path)
    # The exporter keeps its own opset, saying so in its log only, if it cannot convert the graph.
    if opset is not None and facts.opset != opset:
        raise ExportError(
            f"the graph cannot be expressed in opset {opset}",
            remedy=f"use opset={facts.opset}, which the exporter gives",
        )
    return facts
