"""The default loss and accuracy of `fit`, for classifiers with and without auxiliary heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

AUXILIARY_WEIGHT = 0.3
"""Szegedy et al. 2015 (arXiv 1409.4842, §5) weight the losses of auxiliary classifiers by 0.3."""


def outputs_of(output: Any) -> list[torch.Tensor]:
    """The main output first, then auxiliary ones."""
    if isinstance(output, torch.Tensor):
        return [output]
    values: Any = output.values() if isinstance(output, dict) else output  # pyright: ignore[reportUnknownVariableType]
    return [v for v in values if isinstance(v, torch.Tensor)]


def cross_entropy(output: Any, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the main output plus 0.3 × that of each auxiliary one."""
    main, *auxiliary = outputs_of(output)
    loss = F.cross_entropy(main, target)
    for other in auxiliary:
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(other, target)
    return loss


def count_correct(output: Any, target: Any) -> int | None:
    """Right predictions of a classifier in a batch, None if output and target are not those of one."""
    main = outputs_of(output)[0]
    if not isinstance(target, torch.Tensor) or target.dim() != 1 or target.is_floating_point() or main.dim() != 2:
        return None
    return int((main.detach().argmax(1) == target).sum())
