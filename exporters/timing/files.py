"""The ONNX files that are timed: of a network, and of many small modules side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """Runs every module on its own inputs."""

    def __init__(self, modules: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        self.ops, self._counts = nn.ModuleList(modules), counts

    def forward(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        outputs: list[Any] = []
        start = 0
        for module, count in zip(self.ops, self._counts, strict=True):
            outputs += [x for x in tree_leaves(module(*inputs[start : start + count])) if isinstance(x, torch.Tensor)]
            start += count
        return tuple(outputs)


def write_ops(instances: Sequence[Instance], path: Path) -> list[list[str]]:
    """Write the file. Returns for every instance the names of its inputs, which no other has.

    Raises whatever the exporter raises if it has no form for an op.
    """
    filled = [with_values(instance, i) for i, instance in enumerate(instances)]
    names = [[f"op_{i}_input_{k}" for k in range(len(inputs))] for i, (_, inputs) in enumerate(filled)]
    both = _SideBySide([module for module, _ in filled], [len(inputs) for _, inputs in filled])
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
    return names


@contextmanager
def exported(module: nn.Module, example: Any, batch: int) -> Generator[tuple[Path, tuple[Any, ...]]]:
    """The module's ONNX file, as long as the block lasts, and arguments for a batch of this size."""
    arguments = at_batch(example_arguments(module, example), batch, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_file(module, path, arguments, Form(dynamic_batch=False), verify=False)
        yield path, arguments
