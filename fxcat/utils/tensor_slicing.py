"""Slicing tensors along several axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch

Keep: TypeAlias = Mapping[str, Mapping[int, torch.Tensor]]
"""Per parameter or buffer, per axis: the surviving indices."""


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of axes."""


def select(tensor: torch.Tensor, axes: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The surviving part of a tensor, in the same memory format; a meta tensor has only a shape to lose."""
    layout = _CHANNELS_LAST.get(tensor.dim(), torch.contiguous_format)
    if tensor.dim() not in _CHANNELS_LAST or tensor.stride(1) != 1 or not tensor.is_contiguous(memory_format=layout):
        layout = torch.contiguous_format
    for axis, index in axes.items():
        if tensor.is_meta:
            shape = [len(index) if a == axis else s for a, s in enumerate(tensor.shape)]
            tensor = tensor.new_empty(shape)
        else:
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor.contiguous(memory_format=layout)


def replace_data(parameter: torch.nn.Parameter, data: torch.Tensor, gradient: torch.Tensor | None) -> None:
    """Give a parameter data and gradient of another shape; the object stays the same.

    A backward graph of an earlier step that is still alive keeps the parameter's gradient accumulator alive, and that
    one insists on the old shape. Autograd drops it only when the data changes type: so pass through another type.
    """
    parameter.grad = None
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = data
    parameter.grad = gradient
