"""Many small modules as one ONNX file, which computes them side by side, to be measured at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from fxcat.exporters.silence import quiet_tracing
from fxcat.network.latency import Instance

OPSET = 20
"""The newest that the tracing exporter knows, which is many times as fast here as the other one."""


def with_values(instance: Instance, seed: int = 0) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The module and its inputs on the CPU with random values: how long an op takes does not depend on them, unless
    they are no ordinary numbers."""
    module, inputs = instance
    generator = torch.Generator().manual_seed(seed)
    module = module.to_empty(device="cpu").eval()
    for tensor in (*module.parameters(), *module.buffers()):
        _fill(tensor.data, generator)
    return module, tuple(_fill(torch.empty_like(x, device="cpu"), generator) for x in inputs)


def _fill(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Between ½ and 1: no variance is negative, nothing overflows."""
    if tensor.is_floating_point():
        return tensor.uniform_(0.5, 1.0, generator=generator).mul_(1 / max(1, tensor[0].numel() if tensor.dim() else 1))
    return tensor.zero_()


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
