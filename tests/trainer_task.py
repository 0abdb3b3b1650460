"""Small networks and data for transformers' `Trainer`, and what tests of it run in
processes of their own; by itself: `trainer_task.py <folder> <step>` trains and is killed after so many steps."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import fxcat
from fxcat.integrations.transformers import GateCallback

STEPS = 30
TARGET = fxcat.Target(flops=0.5)
IMAGES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(96) % 4


class Images(Dataset[dict[str, Any]]):
    """Examples as transformers' own data sets give them, with a column that no model takes."""

    def __init__(self, count: int = 96, *, labelled: bool = True) -> None:
        self.count, self.labelled = count, labelled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = {"pixel_values": IMAGES[index] + LABELS[index], "file": index}
        return {**image, "labels": LABELS[index]} if self.labelled else image


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_labels": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    }
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))


def prepared(model: torch.nn.Module | None = None) -> fxcat.GatedModule:
    example = {"pixel_values": IMAGES[:2], "labels": LABELS[:2]}
    return fxcat.prepare(vit() if model is None else model, example, verbose=False)


def arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    usual = {"max_steps": STEPS, "per_device_train_batch_size": 8, "learning_rate": 5e-3, "save_strategy": "no"}
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no"}
    return TrainingArguments(output_dir=str(folder), **{**usual, **quiet, **options})


def trainer(net: torch.nn.Module, folder: Path | str, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    given = {k: options.pop(k) for k in ("compute_metrics", "compute_loss_func", "optimizers") if k in options}
    data: dict[str, Any] = {"train_dataset": Images(), "eval_dataset": Images(16), **given}
    return Trainer(model=net, args=arguments(folder, **options), callbacks=list(callbacks), **data)


def macs(net: fxcat.GatedModule) -> float:
    """What is left, as a share."""
    return net.hard_cost().macs / net.start_cost.macs


def same(one: fxcat.GatedModule, other: fxcat.GatedModule) -> bool:
    """Whether structure and weights are the same, to the last bit."""
    states = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return one.live_units() == other.live_units() and all(torch.equal(a, b) for a, b in states)


class Growing:
    """A metric of which the best is that of the first evaluations."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, _: Any) -> dict[str, float]:
        self.calls += 1
        return {"metric": float(self.calls)}


BEST: dict[str, Any] = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "metric",
    "greater_is_better": False,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 5,
}


class Killed(TrainerCallback):
    """Ends the process after a step, as a power cut would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class Watching(TrainerCallback):
    """Whether the weights are the same in all processes, step by step, and after which steps the network shrank."""

    def __init__(self, gates: GateCallback) -> None:
        self.gates = gates
        self.same: list[bool] = []
        self.shrunk: list[int] = []
        self._size = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.gates.controller is not None
        weights = torch.cat([p.detach().flatten() for p in self.gates.controller.net.weight_parameters()])
        if weights.numel() != self._size and self._size:
            self.shrunk.append(state.global_step)
        self._size = weights.numel()
        everyone = [torch.zeros_like(weights) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyone, weights)
        self.same.append(all(torch.equal(w, weights) for w in everyone))


def train_together(folder: Path) -> None:
    """What each of two processes does: train, as the Trainer wraps it by default and in the other way."""
    for unused in (None, False):
        gates = GateCallback(TARGET)
        watching = Watching(gates)
        net = prepared()
        one = trainer(net, folder, gates, watching, ddp_find_unused_parameters=unused, per_device_train_batch_size=4)
        one.train()
        kind = type(one.model_wrapped).__name__
        found = [kind, watching.same, watching.shrunk, net.hard_cost().macs, net.start_cost.macs]
        torch.save(found, folder / f"{unused}-{distributed.get_rank()}.pt")
    leave()


def leave() -> None:
    """Together: a process that ends while the other still talks to it may be aborted."""
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    gates = [GateCallback(TARGET), Killed(int(sys.argv[2]))]
    trainer(prepared(), sys.argv[1], *gates, save_strategy="steps", save_steps=5).train()


if __name__ == "__main__":
    main()
