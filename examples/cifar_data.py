"""CIFAR-10 in memory: from an ImageFolder on disk, or through torchvision's download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.datasets import CIFAR10, ImageFolder

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(1, 3, 1, 1)


def load_cifar10(folder: Path | None, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised training images, labels, test images, labels; images are float, shape (N, 3, size, size).

    `folder` holds `train/<class>/*` and `test/<class>/*`; None downloads CIFAR-10 into `data/`.
    """
    parts: list[torch.Tensor] = []
    for train in (True, False):
        if folder is None:
            data = CIFAR10("data", train=train, download=True)
            images, labels = np.asarray(data.data), list(data.targets)
        else:
            found = ImageFolder(str(folder / ("train" if train else "test")))
            images = np.stack([np.asarray(image) for image, _ in found])
            labels = list(found.targets)
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        if size != tensor.shape[-1]:
            tensor = torch.cat([F.interpolate(x, size=size, mode="area") for x in tensor.split(4096)])
        parts += [(tensor - MEAN) / STD, torch.tensor(labels)]
    return parts[0], parts[1], parts[2], parts[3]


@dataclass
class Batches:
    """Shuffled batches, the incomplete last one left out, or all in order; with random flips and shifts or plain."""

    images: torch.Tensor
    labels: torch.Tensor
    batch_size: int
    augment: bool
    shuffle: bool | None = None
    """As `augment` if not given."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self.shuffle = self.augment if self.shuffle is None else self.shuffle

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and not self.shuffle)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if not self.shuffle:
            yield from zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
            return
        order = torch.randperm(len(self.images), generator=self._generator)
        for chosen in order[: len(self) * self.batch_size].split(self.batch_size):
            images = self.images[chosen]
            yield self._augmented(images) if self.augment else images, self.labels[chosen]

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        """Flip half of the images; shift each by up to an eighth of its size, padded with zeros."""
        count, _, height, width = images.shape
        pad = height // 8
        flip = torch.rand(count, generator=self._generator) < 0.5
        images = torch.where(flip.reshape(-1, 1, 1, 1), images.flip(3), images)
        padded = F.pad(images, (pad, pad, pad, pad))
        shift = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=self._generator)
        rows = (shift[0] + torch.arange(height)).reshape(count, 1, height, 1)
        columns = (shift[1] + torch.arange(width)).reshape(count, 1, 1, width)
        index = torch.arange(count).reshape(-1, 1, 1, 1), torch.arange(3).reshape(1, -1, 1, 1)
        shifted = padded[index[0], index[1], rows, columns]
        return shifted.contiguous(memory_format=torch.channels_last)  # faster convolutions on CPUs
