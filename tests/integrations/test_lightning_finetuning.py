"""Callbacks of Lightning that freeze a part and train it from some epoch on, in groups that they add and remember."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from lightning_task import EPOCHS, EXAMPLE, MARKS, Lit, gates, keeps, run, same
from small_task import Net
from torch import nn

import fxcat

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")]


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        net = Net()
        self.stem, self.block = net.stem, net.block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return F.relu(x + self.block(x)).mean((2, 3))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Body(), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


class Tuned(Lit):
    """Trains what is not frozen at first; its backbone is a part of the network with gates."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(fxcat.prepare(Whole(), EXAMPLE, verbose=False))

    @property
    def backbone(self) -> Any:
        return self.net.network.backbone

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=5e-3)


class Gated(Tuned):
    """Its backbone is the network with gates itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.head = fxcat.prepare(Body(), EXAMPLE, verbose=False), nn.Linear(16, 4)

    @property
    def backbone(self) -> Any:
        return self.net

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("loss", F.cross_entropy(self.head(self.net(batch[0])), batch[1]))


class Thawing(BackboneFinetuning):
    """Also freezes it again for an epoch."""

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        super().finetune_function(pl_module, epoch, optimizer)
        if epoch in (3, 4):
            (self.freeze if epoch == 3 else self.make_trainable)(pl_module.backbone)


def check(module: Any, target: float = 0.4) -> None:
    assert module.net.hard_cost().macs <= target * module.net.start_cost.macs
    small = fxcat.finalize(module.net.eval())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(small(x), module.net(x))
    (optimizer,) = module.trainer.optimizers
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for n, p in module.named_parameters() if not n.endswith("theta")}
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())


@pytest.mark.parametrize("kind", [Tuned, Gated])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("at", [1, EPOCHS - 2])
def test_a_backbone_is_trained_from_some_epoch_on(kind: Any, first: bool, at: int) -> None:
    tuning = BackboneFinetuning(unfreeze_backbone_at_epoch=at)
    check(run(*([tuning, gates()] if first else [gates(), tuning]), module=kind()))


@pytest.mark.parametrize("kind", [Tuned, Gated])
def test_it_is_frozen_again_on_the_way(kind: Any) -> None:
    check(run(gates(), Thawing(unfreeze_backbone_at_epoch=1), module=kind()))


class Closing(BaseFinetuning):
    """Adds the backbone at once, and names it."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 0:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=2e-3)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.make_trainable(pl_module.backbone)  # of a run that goes on Lightning restores the groups alone


@pytest.mark.parametrize("kind", [Tuned, Gated])
@pytest.mark.parametrize("first", [False, True])
def test_runs_go_on_from_their_checkpoints(kind: Any, first: bool, tmp_path: Path) -> None:
    """Also from those of networks in which parameters that a group had have gone."""

    target = 0.08  # the section has to go

    def callbacks() -> list[Any]:
        own = [Closing(), gates(target=fxcat.Target(flops=target))]
        return own if first else own[::-1]

    whole = run(*callbacks(), keeps(tmp_path), module=kind(), enable_checkpointing=True)
    check(whole, target)
    assert not any("block" in name for name, _ in whole.named_parameters())
    for epoch in (0, 3, 6):
        resumed = run(*callbacks(), module=kind(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        check(resumed, target)
        assert same(resumed, whole), epoch
