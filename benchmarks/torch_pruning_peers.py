"""The pruners of torch-pruning that fxcat is compared with, and how they are brought to a target."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training import Batches

MAGNITUDE, BN_SCALE, GROUP_NORM, TAYLOR = (
    *("tp magnitude", "tp bn-scale sparse", "tp group-norm sparse", "tp taylor"),
)
SPARSE = (BN_SCALE, GROUP_NORM)
"""Those that train with a regulariser before they prune."""
STEPS = 400
"""Every step removes a little, so that the target is not missed by much."""


def pruner(name: str, model: nn.Module, example: torch.Tensor) -> Any:
    """A pruner that removes a little at every step; the layer that gives the ten classes keeps its outputs."""
    import torch_pruning as tp

    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 10]
    common: dict[str, Any] = {"pruning_ratio": 0.98, "iterative_steps": STEPS, "ignored_layers": last}
    if name == MAGNITUDE:
        return tp.pruner.MagnitudePruner(model, example, tp.importance.GroupMagnitudeImportance(p=2), **common)
    common["global_pruning"] = True
    if name == TAYLOR:
        return tp.pruner.MagnitudePruner(model, example, tp.importance.GroupTaylorImportance(), **common)
    if name == BN_SCALE:
        return tp.pruner.BNScalePruner(model, example, tp.importance.BNScaleImportance(), reg=1e-4, **common)
    return tp.pruner.GroupNormPruner(model, example, tp.importance.GroupMagnitudeImportance(p=2), reg=1e-4, **common)


def prune_to(flops: float, pruner: Any, model: nn.Module, example: torch.Tensor) -> None:
    """Step until the MACs, as PyTorch counts them, are at most that share: torch-pruning's own counter knows no
    subclasses of layers."""
    wanted = flops * counted(model, example)
    for _ in range(STEPS + 1):
        if counted(model, example) <= wanted:
            return
        pruner.step()
    raise RuntimeError(f"{type(pruner).__name__} has not reached {flops:.0%} of the MACs in {STEPS} steps")


def counted(model: nn.Module, example: torch.Tensor) -> float:
    """Multiply-adds of convolutions and products in a forward pass."""
    mode = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example)
    model.train(mode)
    return counter.get_total_flops() / 2


def gradients(model: nn.Module, batches: Batches, count: int = 10) -> None:
    """Gradients summed over some batches, which Taylor scores read; torch-pruning prunes them with the weights."""
    model.zero_grad()
    for _, (x, y) in zip(range(count), batches, strict=False):
        F.cross_entropy(model(x), y).backward()
