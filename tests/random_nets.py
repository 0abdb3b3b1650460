"""Random small networks from the supported ops, for property tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

KINDS = (
    *("conv", "grouped", "depthwise", "norm", "activation", "add", "residual", "cat", "excite", "shuffle", "split"),
    *("slice", "pool", "pad", "product", "shift", "pre_activation"),
    *("group_norm", "instance_norm", "attention", "transformer", "channels_last", "twice", "transposed_mean"),
    *("transposed", "frozen_norm", "scales"),
)


@dataclass(frozen=True)
class Step:
    """One step: what to do, with which earlier value, and a number for everything else."""

    kind: str
    value: int
    number: int


steps = st.builds(Step, st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, 11))


class Attention(nn.Module):
    """Self-attention over positions and a class token, written in one of four ways; (N, C, H, W) to the same."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.heads, self.size, self.style = 1 + number % 3, 2 + number % 2, number % 4
        inner = self.heads * self.size
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.enter = nn.Linear(width, inner) if self.style == 0 else None
        self.packed = nn.MultiheadAttention(inner, self.heads, batch_first=True) if self.style == 0 else None
        if self.style > 0:
            self.qkv_weight = nn.Parameter(torch.randn(3 * inner, width))
            self.qkv_bias = nn.Parameter(torch.randn(3 * inner))
        if self.style > 1:
            self.bias = nn.Parameter(torch.randn(self.heads, 1, 1))
        self.leave = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        if self.enter is not None and self.packed is not None:
            tokens = self.enter(tokens)
            result = self.packed(tokens, tokens, tokens, need_weights=self.heads == 2)[0]
        else:
            batch, count, _ = tokens.shape
            qkv = F.linear(tokens, self.qkv_weight, self.qkv_bias)
            q, k, v = qkv.reshape(batch, count, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            if self.style == 1:
                result = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, -1)
            elif self.style == 2:
                scores = torch.einsum("bhxd,bhyd->bhxy", q, k * self.size**-0.5) + self.bias
                result = torch.einsum("bhxy,bhyd->bxhd", scores.softmax(-1), v).flatten(2)
            else:
                scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.bias.exp()
                result = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, self.heads * self.size)
        return self.leave(result)[:, 1:].transpose(1, 2).reshape(x.shape)


class ChannelsLast(nn.Module):
    """A norm and an MLP on the last axis, scaled per channel."""

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        norm = (nn.LayerNorm(width), nn.RMSNorm(width), nn.LayerNorm(width, elementwise_affine=False))[number % 3]
        self.block = nn.Sequential(norm, nn.Linear(width, 5), nn.GELU(), nn.Linear(5, width))
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.block(x.permute(0, 2, 3, 1)) * self.scale).permute(0, 3, 1, 2)


def _norm(kind: str, width: int, number: int) -> nn.Module:
    if kind == "frozen_norm":
        return FrozenBatchNorm2d(width)
    if kind == "instance_norm":
        return nn.InstanceNorm2d(width, affine=bool(number % 2))
    if kind == "group_norm":
        groups = [g for g in range(1, width + 1) if width % g == 0]
        return nn.GroupNorm(groups[number % len(groups)], width)
    return nn.BatchNorm2d(width, affine=bool(number % 4))


class RandomNet(nn.Module):
    """Executes steps on a growing list of values of shape (N, C, H, W); the last ones feed a classifier."""

    def __init__(self, program: list[Step], channels: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.program = tuple(program)
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.widths = [channels]
        self.layers = nn.ModuleList([self._build(step) for step in program])
        self.head = nn.Linear(sum(self.widths[-2:]), classes)

    def _conv(self, entering: int, leaving: int, number: int) -> nn.Module:
        kernel = 1 + 2 * (number % 2)
        return nn.Conv2d(entering, leaving, kernel, padding=kernel // 2, bias=number % 3 == 0)

    def _build(self, step: Step) -> nn.Module:
        width, number = self.widths[step.value % len(self.widths)], step.number
        other = self.widths[number % len(self.widths)]
        even = width - width % 2
        leaving = {
            "conv": 4 + number,
            "grouped": 8,
            "cat": width + other,
            "split": width - width // 2,
            "pad": width + 3,
        }
        built: nn.Module = nn.Identity()
        if step.kind in ("conv", "pre_activation"):
            leaving[step.kind] = 4 + number
            built = self._conv(width, 4 + number, number)
            if step.kind == "pre_activation":
                built = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=bool(number % 2)), built)
        elif step.kind == "grouped":
            groups = 2 if number % 2 else 4
            built = nn.Sequential(nn.Conv2d(width, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=groups))
        elif step.kind == "depthwise":
            leaving["depthwise"] = width * (1 + number % 2)
            built = nn.Conv2d(width, leaving["depthwise"], 3, padding=1, groups=width)
        elif step.kind in ("norm", "frozen_norm", "group_norm", "instance_norm"):
            built = _norm(step.kind, width, number)
        elif step.kind == "activation":
            built = (nn.ReLU(), nn.SiLU(), nn.Sigmoid(), nn.Hardswish(), nn.ReLU6(inplace=True))[number % 5]
            if number % 5 == 4:  # in place on a copy: other steps may still read the value
                built = nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(width), built)
        elif step.kind == "transposed":
            groups = 2 if number % 3 == 0 and width % 2 == 0 else 1
            leaving["transposed"] = 4 + number - number % 2
            built = nn.ConvTranspose2d(width, leaving["transposed"], 3, padding=1, groups=groups, bias=number % 2 == 0)
        elif step.kind == "attention":
            built = Attention(width, number)
        elif step.kind == "transformer":
            built = nn.Sequential(nn.GroupNorm(1, width), Attention(width, number))
        elif step.kind == "channels_last":
            built = ChannelsLast(width, number)
        elif step.kind in ("residual", "twice", "scales"):
            built = nn.Sequential(
                self._conv(width, 5, number), nn.BatchNorm2d(5), nn.ReLU(), self._conv(5, width, number // 2)
            )
        elif step.kind in ("add", "product"):
            built = nn.Sequential(nn.Conv2d(other, width, 1), nn.BatchNorm2d(width)) if other != width else built
        elif step.kind == "excite":
            built = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
            )
        elif step.kind == "slice":
            leaving["slice"] = max(1, width - 2)
        elif step.kind == "shuffle":
            leaving["shuffle"] = even
        self.widths.append(leaving.get(step.kind, width))
        return built

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.stem(x)]
        for step, layer in zip(self.program, self.layers, strict=True):
            values.append(self._run(step, layer, values))
        pooled = [F.adaptive_avg_pool2d(v, 1) for v in values[-2:]]
        return self.head(torch.flatten(torch.cat(pooled, 1), 1))

    def _run(self, step: Step, layer: nn.Module, values: list[torch.Tensor]) -> torch.Tensor:
        value, number = values[step.value % len(values)], step.number
        other = values[number % len(values)]
        if step.kind in ("residual", "transformer", "channels_last"):
            return value + layer(value)
        if step.kind == "twice":
            value = value + layer(value)
            return value + layer(value)
        if step.kind == "scales":
            small = layer(F.avg_pool2d(value, max(1, value.shape[2] // 2)))
            return layer(value) + F.interpolate(small, value.shape[2:])
        if step.kind == "transposed_mean":
            return value - value.transpose(2, 3).mean((2, 3), keepdim=True)
        if step.kind == "add":
            return value + layer(other)
        if step.kind == "product":
            return value * layer(other)
        if step.kind == "excite":
            return value * layer(value)
        if step.kind == "cat":
            return torch.cat([value, other], 1)
        if step.kind == "split":
            return value.chunk(2, 1)[0]
        if step.kind == "slice":
            return value[:, value.shape[1] - max(1, value.shape[1] - 2) :]
        if step.kind == "pool":
            return F.avg_pool2d(F.max_pool2d(value, 3, 1, 1), 3, 1, 1) if number % 2 else F.max_pool2d(value, 3, 1, 1)
        if step.kind == "pad":
            return F.pad(value, (0, 0, 0, 0, number % 4, 3 - number % 4))
        if step.kind == "shift":
            return value * 0.5 + 0.25
        if step.kind == "shuffle":
            even = value[:, : value.shape[1] - value.shape[1] % 2]
            batch, channels, height, width = even.shape
            return even.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(even.shape)
        return layer(value)


class Opaque(RandomNet):
    """The same, by Python that cannot be traced: every layer is a region, or called by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 1e9:
            raise ValueError("the image is too bright")
        return super().forward(x)


class Several(RandomNet):
    """The same for a pair of images and a dict with another one."""

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], more: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().forward(pair[0]) + super().forward(pair[1] * more["image"])
