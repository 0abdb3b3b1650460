"""Several processes that train one network (`torchrun`): who is who, and what they tell each other."""

from __future__ import annotations

import torch
from torch import distributed


def is_distributed() -> bool:
    """Whether this process is one of a group."""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """Processes in the group; 1 without one."""
    return distributed.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this process writes files and prints: rank 0."""
    return not is_distributed() or distributed.get_rank() == 0


def from_main(*tensors: torch.Tensor) -> None:
    """Overwrite tensors with those of rank 0: what every process decides alike must be the same to the last bit."""
    if is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes, in place."""
    if is_distributed():
        distributed.all_reduce(values)
    return values
