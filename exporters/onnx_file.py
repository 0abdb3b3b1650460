"""An ONNX file that was run in ONNX Runtime before it gets its name. A failure leaves no file, and an older one as it
was.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fxcat.errors import ExportError, StorageError
from fxcat.exporters.form import Form
from fxcat.exporters.inputs import batch_of, example_arguments, has_images
from fxcat.exporters.latency import compare_latency, measure_latency
from fxcat.exporters.program import build_program, inference_copy, strip_metadata
from fxcat.exporters.report import ExportReport
from fxcat.exporters.runtime import provider_for
from fxcat.exporters.staging import staged
from fxcat.exporters.tidy import finish
from fxcat.exporters.tracing import OLDEST_CAPTURED, trace_program
from fxcat.exporters.verify import BATCHES, FileFacts, check_file, compare_outputs, trials
from fxcat.network.latency import latency_of
from fxcat.utils.exclusive import ONE_AT_A_TIME

_log = logging.getLogger(__name__)


def write_file(
    module: nn.Module, target: Path, example_inputs: Any, form: Form, *, verify: bool, compare: nn.Module | None = None
) -> ExportReport:
    """Export a module; arguments and errors are those of `export_onnx`."""
    with ONE_AT_A_TIME, staged(target) as temporary:
        arguments = example_arguments(module, example_inputs)
        reference = inference_copy(module)
        images = has_images(arguments)
        form = replace(form, dynamic_batch=False, dynamic_size=False) if images else form
        inputs = trials(arguments, form)
        if images or (form.opset is not None and form.opset < OLDEST_CAPTURED):
            program = trace_program(reference, inputs[0], form)
        else:
            program = build_program(reference, arguments, form)
        strip_metadata(program.model)
        _write(program, temporary)
        finish(temporary, form)
        facts = _facts(temporary, form.opset)
        size = sum(f.stat().st_size for f in temporary.parent.iterdir())
        report = ExportReport(target, size, facts.opset, facts.operators)
        predicted = latency_of(module)
        if predicted is not None:
            report = replace(report, predicted_latency_ms=predicted.milliseconds, predicted_for=predicted.label)
        if verify:
            # a copy of its own: the exporter has run the other one
            agreement = compare_outputs(temporary, inference_copy(module), inputs, provider_for(module), half=form.half)
            latency, dense = _latencies(temporary, arguments, agreement.provider, compare, form)
            report = replace(
                report,
                batches=BATCHES if form.dynamic_batch else (batch_of(arguments),),
                max_error=agreement.max_error,
                provider=agreement.provider,
                latency_ms=latency,
                compared_latency_ms=dense,
            )
    _log.info("wrote %s: %d nodes, %.1f MB", target, sum(report.operators.values()), size / 1e6)
    return report


def _latencies(
    path: Path, arguments: tuple[Any, ...], provider: str, other: nn.Module | None, form: Form
) -> tuple[float, float | None]:
    """Of the file, and of that of another module, measured in alternation."""
    if other is None:
        return measure_latency(path, arguments, provider=provider), None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "other.onnx"
        write_file(other, file, arguments, replace(form, external_data=None), verify=False)
        return compare_latency(path, file, arguments, provider=provider)


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
