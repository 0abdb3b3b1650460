"""A small residual net and a task that it learns in seconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    """A small residual net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.block(x))
        return self.head(x.mean((2, 3)))


class Deep(nn.Module):
    """Two residual blocks of the small net, so that a section can go and another stays."""

    def __init__(self) -> None:
        super().__init__()
        first, second = Net(), Net()
        # Before batch norm a bias has no gradient but rounding errors, which Adam scales up to whole steps.
        first.stem[0].register_parameter("bias", None)
        self.stem, self.first, self.second, self.head = first.stem, first.block, second.block, second.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.first(x))
        x = F.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))


def batches(count: int, seed: int = 0) -> TensorDataset:
    """Images whose brightest quadrant is their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        images[i, label % 3, :, :] += 1.0 + label
    return TensorDataset(images, labels)


def loader(count: int = 256) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(batches(count), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0))


def trained_net(lr: float = 0.05, epochs: int = 6) -> Net:
    """The small net after a few epochs; in `train()`."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model
