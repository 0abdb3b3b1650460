"""`export_onnx`: a module as a verified ONNX file. The libraries of ONNX are loaded when it is called, not before."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from fxcat.checks import as_path, check_flag, check_integer, check_module
from fxcat.errors import ExportError, InputError
from fxcat.exporters.report import ExportReport
from fxcat.gated import GatedModule


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

    Needs `pip install "fxcat[onnx]"`: onnx, onnxscript, and onnxruntime or one of its other builds (`onnxruntime-gpu`).

    Raises `StorageError` (the path cannot be written), `InputError`, and `ExportError` (a package is missing, the
    export failed, or the file does not compute what the module computes).
    """
    check_module(module, "export_onnx()")
    gated = next((path for path, part in module.named_modules() if isinstance(part, GatedModule)), None)
    if gated is not None:
        raise InputError("the module still has gates", where=gated, remedy="export fxcat.finalize(net) instead")
    check_integer(opset, "opset", least=1, optional=True)
    check_flag(verify, "verify")
    check_flag(dynamic_batch, "dynamic_batch")
    target = as_path(path)
    try:
        from fxcat.exporters.onnx_file import write_file
    except ModuleNotFoundError as error:
        raise ExportError(
            f"ONNX files need the package {error.name}",
            remedy='pip install "fxcat[onnx]", or onnxruntime-gpu beside it',
        ) from error
    return write_file(module, target, example_inputs, verify=verify, opset=opset, dynamic_batch=dynamic_batch)
