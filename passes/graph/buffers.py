"""Buffers that the compiler adds to a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def add_buffers(root: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """Register new index tensors, by their full names."""
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    for name, value in buffers.items():
        add_buffer(root, name, value.to(device))


def add_buffer(root: nn.Module, name: str, value: torch.Tensor, *, persistent: bool = True) -> None:
    """Register a buffer of a submodule by its full name; one that was there, and was not persistent, stays so."""
    path, _, leaf = name.rpartition(".")
    module = root.get_submodule(path)
    persistent = persistent and leaf not in module._non_persistent_buffers_set
    module.register_buffer(leaf, value, persistent=persistent)
