"""Several processes that train one network (`torchrun`): who is who, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Generator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

from fxcat.errors import InputError


def is_distributed() -> bool:
    """Whether this process is one of a group."""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """Processes in the group; 1 without one."""
    return distributed.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Number of this process in the group; 0 without one."""
    return distributed.get_rank() if is_distributed() else 0


def is_main() -> bool:
    """Whether this process writes files and prints: rank 0."""
    return rank() == 0


@contextmanager
def joined(device: str | torch.device | None) -> Generator[torch.device, None, None]:
    """The device of this process, for a block in which it belongs to the group that `torchrun` has made, if it has.

    Without `device`: a GPU (of several, the one with this process's local rank) if there is one.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    best = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    place = best if device is None else torch.device(device)
    launched = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    joins = launched and distributed.is_available() and not is_distributed()
    if joins:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    if place.type == "cuda" and is_distributed():
        torch.cuda.set_device(place)
    try:
        yield place
    finally:
        if joins:
            distributed.destroy_process_group()


def parallel(net: nn.Module) -> nn.Module:
    """The network as all processes train it: itself if there is one process."""
    return DistributedDataParallel(net) if world_size() > 1 else net


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


def is_same_everywhere(device: torch.device, *numbers: int) -> bool:
    """Whether all processes have the same numbers."""
    if not is_distributed():
        return True
    extremes = torch.tensor([*numbers, *(-n for n in numbers)], device=device)
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
    largest, smallest = extremes.view(2, -1).tolist()
    return largest == [-n for n in smallest]


def from_everyone(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def check_loader_is_split(loader: Any, name: str) -> None:
    """Raise `InputError` if all processes would get the same batches of a `DataLoader`, or not equally many."""
    if world_size() == 1:
        return
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset) and not _samplers(loader):
        raise InputError(
            f"{name} gives the same examples to each of {world_size()} processes",
            remedy="make it with sampler=torch.utils.data.DistributedSampler(dataset)",
        )
    lengths = from_everyone(len(loader) if isinstance(loader, Sized) else None)
    if len(set(lengths)) > 1:
        raise InputError(
            f"{name} has {lengths} batches in the processes",
            remedy="give every process equally many, as torch.utils.data.DistributedSampler does",
        )


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the samplers of a loader which epoch begins: they shuffle by it."""
    for sampler in _samplers(loader):
        sampler.set_epoch(epoch)


def _samplers(loader: Any) -> list[Any]:
    """Those that know epochs."""
    batches = getattr(loader, "batch_sampler", None)
    holders = (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    unique = {id(s): s for s in holders if hasattr(s, "set_epoch")}
    return list(unique.values())
