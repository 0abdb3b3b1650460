"""The torchvision models that tests and benchmarks run on."""

from __future__ import annotations

import torchvision
from torch import nn

FAMILIES = (
    *("alexnet", "vgg", "resnet", "resnext", "wide_resnet", "densenet", "googlenet", "inception_v3", "mobilenet_v2"),
    *("mobilenet_v3", "mnasnet", "efficientnet", "regnet", "shufflenet_v2", "squeezenet"),
)


def classifiers() -> list[str]:
    """torchvision's convolutional classifiers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [n for n in names if n.startswith(FAMILIES)]


def build(name: str) -> nn.Module:
    """A torchvision model without pretrained weights; the slow truncated-normal initialisation is skipped."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)
