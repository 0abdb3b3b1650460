"""Small networks to export, among them those that cannot be, and what their files compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import nn


class Small(nn.Module):
    """Convolution, norm, branch, pooling, dropout, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        nn.init.normal_(self.norm.bias)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.get_buffer("running_var"), 0.5, 1.5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu()
        x = x + self.branch(x)
        return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.drop(self.features(x)))


@dataclass
class Boxes:
    scores: torch.Tensor
    note: str
    more: tuple[torch.Tensor, ...]


class Dictionary(Small):
    def forward(self, x: torch.Tensor) -> Any:
        f = self.features(x)
        return {"out": self.fc(f), "none": None, "aux": (f, [f * 2])}


class Structured(Small):
    def forward(self, x: torch.Tensor) -> Any:
        f = self.features(x)
        return Boxes(self.fc(f), "not a tensor", (f, f - 1))


class TwoInputs(Small):
    """An image and the row of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(3, 8)

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> Any:
        return self.fc(self.features(x) + self.rows(row))


class OtherAlone(Small):
    """Computes something else for a batch of one, which the capture cannot see."""

    def forward(self, x: torch.Tensor) -> Any:
        y = super().forward(x)
        return y * 2 if x.shape[0] == 1 else y


class OtherTogether(Small):
    """Computes something else for large batches."""

    def forward(self, x: torch.Tensor) -> Any:
        y = super().forward(x)
        return y * 2 if x.shape[0] > 100 else y


class FixedBatch(Small):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).view(2, 5)


class Halves(Small):
    """Chunks of the batch itself: how many there are depends on it."""

    def forward(self, x: torch.Tensor) -> Any:
        return torch.chunk(super().forward(x), 2)[0]


class OnValues(Small):
    def forward(self, x: torch.Tensor) -> Any:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def session(path: Path) -> ort.InferenceSession:
    """One that is not fxcat's, in one thread: more would only wait for each other, at full speed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def runner(path: Path) -> Callable[..., list[torch.Tensor]]:
    """What computes the outputs of a file from its inputs."""
    made: Any = session(path)

    def compute(*inputs: torch.Tensor) -> list[torch.Tensor]:
        feed = {i.name: x.numpy() for i, x in zip(made.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(v) for v in made.run(None, feed)]

    return compute


def run(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return runner(path)(*inputs)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    wanted = wanted.detach()
    scale = max(1.0, float(wanted.abs().max()))
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= 1e-4 * scale
