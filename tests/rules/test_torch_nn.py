"""Layers of torch.nn between two convolutions: pruned exactly, or kept and reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from torch import nn

import fxcat

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "PReLU": lambda: nn.PReLU(8),
    "PReLU, one slope": lambda: nn.PReLU(),
    "RReLU": lambda: nn.RReLU(),
    "Threshold": lambda: nn.Threshold(0.1, 0.5),
    "Hardtanh away from zero": lambda: nn.Hardtanh(0.1, 1.0),
    "Softshrink": lambda: nn.Softshrink(),
    "Hardshrink": lambda: nn.Hardshrink(),
    "AlphaDropout": lambda: nn.AlphaDropout(0.2),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.2),
    "Softmax over rows": lambda: nn.Softmax(-1),
    "LogSoftmax over rows": lambda: nn.LogSoftmax(-1),
    "Softmin over rows": lambda: nn.Softmin(-1),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d(1),
    "ReplicationPad2d": lambda: nn.ReplicationPad2d(1),
    "CircularPad2d": lambda: nn.CircularPad2d(1),
    "ConstantPad2d": lambda: nn.ConstantPad2d(1, 0.3),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d(3),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(8),
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "Unfold and Fold": lambda: nn.Sequential(nn.Unfold(2), nn.Fold((8, 8), 2)),
    "Unflatten": lambda: nn.Sequential(nn.Unflatten(1, (8, 1)), nn.Flatten(1, 2)),
}


def around(layer: nn.Module, wide: int = 8) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 2), layer, nn.Conv2d(wide, 4, 1)).double()
    randomise(model, 0)
    return model


@pytest.mark.parametrize("name", LAYERS)
def test_channels_pass_through(name: str) -> None:
    model = around(LAYERS[name]())
    report = check(model, name, (1, 3, 9, 9), (2, 3, 9, 9))
    assert not report.failures
    assert (report.units, report.coverage) == (8, 1.0)
    net = fxcat.prepare(model, torch.zeros(1, 3, 9, 9, dtype=torch.float64), verbose=False)
    (gate,) = net.gates.values()
    gate.set(torch.tensor([0.0, 1, 0, 1, 1, 1, 1, 0]))
    net.train()(torch.randn(2, 3, 9, 9, dtype=torch.float64)).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.weight_parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("layer", "wide", "units"),
    [
        (nn.PixelShuffle(2), 2, 2),
        (nn.PixelUnshuffle(2), 32, 8),
        (nn.Sequential(nn.Conv2d(8, 16, 1), nn.PixelShuffle(2)), 4, 8 + 4),
        (nn.GLU(1), 4, 4),
        (nn.Sequential(nn.GLU(3), nn.ReLU()), 8, 8),
    ],
    ids=["PixelShuffle", "PixelUnshuffle", "sub-pixel convolution", "GLU", "GLU over columns"],
)
def test_channels_that_become_one_go_together(layer: nn.Module, wide: int, units: int) -> None:
    report = check(around(layer, wide), "channels", (1, 3, 9, 9), (2, 3, 9, 9))
    assert not report.failures
    assert (report.units, report.coverage) == (units, 1.0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Softmax2d(),
        nn.LocalResponseNorm(3),
        nn.LPPool2d(2, 2),
        nn.MaxPool2d(2, return_indices=True),
        nn.AdaptiveMaxPool2d(2, return_indices=True),
        nn.CosineSimilarity(1),
        nn.Sequential(nn.Flatten(2), nn.LSTM(64, 64, batch_first=True)),
        nn.Sequential(nn.Flatten(2), nn.GRU(64, 64, batch_first=True)),
        nn.Sequential(nn.Flatten(2), nn.LogSoftmax(1)),
    ],
    ids=lambda x: repr(x).replace("\n", ""),
)
def test_what_mixes_channels_keeps_them(layer: nn.Module) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.layer = nn.Conv2d(3, 8, 2), layer
            self.beside, self.leave = nn.Conv2d(3, 8, 2), nn.Conv2d(8, 4, 1)
            self.several = getattr(layer, "return_indices", False) or isinstance(
                next(iter(reversed(list(layer.modules())))), nn.RNNBase
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.enter(x)
            z = self.layer(y, y) if isinstance(self.layer, nn.CosineSimilarity) else self.layer(y)
            z = z[0] if self.several else z
            return self.leave(self.beside(x)).mean((2, 3)) + z.flatten(1).mean(1).reshape(-1, 1)

    model = Around().double()
    randomise(model, 0)
    report = check(model, "mixed", (1, 3, 9, 9), (2, 3, 9, 9))
    assert not report.failures


class SmallViT(nn.Module):
    """What a tutorial writes: patches, `nn.TransformerEncoder`, the mean over all tokens."""

    def __init__(self, norm_first: bool, batch_first: bool, activation: str = "gelu") -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 4, 24))
        options = {"norm_first": norm_first, "batch_first": batch_first, "activation": activation, "dropout": 0.1}
        layer = nn.TransformerEncoderLayer(24, 4, 32, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(24), enable_nested_tensor=False)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer_encoders(norm_first: bool, batch_first: bool) -> None:
    model = SmallViT(norm_first, batch_first).double()
    randomise(model, 0)
    report = check(model, "encoder", (1, 3, 8, 8), (3, 3, 8, 8))
    assert not report.failures
    assert (report.units, report.sections, report.coverage) == (24 + 2 * (4 + 32), 4, 1.0)


class Masked(nn.Module):
    """An encoder layer that is given a mask; one of its parameters is also read apart from it."""

    mask: torch.Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.enter, self.leave = how, nn.Linear(3, 24), nn.Linear(24, 4)
        self.layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True)
        self.stack = nn.TransformerEncoder(self.layer, 2, enable_nested_tensor=False)
        self.after = nn.Linear(24, 24)
        self.register_buffer("mask", torch.triu(torch.ones(16, 16, dtype=torch.bool), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        y = self.enter(tokens)
        if self.how == "padding":
            y = self.layer(y, src_key_padding_mask=tokens[..., 0] > 2)
        elif self.how == "both":
            y = self.layer(y, src_mask=self.mask, src_key_padding_mask=tokens[..., 0] > 2)
        elif self.how == "told":
            y = self.layer(y, src_mask=self.mask, is_causal=True)
        elif self.how == "stack":
            y = self.stack(y, mask=self.mask)
        else:
            y = self.layer(y, src_mask=self.mask)
        y = y + self.layer.norm1.weight
        return self.leave(F.relu(self.after(y)))


@pytest.mark.parametrize(
    ("how", "units"),
    [
        ("padding", 24 + 4 + 32 + 24),
        ("both", 24 + 4 + 32 + 24),
        ("told", 24 + 4 + 32 + 24),
        ("causal", 24 + 4 + 32 + 24),
        ("stack", 24 + 2 * (4 + 32) + 24),
    ],
)
def test_layers_with_masks(how: str, units: int) -> None:
    """Masks keep no head."""
    model = Masked(how).double()
    randomise(model, 0)
    report = check(model, "masked", (1, 3, 4, 4), (3, 3, 4, 4))
    assert not report.failures
    assert report.units == units


class Detector(nn.Module):
    """Queries that attend to an image, as DETR's decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.zeros(5, 24))
        layer = nn.TransformerDecoderLayer(24, 4, 32, dropout=0.0, batch_first=True)
        self.decoder, self.boxes = nn.TransformerDecoder(layer, 2), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.patches(x).flatten(2).transpose(1, 2)
        return self.boxes(self.decoder(self.queries.repeat(x.shape[0], 1, 1), seen))


def test_transformer_decoders() -> None:
    model = Detector().double()
    randomise(model, 0)
    report = check(model, "decoder", (1, 3, 8, 8), (3, 3, 8, 8))
    assert not report.failures
    assert (report.units, report.sections) == (24 + 2 * (4 + 4 + 32), 6)
