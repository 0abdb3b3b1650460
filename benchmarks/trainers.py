"""The same run through people's trainers: what the user adds, what comes out, and whether a killed run ends the same.

    pip install -e ".[lightning,transformers]" && python benchmarks/trainers.py

A small residual network on images made on the spot, to 40 % of the FLOPs: the same start, batches, order, and AdamW for
everybody, one thread. Weights are compared with those of the plain loop (running statistics are not: `fit` estimates
them anew when the structure is decided). Killed: the process ends itself by SIGKILL in
the middle of an epoch, before anything has left the network and after all has; it is started again with what the
trainer has for that, and all that it ends with is compared with what the run that was not killed ended with.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import print_table, write_json
from safetensors.torch import load_file, save_file
from small_task import Net, batches
from torch.utils.data import DataLoader, SequentialSampler

import fxcat

TARGET = fxcat.Target(flops=0.4)
EPOCHS, BATCH, IMAGES = 8, 32, 256
STEPS = EPOCHS * IMAGES // BATCH
KILLED_AT = {"before a removal": 11, "after all": 51}
"""In which step, in the middle of an epoch."""


def optimizer_of(net: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=5e-3)


def loader() -> DataLoader[Any]:
    return DataLoader(batches(IMAGES), BATCH)


def own_loop(net: fxcat.GatedModule, folder: Path) -> None:
    optimizer, last = optimizer_of(net), folder / "last.pt"
    controller = fxcat.GateController(net, optimizer, target=TARGET, total_steps=STEPS)
    parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "controller": controller}
    first = 0
    if last.exists():
        stored = torch.load(last, weights_only=True)
        first = stored["epoch"] + 1
        for name, part in parts.items():
            part.load_state_dict(stored[name])
    for epoch in range(first, EPOCHS):
        for x, y in loader():
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            controller.step()
        torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, last)


def fit(net: fxcat.GatedModule, folder: Path) -> None:
    options: dict[str, Any] = {"epochs": EPOCHS, "target": TARGET, "optimizer": optimizer_of(net), "scheduler": None}
    fxcat.fit(net, loader(), None, checkpoint_dir=folder, resume=True, progress=False, **options)


def lightning(net: fxcat.GatedModule, folder: Path) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from fxcat.integrations.lightning import GateCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return optimizer_of(self)

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [GateCallback(target=TARGET), ModelCheckpoint(folder, filename="last", enable_version_counter=False)]
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", devices=1, callbacks=callbacks, **quiet)
    last = folder / "last.ckpt"
    trainer.fit(Module(), loader(), ckpt_path=last if last.exists() else None)


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """The images as transformers' collator takes them."""

    def __init__(self) -> None:
        self._pairs = batches(IMAGES)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self._pairs[index]
        return {"x": image, "labels": label}


def transformers(net: fxcat.GatedModule, folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from fxcat.integrations.transformers import GateCallback

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(range(IMAGES))

    arguments = TrainingArguments(
        output_dir=str(folder),
        **{"num_train_epochs": EPOCHS, "per_device_train_batch_size": BATCH, "max_grad_norm": 0.0},
        **{"lr_scheduler_type": "constant", "save_strategy": "epoch", "use_cpu": True, "label_names": ["labels"]},
        **{"report_to": [], "disable_tqdm": True, "logging_strategy": "no"},
    )
    trainer = InOrder(
        model=net,
        args=arguments,
        train_dataset=_Rows(),
        compute_loss_func=lambda outputs, labels, **_: F.cross_entropy(outputs, labels),
        optimizers=(optimizer_of(net), None),
        callbacks=[GateCallback(TARGET)],
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))


def accelerate(net: fxcat.GatedModule, folder: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, data = accelerator.prepare(net, optimizer_of(net), loader())
    controller = fxcat.GateController(net, optimizer, target=TARGET, total_steps=STEPS)
    accelerator.register_for_checkpointing(controller)
    done = sorted(int(p.name) for p in folder.iterdir())
    if done:
        accelerator.load_state(str(folder / str(done[-1])))
    for epoch in range(done[-1] + 1 if done else 0, EPOCHS):
        for x, y in data:
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
            controller.step()
        accelerator.save_state(str(folder / str(epoch)))


TRAINERS: dict[str, tuple[Callable[[fxcat.GatedModule, Path], None], int]] = {
    "own loop": (own_loop, 3),
    "fxcat.fit": (fit, 2),
    "Lightning": (lightning, 4),
    "transformers' Trainer": (transformers, 5),
    "Accelerate": (accelerate, 5),
}
"""How each runs, and the lines that a user adds to a script that trains the network alone (counted by the tests)."""


def train(name: str, folder: Path, killed_at: int | None) -> None:
    """In a process of its own: one run, from what its folder holds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    step = fxcat.GateController.step

    def dying(controller: fxcat.GateController, *args: Any, **kwargs: Any) -> bool:
        result = step(controller, *args, **kwargs)
        if controller.steps == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with patch.object(fxcat.GateController, "step", dying):
        TRAINERS[name][0](net, folder)
    state = {f"weight {n}": v.detach().contiguous() for n, v in net.network.named_parameters()}
    state |= {n: v.contiguous() for n, v in net.network.named_buffers()}
    save_file(state | {"macs": torch.tensor(net.hard_cost().macs)}, folder.with_suffix(".safetensors"))


def result_of(name: str, folder: Path, killed_at: int | None = None) -> dict[str, torch.Tensor]:
    """What it ends with."""
    folder.mkdir()
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    if killed_at is not None:
        done = subprocess.run([*command, "--killed-at", str(killed_at)], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(folder.with_suffix(".safetensors"))


def weights(result: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: v for n, v in result.items() if n.startswith("weight ")}


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> str:
    """How two results differ."""
    if {n: v.shape for n, v in first.items()} != {n: v.shape for n, v in second.items()}:
        return "another structure"
    worst = max(float((v.double() - second[n].double()).abs().max()) for n, v in first.items())
    return "same bits" if worst == 0 else f"{worst:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="*", default=list(TRAINERS), choices=TRAINERS)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "trainers.json")
    parser.add_argument("--one", choices=TRAINERS, help="what the processes are started with")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--killed-at", type=int)
    options = parser.parse_args()
    if options.one:
        train(options.one, options.folder, options.killed_at)
        return
    rows: list[dict[str, Any]] = []
    start = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).start_cost.macs
    with tempfile.TemporaryDirectory() as scratch:
        plain = result_of("own loop", Path(scratch) / "reference")
        for number, name in enumerate(options.trainers):
            whole = result_of(name, Path(scratch) / f"{number}-whole")
            row = {"trainer": name, "lines added": TRAINERS[name][1]}
            row |= {"MACs %": round(100 * int(whole["macs"]) / start, 2)}
            row["weights, against the loop's"] = apart(weights(whole), weights(plain))
            for when, step in KILLED_AT.items():
                resumed = result_of(name, Path(scratch) / f"{number}-{step}", step)
                row[f"killed {when}, resumed"] = apart(resumed, whole)
            rows.append(row)
            write_json(options.json, rows)
    print_table("The same run through several trainers", rows)


if __name__ == "__main__":
    main()
