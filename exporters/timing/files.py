"""The ONNX files that are timed: of a network, and of many small modules side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fxcat.exporters.form import Form
from fxcat.exporters.inputs import at_batch, example_arguments
from fxcat.exporters.onnx_file import write_file
from fxcat.exporters.silence import quiet_tracing
from fxcat.exporters.timing.instances import with_values
from fxcat.network.latency import Instance

OPSET = 20
"""The newest that the tracing exporter knows, which is many times as fast here as the other one."""


class _SideBySide(nn.Module):
    """Runs every module on its own inputs. `inside`: no result is one of the file's, but its first entry is."""

    def __init__(self, modules: Sequence[nn.Module], counts: Sequence[int], inside: bool) -> None:
        super().__init__()
        self.ops, self._counts, self._inside = nn.ModuleList(modules), counts, inside

    def forward(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        outputs: list[Any] = []
        start = 0
        for module, count in zip(self.ops, self._counts, strict=True):
            found = [x for x in tree_leaves(module(*inputs[start : start + count])) if isinstance(x, torch.Tensor)]
            outputs += [x.reshape(-1)[:1] for x in found] if self._inside else found
            start += count
        return tuple(outputs)


def write_ops(instances: Sequence[Instance], path: Path, *, inside: bool = False) -> list[list[str]]:
    """Write the file. Returns for every instance the names of its inputs, which no other has. `inside`: results are
    values within the graph, as in a network: the last two nodes, a Reshape and a Slice, show one entry of each.

    Raises whatever the exporter raises if it has no form for an op.
    """
    filled = [with_values(instance, i) for i, instance in enumerate(instances)]
    names = [[f"op_{i}_input_{k}" for k in range(len(inputs))] for i, (_, inputs) in enumerate(filled)]
    both = _SideBySide([module for module, _ in filled], [len(inputs) for _, inputs in filled], inside)
    with quiet_tracing(), torch.no_grad():
        torch.onnx.export(
            both.eval(),
            tuple(x for _, inputs in filled for x in inputs),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[n for group in names for n in group],
            verbose=False,
        )
    _pool_as_networks_do(path)
    return names


def _pool_as_networks_do(path: Path) -> None:
    """The exporter of networks writes a pooling to one entry as a mean, this one as an op that runtimes do faster."""
    model = onnx.load(str(path))
    ranks = {entry.name: len(entry.type.tensor_type.shape.dim) for entry in model.graph.input}
    pools = [node for node in model.graph.node if node.op_type == "GlobalAveragePool" and node.input[0] in ranks]
    for node in pools:
        axes = onnx.numpy_helper.from_array(np.arange(2, ranks[node.input[0]]), f"{node.output[0]}_axes")
        model.graph.initializer.append(axes)
        node.op_type = "ReduceMean"
        node.input.append(axes.name)
    if pools:
        onnx.save(model, str(path))


@contextmanager
def exported(module: nn.Module, example: Any, batch: int) -> Generator[tuple[Path, tuple[Any, ...]]]:
    """The module's ONNX file, as long as the block lasts, and arguments for a batch of this size."""
    arguments = at_batch(example_arguments(module, example), batch, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_file(module, path, arguments, Form(dynamic_batch=False), verify=False)
        yield path, arguments
