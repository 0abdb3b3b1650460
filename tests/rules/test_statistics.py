"""Norms and statistics over channels, written out: they count the channels that are left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers_between import checked
from torch import nn

import fxcat
from fxcat.passes.rules import counting


class ChannelNorm(nn.Module):
    """LayerNorm over channels, written out; `how`: as code of ConvNeXt, by the variance, or by the mean square."""

    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "square":
            return x * torch.rsqrt(x.pow(2).mean(dim=1, keepdim=True) + 1e-6) * self.weight.view(1, -1, 1, 1)
        mean = x.mean(1, keepdim=True)
        square = (x - mean).pow(2).mean(1, keepdim=True) if self.how == "mean" else x.var(1, False, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / torch.sqrt(square + 1e-6) + self.bias[:, None, None]


@pytest.mark.parametrize("how", ["mean", "var", "square"])
def test_norms_over_channels_that_are_written_out(how: str) -> None:
    assert checked(ChannelNorm(8, how), nn.Conv2d(8, 16, 1), nn.ReLU()) == (1.0, 8 + 16)


class GlobalResponseNorm(nn.Module):
    """Channels are scaled by their norm relative to the mean norm (arXiv 2301.00808, section 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        norm = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), x * norm)


def test_global_response_norm() -> None:
    assert checked(GlobalResponseNorm(8), nn.Conv2d(8, 16, 1), nn.GELU(), GlobalResponseNorm(16)) == (1.0, 24)


@pytest.mark.parametrize(("power", "units"), [(2.0, 8 + 16), (1, 8 + 16), (float("inf"), 8 + 16), (0.5, 16)])
def test_norms_of_vectors(power: float, units: int) -> None:
    """What is zero adds nothing to a norm; for powers below 1 its gradient there is not finite."""

    class Unit(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (torch.linalg.vector_norm(x, power, dim=1, keepdim=True) + 1.0)

    assert checked(Unit(), nn.Conv2d(8, 16, 1))[1] == units


@pytest.mark.parametrize(
    ("kind", "options", "units"),
    [
        ("mean", {}, 8 + 16),
        ("var", {"correction": 0}, 8 + 16),
        ("std", {"unbiased": False}, 8 + 16),
        ("std", {}, 8 + 16),
        ("var", {"correction": 3}, 8 + 16),
        ("mean", {"dtype": torch.float64}, 16),
    ],
)
def test_statistics_over_channels(kind: str, options: dict[str, Any], units: int) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + getattr(torch, kind)(x, dim=1, keepdim=True, **options)

    assert checked(Scaled(), nn.Conv2d(8, 16, 1))[1] == units


class SimpleNorm(nn.Module):
    """That of timm's ConvNeXts for small devices: no mean is taken off, and the variance is unbiased."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(torch.var(x, dim=(1,), keepdim=True) + 0.1)


@pytest.mark.parametrize("left", [1, 2, 3])
def test_unbiased_variances_over_as_few_channels_as_are_left(left: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), SimpleNorm(), nn.Conv2d(8, 4, 1)).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    net = fxcat.prepare(model, x, verbose=False)
    with torch.no_grad():
        net.gate_vector.theta[left:8] = 0.0
        expected = net.eval()(x)
        small = fxcat.finalize(net)
        torch.testing.assert_close(small(x), expected, rtol=1e-12, atol=1e-12)
    assert small.get_submodule("0").out_channels == left
    assert bool(expected.isfinite().all())


def test_variances_of_all_entries_by_a_flag_alone() -> None:
    class Whole(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.std(False) + torch.var(x, True) + torch.var_mean(x, False)[0]

    assert checked(Whole(), nn.Conv2d(8, 16, 1))[0] == 1.0


class Observed(nn.Module):
    """Rounded to steps of the largest value that training has seen."""

    most: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.most.copy_(0.9 * self.most + 0.1 * x.detach().abs().max())
        step = self.most / 15 + torch.min(x) * 1e-3
        return x + (torch.round(x / step) * step - x).detach()


def test_extrema_of_all_entries() -> None:
    assert checked(Observed(), nn.Conv2d(8, 16, 1), nn.ReLU()) == (1.0, 8 + 16)


def test_sums_over_channels() -> None:
    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sigmoid(x.sum(1, keepdim=True))

    assert checked(Attend(), nn.Conv2d(8, 16, 1), nn.ReLU()) == (1.0, 8 + 16)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "mean", "var"])
def test_a_sample_that_closes_a_whole_group_gives_numbers(name: str) -> None:
    x = torch.randn(2, 4, 4, requires_grad=True)
    gate = torch.zeros(4, requires_grad=True)
    arguments = {"layer_norm": ([4],), "rms_norm": ([4],), "group_norm": (1,), "mean": (-1, True), "var": (-1,)}
    result = getattr(counting, f"gated_{name}")(x, *arguments[name], gate=gate)
    result.square().sum().backward()
    assert bool((result == 0).all())
    assert x.grad is not None and gate.grad is not None
    assert bool(x.grad.isfinite().all()) and bool(gate.grad.isfinite().all())
