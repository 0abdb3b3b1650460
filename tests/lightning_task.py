"""A `LightningModule` that learns the small task, and trainers for it; run as a script, what other processes do."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small_task import Net, batches
from torch import distributed, nn
from torch.utils.data import DataLoader

import fxcat
from fxcat.integrations.lightning import GateCallback

EXAMPLE = torch.zeros(1, 3, 8, 8)
TARGET = fxcat.Target(flops=0.4)
EPOCHS, BATCHES = 8, 8
STEPS = EPOCHS * BATCHES
MARKS = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*Skipping val loop"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
]
"""What Lightning says of small runs says nothing here."""


class Lit(LightningModule):
    """Holds a network, and does what people's modules do."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net: Any = net

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def prepared() -> fxcat.GatedModule:
    torch.manual_seed(0)
    return fxcat.prepare(Net(), EXAMPLE, verbose=False)


def data(count: int = 32 * BATCHES) -> DataLoader[Any]:
    return DataLoader(batches(count), 32)


def trainer(*callbacks: Any, kind: Any = Trainer, **options: Any) -> Any:
    """On the CPU, and quiet."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False} | quiet | options
    return kind(callbacks=list(callbacks), **given)


def gates(**options: Any) -> GateCallback:
    given: dict[str, Any] = {"target": TARGET} | options
    return GateCallback(**given)


def keeps(folder: Path, **options: Any) -> ModelCheckpoint:
    """Every epoch's checkpoint."""
    given: dict[str, Any] = {"save_top_k": -1} | options
    return ModelCheckpoint(folder, filename="{epoch}", **given)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are the same, to the last bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def run(*callbacks: Any, module: Any = None, loader: Any = None, **options: Any) -> Any:
    """The module after a run, by default one with a new network."""
    module = Lit(prepared()) if module is None else module
    path = options.pop("ckpt_path", None)
    trainer(*callbacks, **options).fit(module, data() if loader is None else loader, data(64), ckpt_path=path)
    return module


def meets_target(net: Any, target: float = 0.4) -> bool:
    """And not more than asked."""
    return 0.85 * target < net.hard_cost().macs / net.start_cost.macs <= target


class Dies(Callback):
    """Ends its process in the midst of an epoch, by SIGKILL."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.current_epoch == EPOCHS - 2 and trainer.global_step % BATCHES == 3:
            os.kill(os.getpid(), signal.SIGKILL)


class Compares(Callback):
    """Notes in how many steps since a shrink the weights were the same in all processes."""

    def __init__(self) -> None:
        self.same, self.parted, self.size = 0, 0, 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        weights = torch.cat([p.detach().flatten() for p in pl_module.net.weight_parameters()])
        everyone: Any = pl_module.all_gather(weights)
        self.size = self.size or len(weights)
        self.same += len(weights) < self.size and torch.equal(everyone[0], everyone[1])
        self.parted += not torch.equal(everyone[0], everyone[1])


def train_together(folder: Path) -> None:
    """What each of two processes does."""
    for strategy in ("ddp", "ddp_find_unused_parameters_true"):
        module, compares = Lit(prepared()), Compares()
        loader = DataLoader(batches(32 * BATCHES), 16)  # the trainer gives every process its share
        made = {"devices": 2, "strategy": strategy}
        trained = trainer(gates(), keeps(folder / strategy), compares, enable_checkpointing=True, **made)
        trained.fit(module, loader, data(64))
        cost, (same, parted) = module.net.hard_cost(), (compares.same, compares.parted)
        for epoch in (2, 6) if strategy == "ddp" else ():
            resumed = Lit(prepared())
            again = trainer(gates(), **made)
            again.fit(resumed, loader, data(64), ckpt_path=folder / strategy / f"epoch={epoch}.ckpt")
            for name, value in module.state_dict().items():
                assert torch.equal(value, resumed.state_dict()[name]), (strategy, epoch, name)
        result = {"macs": cost.macs, "same": same, "parted": parted}
        torch.save(result, folder / f"{strategy}-{trained.global_rank}.pt")
    # together: a process that ends while the other still talks to it may be aborted
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if what == "dies":
        trainer(gates(), keeps(folder), Dies(), enable_checkpointing=True).fit(Lit(prepared()), data(), data(64))
    elif what == "spawns":
        module = Lit(prepared())
        trainer(gates(), devices=2, strategy="ddp_spawn").fit(module, data())
        torch.save(fxcat.finalize(module.net).state_dict(), folder / "small.pt")


if __name__ == "__main__":
    main()
