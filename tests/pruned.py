"""Small networks, as `finalize` returns them."""

from __future__ import annotations

from typing import Any

import torch
from exactness import random_gates, randomise
from torch import nn

import fxcat

EXAMPLE = torch.zeros(1, 3, 8, 8)


def pruned(model: nn.Module, example: Any = EXAMPLE, *, shrinks: int = 0, **options: Any) -> nn.Module:
    """Finalized after random gates, with some shrinks in place before."""
    randomise(model, 0)
    net = fxcat.prepare(model, example, verbose=False, **options)
    for seed in range(shrinks):
        random_gates(net, seed, units=0.3, sections=0.1)
        net.shrink()
    random_gates(net, 11)
    return fxcat.finalize(net)
