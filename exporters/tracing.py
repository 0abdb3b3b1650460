"""Models that take a list of images, such as detectors, and older opsets: an ONNX program by torch's tracing
(TorchScript) exporter.

`torch.export` cannot capture detectors: how many boxes there are depends on values. The tracing exporter has ONNX forms
for what torchvision's detectors do there. It runs the module once and writes down what happens, so that the number of
images and their sizes are fixed, and other branches on values keep the side that was taken: the file has to be compared
with the module on other images than those that it was traced with.
"""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import ir
from torch import nn

from fxcat.errors import ExportError
from fxcat.exporters.form import Form, is_image
from fxcat.exporters.forward import flat_arguments
from fxcat.exporters.inputs import tensor_leaves
from fxcat.exporters.outputs import named_outputs, output_names
from fxcat.exporters.reasons import first_line, source_line
from fxcat.exporters.silence import quiet_tracing

OLDEST_CAPTURED = 18
"""The other exporter writes this opset and later ones."""
_OPSET = 18
_NEWEST_OPSET = 20
"""The last one that the tracing exporter knows; it only warns when asked for a later one."""


def trace_program(reference: nn.Module, inputs: tuple[Any, ...], form: Form) -> torch.onnx.ONNXProgram:
    """The program of an inference copy, for inputs of these shapes, but for what the form leaves open. Raises
    `InputError` if the module does not run on them, and `ExportError` if it cannot be exported."""
    opset = form.opset
    if opset is not None and opset > _NEWEST_OPSET:
        raise ExportError(
            f"models that take lists of images cannot be exported in opset {opset}",
            remedy=f"use an opset up to {_NEWEST_OPSET}",
        )
    taken = form.named(form.input_names, _input_names(reference, inputs), "input_names")
    returned = form.named(form.output_names, output_names(reference, inputs), "output_names")
    # Through a file, because what is kept in memory must not exceed 2 GB.
    with tempfile.TemporaryDirectory() as folder, flat_arguments(reference, inputs), quiet_tracing(), torch.no_grad():
        path = Path(folder) / "traced.onnx"
        try:
            torch.onnx.export(
                reference,
                tuple(tensor_leaves(inputs)),
                str(path),
                dynamo=False,
                opset_version=opset or _OPSET,
                input_names=taken,
                output_names=returned,
                dynamic_axes=_open_axes(form, inputs, taken, returned),
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"torch.onnx cannot trace {type(reference).__name__}: {first_line(error)}",
                where=source_line(error),
                remedy="see the cause above: an operator has no ONNX form in this opset or needs known shapes",
            ) from error
        return torch.onnx.ONNXProgram(ir.from_proto(onnx.load(str(path))), None)


def _open_axes(
    form: Form, inputs: tuple[Any, ...], taken: list[str], returned: list[str]
) -> dict[str, dict[int, str]] | None:
    """Names of the axes that may have other sizes."""
    if not form.dynamic_batch and not form.dynamic_size:
        return None
    batch = {0: "batch"} if form.dynamic_batch else {}
    sizes = {2: "height", 3: "width"} if form.dynamic_size else {}
    found = {n: batch | (sizes if is_image(t) else {}) for n, t in zip(taken, tensor_leaves(inputs), strict=True)}
    return found | dict.fromkeys(returned, batch)


def _input_names(reference: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    """`images` for the tensor in a list of one, `images_0` and so on in longer ones."""
    named = inspect.signature(reference.forward).bind(*inputs).arguments
    single = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in named.items()}
    return [name for name, _ in named_outputs(single)]
