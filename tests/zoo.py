"""The torchvision models that tests and benchmarks run on."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

CONVOLUTIONAL = (
    *("alexnet", "vgg", "resnet", "resnext", "wide_resnet", "densenet", "googlenet", "inception_v3", "mobilenet_v2"),
    *("mobilenet_v3", "mnasnet", "efficientnet", "regnet", "shufflenet_v2", "squeezenet"),
)
DETECTION = torchvision.models.list_models(module=torchvision.models.detection)
DENSE = torchvision.models.list_models(module=torchvision.models.segmentation)
VIDEO = torchvision.models.list_models(module=torchvision.models.video)
FLOW = torchvision.models.list_models(module=torchvision.models.optical_flow)

Shape = tuple[int, ...]


def classifiers() -> list[str]:
    """torchvision's convolutional classifiers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [n for n in names if n.startswith(CONVOLUTIONAL)]


def trainable() -> list[str]:
    """Every model that is not quantized."""
    return torchvision.models.list_models(exclude="quantized_*")


def build(name: str) -> nn.Module:
    """A torchvision model without pretrained weights; the slow truncated-normal initialisation is skipped."""
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name in DENSE:
        options["weights_backbone"] = None
    return torchvision.models.get_model(name, weights=None, **options)


def shapes(name: str) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Small example inputs, and others with another batch size and, where the model allows it, another image size."""
    if name in FLOW:
        return ((1, 3, 128, 128),) * 2, ((2, 3, 136, 144),) * 2
    if name.startswith("mvit"):
        return ((1, 3, 16, 224, 224),), ((2, 3, 16, 224, 224),)
    if name == "s3d":
        return ((1, 3, 16, 224, 224),), ((2, 3, 16, 224, 224),)
    if name in VIDEO:
        return ((1, 3, 8, 64, 64),), ((2, 3, 8, 64, 64),)
    if name.startswith(("vit", "maxvit")) or name == "inception_v3":
        size = 299 if name == "inception_v3" else 224  # fixed, or needed by the auxiliary head
        return ((1, 3, size, size),), ((2, 3, size, size),)
    if name.startswith("swin"):
        return ((1, 3, 64, 64),), ((2, 3, 64, 64),)
    return ((1, 3, 96, 96),), ((3, 3, 128, 128),)
