"""What a rewritten network costs beside one that was written with its widths from the start.

    python benchmarks/hand_built.py

Half of the FLOPs removed in widths of steps of 8; then a network with the widths that are left, built by hand in plain
PyTorch, and both in ONNX Runtime in alternation, one thread. The ratio is ours ÷ by hand; 1: the rewrite costs nothing.
Weights are random.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import finished_or_run, finished_rows, print_table
from latency import SIZE, STEP, ratios
from torch import nn
from torchvision.models import resnet18

import fxcat

Widths = Callable[[str], int]
"""Of a convolution, by its name, how many channels it gives."""


def convolution(entering: int, leaving: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """With its norm."""
    conv = nn.Conv2d(entering, leaving, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(leaving)]


class Block(nn.Module):
    """Of a ResNet-18."""

    def __init__(self, entering: int, inner: int, leaving: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(*convolution(entering, inner, 3, stride), nn.ReLU(), *convolution(inner, leaving))
        self.shortcut = nn.Sequential(*convolution(entering, leaving, 1, stride) if shortcut else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) + self.shortcut(x))


def resnet(widths: Widths) -> nn.Module:
    """A ResNet-18 whose convolutions have the names of torchvision's."""
    width = widths("conv1")
    layers = [*convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage in range(1, 5):
        for number in range(2):
            path, first = f"layer{stage}.{number}", stage > 1 and number == 0
            leaving = widths(f"{path}.conv2")
            layers.append(Block(width, widths(f"{path}.conv1"), leaving, 1 + first, first))
            width = leaving
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def mobile(widths: Widths) -> nn.Module:
    """Depthwise and pointwise convolutions in turns, as in MobileNet v1."""
    width = widths("0")
    layers = [*convolution(3, width, 3, 2), nn.ReLU()]
    for wanted, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (1024, 2)):
        layers += [*convolution(width, width, 3, stride, width), nn.ReLU()]
        leaving = widths(f"{len(layers)}:{wanted}")
        layers += [*convolution(width, leaving, 1), nn.ReLU()]
        width = leaving
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def mobile_start() -> nn.Module:
    return mobile(lambda name: int(name.partition(":")[2] or 32))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[Widths], nn.Module]]] = {
    "resnet18": (resnet18, resnet),
    "depthwise and pointwise": (mobile_start, mobile),
}


def row(name: str, batch: int, repeats: int) -> dict[str, Any]:
    start, by_hand = NETWORKS[name]
    example = torch.zeros(1, 3, SIZE, SIZE)
    net = fxcat.prepare(start().eval(), example, verbose=False, gates="units", round_to=STEP)
    fxcat.one_shot(net, fxcat.importance.norm_scale(net), target=fxcat.Target(flops=0.5))
    small = fxcat.finalize(net)
    hand = by_hand(lambda path: _width(small, path)).eval()
    if Counter(shapes(small)) != Counter(shapes(hand)):
        raise AssertionError("the network by hand has other parameters")
    return {"ours ÷ by hand": ratios([hand, small], example, "onnxruntime", batch, repeats)[1]}


def shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    return (tuple(p.shape) for p in network.parameters())


def _width(network: nn.Module, path: str) -> int:
    found = network.get_submodule(path.partition(":")[0])
    assert isinstance(found, nn.Conv2d)
    return found.out_channels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=(1, 8))
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--json", type=Path, default=Path("runs/latency.json"))
    options = parser.parse_args()
    rows = finished_rows(options.json)
    found = [
        finished_or_run(
            options.json,
            rows,
            {"by hand": name, "runtime": "onnxruntime", "batch": batch},
            lambda name=name, batch=batch: row(name, batch, options.repeats),
        )
        for batch in options.batches
        for name in NETWORKS
    ]
    print_table("a pruned network beside one that was built by hand with its widths", found)


if __name__ == "__main__":
    main()
