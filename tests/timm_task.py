"""A training loop of timm's own parts, in the order of its `train.py`; by itself: `timm_task.py <folder> <step>` trains
and is killed after so many steps."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models import load_checkpoint, model_parameters, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler, random_seed

import fxcat

EPOCHS, PER_EPOCH, BATCH = 8, 4, 8
IMAGES = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 4,
    }
    return timm.create_model("vit_tiny_patch16_224", **sizes)


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=4, channels=(8, 8, 16, 16), stem_width=8)


@dataclass(frozen=True)
class Run:
    """What a run ends with."""

    net: fxcat.GatedModule
    average: Any
    controller: fxcat.GateController
    optimizer: torch.optim.Optimizer


def train(
    folder: Path,
    *,
    model: Callable[[], torch.nn.Module] = vit,
    optimizer: str = "adamw",
    layer_decay: float | None = 0.7,
    clip: str = "agc",
    average: Callable[[Any], Any] | None = lambda net: ModelEmaV3(net, 0.8),
    named: bool = True,
    resume: bool = False,
    ends: Callable[[], None] | None = None,
    after: int = -1,
) -> Run:
    """Train on a CPU; `average`: makes the average, which is `named` to the controller; `ends`: is called after so many
    steps. Lines with `fxcat` and `controller` are those that a user adds."""
    random_seed(0)
    net = fxcat.prepare(model(), IMAGES[:1], verbose=False)
    opt = create_optimizer_v2(net.network, optimizer, lr=5e-3, weight_decay=0.05, layer_decay=layer_decay)
    scaler = NativeScaler("cpu")
    ema: Any = average(net) if average else None
    averages = [ema] if ema and named else []
    target, steps = fxcat.Target(flops=0.5), EPOCHS * PER_EPOCH
    controller = fxcat.GateController(net, opt, target=target, total_steps=steps, averages=averages)
    saver = CheckpointSaver(net, opt, model_ema=ema, amp_scaler=scaler, checkpoint_dir=str(folder))
    start = 0
    if resume:
        last = str(folder / "last.pth.tar")
        start = resume_checkpoint(net, last, opt, scaler) or 0
        load_checkpoint(ema.module, last, use_ema=True)
        controller.load_state_dict(torch.load(folder / f"gates-{start - 1}.pth"))
    scheduler, _ = create_scheduler_v2(opt, "cosine", num_epochs=EPOCHS, warmup_epochs=1)
    assert scheduler is not None
    mixup = Mixup(mixup_alpha=0.2, num_classes=4)
    for epoch in range(start, EPOCHS):
        random_seed(epoch)  # as the loaders of timm: every epoch has an order of its own
        scheduler.step(epoch)
        net.train()
        for step in range(PER_EPOCH):
            chosen = torch.from_numpy(np.random.permutation(len(IMAGES))[:BATCH])
            x, y = mixup(IMAGES[chosen] + LABELS[chosen, None, None, None], LABELS[chosen])
            loss = SoftTargetCrossEntropy()(net(x), y)
            opt.zero_grad()
            parameters = model_parameters(net, exclude_head=clip == "agc")
            scaler(loss, opt, clip_grad=0.02 if clip == "agc" else 1.0, clip_mode=clip, parameters=parameters)
            controller.step()
            if ema is not None:
                ema.update(net)
            if ends is not None and epoch * PER_EPOCH + step == after:
                ends()
        torch.save(controller.state_dict(), folder / f"gates-{epoch}.pth")
        saver.save_checkpoint(epoch, metric=float(epoch))
    return Run(net, ema, controller, opt)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), ends=lambda: os.kill(os.getpid(), signal.SIGKILL), after=int(sys.argv[2]))
