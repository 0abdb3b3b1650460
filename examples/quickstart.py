"""The whole way once, on data that comes with scikit-learn: prepare → fit → finalize → export.

    python examples/quickstart.py

A torchvision ResNet-18 learns handwritten digits, once as it is and once while fxcat makes it half as expensive;
both are exported to ONNX and timed in ONNX Runtime.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxcat
from fxcat.exporters.latency import compare_latency

SIZE = 32


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1,797 real 8×8 images, enlarged to 32×32 with three channels; a fifth is kept for the test."""
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=SIZE, mode="bilinear").repeat(1, 3, 1, 1)
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:360], order[360:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def train(model: nn.Module, goal: fxcat.Target | None, epochs: int, seed: int) -> tuple[nn.Module, fxcat.History]:
    """Train with the same loop, with a target or without pruning."""
    train_set, test_set = digits()
    generator = torch.Generator().manual_seed(seed)
    # inference libraries compute blocks of 8 or 16 channels: aligned widths make a smaller network a faster one
    net = fxcat.prepare(model, torch.zeros(1, 3, SIZE, SIZE), round_to=8, verbose=goal is not None)
    history = fxcat.fit(
        net,
        DataLoader(train_set, batch_size=64, shuffle=True, drop_last=True, generator=generator),
        DataLoader(test_set, batch_size=120),
        epochs=epochs,
        target=goal,
        pressure=None if goal else fxcat.Pressure(nu=0.0),
        seed=seed,
    )
    return fxcat.finalize(net), history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    model = torchvision.models.resnet18(num_classes=10)

    console = Console()
    table = Table(title=f"ResNet-18, digits, {options.epochs} epochs each")
    for name in ("network", "test accuracy", "MACs", "parameters", "ONNX file", "latency, batch 1"):
        table.add_column(name, justify="right" if name != "network" else "left")
    rows: list[list[str]] = []
    paths: list[Path] = []
    for name, goal in (("dense", None), ("pruned", fxcat.Target(flops=options.flops))):
        console.rule(name)
        small, history = train(model, goal, options.epochs, options.seed)
        report = fxcat.export_onnx(small, options.out / f"{name}.onnx", torch.zeros(1, 3, SIZE, SIZE))
        last = history.epochs[-1]
        size = f"{report.bytes / 1e6:.1f} MB"
        rows.append([name, f"{last.val_accuracy:.2%}", f"{last.macs:.1%}", f"{last.params:.1%}", size])
        paths.append(report.path)
    history.plot(options.out / "history.png")
    times = compare_latency(paths[0], paths[1])
    for row, milliseconds in zip(rows, times, strict=True):
        table.add_row(*row, f"{milliseconds:.2f} ms")
    console.print(table)
    console.print(f"Both files are verified in ONNX Runtime. In {options.out}: {paths[1].name}, history.png")


if __name__ == "__main__":
    main()
