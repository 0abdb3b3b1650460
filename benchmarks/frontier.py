"""Accuracy at a given cost: fxcat against the dense network, a uniformly narrow one, and torch-pruning.

    python benchmarks/frontier.py --quick --models resnet20 --flops 0.5 --seeds 3 --cifar path/to/imagefolder

Everybody has the same number of epochs, data order, augmentation, optimizer and kind of learning-rate schedule; the
accuracy is that of the last epoch. torch-pruning prunes after half of the epochs (those with sparse learning regularise
until then) to the target, and fine-tunes for the other half; both halves have a schedule of their own, since at the
learning rate of the middle of a schedule what it has pruned diverges, and the same highest rate: with half or a fifth
of it for fine-tuning, magnitude and group norm ended lower (BN-scale was not tried). `--quick` fits two CPU cores
(CIFAR-10 at 16×16, 20 epochs), `--full` is the usual recipe of 200 epochs at 32×32. Finished runs are kept in the JSON
file and not repeated; fxcat's are, when its code has changed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from common import finished_or_run, finished_rows, print_table
from frontier_tasks import TASKS, Batches, Data, Task
from torch import nn

import fxcat

FXCAT: dict[str, dict[str, Any]] = {
    "fxcat units+layers": {"gates": "units+layers"},
    "fxcat units": {"gates": "units"},
    "fxcat layers": {"gates": "layers"},
    "fxcat ratio": {"policy": "ratio"},
}
PEERS = ("tp magnitude", "tp bn-scale sparse", "tp group-norm sparse")
METHODS = ("dense", "narrow", *PEERS, *FXCAT)
PEER_PRUNES_AT = 0.5


def macs_of(model: nn.Module, example: torch.Tensor) -> int:
    return fxcat.prepare(model, example, verbose=False).start_cost.macs


def applicable(task: Task, example: torch.Tensor, methods: Iterable[str]) -> list[str]:
    """Without those that need sections or BatchNorm where there is none."""
    net = fxcat.prepare(task.build(1.0), example, verbose=False)
    without: set[str] = set()
    if net.gate_vector.unit_count == net.gate_vector.theta.numel():
        without |= {"fxcat layers", "fxcat units+layers"}
    if not any(isinstance(m, nn.BatchNorm2d) for m in net.modules()):
        without.add("tp bn-scale sparse")
    return [m for m in methods if m not in without]


def narrow_width(task: Task, example: torch.Tensor, flops: float) -> float:
    """The width multiplier whose MACs are closest to the target."""
    wanted = flops * macs_of(task.build(1.0), example)
    return min((i / 100 for i in range(20, 101)), key=lambda w: abs(macs_of(task.build(w), example) - wanted))


class PlainRun:
    """Training without gates: SGD as `fit` makes it, one schedule with a warm-up over all steps."""

    def __init__(self, model: nn.Module, lr: float, steps: int) -> None:
        self.model = model
        parameters = list(model.parameters())
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps + 1, pct_start=0.1)

    def epoch(self, batches: Iterable[Any], regularise: Callable[[nn.Module], None] | None = None) -> None:
        self.model.train()
        for x, y in batches:
            loss = F.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            if regularise is not None:
                regularise(self.model)
            self.optimizer.step()
            self.schedule.step()


def accuracy(model: nn.Module, batches: Batches) -> float:
    model.eval()
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(batches.labels)


def peer(name: str, model: nn.Module, example: torch.Tensor) -> Any:
    """A pruner of torch-pruning that removes a little at every step, until the target is met."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 10]
    common = {"pruning_ratio": 0.98, "iterative_steps": 400, "ignored_layers": last}
    if name == "tp magnitude":
        return tp.pruner.MagnitudePruner(model, example, tp.importance.GroupMagnitudeImportance(p=2), **common)
    if name == "tp bn-scale sparse":
        return tp.pruner.BNScalePruner(
            model, example, tp.importance.BNScaleImportance(), reg=1e-4, global_pruning=True, **common
        )
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    return tp.pruner.GroupNormPruner(model, example, importance, reg=1e-4, global_pruning=True, **common)


def train_peer(
    method: str, model: nn.Module, lr: float, train: Batches, epochs: int, example: torch.Tensor, flops: float
) -> None:
    pruner = peer(method, model, example)
    sparse = "sparse" in method
    first = round(PEER_PRUNES_AT * epochs)
    run = PlainRun(model, lr, first * len(train))
    for _ in range(first):
        if sparse:
            pruner.update_regularizer()
        run.epoch(train, pruner.regularize if sparse else None)
    start = tp.utils.count_ops_and_params(model, example)[0]
    while tp.utils.count_ops_and_params(model, example)[0] > flops * start:
        pruner.step()
    run = PlainRun(model, lr, (epochs - first) * len(train))
    for _ in range(first, epochs):
        run.epoch(train)


def train_fxcat(
    method: str, model: nn.Module, task: Task, data: Data, epochs: int, seed: int, example: torch.Tensor, flops: float
) -> nn.Module:
    net = fxcat.prepare(model, example, verbose=False, **FXCAT[method])
    train, _ = task.batches(data, seed)
    target = fxcat.Target(flops=flops)
    fxcat.fit(net, train, epochs=epochs, target=target, lr=task.lr, seed=seed, device="cpu", progress=False)
    return fxcat.finalize(net)


def run(
    method: str, task: Task, data: Data, *, epochs: int, seed: int, flops: float, example: torch.Tensor
) -> dict[str, Any]:
    torch.manual_seed(seed)
    width = narrow_width(task, example, flops) if method == "narrow" else 1.0
    model = task.build(width)
    train, test = task.batches(data, seed)
    start = time.perf_counter()
    if method in FXCAT:
        model = train_fxcat(method, model, task, data, epochs, seed, example, flops)
    else:
        if method in PEERS:
            train_peer(method, model, task.lr, train, epochs, example, flops)
        else:
            plain = PlainRun(model, task.lr, epochs * len(train))
            for _ in range(epochs):
                plain.epoch(train)
    return {
        "accuracy %": 100 * accuracy(model, test),
        "MACs": macs_of(model, example),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet20"], choices=TASKS)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--flops", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--seeds", type=int, default=3)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--quick", action="store_true", help="16×16, 20 epochs (the default)")
    budget.add_argument("--full", action="store_true", help="32×32, 200 epochs")
    parser.add_argument("--epochs", type=int, help="instead of the budget's")
    parser.add_argument("--cifar", type=Path, help="an ImageFolder of CIFAR-10; downloaded without")
    parser.add_argument("--mnist", type=Path, help="torchvision's root for MNIST")
    parser.add_argument("--json", type=Path, default=Path("runs/frontier.json"))
    options = parser.parse_args()
    rows = finished_rows(options.json)
    chosen: list[dict[str, Any]] = []
    for name in options.models:
        task = TASKS[name]
        size = 32 if options.full else 16
        epochs = options.epochs or (task.full_epochs if options.full else task.quick_epochs)
        data = task.load(options.mnist if task.data == "mnist" else options.cifar, size)
        methods = applicable(task, data[0][:1], options.methods)
        if len(methods) < len(options.methods):
            sys.stderr.write(f"{name} has nothing for {', '.join(m for m in options.methods if m not in methods)}\n")
        for flops in options.flops:
            for seed in range(options.seeds):
                for method in methods:
                    key: dict[str, Any] = {"model": name, "flops": 1.0 if method == "dense" else flops}
                    key |= {"method": method, "seed": seed, "epochs": epochs, "size": data[0].shape[-1]}
                    call = partial(
                        *(run, method, task, data), epochs=epochs, seed=seed, flops=flops, example=data[0][:1]
                    )
                    ours = method in FXCAT
                    row = finished_or_run(options.json, rows, key, call, measures_library=ours)
                    chosen.append(row | {"target": flops})
    if chosen:
        print_table("accuracy at the same cost and budget, mean over seeds", summary(chosen))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per model, target and method."""
    result: list[dict[str, Any]] = []
    for model, target, method in dict.fromkeys((r["model"], r["target"], r["method"]) for r in rows):
        some = [r for r in rows if (r["model"], r["target"], r["method"]) == (model, target, method)]
        result.append(
            {
                "model": model,
                "target": target,
                "method": method,
                "seeds": len(some),
                "accuracy %": f"{statistics.mean(r['accuracy %'] for r in some):.2f}",
                "lowest %": f"{min(r['accuracy %'] for r in some):.2f}",
                "MACs": round(statistics.mean(r["MACs"] for r in some)),
                "parameters": round(statistics.mean(r["parameters"] for r in some)),
                "seconds": statistics.median(r["seconds"] for r in some),
            }
        )
    return result


if __name__ == "__main__":
    main()
