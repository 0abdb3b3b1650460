"""Networks as people write them for other tasks than classification: pruned exactly, trained, exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from exactness import check, random_gates, randomise
from torch import nn

import fxcat


class UNet(nn.Module):
    """Two levels, transposed convolutions, two kinds of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self.stage(3, 8), self.stage(8, 16), self.stage(16, 32)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.merge = nn.ModuleList([self.stage(32, 16), self.stage(16, 8)])
        self.leave = nn.Conv2d(8, 2, 1)

    @staticmethod
    def stage(enter: int, leave: int) -> nn.Sequential:
        first = nn.Conv2d(enter, leave, 3, padding=1), nn.InstanceNorm2d(leave, affine=True), nn.LeakyReLU(0.2, True)
        return nn.Sequential(*first, nn.Conv2d(leave, leave, 3, padding=1), nn.GroupNorm(4, leave), nn.ReLU(True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        for stage in self.down[:-1]:
            kept.append(stage(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.down[-1](x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([kept.pop(), up(x)], 1))
        return self.leave(x)


class SuperResolution(nn.Module):
    """Sub-pixel convolution (arXiv 1609.05158)."""

    def __init__(self) -> None:
        super().__init__()
        enter = nn.Conv2d(3, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 12, 3, padding=1), nn.PReLU(12)
        self.layers = nn.Sequential(*enter, nn.Conv2d(12, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(self.layers(x), 0, 1)


class CausalBlock(nn.Module):
    """A block of a language model: causal attention with a mask in a buffer."""

    mask: torch.Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.register_buffer("mask", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.size()
        parts = self.qkv(self.first(x)).split(width, dim=2)
        q, k, v = (p.view(batch, count, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.mask[:, :, :count, :count] == 0, float("-inf"))
        y = (F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(batch, count, width)
        x = x + self.leave(y)
        return x + self.mlp(self.second(x))


class ImageGPT(nn.Module):
    """Patches in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, 24, 2, 2), nn.Parameter(torch.zeros(1, 16, 24))
        self.blocks = nn.ModuleList([CausalBlock(24, 4) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, -1])


class Autoencoder(nn.Module):
    """Variational: noise in training only, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 16))
        self.mean, self.spread = nn.Linear(16, 4), nn.Linear(16, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 192), nn.Unflatten(1, (3, 8, 8)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.encoder(x)
        mean, spread = self.mean(hidden), self.spread(hidden)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * spread) if self.training else mean
        return self.decoder(code), mean, spread


class TextReader(nn.Module):
    """Columns of an image, read by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, (8, 1)))
        self.rows, self.head = nn.LSTM(12, 16, batch_first=True, bidirectional=True), nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result, _ = self.rows(self.features(x).squeeze(2).permute(0, 2, 1))
        return self.head(result)


NETS: dict[str, tuple[Callable[[], nn.Module], int, int, float]] = {
    "U-Net": (UNet, 128, 0, 1.0),
    "sub-pixel convolution": (SuperResolution, 16 + 12 + 4, 0, 1.0),
    "image GPT": (ImageGPT, 24 + 2 * (4 + 96), 4, 1.0),
    "variational autoencoder": (Autoencoder, 64 + 16 + 64, 0, 1.0),
    "text reader": (TextReader, 36, 0, 1.0),
}


@pytest.mark.parametrize("name", NETS)
def test_networks_as_people_write_them(name: str, tmp_path: Path) -> None:
    build, units, sections, least = NETS[name]
    model = build().double()
    randomise(model, 0)
    report = check(model, name, (1, 3, 8, 8), (3, 3, 8, 8), settings=2)
    assert not report.failures
    assert (report.units, report.sections) == (units, sections)
    assert report.coverage >= least
    example = torch.randn(2, 3, 8, 8)
    net = fxcat.prepare(build(), example, verbose=False)
    random_gates(net, 1)
    error = fxcat.export_onnx(fxcat.finalize(net), tmp_path / "small.onnx", example).max_error
    assert error is not None and error < 1e-4
