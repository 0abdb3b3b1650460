"""Random small networks from the supported ops, for property tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

KINDS = (
    *("conv", "grouped", "depthwise", "norm", "activation", "add", "residual", "cat", "excite", "shuffle", "split"),
    *("slice", "pool", "pad", "product", "shift", "pre_activation"),
)


@dataclass(frozen=True)
class Step:
    """One step: what to do, with which earlier value, and a number for everything else."""

    kind: str
    value: int
    number: int


steps = st.builds(Step, st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, 11))


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
        elif step.kind == "norm":
            built = nn.BatchNorm2d(width, affine=bool(number % 4))
        elif step.kind == "activation":
            built = (nn.ReLU(), nn.SiLU(), nn.Sigmoid(), nn.Hardswish(), nn.ReLU6(inplace=True))[number % 5]
            if number % 5 == 4:  # in place on a copy: other steps may still read the value
                built = nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(width), built)
        elif step.kind == "residual":
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
        if step.kind == "residual":
            return value + layer(value)
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
