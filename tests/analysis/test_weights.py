"""Weights in other forms than a layer's own: parameters in products, and weights that are computed from parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differences import DOUBLE_TOLERANCE, difference
from exactness import Report, check, randomise
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fxcat


class Wide(nn.Module):
    """A linear layer, what is written between (given the module and the value), a linear layer."""

    def __init__(self, form: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(6, 3)
        self.proj, self.other = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6, 8))
        self.shift = nn.Parameter(torch.randn(6))
        self.down, self.up = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 8))
        self.scale = nn.Parameter(torch.rand(6, 1) + 0.5)
        self.heads = nn.Parameter(torch.randn(2, 4, 6))
        self.spread = nn.Parameter(torch.randn(8, 2, 3))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.form(self, self.first(x).relu()).relu())


def quantised(w: torch.Tensor) -> torch.Tensor:
    """Rounded, with the gradient of what is rounded."""
    steps = (w / 0.1).clamp(-8, 7)
    return ((steps.round() - steps).detach() + steps) * 0.1


PRODUCTS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "operator": lambda m, y: y @ m.proj,
    "matmul": lambda m, y: torch.matmul(y, m.proj),
    "mm": lambda m, y: y.mm(m.proj),
    "transposed": lambda m, y: F.linear(y, m.proj.t(), m.shift),
    "transposed attribute": lambda m, y: F.linear(y, m.proj.T),
    "einsum": lambda m, y: torch.einsum("bi,io->bo", y, m.proj),
    "einsum, weight first": lambda m, y: torch.einsum("oi,bi->bo", m.other, y),
    "addmm": lambda m, y: torch.addmm(m.shift, y, m.proj),
    "addmm, transposed": lambda m, y: torch.addmm(m.shift, y, m.other.t()),
    "baddbmm": lambda m, y: torch.baddbmm(m.shift[None, None], y[None], m.proj[None])[0],
    "scaled": lambda m, y: F.linear(y, m.other * 0.3),
    "scaled by rows": lambda m, y: F.linear(y, m.other * m.scale, m.shift * m.scale.flatten()),
    "quantised": lambda m, y: F.linear(y, quantised(m.other)),
    "sum": lambda m, y: F.linear(y, m.other + m.proj.t()),
    "low rank": lambda m, y: F.linear(y, m.other + m.down @ m.up),
    "normalised": lambda m, y: F.linear(y, F.normalize(m.other)),
    "normalised columns": lambda m, y: F.linear(y, F.normalize(m.other, dim=0)),
    "divided by norms": lambda m, y: F.linear(y, m.other / m.other.norm(dim=1, keepdim=True)),
    "by its size": lambda m, y: F.linear(y, m.other * m.other.shape[1] ** -0.5),
    "in part": lambda m, y: torch.cat([F.linear(y, w) for w in m.other.split([2, 4])], 1),
    "joined": lambda m, y: F.linear(y, torch.cat([m.other, m.proj.T.relu()])).unflatten(1, (2, -1)).sum(1),
    "joined columns": lambda m, y: F.linear(torch.cat([y, y.tanh()], 1), torch.cat([m.other, m.proj.T], -1)),
    "masked": lambda m, y: F.linear(y, torch.where(m.other.abs() > 0.1, m.other, torch.zeros_like(m.other))),
    "of its type": lambda m, y: F.linear(y, m.other + torch.eye(6, 8).to(m.other)),
    "scaled by the largest": lambda m, y: F.linear(y, m.other / m.other.abs().amax(1, keepdim=True)),
    "twice": lambda m, y: (y @ m.proj).relu() @ m.other @ m.proj,
    "beside a vector's": lambda m, y: (y @ m.proj) * (y @ m.other[0])[:, None],
    "by a vector": lambda m, y: (y @ m.proj) * y.mv(m.other[0])[:, None],
    "vectors": lambda m, y: (y @ m.proj) * torch.dot(y.flatten(), y.sin().flatten()),
    "vectors of one example": lambda m, y: (y @ m.proj) * torch.vdot(y[0], y[-1]),
    "viewed": lambda m, y: F.linear(y, m.other.view(m.other.size(0), -1)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_parameters(name: str) -> None:
    model = Wide(PRODUCTS[name]).double()
    randomise(model, 0)
    report = check(model, name, (1, 5), (3, 5))
    assert report.failures == []
    assert (report.coverage, report.units) == (1.0, 14)


def test_units_along_the_first_axis_stay() -> None:
    """A gate would not know them from a batch."""
    model = Wide(lambda m, y: (m.other @ y.t()).t()).double()
    randomise(model, 0)
    with pytest.raises(fxcat.NothingToPruneError, match="which is no batch"):
        fxcat.prepare(model, torch.zeros(1, 5).double())


def test_what_products_of_weights_sum_over() -> None:
    """Units may be dead in a value, not in a weight: a product that is itself a weight counts those that are not."""

    def form(m: Any, y: torch.Tensor) -> torch.Tensor:
        return F.linear(y, m.other) + (m.down.t() @ m.other @ m.proj).mean(0)

    model = Wide(form).double()
    randomise(model, 0)
    report = check(model, "sums", (1, 5), (3, 5))
    assert (report.failures, report.units) == ([], 6)
    assert "units that a product of weights sums over" in {p.reason for p in report.pinned}
    with pytest.raises(fxcat.NothingToPruneError):  # a weight that is an input too
        fxcat.prepare(Wide(lambda m, y: F.linear(y, m.other) + F.linear(m.other, m.other).mean(0)), torch.zeros(1, 5))


def test_heads_of_a_parameter_are_units() -> None:
    model = Wide(lambda m, y: torch.einsum("bhd,hdo->bo", y.view(-1, 2, 4), m.heads)).double()
    randomise(model, 0)
    report = check(model, "heads", (1, 5), (3, 5))
    assert (report.failures, report.units) == ([], 2 + 6)
    model = Wide(lambda m, y: torch.einsum("bi,ihd->bhd", y, m.spread).flatten(1)).double()
    randomise(model, 0)
    report = check(model, "spread", (1, 5), (3, 5))
    assert (report.failures, report.units) == ([], 8 + 2)


def test_a_norm_of_a_whole_weight_keeps_one_of_its_axes() -> None:
    model = Wide(lambda m, y: F.linear(y, m.other / m.other.norm())).double()
    randomise(model, 0)
    report = check(model, "whole", (1, 5), (3, 5))
    assert report.failures == []
    assert any("statistic" in p.reason for p in report.pinned)


class Conv(nn.Conv2d):
    """A convolution whose weight is computed."""

    def __init__(self, entering: int, leaving: int, form: Callable[[Any], torch.Tensor], groups: int = 1) -> None:
        super().__init__(entering, leaving, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.rand(leaving, 1, 1, 1) + 0.5)
        self.more = nn.Parameter(torch.randn(leaving, entering // groups, 1, 1))
        self.register_buffer("mask", torch.rand(leaving, entering // groups, 3, 3) > 0.3)
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.form(self), self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised(m: Any) -> torch.Tensor:
    var, mean = torch.var_mean(m.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (m.weight - mean) / torch.sqrt(var + 1e-6)


def standardised_by_rows(m: Any) -> torch.Tensor:
    w = m.weight - m.weight.mean(dim=(1, 2, 3), keepdim=True)
    return w / (w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5)


def standardised_in_a_chain(m: Any) -> torch.Tensor:
    w = m.weight - m.weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    return w / (w.reshape(w.size(0), -1).std(1).reshape(-1, 1, 1, 1) + 1e-5) * m.gain


def standardised_by_batch_norm(m: Any) -> torch.Tensor:
    rows = m.weight.reshape(1, m.out_channels, -1)
    gain = (m.gain * 0.7).view(-1)
    return F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0).reshape_as(m.weight)


KERNELS: dict[str, Callable[[Any], torch.Tensor]] = {
    "scaled": lambda m: m.weight * 0.3,
    "gained": lambda m: m.weight * m.gain,
    "masked": lambda m: m.weight * m.mask,
    "summed": lambda m: m.weight + F.pad(m.more, [1, 1, 1, 1]),
    "stretched": lambda m: m.weight + m.more,
    "quantised": lambda m: quantised(m.weight),
    "var_mean": standardised,
    "std": standardised_by_rows,
    "chain": standardised_in_a_chain,
    "batch_norm": standardised_by_batch_norm,
}


def between(conv: Callable[[int, int], nn.Module]) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), conv(8, 6), nn.ReLU(), conv(6, 4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    model = model.double()
    randomise(model, 0)
    return model


def checked(conv: Callable[[int, int], nn.Module]) -> Report:
    report = check(between(conv), "computed", (1, 3, 6, 6), (3, 3, 7, 7))
    assert report.failures == []
    return report


@pytest.mark.parametrize("name", KERNELS)
def test_computed_kernels(name: str) -> None:
    report = checked(lambda entering, leaving: Conv(entering, leaving, KERNELS[name]))
    assert (report.coverage, report.units) == (1.0, 8 + 6 + 4)


@pytest.mark.parametrize(("groups", "units"), [(2, 4 + 3 + 2), (8, 8)])
def test_computed_kernels_of_grouped_convolutions(groups: int, units: int) -> None:
    if groups == 2:
        report = checked(lambda entering, leaving: Conv(entering, leaving, standardised, groups=2))
    else:
        model = nn.Sequential(nn.Conv2d(3, 8, 1), Conv(8, 8, standardised, groups=8), nn.Conv2d(8, 2, 1)).double()
        randomise(model, 0)
        report = check(model, "depthwise", (1, 3, 6, 6), (3, 3, 7, 7))
    assert (report.failures, report.units) == ([], units)


class Halved(nn.Module):
    """A parametrization of somebody's own."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w * 0.5 + 0.1


def registered(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Halved())
    parametrize.register_parametrization(layer, "bias", Halved())
    return layer


def pruned(layer: nn.Module) -> nn.Module:
    return prune.random_unstructured(layer, "weight", 0.3)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "registered": registered,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_weights_that_are_computed_before_each_call(name: str) -> None:
    """Normalised over live inputs only."""
    wrap = WRAPPERS[name]
    report = checked(lambda entering, leaving: wrap(nn.Conv2d(entering, leaving, 3, padding=1)))
    assert (report.coverage, report.units) == (1.0, 8 + 6 + 4)
    model = nn.Sequential(wrap(nn.Linear(5, 8)), nn.ReLU(), wrap(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 2)).double()
    report = check(model, name, (1, 5), (3, 5))
    assert (report.failures, report.units) == ([], 8 + 6)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(("wrap", "weight"), [(nn.utils.weight_norm, "weight_v"), (pruned, "weight_mask")])
def test_weights_that_hooks_compute(wrap: Callable[[nn.Module], nn.Module], weight: str) -> None:
    """`copy.deepcopy` cannot copy such a model once it was called, so that it is not checked like others."""
    model = between(lambda entering, leaving: wrap(nn.Conv2d(entering, leaving, 3))).eval()
    x = torch.randn(3, 3, 7, 7).double()
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert net.structure.coverage == 1.0
    assert difference(net(x), model(x)) <= DOUBLE_TOLERANCE
    for gate in net.gates.values():
        gate.theta[1::2] = 0.0
    small = fxcat.finalize(net)
    assert difference(small(x), net(x)) <= DOUBLE_TOLERANCE
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())
    assert dict(small.named_parameters(), **dict(small.named_buffers()))[f"2.{weight}"].shape[:2] == (3, 4)


class Shared(nn.Module):
    """One weight as a value, transposed, and then as a layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.last = nn.Linear(5, 6), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (torch.relu(self.first(x)) @ self.tied.weight).relu()
        return self.last(torch.relu(self.tied(y)))


def test_a_weight_that_a_layer_has_too() -> None:
    model = Shared().double()
    randomise(model, 0)
    report = check(model, "shared", (1, 5), (3, 5))
    assert (report.failures, report.units, report.coverage) == ([], 6 + 8, 1.0)


@pytest.mark.parametrize("groups", [1, 8])
def test_transposed_convolutions(groups: int) -> None:
    def conv(entering: int, leaving: int) -> nn.Module:
        size = 8 if groups == 8 else leaving
        return parametrizations.weight_norm(nn.ConvTranspose2d(entering, size, 2, stride=2, groups=groups))

    if groups == 1:
        assert checked(conv).units == 8 + 6 + 4
        return
    model = nn.Sequential(nn.Conv2d(3, 8, 1), conv(8, 8), nn.Conv2d(8, 2, 1)).double()
    randomise(model, 0)
    report = check(model, "depthwise", (1, 3, 5, 5), (3, 3, 6, 6))
    assert (report.failures, report.units) == ([], 8)


class Splines(nn.Module):
    """A layer of splines, as KANs have it: what it is made of at each place along a table's axis that is merged."""

    places: torch.Tensor

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.register_buffer("places", (torch.arange(6.0) - 3.0).expand(entering, -1).contiguous())
        self.weight = nn.Parameter(torch.randn(leaving, entering, 5))
        self.scale = nn.Parameter(torch.rand(leaving, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(-1)
        parts = ((x >= self.places[:, :-1]) & (x < self.places[:, 1:])).to(x.dtype) * (x - self.places[:, :-1])
        return F.linear(parts.view(x.shape[0], -1), (self.weight * self.scale).view(len(self.weight), -1))


def test_weights_whose_units_another_table_tells() -> None:
    """Along which axis units lie is known when all values are rectangular, and not before."""
    model = nn.Sequential(nn.Linear(3, 4), Splines(4, 6), nn.Tanh(), Splines(6, 2)).double()
    randomise(model, 0)
    report = check(model, "splines", (1, 3), (4, 3))
    assert (report.failures, report.units, report.coverage) == ([], 4 + 6, 1.0)


class Spectral(nn.Module):
    """A product with complex weights for each low frequency, as Fourier neural operators have it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 2, 2))
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, seen = torch.view_as_complex(self.weight), torch.fft.rfft(x)
        width = 6 if self.kind == "stated" else self.weight.shape[1]
        result = torch.zeros(x.shape[0], width, seen.shape[-1], dtype=seen.dtype)
        result[:, :, :2] = torch.einsum("bix,iox->box", seen[:, :, :2], weight)
        return torch.fft.irfft(result, n=x.shape[-1])


@pytest.mark.parametrize("kind", ["stated", "read"])
def test_complex_weights(kind: str) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), Spectral(kind), nn.ReLU(), nn.Conv1d(6, 2, 1)).double()
    randomise(model, 0)
    report = check(model, "spectral", (1, 2, 8), (3, 2, 8))
    assert (report.failures, report.units, report.coverage) == ([], 4 + 6, 1.0)
