"""CIFAR-10 on the device, and batches that are augmented there: no loader between the steps of a small network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from frontier_tasks import Data, part_of
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from cifar_data import MEAN, STD

PAD = 4


@cache
def on_device(decoded: Path, device: str, images: int | None) -> Data:
    """What `cifar_pack.unpack` wrote; images stay uint8."""
    found = load_file(decoded)
    names = ("train images", "train labels", "test images", "test labels")
    train, labels, test, test_labels = (found[name] for name in names)
    train, labels, *_ = part_of((train, labels, test, test_labels), images)
    return train.to(device), labels.to(device), test.to(device), test_labels.to(device)


@dataclass
class DeviceBatches:
    """As `cifar_data.Batches`: with `augment` shuffled, flipped and cropped at random out of the image with a black
    margin of four pixels, the incomplete last batch left out. An epoch is augmented at once: a few large kernels."""

    images: torch.Tensor
    labels: torch.Tensor
    batch_size: int
    augment: bool
    seed: int = 0

    def __post_init__(self) -> None:
        device = self.images.device
        self._generator = torch.Generator(device).manual_seed(self.seed)
        self._mean, self._scale = (255 * MEAN).to(device), (1 / (255 * STD)).to(device)

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > 0 and not self.augment)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images, labels = self._epoch() if self.augment else (self.images, self.labels)
        for part, of_part in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            yield ((part - self._mean) * self._scale).contiguous(memory_format=torch.channels_last), of_part

    def _epoch(self) -> tuple[torch.Tensor, torch.Tensor]:
        device, generator = self.images.device, self._generator
        order = torch.randperm(len(self.images), generator=generator, device=device)
        order = order[: len(self) * self.batch_size]
        count, height, width = len(order), *self.images.shape[2:]
        padded = F.pad(self.images, (PAD, PAD, PAD, PAD))
        top, left = torch.randint(0, 2 * PAD + 1, (2, count, 1), generator=generator, device=device)
        columns = torch.arange(width, device=device).expand(count, width)
        flip = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = left + torch.where(flip, columns.flip(1), columns)
        rows = top + torch.arange(height, device=device)
        channels = torch.arange(3, device=device).reshape(1, 3, 1, 1)
        index = order.reshape(-1, 1, 1, 1), channels, rows.reshape(count, 1, height, 1), columns[:, None, None]
        return padded[index], self.labels[order]


def batches(data: Data, seed: int, batch_size: int) -> tuple[DeviceBatches, DeviceBatches]:
    """For training and for the test."""
    train = DeviceBatches(data[0], data[1], batch_size, augment=True, seed=seed)
    return train, DeviceBatches(data[2], data[3], 1000, augment=False)
