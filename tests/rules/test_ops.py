"""Ops between two layers, written in many forms: each is removed exactly, and pins nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checking_layers import checked_width
from differences import difference
from exactness import check, random_gates, randomise
from torch import nn

import fxcat
from fxcat.passes.rules.counting import spared

Op = Callable[["Branches", torch.Tensor], torch.Tensor]


class Branches(nn.Module):
    """Layers with an op behind each, and the sum of what further layers make of their results."""

    order: torch.Tensor
    some: torch.Tensor
    variance: torch.Tensor
    blur: torch.Tensor

    def __init__(self, ops: list[Op]) -> None:
        super().__init__()
        self.ops = ops
        self.enter = nn.ModuleList(nn.Conv2d(3, 8, 1) for _ in ops)
        self.leave = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in ops)
        self.power = nn.Parameter(torch.ones(1))
        self.scale = nn.ParameterList(torch.ones(8) for _ in ops)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 5, 4, 6]))
        self.register_buffer("some", torch.tensor([6, 0, 3, 5]), persistent=False)
        self.register_buffer("variance", torch.rand(8) + 0.5)
        self.table, self.square = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("blur", torch.rand(1, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = zip(self.enter, self.ops, self.leave, strict=True)
        return sum(leave(op(self, enter(x))).mean((2, 3)) for enter, op, leave in branches)  # pyright: ignore[reportReturnType]


def channels(self: Branches, values: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, 1, 1)


def token_choice(self: Branches, y: torch.Tensor) -> torch.Tensor:
    tokens = y.flatten(2).mT
    best = tokens.mean(-1).topk(4, 1).indices
    return tokens.gather(1, best[..., None].expand(-1, -1, tokens.shape[-1])).mT[..., None]


def selective(self: Branches, y: torch.Tensor) -> torch.Tensor:
    """Two kernels, chosen by attention (arXiv 1903.06586)."""
    both = torch.stack([y, y.relu()], 1)
    weights = both.mean((3, 4), keepdim=True).softmax(1)
    return (both * weights).sum(dim=1)


def looked_up(self: Branches, y: torch.Tensor) -> torch.Tensor:
    tokens = y.flatten(2).mT
    best = tokens.mean(-1).topk(4, 1)[1]
    found = tokens[torch.arange(tokens.shape[0])[:, None], best] + tokens[:, torch.arange(4), :]
    return (found + tokens.gather(1, best.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))).mT[..., None]


OPS: dict[str, list[Op]] = {
    "not finite at zero": [
        lambda s, y: y.square().rsqrt().clamp(max=9) + y,
        lambda s, y: torch.rsqrt(input=y * y) + y,
        lambda s, y: y.abs().log() + y,
        lambda s, y: torch.log(y * y) + torch.log2(y.abs()) + y.square().log10(),
        lambda s, y: y + y.reciprocal().clamp(-9, 9),
        lambda s, y: y + torch.sqrt(y.relu()),
        lambda s, y: (y.abs() + 0.1) ** 0.5 + y.abs().pow(exponent=0.3),
        lambda s, y: torch.logaddexp(y, -y) + torch.hypot(y, y) + y.atan2(y),
        lambda s, y: y.pow(-2).clamp(max=9) + 2**y,
    ],
    "quotients": [
        lambda s, y: y / (1 + y.abs()),
        lambda s, y: 1 / (1 + torch.exp(-y)),
        lambda s, y: torch.div(y, y.exp(), rounding_mode=None) + y.div(other=y.cosh()),
        lambda s, y: y / channels(s, s.variance.sqrt()),
        lambda s, y: y / (1 + y.var((2, 3), keepdim=True)),
        lambda s, y: y.clone().div_(y.square()).clamp(-9, 9) + y,
    ],
    "norms": [
        lambda s, y: y * channels(s, s.variance + 1e-5).rsqrt(),
        lambda s, y: y * torch.rsqrt(y.pow(2).mean((2, 3), keepdim=True) + abs(s.power)),
        lambda s, y: y.clamp(min=1e-6).pow(s.power).mean((2, 3), keepdim=True).pow(1.0 / s.power) + y,
        lambda s, y: y - torch.var_mean(y, (2, 3), keepdim=True)[1],
        lambda s, y: y / torch.std_mean(y, dim=(2, 3), keepdim=True)[0].add(1),
        lambda s, y: (y - y.mean(1, keepdim=True)) / torch.var_mean(y, 1, False, keepdim=True)[0].add(1).sqrt(),
        lambda s, y: y * torch.std_mean(y, dim=1, unbiased=False, keepdim=True)[1],
        lambda s, y: F.local_response_norm(y, 3, alpha=1.0) + F.local_response_norm(y.relu(), size=4, k=0.5),
        lambda s, y: y * torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True)[0]], 1).sum(1, keepdim=True),
        lambda s, y: y + torch.max(y, dim=1, keepdim=True).values - y.amin(1, keepdim=True) + torch.amax(y, 1)[:, None],
    ],
    "places": [
        token_choice,
        looked_up,
        lambda s, y: y.topk(4, dim=2)[0] + torch.topk(y, k=4, dim=-1)[0],
        lambda s, y: y.sort(dim=2)[0] + torch.sort(y, -1, descending=True).values + y.gather(2, y.argsort(2)),
        lambda s, y: y - y.kthvalue(1, dim=2, keepdim=True)[0] - y.median(3, keepdim=True).values,
        lambda s, y: y - y.quantile(0.5, dim=2, keepdim=True) + y.cumprod(2) + y.cummax(3)[0],
        lambda s, y: torch.zeros_like(y).scatter(2, torch.zeros_like(y, dtype=torch.long), y),
        lambda s, y: y.scatter_add(dim=3, index=y.max(3, keepdim=True)[1], src=y[..., :1] * 2),
        lambda s, y: y.index_add(2, torch.arange(4), y) + y.index_select(3, torch.arange(4)),
        lambda s, y: torch.take_along_dim(y, torch.zeros(1, 1, 1, 4, dtype=torch.long), dim=2) + y,
        lambda s, y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2),  # pyright: ignore[reportArgumentType]
        lambda s, y: y * torch.argmax(y, dim=2, keepdim=True).float() + y.prod(3, keepdim=True),
        lambda s, y: torch.fft.irfft2(torch.fft.rfft2(y) * 2, s=y.shape[-2:]) + y.unfold(2, 1, 1).mean(-1),
        lambda s, y: F.lp_pool2d(y.relu(), 2, 2) + torch.rot90(y, 1, (2, 3))[:, :, :2, :2],
    ],
    "new values": [
        lambda s, y: y + torch.zeros(y.shape[0], y.shape[1], 1, 1, dtype=y.dtype),
        lambda s, y: torch.cat([y, torch.ones(y.shape, dtype=y.dtype)], 2),
        lambda s, y: y + y.new_full((y.size(0), y.size(1), *y.shape[2:]), 2.0),
        lambda s, y: y * y.new_ones(y.shape),
        lambda s, y: y + torch.ones(1, 8, 1, 1, dtype=y.dtype) * y.new_full([y.shape[0], 8, 1, 1], 2),
        lambda s, y: y + y.mean((1, 2, 3), keepdim=True).repeat(1, y.shape[1], 1, 1),
        lambda s, y: y + s.power.view(1, 1, 1, 1).expand(-1, y.shape[1], -1, -1),
        lambda s, y: torch.where(y > 0, y, torch.full(size=y.shape, fill_value=0.5, dtype=y.dtype)),
    ],
    "stacked": [
        selective,
        lambda s, y: torch.stack([y, y.relu()]).sum(0) + torch.stack([y, y.tanh()], -1).mean(-1),
        lambda s, y: torch.stack([y, -y], dim=2).amax(dim=2) + torch.stack((y, y * 2), 2).max(2)[0],
        lambda s, y: torch.stack([y, y.exp()]).logsumexp(0) + torch.stack([y, y.exp(), -y]).median(0).values,
    ],
    "selections": [
        lambda s, y: y.index_select(1, s.order) + y.index_select(dim=-3, index=s.order).relu(),
        lambda s, y: y[:, list(range(7, -1, -1))] + y[:, [0, 1, 1, 2, 3, 4, 5, 7]],
        lambda s, y: torch.cat((y[:, ::2], y[:, 1::2]), 1),
        lambda s, y: torch.cat((y[:, 1::3], y[:, ::3, :, :], y[..., 2::3, :, :]), 1),
        lambda s, y: torch.cat((y[:, s.some], y[:, [7, 1]], y[:, 2:6:2]), dim=1),
        lambda s, y: y.index_select(1, s.order.long())[:, s.order.to(y.device)],
    ],
    "parts": [
        lambda s, y: torch.slice_scatter(y, y[:, :, :2] * 2, dim=2, start=0, end=2),
        lambda s, y: y.slice_scatter(src=y[..., 1:] + 1, dim=-1, start=1),
        lambda s, y: torch.cat(torch.hsplit(y, 2)[::-1], 1) + torch.cat(y.tensor_split(2, dim=1), 1),
        lambda s, y: torch.narrow(y, 2, 1, 2) + y.narrow(dim=-2, start=0, length=2),
        lambda s, y: torch.cat([y.narrow(1, 3, 5), torch.narrow(y, 1, 0, 3)], 1),
        lambda s, y: y.select_scatter(y[:, :, 0] * 2, dim=2, index=1),
    ],
    "other names": [
        lambda s, y: y.clamp(-1, 1).exp_() + y.clone().sin_().tanh_() + torch.special.expit(y) + torch.special.erf(y),
        lambda s, y: F.leaky_relu_(y.clone()) + F.hardtanh_(y.clone()) + y.clone().mul_(2).add_(1).sigmoid_() + (+y),
        lambda s, y: torch.rsub(y, 1) + torch.fmax(y, -y) + y.erfinv().nan_to_num(0.0, 0.0, 0.0) + y.ldexp(s.power),
        lambda s, y: y.abs().add(0.5).lgamma() + y.sigmoid().logit() + torch.addcdiv(y, y, y.abs() + 1),
        lambda s, y: y % 2 + torch.fmod(y, 3) + torch.remainder(y, y.abs() + 1) + y.float_power(2),
        lambda s, y: y * torch.isclose(y, y) * ((y > 0) ^ (y < 9)) * y.logical_xor(y) + y * y.long() * y.bool(),
        lambda s, y: y + torch.bucketize(y, torch.tensor([-1.0, 0.0]).to(y)) + y.tril() * torch.triu(y, 1),
        lambda s, y: y.adjoint() + y.logcumsumexp(3) + y.nansum(2, keepdim=True) + torch.nanmean(y, 3, keepdim=True),
        lambda s, y: (
            y.diagonal(dim1=2, dim2=3)[..., None] * y.select(2, 1)[:, :, None] + torch.select(y, -1, 0)[..., None]
        ),
        lambda s, y: (
            y + y.mean(1, keepdim=True).broadcast_to(y.shape) + sum(torch.broadcast_tensors(y.mean((2, 3), True), y))
        ),
        lambda s, y: F.mse_loss(y, y.relu(), reduction="none") + F.smooth_l1_loss(y, -y, reduction="none"),
        lambda s, y: y / torch.linalg.norm(y, dim=1, keepdim=True) + y / torch.linalg.matrix_norm(y, keepdim=True),
        lambda s, y: y * F.cosine_similarity(y, y.flip(2))[:, None] + y / y.std(dim=(1, 2, 3), keepdim=True),
    ],
    "softmax over units": [
        lambda s, y: y * y.softmax(1) + F.softmax(y, dim=1),
        lambda s, y: torch.log_softmax(y, 1) + F.log_softmax(y, dim=-3),
        lambda s, y: y - y.logsumexp(1, keepdim=True) + torch.logsumexp(y, dim=1)[:, None],
    ],
    "complex numbers": [
        lambda s, y: torch.view_as_real(torch.complex(y, y.relu()) * torch.polar(y.abs(), y)).sum(-1),
        lambda s, y: torch.fft.ifft2(torch.fft.fft2(y) * 2).real + torch.fft.rfft2(y).imag.mean((2, 3), keepdim=True),
    ],
    "einsum by numbers": [
        lambda s, y: torch.einsum(y, [0, 1, 2, 3], y.mean((2, 3)), [0, 1], [0, 1, 2, 3]),
        lambda s, y: torch.einsum(y, [..., 5], y.softmax(-1), [..., 5], [...])[..., None] + y,
    ],
    "sums over units": [
        lambda s, y: y.cumsum(1) + torch.cumsum(y.movedim(1, -1), dim=-1).movedim(-1, 1),
        lambda s, y: y - y.flip(1).cumsum(1).flip(1).mean((2, 3), keepdim=True),
    ],
    "assigned": [
        lambda s, y: torch.slice_scatter(y, y[:, 4:] * 2, 1, 0, 4),
        lambda s, y: y.slice_scatter(src=y[:, :3] + 1, dim=1, start=-3),
    ],
    "products": [
        lambda s, y: (
            torch.einsum("...chw,cd->...dhw", y, s.table) + torch.einsum("bchw,cd,de->behw", y, s.table, s.table)
        ),
        lambda s, y: torch.einsum("bchw,c->bchw", y, s.scale[0]) * torch.einsum("bchw,bchw->bc", y, y)[..., None, None],
        lambda s, y: torch.tensordot(y, s.square, dims=([3], [0])) + torch.inner(y, s.square),  # pyright: ignore[reportArgumentType]
        lambda s, y: F.conv2d(y, s.blur.expand(y.size(1), -1, -1, -1), padding=1, groups=y.size(1)),
        lambda s, y: F.conv2d(y, s.blur.repeat(8, 1, 1, 1), padding=1, groups=8),
        lambda s, y: F.conv2d(
            y, torch.ones(3, 3).to(y)[None, None].repeat(y.shape[1], 1, 1, 1), None, 1, 1, 1, y.shape[1]
        ),
        lambda s, y: F.layer_norm(y, y.shape[2:]) + F.rms_norm(y, [y.size(-1)]),
    ],
}


UNITS = {"selections": 8 * 5 + 4, "parts": 8 * 5 + 4, "assigned": 4 + 5}
"""Where a branch adds channels to others."""


@pytest.mark.parametrize("kind", OPS)
def test_ops_pin_nothing(kind: str) -> None:
    model = Branches(OPS[kind]).double()
    randomise(model, 0)
    with torch.no_grad():
        model.variance.abs_().add_(0.5)
        model.power.fill_(1.3)
    report = check(model, kind, (1, 3, 4, 4), (3, 3, 4, 4), settings=2)
    assert report.failures == []
    assert {p.reason for p in report.pinned} <= {"output of the network"}
    assert (report.coverage, report.units) == (1.0, UNITS.get(kind, 8 * len(OPS[kind])))


@pytest.mark.parametrize("kind", ["not finite at zero", "quotients", "norms", "places", "softmax over units"])
def test_training_where_units_are_closed(kind: str) -> None:
    """There a closed gate is not quite zero."""
    model = Branches(OPS[kind]).double()
    net = fxcat.prepare(model, torch.randn(1, 3, 4, 4).double(), verbose=False)
    random_gates(net, 0)
    x = torch.randn(2, 3, 4, 4).double()
    result = net.train()(x)
    assert torch.allclose(result, net.eval()(x), rtol=1e-7, atol=1e-7)
    result.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize(
    ("function", "dead"), [(torch.log, 0.0), (torch.log, -2.0), (torch.rsqrt, 0.0), (torch.sqrt, 0.0), (torch.div, 0.0)]
)
def test_what_is_not_finite_spares_dead_units(function: Callable[..., torch.Tensor], dead: float) -> None:
    x = torch.tensor([dead, 2.0, 3.0], requires_grad=True)
    gate = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    args = (x, x) if function is torch.div else (x,)
    result = spared(function)(*args, gate=gate)
    result.sum().backward()
    assert result.tolist() == [0.0, function(*(a[1] for a in args)).item(), 0.0]
    assert x.grad is not None and gate.grad is not None
    assert bool(x.grad.isfinite().all() and gate.grad.isfinite().all())
    assert gate.grad[2] == function(*(a[2] for a in args))  # what the unit would add, were it open


@pytest.mark.parametrize("kind", OPS)
def test_gradients_with_open_gates(kind: str) -> None:
    """They are those of the model: forms that count live units have the same derivatives as what they stand for."""
    model = Branches(OPS[kind]).double()
    randomise(model, 0)
    with torch.no_grad():
        model.variance.abs_().add_(0.5)
        model.power.fill_(1.3)
    net = fxcat.prepare(model, torch.randn(1, 3, 4, 4).double(), verbose=False)
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    for each in (model.eval(), net.eval()):
        each(x).square().sum().backward()
    own = dict(net.network.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and bool(parameter.grad.isfinite().all()):
            assert difference(own[name].grad, parameter.grad) <= 1e-9, name


NOISE: list[Op] = [
    lambda s, y: y + torch.randn_like(y),
    lambda s, y: y * (1 + 0.1 * torch.rand_like(y, memory_format=torch.contiguous_format)),
    lambda s, y: y + torch.randn(y.shape, dtype=y.dtype),
    lambda s, y: y + torch.randn(y.size(0), 1, y.size(2), y.size(3), dtype=y.dtype),
    lambda s, y: y + torch.rand(*y.shape, dtype=y.dtype),
    lambda s, y: y + torch.randn(1, 1, 4, 4, dtype=y.dtype) + torch.randn(1, 8, 1, 1, dtype=y.dtype),
    lambda s, y: y[:, :, torch.randperm(4)],
    lambda s, y: y * torch.bernoulli(y.sigmoid()) + y.sigmoid().bernoulli(),
]


def test_noise_in_training() -> None:
    def in_training(op: Op) -> Op:
        return lambda s, y: op(s, y) if s.training else y

    model = Branches([in_training(op) for op in NOISE]).double()
    randomise(model, 0)
    report = check(model, "noise", (1, 3, 4, 4), (3, 3, 4, 4), settings=1)
    assert (report.failures, report.coverage, report.units) == ([], 1.0, 8 * len(NOISE))


@pytest.mark.parametrize(
    "how",
    [
        "raise",
        "weight",
        "assert",
        "caught",
        "branch",
        "another caught",
        "told",
        "base class caught",
        "raised again and caught",
        "number",
        "among",
    ],
)
def test_branches_on_the_width(how: str) -> None:
    """What widths alone decide is decided for good, whether its other side is an error or not."""
    layer = checked_width(how)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer(8, 6, 1), nn.ReLU(), layer(6, 2, 1)).double()
    randomise(model, 0)
    report = check(model, how, (1, 3, 4, 4), (3, 3, 4, 6), settings=2)
    assert (report.failures, report.coverage, report.units) == ([], 1.0, 14)


def test_a_branch_on_a_width_and_an_image_size_keeps_the_width() -> None:
    """Removal would have another image size decide otherwise."""

    class Mixed(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.relu() if x.shape[1] > x.shape[2] else x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Mixed(8, 6, 1)).double()
    with pytest.raises(fxcat.NothingToPruneError, match="a branch depends on the number of units"):
        fxcat.prepare(model, torch.randn(1, 3, 4, 4).double(), verbose=False)


def test_a_branch_on_the_shape_of_a_weight() -> None:
    class Odd(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.conv2d(x, self.weight, self.bias)
            return y if self.weight.shape[0] % 2 else y.relu()

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Odd(8, 6, 1), nn.Conv2d(6, 2, 1)).double()
    randomise(model, 0)
    report = check(model, "odd", (1, 3, 4, 4), (3, 3, 4, 4), settings=1)
    assert (report.failures, report.units) == ([], 14)


def test_selected_channels_are_saved(tmp_path: Any) -> None:
    model = Branches(OPS["selections"]).double()
    net = fxcat.prepare(model, torch.randn(1, 3, 4, 4).double(), verbose=False).eval()
    random_gates(net, 3)
    net.shrink()
    random_gates(net, 4, units=0.2)
    small = fxcat.finalize(net)
    fxcat.save(small, tmp_path / "small.safetensors")
    x = torch.randn(2, 3, 4, 4).double()
    assert torch.equal(fxcat.load(tmp_path / "small.safetensors", model)(x), small(x))
