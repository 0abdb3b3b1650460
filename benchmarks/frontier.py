"""Accuracy at a given cost: fxcat against the dense network, hand-made smaller ones, and torch-pruning.

    python benchmarks/frontier.py --quick --models resnet20 --targets 0.5 --seeds 3 --cifar path/to/imagefolder
    python benchmarks/frontier.py --three-way --models resnet56 --targets 0.25 --full --train-images 20000 --epochs 20

Everybody has the same number of epochs, data order, augmentation, optimizer and kind of learning-rate schedule; the
accuracy is that of the last epoch. Hand-made: the network uniformly narrower, and "shallower", networks of its family
with less depth and the width that meets the target, trained plainly. torch-pruning prunes after half of the epochs
(those with sparse learning regularise until then) to the target, and fine-tunes for the other half; both halves have a
schedule of their own, since at the learning rate of the middle of a schedule what it has pruned diverges, and the same
highest rate: with half or a fifth of it for fine-tuning, magnitude and group norm ended lower (BN-scale was not tried).

`--three-way`: the question whether units, layers, or both should go, beside the narrow network. `--quick` fits two CPU
cores (CIFAR-10 at 16×16, 20 epochs), `--full` is the usual recipe of 200 epochs at 32×32. Latency: the final network in
ONNX Runtime (CPU, one thread, batch 1), and its ratio to the dense one's, measured in alternation; it computes channels
in blocks, for which one row has widths in multiples of eight. Finished runs are kept in the JSON file and not repeated;
fxcat's are, unless `witness.py` shows that the code since trains the same weights.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import print_table
from frontier_methods import FXCAT, METHODS, SHALLOWER, THREE_WAY, Run, applicable, measured
from frontier_tasks import TASKS, loaded
from summaries import figures
from workers import Job, run_for_targets

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


def train(method: str, key: dict[str, Any], folder: Path | None, flops: float) -> dict[str, Any]:
    """The row of a key."""
    task = TASKS[key["model"]]
    data = loaded(key["model"], folder, key["size"], key["images"])
    run = Run(task, data, key["epochs"], key["lr"], key["seed"], flops, task.batches, AUTOCAST[key["precision"]])
    return measured(method, run)


def jobs_of(name: str, options: argparse.Namespace) -> list[tuple[float, Job]]:
    """With the target that each row is for: the dense network is a row of every target."""
    task = TASKS[name]
    size = 28 if task.data == "mnist" else 32 if options.full else 16
    epochs = options.epochs or (task.full_epochs if options.full else task.quick_epochs)
    folder = options.mnist if task.data == "mnist" else options.cifar
    example = task.example(size)
    jobs: list[tuple[float, Job]] = []
    for flops in options.targets:
        methods = applicable(task, example, options.methods, flops)
        missing = [m for m in options.methods if not any(found.startswith(m) for found in methods)]
        if missing:
            sys.stderr.write(f"{name} has nothing for {', '.join(missing)}\n")
        for seed in options.seed_list or range(options.seeds):
            for method in methods:
                key: dict[str, Any] = {"model": name, "flops": 1.0 if method == "dense" else flops}
                key |= {"method": method, "seed": seed, "epochs": epochs, "size": size}
                key |= {"images": options.train_images, "lr": options.lr or task.lr, "precision": options.precision}
                measures = "training" if method in FXCAT else "nothing"
                jobs.append((flops, Job(key, partial(train, method, key, folder, flops), measures)))
    return jobs


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet20"], choices=TASKS)
    methods = parser.add_mutually_exclusive_group()
    methods.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    methods.add_argument("--three-way", action="store_true", help=f"the methods {', '.join(THREE_WAY)}")
    parser.add_argument("--targets", "--flops", nargs="*", type=float, default=[0.5, 0.25])
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    seeds.add_argument("--seed-list", nargs="*", type=int, help="which ones")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--quick", action="store_true", help="16×16, 20 epochs (the default)")
    budget.add_argument("--full", action="store_true", help="32×32, 200 epochs")
    parser.add_argument("--epochs", type=int, help="instead of the budget's")
    parser.add_argument("--lr", type=float, help="the highest learning rate, instead of the task's")
    parser.add_argument("--precision", default="fp32", choices=AUTOCAST, help="of training, everybody's")
    parser.add_argument("--train-images", type=int, help="only so many, the same ones for everybody")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, in processes of one thread each")
    parser.add_argument("--cifar", type=Path, help="an ImageFolder of CIFAR-10; downloaded without")
    parser.add_argument("--mnist", type=Path, help="torchvision's root for MNIST")
    parser.add_argument("--json", type=Path, default=Path("runs/frontier.json"))
    return parser


def main() -> None:
    options = arguments().parse_args()
    options.methods = THREE_WAY if options.three_way else options.methods
    jobs = [job for name in options.models for job in jobs_of(name, options)]
    chosen = run_for_targets(options.json, jobs, options.workers)
    if chosen:
        print_table("accuracy at the same cost and budget, mean over seeds", summary(chosen))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per model, target and method."""
    result: list[dict[str, Any]] = []
    for model, target, method in dict.fromkeys((r["model"], r["target"], r["method"]) for r in rows):
        some = [r for r in rows if (r["model"], r["target"], r["method"]) == (model, target, method)]
        by_hand = f" × {some[0]['width']:.2f}" if method == "narrow" or method.startswith(SHALLOWER) else ""
        result.append(
            {
                "model": model,
                "target": target,
                "method": method + by_hand,
                **figures(some),
            }
        )
    return result


if __name__ == "__main__":
    main()
