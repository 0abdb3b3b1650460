"""A module in inference mode → an ONNX program in memory, with a dynamic batch or a fixed one, without leftovers.

The capture is `torch.export` itself, not the one inside `torch.onnx.export`: that one, when the code of a module
allows some batch sizes only, quietly narrows the dynamic batch to those (seen in torch 2.15: `view(2, -1)`,
`if x.shape[0] > 3`). Here it is an error.
"""

from __future__ import annotations

import copy
import keyword
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from fxcat.errors import ExportError
from fxcat.exporters.attention import ATTENTION_OPSET, plain_attention
from fxcat.exporters.chunks import EqualChunks
from fxcat.exporters.form import Form
from fxcat.exporters.forward import flat_outputs
from fxcat.exporters.inputs import at_batch, tensor_leaves
from fxcat.exporters.kernels import PlainKernels
from fxcat.exporters.outputs import output_names
from fxcat.exporters.reasons import first_line, source_line, untranslated
from fxcat.exporters.silence import quiet

_TRACE_BATCH = 2
"""Not 1: `torch.export` takes a dimension of size 1 for a constant."""
_aten: Any = torch.ops.aten


def inference_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU in inference mode, for export and as the reference: the module itself stays as it is."""
    try:
        return copy.deepcopy(module).cpu().eval().requires_grad_(False)
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be copied: {first_line(error)}",
            remedy="a module that holds results of computations (tensors with a history) cannot be copied: detach them",
        ) from error


def build_program(reference: nn.Module, arguments: tuple[Any, ...], form: Form) -> Any:
    """The `ONNXProgram` of an inference copy, for all sizes that the form leaves open, else for those of the arguments.

    Raises `InputError` if the module does not run on the arguments, and `ExportError` if it cannot be exported.
    """
    inputs = at_batch(arguments, _TRACE_BATCH if form.dynamic_batch else None, seed=0)
    names = output_names(reference, inputs)
    names = form.named(form.output_names, names, "output_names")
    taken = form.input_names and form.named(form.input_names, tensor_leaves(inputs), "input_names")
    shapes = form.dynamic_shapes(inputs)
    with flat_outputs(reference), quiet(), torch.no_grad():
        try:
            with EqualChunks(), PlainKernels():
                exported = torch.export.export(reference, inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            reason = first_line(error)
            remedy = "write forward without branches or shapes that depend on the batch size or on values"
            if "(batch)" in reason:
                remedy += ", or export it for one batch size, with dynamic_batch=False"
            if form.dynamic_size:
                remedy += ", or export it for images of one size, with dynamic_size=False"
            raise ExportError(
                f"torch.export cannot capture {type(reference).__name__}: {reason}",
                where=source_line(error),
                remedy=remedy,
            ) from error
        names = _new_names(names, exported.graph_signature.user_inputs)
        _plain_pooling(exported)
        _without_keywords(exported)
        try:
            if form.opset is None or form.opset < ATTENTION_OPSET:
                exported = plain_attention(exported)
            return torch.onnx.export(
                exported,
                (),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=form.opset,
                input_names=taken,
                output_names=names,
                verbose=False,
            )
        except Exception as error:
            raise untranslated(error, exported, type(reference).__name__, form) from error


def _new_names(names: list[str], taken: Collection[Any]) -> list[str]:
    """Names of outputs; one that an input has too gets a suffix (`sample_out`)."""
    while not set(taken).isdisjoint(names):
        names = [f"{name}_out" if name in taken else name for name in names]
    return names


def _plain_pooling(exported: torch.export.ExportedProgram) -> None:
    """Average pooling to 1×1 is a mean. For channels-last values torch adds a re-stride, which changes no value but
    would become index arithmetic in ONNX (six nodes in a ConvNeXt)."""
    for node in exported.graph.nodes:
        if node.target is _aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target = _aten.mean.dim
            node.args = (node.args[0], [-2, -1], True)


def _without_keywords(exported: torch.export.ExportedProgram) -> None:
    """Tensors that lie under a keyword (`heads.class.weight`) get another name: torch writes names into code."""
    renamed: dict[str, str] = {}
    for tensors in (exported.state_dict, exported.constants):
        for old in [name for name in tensors if any(map(keyword.iskeyword, name.split(".")))]:
            new = ".".join(f"{part}_" if keyword.iskeyword(part) else part for part in old.split("."))
            while new in tensors:
                new += "_"
            tensors[new] = tensors.pop(old)
            renamed[old] = new
    for spec in exported.graph_signature.input_specs:
        spec.target = renamed.get(spec.target or "", spec.target)


def strip_metadata(model: Any) -> None:
    """Stack traces with paths of this machine and the exporter's notes on its own work stay out of the file."""
    graph = model.graph
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
    for item in (model, graph, *nodes, *values):
        item.metadata_props.clear()
        item.doc_string = None
