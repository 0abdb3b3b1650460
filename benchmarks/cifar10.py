"""CIFAR-10, ResNet-20: fxcat against the dense network and a uniformly narrowed one of the same MACs.

    python benchmarks/cifar10.py --data path/to/imagefolder --size 16 --epochs 12 --seeds 3

All three train with the same loop, schedule, augmentation and number of epochs; the accuracy is that of the last
epoch. Finished runs are kept in the JSON file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from cifar_data import Batches, load_cifar10
from cifar_resnet import CifarResNet

import fxcat

NOTHING_PRUNED = fxcat.Pressure(nu=0.0)


def macs(depth: int, width: float, size: int) -> int:
    return fxcat.prepare(CifarResNet(depth, width), torch.zeros(1, 3, size, size), verbose=False).start_cost.macs


def narrow_width(depth: int, size: int, flops: float) -> float:
    """The width multiplier whose MACs are closest to the target."""
    wanted = flops * macs(depth, 1.0, size)
    return min((i / 200 for i in range(60, 200)), key=lambda w: abs(macs(depth, w, size) - wanted))


def run(method: str, seed: int, options: argparse.Namespace, data: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    torch.manual_seed(seed)
    width = narrow_width(options.depth, options.size, options.flops) if method == "narrow" else 1.0
    model = CifarResNet(options.depth, width)
    net = fxcat.prepare(model, torch.zeros(1, 3, options.size, options.size), verbose=False)
    pruned = method == "fxcat"
    plain = {} if pruned else {"warmup": 0.0, "until": 1e-9}
    start = time.perf_counter()
    history = fxcat.fit(
        net,
        Batches(data[0], data[1], 128, augment=True, seed=seed),
        Batches(data[2], data[3], 500, augment=False),
        epochs=options.epochs,
        target=fxcat.Target(flops=options.flops) if pruned else None,
        pressure=None if pruned else NOTHING_PRUNED,
        lr=options.lr,
        seed=seed,
        progress=False,
        **plain,
    )
    return {
        "method": method,
        "seed": seed,
        "size": options.size,
        "epochs": options.epochs,
        "flops": options.flops,
        "depth": options.depth,
        "accuracy": history.epochs[-1].val_accuracy,
        "MACs": net.hard_cost().macs,
        "parameters": net.hard_cost().params,
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--json", type=Path, default=Path("runs/cifar10_bench.json"))
    options = parser.parse_args()
    data = load_cifar10(options.data, options.size)
    rows: list[dict[str, Any]] = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    settings = {k: getattr(options, k) for k in ("size", "epochs", "flops", "depth")}
    for seed in range(options.seeds):
        for method in ("fxcat", "narrow", "dense"):
            key = {"method": method, "seed": seed, **settings}
            if not any(all(r[k] == v for k, v in key.items()) for r in rows):
                rows.append(run(method, seed, options, data))
                write_json(options.json, rows)
                print(rows[-1], flush=True)
    rows = [r for r in rows if all(r[k] == v for k, v in settings.items())]
    summary = []
    for method in ("dense", "fxcat", "narrow"):
        chosen = [r for r in rows if r["method"] == method]
        summary.append(
            {
                "method": method,
                "runs": len(chosen),
                "mean accuracy %": 100 * statistics.mean(r["accuracy"] for r in chosen),
                "lowest %": 100 * min(r["accuracy"] for r in chosen),
                "MACs": round(statistics.mean(r["MACs"] for r in chosen)),
                "seconds": statistics.median(r["seconds"] for r in chosen),
            }
        )
    print_table(f"ResNet-{options.depth}, CIFAR-10 at {options.size}×{options.size}, {options.epochs} epochs", summary)


if __name__ == "__main__":
    main()
