"""Ops to be timed, with values."""

from __future__ import annotations

import torch
from torch import nn

from fxcat.network.latency import Instance


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
