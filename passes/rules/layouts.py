"""Example values that rules give: made directly, since PyTorch's own functions for the meta device are slow Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def empty(sizes: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """A contiguous value of the type of another, on its device."""
    return torch.empty(sizes, dtype=like.dtype, device=like.device)


def same_layout(value: torch.Tensor) -> torch.Tensor | None:
    """What has the shape, type and strides of a value; None where an op would choose others, since the value has gaps,
    or stands in several places at once (`expand`)."""
    if value.is_contiguous():
        return value
    sizes, strides = value.shape, value.stride()
    extent = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if 0 in strides or extent != value.numel():
        return None
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
