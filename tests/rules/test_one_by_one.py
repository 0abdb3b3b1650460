"""Convolutions with kernels for every example, as StyleGAN2, CondConv and dynamic convolutions have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import Report, check, check_on, randomise
from torch import nn

import fxcat


def _pad(x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (1, 1, 1, 1))


class Modulated(nn.Module):
    """Kernels times a style, and divided by their norms."""

    def __init__(self, entering: int, leaving: int, *, unfold: str = "channels") -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(leaving, entering, 3, 3)), nn.Linear(3, entering)
        self.unfold = unfold

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        kernels = self.weight[None] * (self.style(code)[:, None, :, None, None] + 1)
        kernels = kernels * torch.rsqrt(kernels.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
        kernels = kernels.reshape(-1, channels, 3, 3)
        x = F.conv2d(_pad(x.reshape(1, n * channels, height, width)), kernels, groups=n)
        if self.unfold == "channels":
            return x.view(-1, self.weight.shape[0], height, width)
        return x.view(n, -1, height, width) if self.unfold == "batch" else (x + 0.5).view(n, -1, height, width)


class Enlarging(Modulated):
    """The same as a transposed convolution, which has its input channels first."""

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        out = self.weight.shape[0]
        kernels = self.weight[None] * (self.style(code)[:, None, :, None, None] + 1)
        kernels = kernels * torch.rsqrt(kernels.pow(2).sum((2, 3, 4)) + 1e-8).view(n, out, 1, 1, 1)
        kernels = kernels.view(n, out, channels, 3, 3).transpose(1, 2).reshape(n * channels, out, 3, 3)
        x = F.conv_transpose2d(x.view(1, n * channels, height, width), kernels, padding=0, stride=2, groups=n)
        return x.view(n, out, x.shape[-2], x.shape[-1])


class Experts(nn.Module):
    """Kernels that are sums of experts' kernels: a table of any shape, flattened."""

    def __init__(self, entering: int, leaving: int, *, groups: int = 1, flat: bool = False) -> None:
        super().__init__()
        self.sizes = leaving, entering // groups, 3, 3
        table = torch.randn(4, *self.sizes)
        self.table = nn.Parameter(table.flatten(1) if flat else table)
        self.bias, self.choice, self.groups = nn.Parameter(torch.randn(4, leaving)), nn.Linear(3, 4), groups

    def forward(self, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        choice = self.choice(code).sigmoid()
        leaving, *kernel = self.sizes
        kernels = torch.matmul(choice, self.table.view(4, -1)).view(n * leaving, *kernel)
        bias = torch.mm(choice, self.bias).view(-1)
        x = F.conv2d(x.reshape(1, -1, height, width), kernels, bias, padding=1, groups=self.groups * n)
        return x.permute(1, 0, 2, 3).view(n, leaving, height, width)


class Between(nn.Module):
    def __init__(self, make: Callable[[int, int], nn.Module], leaving: int = 6) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 8, 1), make(8, leaving)
        self.norm = nn.BatchNorm2d(leaving)
        self.last = nn.Sequential(nn.Conv2d(leaving, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.inner(self.first(x).relu(), x.mean((2, 3)))).relu())


def checked(make: Callable[[int, int], nn.Module], leaving: int = 6, batch: int = 2) -> Report:
    model = Between(make, leaving).double()
    randomise(model, 0)
    if batch == 1:
        return check(model, "kernels of each example", (1, 3, 4, 4), (3, 3, 5, 5))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 4, 4, dtype=torch.float64, generator=generator)
    net = fxcat.prepare(model, x, verbose=False)
    return check_on(model, "kernels of each example", (x[:1],), (x,), (x,), net=net, settings=1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("unfold", ["channels", "batch"])
def test_modulated_convolutions(unfold: str, batch: int) -> None:
    report = checked(lambda a, b: Modulated(a, b, unfold=unfold), batch=batch)
    assert (report.failures, report.units, report.coverage) == ([], 8 + 6 + 5, 1.0)


@pytest.mark.parametrize("batch", [1, 2])
def test_transposed_convolutions(batch: int) -> None:
    report = checked(Enlarging, batch=batch)
    assert (report.failures, report.units, report.coverage) == ([], 8 + 6 + 5, 1.0)


@pytest.mark.parametrize("batch", [1, 2])
def test_experts_and_both_sides_of_their_kernels(batch: int) -> None:
    report = checked(Experts, batch=batch)
    assert (report.failures, report.units, report.coverage) == ([], 4 + 8 + 6 + 5, 1.0)


@pytest.mark.parametrize(("leaving", "units"), [(12, 12), (6, 8)])
def test_rows_of_a_matrix_lose_the_longer_side(leaving: int, units: int) -> None:
    report = checked(lambda a, b: Experts(a, b, flat=True), leaving)
    assert (report.failures, report.units) == ([], 4 + units + 5)
    assert any("channels share an axis" in p.reason for p in report.pinned)


@pytest.mark.parametrize("flat", [False, True])
def test_depthwise_kernels_of_each_example(flat: bool) -> None:
    report = checked(lambda a, b: Experts(a, b, groups=8, flat=flat), 8)
    assert (report.failures, report.units, report.coverage) == ([], 4 + 8 + 5, 1.0)


def test_what_is_done_before_examples_are_apart_again_pins() -> None:
    report = checked(lambda a, b: Modulated(a, b, unfold="after a sum"))
    assert (report.failures, report.units) == ([], 5)
    assert any("as many groups as there are examples" in p.reason for p in report.pinned)
