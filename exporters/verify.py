"""Does an ONNX file compute what a module computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fxcat.errors import ExportError


def provider_for(module: nn.Module) -> str:
    """CUDA if ONNX Runtime has it and the module is there, else CPU."""
    on_gpu = any(p.is_cuda for p in module.parameters())
    if on_gpu and "CUDAExecutionProvider" in ort.get_available_providers():
        return "CUDAExecutionProvider"
    return "CPUExecutionProvider"


def open_session(path: Path, provider: str) -> Any:
    """An ONNX Runtime session that says only errors."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=[provider])


def compare_outputs(
    module: nn.Module,
    path: Path,
    inputs: tuple[torch.Tensor, ...],
    batches: tuple[int, ...],
    tolerance: float,
    provider: str,
) -> float:
    """Largest difference of any output at the given batch sizes, relative to max(1, max |output|).

    Raises `ExportError` if it is above the tolerance, or if the file does not run.
    """
    try:
        session = open_session(path, provider)
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load the exported file: {error}") from error
    names = [i.name for i in session.get_inputs()]
    if len(names) != len(inputs):
        raise ExportError(f"the exported file has {len(names)} inputs, the module was given {len(inputs)}")
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for batch in batches:
        values = [torch.randn((batch, *x.shape[1:]), generator=generator, dtype=x.dtype) for x in inputs]
        with torch.no_grad():
            expected = [t for t in tree_leaves(module(*[v.to(inputs[0].device) for v in values]))]
        try:
            found = session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)})
        except Exception as error:
            raise ExportError(f"the exported file does not run at batch {batch}: {error}") from error
        worst = max(worst, _difference(found, expected, batch))
    if not worst <= tolerance:
        raise ExportError(
            f"the exported file differs from the module by {worst:.1e} (allowed: {tolerance:.0e})",
            remedy="report the model: the exporter has changed its meaning",
        )
    return worst


def _difference(found: list[Any], expected: list[Any], batch: int) -> float:
    tensors = [e for e in expected if isinstance(e, torch.Tensor)]
    if len(found) != len(tensors):
        raise ExportError(f"the exported file has {len(found)} outputs, the module {len(tensors)}")
    worst = 0.0
    for value, tensor in zip(found, tensors, strict=True):
        other, wanted = torch.from_numpy(value), tensor.detach().cpu()
        if other.shape != wanted.shape:
            raise ExportError(f"an output has shape {tuple(other.shape)} at batch {batch}, not {tuple(wanted.shape)}")
        worst = max(worst, float((other - wanted).abs().max()) / max(1.0, float(wanted.abs().max())))
    return worst
