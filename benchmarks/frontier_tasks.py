"""The models and data of `frontier.py`: how to build each, also narrower, and what it is trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
import torchvision
from lenet_models import lenet_5_caffe, lenet_300_100, load_mnist
from torch import nn

import fxcat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from cifar_data import Batches, load_cifar10
from cifar_resnet import CifarResNet

Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """`build(width)`: the network with all widths times `width`; `shallower`: the same for its family's networks of
    less depth, by name."""

    build: Callable[[float], nn.Module]
    data: str
    lr: float
    quick_epochs: int
    full_epochs: int
    shallower: Mapping[str, Callable[[float], nn.Module]] = field(default_factory=dict)

    def load(self, folder: Path | None, size: int) -> Data:
        if self.data == "mnist":
            return load_mnist(folder or Path("data"))
        return load_cifar10(folder, size)

    def example(self, size: int) -> torch.Tensor:
        return torch.zeros(1, 1 if self.data == "mnist" else 3, size, size)

    def batches(self, data: Data, seed: int) -> tuple[Batches, Batches]:
        """Training and test batches; only natural images are flipped and shifted."""
        augment = self.data != "mnist"
        train = Batches(data[0], data[1], 128, augment=augment, shuffle=True, seed=seed)
        return train, Batches(data[2], data[3], 500, augment=False, shuffle=False)


def mobilenet(width: float) -> nn.Module:
    """torchvision's MobileNetV2 for small images: the stem does not stride."""
    model = torchvision.models.mobilenet_v2(num_classes=10, width_mult=width, round_nearest=1)
    model.features[0][0].stride = (1, 1)  # pyright: ignore[reportIndexIssue]
    return model


DEPTHS = (8, 14, 20, 32, 44, 56, 110)


def cifar_resnet(depth: int) -> Task:
    shallower = {f"resnet{d}": partial(CifarResNet, d) for d in DEPTHS if d < depth}
    return Task(partial(CifarResNet, depth), "cifar10", 0.2, 20, 200, shallower)


def vgg16_bn(width: float) -> nn.Sequential:
    """VGG-16 with BatchNorm for small images, a quarter as wide, with one linear layer behind the mean of positions."""
    layers: list[nn.Module] = []
    before = 3
    for stage, (channels, depth) in enumerate(((16, 2), (32, 2), (64, 3), (128, 3), (128, 3))):
        after = max(1, round(width * channels))
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(depth):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def vgg16_bn_bypassed(width: float) -> nn.Module:
    """The same with a residual connection round every convolution."""
    return fxcat.add_bypasses(vgg16_bn(width), torch.zeros(1, 3, 32, 32), verbose=False)


TASKS = {
    "lenet_300_100": Task(lambda width: nn.Sequential(nn.Flatten(), *lenet_300_100(width)), "mnist", 0.05, 20, 100),
    "lenet_5": Task(lenet_5_caffe, "mnist", 0.05, 8, 40),
    "resnet20": cifar_resnet(20),
    "resnet56": cifar_resnet(56),
    "resnet110": cifar_resnet(110),
    "mobilenet_v2": Task(mobilenet, "cifar10", 0.1, 20, 200),
    "vgg16_bn": Task(vgg16_bn, "cifar10", 0.1, 20, 200),
    "vgg16_bn_bypassed": Task(vgg16_bn_bypassed, "cifar10", 0.1, 20, 200),
}


def part_of(data: Data, count: int | None) -> Data:
    """With that many training images; the same ones for everybody who asks for as many."""
    if count is None:
        return data
    chosen = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(5))[:count]
    return data[0][chosen], data[1][chosen], data[2], data[3]


@cache
def loaded(name: str, folder: Path | None, size: int, images: int | None) -> Data:
    """The data of a task, read once per process."""
    return part_of(TASKS[name].load(folder, size), images)
