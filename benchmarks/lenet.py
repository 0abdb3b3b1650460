"""LeNet-300-100 and LeNet-5-Caffe on MNIST: the smallest networks at a given error.

    python benchmarks/lenet.py --data path/to/MNIST/root --seeds 3

From scratch, to a target; units of the input have gates too where it is a row of pixels. Training images are turned,
scaled and shifted a little. "undecided": gates that are neither at 0 nor at 1 when the gated phase ends. "structure":
what is left, input first. Finished runs are kept in the JSON file and not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import finished_or_run, finished_rows, print_table
from lenet_models import lenet_5_caffe, lenet_300_100, load_mnist, moved
from torch import nn

import fxcat


@dataclass(frozen=True)
class Recipe:
    flops: float
    epochs: int
    lr: float = 2e-3
    batch: int = 128
    weight_decay: float = 0.1
    warmup: float = 0.1
    until: float = 0.7


RECIPES = {"lenet_300_100": Recipe(flops=0.036, epochs=400), "lenet_5_caffe": Recipe(flops=0.0685, epochs=20)}
MODELS = {"lenet_300_100": lenet_300_100, "lenet_5_caffe": lenet_5_caffe}


def batches(
    images: torch.Tensor, labels: torch.Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for chosen in torch.randperm(len(images), generator=generator).split(size):
        yield moved(images[chosen], generator), labels[chosen]


def widths(network: nn.Module) -> str:
    """Inputs and outputs of the layers with weights: 784-300-100-10."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    entering = [str(layers[0].weight.shape[1])] if isinstance(layers[0], nn.Linear) else []
    return "-".join([*entering, *(str(m.weight.shape[0]) for m in layers)])


def run(name: str, seed: int, recipe: Recipe, data: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    torch.manual_seed(seed)
    is_row = name == "lenet_300_100"
    images, test = (x.flatten(1) if is_row else x for x in (data[0], data[2]))
    net = fxcat.prepare(MODELS[name](), images[:1], gate_inputs=is_row, verbose=False)
    steps = recipe.epochs * -(-len(images) // recipe.batch)
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    controller = fxcat.GateController(
        net,
        optimizer,
        target=fxcat.Target(flops=recipe.flops),
        total_steps=steps,
        warmup=recipe.warmup,
        until=recipe.until,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    start, undecided, gates = time.perf_counter(), 0, net.gate_vector.theta.numel()
    net.train()
    for _ in range(recipe.epochs):
        for x, y in batches(images, data[1], recipe.batch, generator):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            undecided = controller.undecided if controller.phase == "gated" else undecided
            controller.step()
    small = fxcat.finalize(net).eval()
    with torch.no_grad():
        wrong = sum(int((small(x).argmax(1) != y).sum()) for x, y in zip(test.split(1000), data[3].split(1000)))  # noqa: B905
    return {
        "error %": 100 * wrong / len(test),
        "MACs": net.hard_cost().macs,
        "structure": widths(small),
        "undecided": undecided / gates,
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*MODELS])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--flops", type=float, help="instead of the recipe's")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--json", type=Path, default=Path("runs/lenet.json"))
    options = parser.parse_args()
    data = load_mnist(options.data)
    rows = finished_rows(options.json)
    chosen: list[dict[str, Any]] = []
    for name in options.models:
        given = {k: getattr(options, k) for k in ("flops", "epochs") if getattr(options, k) is not None}
        recipe = Recipe(**{**asdict(RECIPES[name]), **given})
        for seed in range(options.seeds):
            key: dict[str, Any] = {"model": name, "seed": seed, "recipe": asdict(recipe)}
            chosen.append(
                finished_or_run(options.json, rows, key, partial(run, name, seed, recipe, data), measures="training")
            )
    print_table("MNIST", [{k: v for k, v in r.items() if k != "recipe"} for r in chosen])
    for name in options.models:
        of_model = [r for r in chosen if r["model"] == name]
        error, macs = (statistics.median(r[k] for r in of_model) for k in ("error %", "MACs"))
        print(f"{name}: median error {error:.2f} %, median MACs {macs:,.0f} over {len(of_model)} seeds")


if __name__ == "__main__":
    main()
