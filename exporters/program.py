"""A module in inference mode → an ONNX program in memory, with a dynamic batch and without leftovers.

The capture is `torch.export` itself, not the one inside `torch.onnx.export`: that one, when the code of a module
allows some batch sizes only, quietly narrows the dynamic batch to those (seen in torch 2.15: `view(2, -1)`,
`if x.shape[0] > 3`). Here it is an error.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import os
import traceback
import warnings
from collections.abc import Generator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from fxcat.errors import ExportError, InputError
from fxcat.exporters.inputs import at_batch
from fxcat.exporters.outputs import named_tensors

_TRACE_BATCH = 2
"""Not 1: `torch.export` takes a dimension of size 1 for a constant."""
_aten: Any = torch.ops.aten


def inference_copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU in inference mode, for export and as the reference: the module itself stays as it is."""
    try:
        return copy.deepcopy(module).cpu().eval().requires_grad_(False)
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be copied: {_first_line(error)}",
            remedy="a module that holds results of computations (tensors with a history) cannot be copied: detach them",
        ) from error


def build_program(reference: nn.Module, arguments: tuple[Any, ...], opset: int | None) -> Any:
    """The `ONNXProgram` of an inference copy. Raises `InputError` if the module does not run on the arguments, and
    `ExportError` if it cannot be exported for every batch size."""
    inputs = at_batch(arguments, _TRACE_BATCH, seed=0)
    names = _output_names(reference, inputs)
    batch = torch.export.Dim("batch")
    shapes = tree_map(lambda v: {0: batch} if isinstance(v, torch.Tensor) else None, inputs)
    with _flat_outputs(reference), _quiet(), torch.no_grad():
        try:
            exported = torch.export.export(reference, inputs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise ExportError(
                f"torch.export cannot capture {type(reference).__name__}: {_first_line(error)}",
                where=_source_line(error),
                remedy="write forward without branches or shapes that depend on the batch size or on values",
            ) from error
        _plain_pooling(exported)
        try:
            program: Any = torch.onnx.export(
                exported,
                (),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=opset,
                output_names=names,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"torch.onnx cannot translate {type(reference).__name__}: {_first_line(error)}",
                remedy="see the cause above: an operator has no ONNX form in this opset, or one that is not supported",
            ) from error
    _strip_metadata(program.model)
    return program


def _output_names(reference: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    try:
        with torch.no_grad():
            output = reference(*inputs)
    except Exception as error:
        raise InputError(
            f"{type(reference).__name__} fails on example inputs at batch {_TRACE_BATCH}: {_first_line(error)}",
            where=_source_line(error),
            remedy="give example_inputs that forward accepts on the CPU, with the batch as dimension 0",
        ) from error
    names = [name for name, _ in named_tensors(output)]
    if not names:
        raise ExportError(f"{type(reference).__name__} returns no tensor")
    return names


@contextlib.contextmanager
def _flat_outputs(reference: nn.Module) -> Generator[None, None, None]:
    """While it is captured, a module returns a tuple of tensors: `torch.export` refuses unknown dataclasses."""
    original = reference.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for _, tensor in named_tensors(original(*args, **kwargs)))

    before = vars(reference).get("forward")
    reference.forward = forward
    try:
        yield
    finally:
        if before is None:
            del reference.forward
        else:
            reference.forward = before


def _plain_pooling(exported: torch.export.ExportedProgram) -> None:
    """Average pooling to 1×1 is a mean. For channels-last values torch adds a re-stride, which changes no value but
    would become index arithmetic in ONNX (six nodes in a ConvNeXt)."""
    for node in exported.graph.nodes:
        if node.target is _aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            node.target = _aten.mean.dim
            node.args = (node.args[0], [-2, -1], True)


def _strip_metadata(model: Any) -> None:
    """Stack traces with paths of this machine and the exporter's notes on its own work stay out of the file."""
    graph = model.graph
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
    for item in (model, graph, *nodes, *values):
        item.metadata_props.clear()
        item.doc_string = None


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """The exporters warn of their own internals, log what they skip and print graphs: none of it is for the user."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.fx.experimental", "onnxscript", "onnx_ir")]
    loggers += [logging.getLogger("torch.fx.experimental.symbolic_shapes")]  # has a level of its own
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    """What an exception says; the reason of a violated constraint is in its second line."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    count = 2 if lines and lines[0].startswith("Constraints violated") else 1
    return " ".join(lines[:count]) or type(error).__name__


def _source_line(error: Exception) -> str | None:
    """The innermost line of code that belongs neither to torch nor to this folder."""
    own = (os.path.dirname(torch.__file__), os.path.dirname(__file__), "<frozen")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
