"""Example values that rules give: made directly, since PyTorch's own functions for the meta device are slow Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def empty(sizes: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """A contiguous value of the type of another, on its device."""
    return torch.empty(sizes, dtype=like.dtype, device=like.device)


def same_layout(value: torch.Tensor) -> torch.Tensor | None:
    """What has the shape and type of a value and its order of axes in memory, without gaps, as results of elementwise
    ops have; None where there is no such order, since the value stands in several places at once (`expand`)."""
    if value.is_contiguous():
        return value
    sizes, given = value.shape, value.stride()
    if 0 in given:
        return None
    strides, step = [1] * len(sizes), 1
    for axis in sorted(range(len(sizes)), key=lambda a: (given[a], -a)):
        strides[axis] = step
        step *= sizes[axis]
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
