"""Gated training beyond convolutional classifiers: the loss falls, the target is met, removal is exact.

    python benchmarks/finetune.py --data path/to/imagefolder

A small ViT, Swin-T and ConvNeXt-T on CIFAR-10, and an SSDlite on synthetic images of boxes; from scratch, for a few
hundred steps in somebody's own loop, at half the FLOPs.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from common import print_table, write_json
from differences import difference
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from cifar_data import Batches, load_cifar10

import fxcat

SIZE = 32


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(SIZE, 4, 4, 4, 64, 128, num_classes=10)


def small_detector() -> nn.Module:
    return torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )


def boxes(count: int, generator: torch.Generator) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Noisy images with one or two rectangles each: bright ones are of class 1, dark ones of class 2."""
    images: list[torch.Tensor] = []
    targets: list[dict[str, torch.Tensor]] = []
    for _ in range(count):
        image = 0.5 + 0.05 * torch.randn(3, 96, 96, generator=generator)
        found: list[list[int]] = []
        labels: list[int] = []
        for _ in range(int(torch.randint(1, 3, (1,), generator=generator))):
            x, y = torch.randint(0, 48, (2,), generator=generator).tolist()
            w, h = torch.randint(24, 48, (2,), generator=generator).tolist()
            label = int(torch.randint(1, 3, (1,), generator=generator))
            image[:, y : y + h, x : x + w] = 0.9 if label == 1 else 0.1
            found.append([x, y, x + w, y + h])
            labels.append(label)
        images.append(image)
        targets.append({"boxes": torch.tensor(found).float(), "labels": torch.tensor(labels)})
    return images, targets


def train(net: fxcat.GatedModule, steps: int, losses: Iterator[torch.Tensor], lr: float) -> list[float]:
    optimizer = torch.optim.AdamW(net.weight_parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=steps)
    seen: list[float] = []
    for _ in range(steps):
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.weight_parameters(), 5.0)
        optimizer.step()
        schedule.step()
        controller.step()
        seen.append(loss.item())
    return seen


def run(name: str, steps: int, data: tuple[torch.Tensor, ...] | None) -> dict[str, Any]:
    torch.manual_seed(0)
    start = time.perf_counter()
    if data is None:
        generator = torch.Generator().manual_seed(0)
        net = fxcat.prepare(small_detector(), boxes(1, generator)[:1], verbose=False)
        test: tuple[Any, ...] = boxes(4, torch.Generator().manual_seed(1))[:1]

        def losses() -> Iterator[torch.Tensor]:
            while True:
                yield sum(net(*boxes(4, generator)).values(), torch.zeros(()))
    else:
        net = fxcat.prepare(MODELS[name](), torch.zeros(1, 3, SIZE, SIZE), verbose=False)
        batches, test = Batches(data[0], data[1], 64, augment=True), (data[2][:500],)

        def losses() -> Iterator[torch.Tensor]:
            while True:
                for x, y in batches:
                    yield F.cross_entropy(net(x), y)

    seen = train(net.train(), steps, losses(), 1e-3)
    tenth = max(1, steps // 10)
    double = copy.deepcopy(net).double().eval()
    small = fxcat.finalize(double)
    given = [x.double() for x in test[0]] if data is None else test[0].double()
    with torch.no_grad():
        found = difference(small(given), double(given))
    row: dict[str, Any] = {
        "model": name,
        "steps": steps,
        "loss, first tenth": sum(seen[:tenth]) / tenth,
        "last tenth": sum(seen[-tenth:]) / tenth,
        "MACs": net.hard_cost().macs / net.start_cost.macs,
        "finalize, relative error": found,
        "seconds": round(time.perf_counter() - start),
    }
    if data is not None:
        with torch.no_grad():
            row["accuracy"] = (fxcat.finalize(net).eval()(data[2]).argmax(1) == data[3]).float().mean().item()
    return row


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small vit": small_vit,
    "convnext_tiny": lambda: torchvision.models.convnext_tiny(num_classes=10),
    "swin_t": lambda: torchvision.models.swin_t(num_classes=10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*MODELS, "detector"])
    parser.add_argument("--data", type=Path, help="an ImageFolder of CIFAR-10; downloaded without")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path, default=Path("runs/finetune.json"))
    options = parser.parse_args()
    data = load_cifar10(options.data, SIZE) if set(options.models) & set(MODELS) else None
    rows: list[dict[str, Any]] = []
    for name in options.models:
        rows.append(run(name, options.steps, data if name in MODELS else None))
        write_json(options.json, rows)
        print(rows[-1], flush=True)
    print_table("gated training to half the FLOPs", rows)


if __name__ == "__main__":
    main()
