"""Stochastic depth, sizes that pass by a branch, tables and tokens, as models of transformers have them."""

from __future__ import annotations

import math

import torch
from differences import fixed_seed
from torch import nn
from transformers_forms import X, assert_exact, prepared

import fxcat
from fxcat.passes.graph.flops import flop_counter
from fxcat.passes.rules.noise import multiplies_by_noise


class DropPath(nn.Module):
    """Stochastic depth, as everybody writes it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1 - self.rate
        noise = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x.div(keep) * torch.floor(noise + keep)


class Shifted(DropPath):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(()) if self.training else x


class Mixer(nn.Module):
    """As SegFormer's blocks: tokens that a branch makes an image again, of a size that was asked before it."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.drop = DropPath(rate)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.stem(x)
        batch, width, rows, columns = image.shape
        y = image.flatten(2).transpose(1, 2)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            z = norm(y).transpose(1, 2).reshape(batch, width, rows, columns)
            y = self.drop(conv(z).flatten(2).transpose(1, 2)) + y
        return self.head(y)


def test_stochastic_depth_and_sizes_leave_sections() -> None:
    assert multiplies_by_noise(DropPath(0.5)) and multiplies_by_noise(DropPath(0.0))
    assert not multiplies_by_noise(Shifted(0.5)) and not multiplies_by_noise(nn.ReLU())
    assert_exact(Mixer(), sections=2)
    model = Mixer()
    net = prepared(model)
    for gate in net.gates.values():
        gate.set((torch.arange(gate.count) % 2).double() if gate.kind == "units" else 1.0)
    with torch.no_grad(), fixed_seed(1):
        assert len({*net.train()(X.repeat(4, 1, 1, 1))[:, 0, 0].tolist()}) > 2


class Tables(nn.Module):
    """As YOLOS: tables of positions, of sizes that are asked of themselves, are added between the sections."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.tables = nn.Parameter(torch.zeros(2, 1, 6, 16))
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        count, batch, width = self.tables.shape[:3]
        size = math.isqrt(self.tables.shape[3])
        tables = self.tables.view(count * batch, width, size, size)
        resized = nn.functional.interpolate(tables, size=(rows, columns)).flatten(2)
        resized = resized.view(count, batch, width, rows * columns).transpose(2, 3)
        y = self.stem(x).flatten(2).transpose(1, 2)
        for i, layer in enumerate(self.layers):
            y = y + layer(y).relu()
            y = y + resized[i].to(y.device)
        return y


def test_a_table_is_no_shortcut() -> None:
    net = prepared(Tables())
    assert len(net.structure.sections) == 2
    for gate in net.gates.values():
        if gate.kind == "section":
            gate.set(0.0)
    three = torch.cat([X, X[:1] * 2])
    with torch.no_grad():
        assert torch.allclose(fxcat.finalize(net)(three), net(three), rtol=0, atol=1e-12)


class Tokens(nn.Module):
    """As DINOv3 without registers: an empty parameter between a class token and the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.first, self.registers = nn.Parameter(torch.zeros(1, 1, 6)), nn.Parameter(torch.zeros(1, 0, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x).flatten(2).transpose(1, 2)
        first, none = (p.expand(len(x), -1, -1) for p in (self.first, self.registers))
        return self.head(torch.cat([first, none, y], dim=1))


def test_tokens_that_there_are_none_of() -> None:
    assert_exact(Tokens())


def test_parts_of_parameters_are_counted() -> None:
    layer, table = nn.Linear(4, 5), nn.Parameter(torch.rand(3, 8))
    with flop_counter() as counter, torch.no_grad():
        layer(table.split(4, dim=1)[0])
    assert counter.get_total_flops() == 2 * 3 * 4 * 5
