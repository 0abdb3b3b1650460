"""Functions of a model that lie in another file."""

from __future__ import annotations

import torch


def whole_batch(y: torch.Tensor) -> torch.Tensor:
    """The number of examples by way of a fraction, as in window attention."""
    height, width = y.shape[2:]
    batch = int(y.shape[0] / (height * width / 4 / 4 / 4))
    return y.view(batch, -1, height, width)
