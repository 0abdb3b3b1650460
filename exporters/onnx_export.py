"""`export_onnx`: a module as a verified ONNX file. The libraries of ONNX are loaded when it is called, not before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxcat.checks import as_path, check_flag
from fxcat.errors import ExportError
from fxcat.exporters.form import Form
from fxcat.exporters.report import ExportReport
from fxcat.gated_checks import check_without_gates


def export_onnx(
    module: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | list[torch.Tensor] | tuple[Any, ...] | None = None,
    *,
    verify: bool = True,
    compare: nn.Module | None = None,
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    external_data: bool | None = None,
    half: bool = False,
) -> ExportReport:
    """Export `module` in inference mode with a dynamic batch, verified in ONNX Runtime at batch 1 and 4.

    `example_inputs`: a tensor of shape (N, …), a tuple of the arguments of `forward`, or a dict with their names. If
    not given: for what `finalize` returned those that it was prepared with, else found from the module. Only shapes
    matter: tensors may be on the meta device. The module is not touched.

    `dynamic_batch=False`: the file takes the batch size of the example inputs only, and is verified on them and on
    random ones. So it is always where an argument is a list of images (C, H, W), as for detectors: their number and
    sizes are those of the example (`report.batches` tells), and each is an input of its own. `dynamic_size`: images
    (N, C, H, W) may have other heights and widths; verified with higher and with wider ones.

    `opset`: the exporter's default if not given; those before 18 are written by the older, tracing one. `input_names`,
    `output_names`: instead of those of the module's arguments and results. `external_data`: whether the weights lie in
    `<path>.data`; by default only what does not fit into one file (2 GB). `half`: weights and arithmetic in float16;
    inputs and outputs stay float32, and may differ from the module's by 1e-2 in place of 1e-4, relative to
    max(1, max |output|). `compare`: another module, such as the dense one: its file's latency is measured in
    alternation with this one's.

    Needs `pip install "fxcat[onnx]"`: onnx, onnxscript, and onnxruntime or one of its other builds (`onnxruntime-gpu`).

    Raises `StorageError` (the path cannot be written), `InputError`, and `ExportError` (a package is missing, the
    export failed, or the file does not compute what the module computes).
    """
    for given in (module, compare) if compare is not None else (module,):
        check_without_gates(given, "export_onnx()")
    form = Form(opset, dynamic_batch, dynamic_size, input_names, output_names, external_data, half)
    form.check()
    check_flag(verify, "verify")
    target = as_path(path)
    try:
        from fxcat.exporters.onnx_file import write_file
    except ModuleNotFoundError as error:
        raise ExportError(
            f"ONNX files need the package {error.name}",
            remedy='pip install "fxcat[onnx]", or onnxruntime-gpu beside it',
        ) from error
    return write_file(module, target, example_inputs, form, verify=verify, compare=compare)
