"""Forms that once gave other values after removal, or failed there: parts of values, rotations, stretched values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differences import difference
from exactness import check_on, randomise
from forms import IMAGES, Between, Form, failures
from part_nets import PartNet
from torch import nn

import fxcat
from fxcat.errors import NothingToPruneError, PlanError


def shuffled(y: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = y.shape
    return y.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def with_table(m: Any, y: torch.Tensor, tokens: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Any:
    """Shift and scale from a table of parameters and the mean of the image."""
    shift, scale = tokens(m.table.t()[None, :2] + m.inner(y).mean((2, 3))[:, None])
    return (y.flatten(2).transpose(1, 2) * (1 + scale) + shift).transpose(1, 2).reshape(y.shape)


PRUNED: dict[str, Form] = {
    "rolled channels": lambda m, y, x: torch.roll(y, 3, 1),
    "rolled backwards, by a computed number": lambda m, y, x: y.roll(-(y.shape[1] // 4), dims=1),
    "rolled along two axes": lambda m, y, x: y.roll((5, 1), (1, 2)),
    "rolled twice along one axis": lambda m, y, x: torch.roll(y, (3, 2, 1), (1, 3, 1)),
    "rolled when flat": lambda m, y, x: y.flatten(1).roll(128, 1).view(y.shape),
    "part of a rolled value": lambda m, y, x: torch.cat([torch.roll(y, 1, 1)[:, :4], y[:, 4:]], 1),
    "shuffled and shuffled back": lambda m, y, x: shuffled(shuffled(y, 2), 4) + m.inner(shuffled(y, 2)),
    "table by chunk": lambda m, y, x: with_table(m, y, lambda z: z.chunk(2, 1)),
    "table by index": lambda m, y, x: with_table(m, y, lambda z: (z[:, :1], z[:, 1:])),
    "table unbound": lambda m, y, x: with_table(m, y, lambda z: tuple(r[:, None] for r in z.unbind(1))),
}


@pytest.mark.parametrize("form", PRUNED)
def test_forms(form: str) -> None:
    failed, units, _ = failures(Between(PRUNED[form]), *IMAGES)
    assert not failed
    assert units


@pytest.mark.parametrize(
    "number",
    [
        lambda y: y.shape[1] / sum(y.shape[2:]),
        lambda y: (y.size(1) * y.size(3)) ** -0.5,
        lambda y: math.prod(y.shape[1:]) / 100,
        lambda y: y.shape[-3] / y.numel(),
    ],
)
def test_numbers_of_widths_and_other_sizes(number: Callable[[torch.Tensor], Any]) -> None:
    """The width in them is what it was, the sizes are those of the images."""
    failed, units, _ = failures(Between(lambda m, y, x: y * number(y)), (1, 3, 8, 8), (3, 3, 6, 4))
    assert not failed
    assert units == 8


def kernel_of_each(m: Any, y: torch.Tensor, convolution: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Every image is convolved with a kernel of its own."""
    n, c, *sizes = y.shape
    kernels = (y.mean((2, 3)) @ m.table).view(n * c // 2, c // 2, 1, 1)
    return convolution(y[:, ::2].reshape(1, -1, *sizes), kernels, groups=n).view(n, -1, *sizes).repeat(1, 2, 1, 1)


@pytest.mark.parametrize("convolution", [F.conv2d, F.conv_transpose2d])
def test_the_batch_along_the_channels(convolution: Callable[..., torch.Tensor]) -> None:
    """With an example of one image the two look the same."""
    failed, _, _ = failures(Between(lambda m, y, x: m.inner(kernel_of_each(m, y, convolution)).relu()), *IMAGES)
    assert not failed


def test_values_of_a_narrower_type_than_the_gates() -> None:
    """A position embedding that is made in single precision, whatever the model has."""

    def embedded(m: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        angles = 1.0 / 10000 ** (torch.arange(y.shape[1], dtype=torch.float32) / (y.shape[1] - 1))
        single = m.inner(y).float().sigmoid() * angles[:, None, None]
        return y + single.to(y.dtype)

    model = Between(embedded).double()
    randomise(model, 0)
    x = torch.rand(2, 3, 8, 8).double()
    report = check_on(model, "narrow", (x[:1],), (x,), (x,), tolerance=1e-6)
    assert not report.failures
    assert difference(fxcat.prepare(model, x, verbose=False).eval()(x), model.eval()(x)) < 1e-10


def test_an_axis_of_several_that_meets_one_without_units() -> None:
    """Offsets of every head, divided by the sizes of what they are offsets in: whole heads go."""

    def scaled(m: Any, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y.unflatten(1, (4, 2)) * x.mean((2, 3))[:, None, :2, None, None]).flatten(1, 2)

    failed, units, _ = failures(Between(scaled), *IMAGES)
    assert not failed
    assert units == 4


def test_a_part_of_width_zero_of_heads_that_are_folded_into_the_batch() -> None:
    """As of rotary embeddings that turn a whole head."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.both, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 32), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = self.both(self.first(x).flatten(2).transpose(1, 2)).chunk(2, -1)
            q, k = (t.unflatten(-1, (4, 4)).transpose(1, 2).flatten(0, 1) for t in both)
            (q, rest), (k, _) = ((t[..., :4], t[..., 4:]) for t in (q, k))
            q = torch.cat((q.relu(), rest), -1)
            y = (q @ k.mT).softmax(-1) @ k
            return self.last(y.unflatten(0, (-1, 4)).transpose(1, 2).flatten(2))

    failed, units, _ = failures(Net(), *IMAGES)
    assert not failed
    assert units == 12


def test_few_channels_at_one_place() -> None:
    """PyTorch normalises no single value: of channels at one place two stay."""
    net = fxcat.prepare(
        Between(lambda m, y, x: y + F.group_norm(m.inner(y.mean((2, 3), keepdim=True)), 1)).double(),
        torch.rand(1, 3, 8, 8).double(),
        verbose=False,
    ).eval()
    for gate in net.gates.values():
        gate.set(torch.zeros(gate.count))
    small, x = fxcat.finalize(net), torch.rand(1, 3, 8, 8).double()
    assert difference(small(x), net(x)) < 1e-10
    assert small.get_submodule("first").out_channels == 2


class Parts(nn.Module):
    """A part of a split by computed sizes, with a branch of its own."""

    def __init__(self, form: Callable[[Any, torch.Tensor], torch.Tensor], width: int = 3, channels: int = 4) -> None:
        super().__init__()
        self.width, self.form = width, form
        self.first, self.last = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 2, 1)
        self.part, self.beside = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.token = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        p, q = x.split([self.width, x.size(1) - self.width], 1)
        return self.last(torch.cat([q, self.form(self, p)], 1) + self.beside(x))


def tokens(m: Any, p: torch.Tensor) -> torch.Tensor:
    t = p.flatten(2).transpose(1, 2)
    t = torch.cat([m.token.expand(len(p), -1, -1), t], 1)
    t = t + m.linear(m.norm(t))
    return t[:, 1:].transpose(1, 2).reshape(p.shape[0], -1, p.shape[2], p.shape[3])


PARTS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "convolution": lambda m, p: m.part(p),
    "residual": lambda m, p: p + m.part(p).relu(),
    "class token": tokens,
}


@pytest.mark.parametrize("width, channels", [(3, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("form", PARTS)
def test_parts_of_a_split_by_computed_sizes(form: str, width: int, channels: int) -> None:
    assert not failures(Parts(PARTS[form], width, channels), *IMAGES)[0]


def test_the_only_unit_of_a_part_is_pinned() -> None:
    net = fxcat.prepare(Parts(PARTS["convolution"]), torch.randn(1, 3, 4, 4), verbose=False)
    assert "the only unit of a value" in {p.reason for p in net.structure.pinned}
    assert all((net.required[0] == i).sum() > 1 for i in net.required[0].unique())


class Halves(nn.Module):
    """The form of YOLO's C2f: a chunk, of which one half has layers of its own."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.lower, self.norm = nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d(4)
        self.up, self.last = nn.Upsample(scale_factor=2), nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.first(self.stem(x).relu()).relu().chunk(2, 1))
        y.append(self.up(self.norm(self.lower(y[-1])).relu()))
        return self.last(torch.cat(y, 1))


class Values(nn.Module):
    """Attention, whose queries, keys and values come from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv, self.last = nn.Conv2d(3, 6, 1), nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.first(x).flatten(2).transpose(1, 2)).chunk(3, -1)
        return self.last((q @ k.transpose(-2, -1)).softmax(-1) @ v)


class Stacked(nn.Module):
    """A value, and what a linear layer over all of it makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.all = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 4 * 64)
        self.scale, self.last = nn.Linear(4, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.all(x.flatten(1)).view(x.shape[0], 4, 8, 8)
        return self.last(torch.cat([x, y], 1) * self.scale(x.mean((2, 3)))[..., None, None])


@pytest.mark.parametrize(
    "model, gate, dead",
    [
        (Halves(), "first", slice(0, 4)),
        (Halves(), "first", slice(4, 8)),
        (Halves(bias=False), "first", slice(4, 8)),
        (Values(), "qkv", slice(4, 8)),
        (Stacked(), "first", slice(0, 4)),
        (Stacked(), "first", slice(4, 8)),
    ],
)
def test_a_part_of_which_nothing_is_left_goes(model: nn.Module, gate: str, dead: slice) -> None:
    model = model.double()
    randomise(model, 0)
    image, images = (torch.randn(shape, dtype=torch.float64) for shape in IMAGES)
    net = fxcat.prepare(model, image, verbose=False).eval()
    with torch.no_grad():
        net.gates[gate].theta[dead] = 0
        small = fxcat.finalize(net).eval()
        expected = net(images)
        assert difference(small(images), expected) < 1e-10
        assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params
        net.shrink()
        assert difference(net(images), expected) < 1e-10
        assert difference(fxcat.finalize(net)(images), expected) < 1e-10


def test_a_whole_group_is_not_emptied() -> None:
    net = fxcat.prepare(Halves(), torch.randn(1, 3, 8, 8), verbose=False).eval()
    with torch.no_grad():
        net.gates["stem"].theta[:] = 0
    with pytest.raises(PlanError, match="every unit"):
        fxcat.finalize(net)


class Unbatched(nn.Module):
    """A module that reads two or three axes as an input without a batch axis."""

    def __init__(self, inner: nn.Module, image: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1) if image else nn.Linear(3, 8)
        self.inner = inner
        self.last = nn.Conv2d(8, 4, 1) if image else nn.Linear(8, 4)
        self.aside = nn.Sequential(nn.Conv2d(3, 6, 1) if image else nn.Linear(3, 6), nn.Tanh())
        self.end = nn.Conv2d(6, 4, 1) if image else nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.inner(self.first(x)))) + self.end(self.aside(x))


@pytest.mark.parametrize(
    "inner, shape",
    [
        (nn.InstanceNorm1d(5), (5, 3)),
        (nn.InstanceNorm1d(5, affine=True), (5, 3)),
        (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), (3, 5, 5)),
        (nn.MaxPool1d(3, 1, 1), (5, 3)),
        (nn.AvgPool1d(3, 1, 1), (5, 3)),
        (nn.Conv1d(5, 5, 3, padding=1), (5, 3)),
        (nn.Conv2d(8, 8, 3, padding=1), (3, 5, 5)),
        (nn.ConvTranspose2d(8, 8, 1), (3, 5, 5)),
        (nn.MaxPool2d(3, 1, 1), (3, 5, 5)),
        (nn.Softmax2d(), (3, 5, 5)),
        (nn.ReflectionPad2d(1), (3, 5, 5)),
        (nn.Dropout1d(), (5, 3)),
        (nn.LocalResponseNorm(2), (3, 5, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(len(value)),
)
def test_inputs_without_a_batch_axis(inner: nn.Module, shape: tuple[int, ...]) -> None:
    model = Unbatched(inner, len(shape) == 3).double()
    randomise(model, 0)
    x = torch.randn(shape, dtype=torch.float64)
    if isinstance(inner, nn.ReflectionPad2d):
        model.add_module("end", nn.Sequential(model.end, nn.ReflectionPad2d(1)))
    model.eval()
    net = fxcat.prepare(model, x, verbose=False).eval()
    with torch.no_grad():
        assert difference(net(x), model(x)) < 1e-10
        for seed in range(4):
            draw = torch.Generator().manual_seed(seed)
            for gate in net.gates.values():
                keep = torch.rand(gate.theta.shape, generator=draw) > 0.5
                keep[0] = True
                gate.theta.copy_(keep)
            assert difference(fxcat.finalize(net)(x), net(x)) < 1e-10


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_over_the_channels(groups: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.over = nn.Conv3d(1, groups, (3, 1, 1), stride=(groups, 1, 1), padding=(1, 0, 0))
            self.middle, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(self.middle(self.over(x.unsqueeze(1)).reshape(x.shape)).relu())

    failed, units, _ = failures(Net(), *IMAGES)
    assert not failed
    assert units == 6


@pytest.mark.parametrize("of_heads", [True, False])
def test_heads_folded_into_the_batch_axis_of_a_grid(of_heads: bool) -> None:
    """As in deformable attention: the heads' values and positions go together."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.values = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.at, self.last = nn.Linear(8, 4 * 5 * 2 if of_heads else 5 * 2), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            n, _, h, w = x.shape
            at = self.at(x.mean((2, 3))).tanh().view(n, -1, 5, 1, 2)
            at = at.expand(-1, 4, -1, -1, -1).flatten(0, 1)
            read = F.grid_sample(self.values(x).reshape(n * 4, 2, h, w), at, align_corners=False)
            return self.last(read.view(n, 8, 5).transpose(1, 2))

    failed, units, _ = failures(Net(), *IMAGES)
    assert not failed
    assert units > 8


@pytest.mark.parametrize("seed", range(16))
def test_random_nets_of_parts(seed: int) -> None:
    model = PartNet(seed).double()
    randomise(model, seed)
    example, others = (
        (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),) for shape in IMAGES
    )
    try:
        report = check_on(model, "parts", example, others, others, settings=2)
    except NothingToPruneError:
        return
    assert not report.failures
