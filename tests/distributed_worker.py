"""What `test_distributed.py` runs in several processes: `torchrun … distributed_worker.py <output folder> <what>`, or
`in_own_process` in each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from forked import take_place
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fxcat

STEPS, BATCH = 160, 32


class Net(nn.Module):
    """Residual and without batch statistics, so that two halves of a batch give what the whole gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.block(x)).mean((2, 3)))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(4, (BATCH,), generator=generator)
    images = torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)
    images[:, 0] += labels[:, None, None]
    return images, labels


def own_loop(folder: Path, *, dies: bool) -> None:
    """Train through `GateController`; `dies`: the second process ends in the middle."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    net = fxcat.prepare(Net().double(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.4), total_steps=STEPS)
    model = DistributedDataParallel(net)
    shrinks = 0
    for step in range(STEPS):
        if dies and step == STEPS // 2 and rank == 1:
            (folder / "died").write_text(str(time.time()))
            os._exit(3)
        x, y = (part.chunk(processes)[rank] for part in batch(step))
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if controller.step():
            shrinks += 1
    state = {"weights": dict(net.network.named_parameters()), "numbers": net.gate_vector.numbers, "shrinks": shrinks}
    torch.save(state, folder / f"{processes}-{rank}.pt")


class Ending(DataLoader[Any]):
    """A loader that ends its process when epoch `ends` begins."""

    ends: int | None = None
    begun = 0

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.begun == self.ends:
            sys.exit(0)
        self.begun += 1
        return super().__iter__()


def provided_loop(folder: Path, what: str) -> None:
    """Train through `fit`. `ends`: only three epochs; `resumes`: from where a run in the folder came to; `taught`: by
    the network as it was, `untaught`: by modules that differ."""
    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    torch.manual_seed(rank)  # rank 0's weights are everybody's
    parts = [batch(step) for step in range(10)]
    data = TensorDataset(*(torch.cat(values) for values in zip(*parts, strict=True)))
    sampler: DistributedSampler[Any] = DistributedSampler(data, processes, rank)
    loader = Ending(data, batch_size=BATCH // processes, sampler=None if what == "unsplit" else sampler)
    loader.ends = 3 if what == "ends" else None
    net = fxcat.prepare(Net().double(), torch.zeros(1, 3, 8, 8), verbose=False)
    teacher = {"taught": True, "untaught": Net().double()}.get(what)
    checkpoints = folder / "checkpoints" if what in ("ends", "resumes") else None
    history = fxcat.fit(
        net,
        loader,
        DataLoader(data, batch_size=BATCH),
        epochs=8,
        target=fxcat.Target(flops=0.4),
        lr=0.05,
        checkpoint_dir=checkpoints,
        resume=what == "resumes",
        teacher=teacher,
        progress=False,
    )
    last = history.epochs[-1]
    taught = last.distillation_loss or 0.0
    figures = torch.tensor([last.train_loss, last.val_loss or 0.0, last.train_accuracy or 0.0, taught])
    state = {"weights": dict(net.network.named_parameters()), "numbers": net.gate_vector.numbers, "figures": figures}
    torch.save(state, folder / f"{what}-{processes}-{rank}.pt")


def in_own_process(folder: str, what: str, rank: int, processes: int, port: int) -> None:
    """As one of those that `torchrun` starts; what it says of an error is in a file in the folder."""
    take_place(rank, processes, port)
    with Path(folder, f"errors-{rank}").open("w", encoding="utf-8") as errors:
        os.dup2(errors.fileno(), 2)
    run(Path(folder), what)


def run(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    if what not in ("trains", "dies"):
        provided_loop(folder, what)
        return
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    own_loop(folder, dies=what == "dies")
    distributed.destroy_process_group()


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
