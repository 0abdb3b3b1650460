"""Layers that hold their weights and call functions: convolutions and norms, as many libraries write them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import check, randomise
from layers_between import checked
from torch import nn


class SameConv(nn.Conv2d):
    """Pads as the input needs it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = (input.shape[-2] + 1) // input.shape[-2]  # 1, computed from the size
        input = F.pad(input, [1, 1, rows, 1])
        return F.conv2d(input, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class StandardisedConv(nn.Conv2d):
    """Every filter has mean 0 and variance 1 (arXiv 1903.10520)."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, weight=self.gain, training=True, momentum=0.0)
        return F.conv2d(input, weight.reshape_as(self.weight), self.bias, self.stride, 1, self.dilation, self.groups)


class GroupNormAct(nn.GroupNorm):
    """GroupNorm and activation in one layer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.relu(F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps))


def test_convolutions() -> None:
    assert checked(SameConv(8, 12, 3), nn.ReLU(), SameConv(12, 16, 3), nn.ReLU()) == (1.0, 8 + 12 + 16)


def test_types_of_weights_are_not_their_values() -> None:
    class Typed(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.to(device=self.weight.device, dtype=self.weight.dtype))

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(8, 16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.to(self.inner.weight.dtype))

    assert checked(Typed(8, 16, 1)) == checked(Holder()) == (1.0, 8 + 16)


class SameMaxPool(nn.MaxPool2d):
    """Pads with what no maximum is."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        input = F.pad(input, [0, 1, 0, 1], value=-float("inf"))
        return F.max_pool2d(2 * input.contiguous(), self.kernel_size, self.stride)


class Residual(nn.Sequential):
    """A section."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input + super().forward(input)


def test_infinite_padding() -> None:
    """A gate cannot make infinities zero: it goes behind the maximum, for units and for sections."""
    pool = SameMaxPool(2, 1)
    assert checked(pool, nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), pool) == (1.0, 8 + 16)
    assert checked(Residual(pool), nn.Conv2d(8, 16, 1)) == (1.0, 8 + 16)
    assert checked(Residual(nn.Conv2d(8, 8, 1), pool), nn.Conv2d(8, 16, 1)) == (1.0, 8 + 16)


@pytest.mark.parametrize(("groups", "units"), [(8, 8), (2, 4 + 8)])
def test_grouped_convolutions(groups: int, units: int) -> None:
    """Many groups are units themselves; in few wide ones positions are."""
    coverage, found = checked(SameConv(8, 16, 3, groups=groups), nn.ReLU())
    assert (coverage, found) == (1.0, units)


def test_standardised_weights() -> None:
    """A filter may go, and what goes into it: its statistics count that."""
    _, units = checked(StandardisedConv(8, 12, 3), nn.ReLU(), StandardisedConv(12, 16, 3), nn.ReLU())
    assert units == 8 + 12 + 16


@pytest.mark.parametrize(("groups", "units"), [(4, 4), (1, 8), (8, 8)])
def test_group_norms(groups: int, units: int) -> None:
    assert checked(GroupNormAct(groups, 8), nn.Conv2d(8, 16, 1), nn.ReLU()) == (1.0, units + 16)


class BiasedAttention(nn.Module):
    """Attention with a learned bias per head and distance, looked up; `opaque`: by an op that fxcat does not know."""

    def __init__(self, width: int, heads: int, tokens: int, *, opaque: bool) -> None:
        super().__init__()
        self.heads, self.opaque = heads, opaque
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.biases = nn.Parameter(torch.zeros(heads, tokens))
        places = torch.arange(tokens)
        self.register_buffer("distances", (places[:, None] - places).abs(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, self.heads, -1).permute(0, 2, 1, 3).chunk(3, dim=-1)
        bias = self.biases[:, self.distances]  # pyright: ignore[reportArgumentType]
        bias = bias.renorm(2, 1, 1.0) if self.opaque else bias
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(x.transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize(("opaque", "units"), [(False, 8 + 4), (True, 8)])
def test_biases_of_attention_heads(opaque: bool, units: int) -> None:
    """A head goes with its row of the table; where the row's way into the scores is unknown, heads stay."""
    attention = BiasedAttention(8, 4, 5, opaque=opaque)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), attention, nn.Flatten(), nn.Linear(40, 3)).double()
    randomise(model, 0)
    report = check(model, "attention", (1, 5, 6), (3, 5, 6))
    assert not report.failures
    assert report.units == units + 8


def test_powers() -> None:
    class Squares(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.pow(2) + x**3

    assert checked(Squares(), nn.Conv2d(8, 16, 1), nn.ReLU()) == (1.0, 8 + 16)


class Positions(nn.Module):
    """Encodings of rows and of columns, each repeated as often as the input has of the others (MViT's)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(torch.randn(4, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        positions = torch.repeat_interleave(self.rows, width, dim=0) + self.columns.repeat(height, 1)
        tokens = x.flatten(2).transpose(1, 2) + positions
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def test_encodings_that_are_repeated_as_the_input_says() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Positions(), nn.Conv2d(8, 4, 1)).double()
    randomise(model, 0)
    report = check(model, "positions", (1, 3, 4, 4), (3, 3, 4, 4))
    assert (report.failures, report.units, report.coverage) == ([], 8, 1.0)


def test_heads_folded_into_the_batch() -> None:
    """A size that is computed from the batch's counts live heads, whatever the batch is."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.leave = nn.Linear(8, 3 * 24), nn.Linear(24, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            batch, count, _ = tokens.shape
            qkv = self.qkv(tokens).view(batch, count, 3, 4, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.reshape(3, batch * 4, count, -1).unbind(0)
            y = F.softmax(q @ k.transpose(-2, -1), -1) @ v
            y = self.leave(y.view(batch, 4, count, -1).transpose(1, 2).reshape(batch, count, -1))
            return y.transpose(1, 2).reshape(x.shape)

    assert checked(Folded(), nn.Conv2d(8, 16, 1)) == (1.0, 8 + 4 + 8 + 16)


def test_groups_folded_into_the_batch_that_meet_what_is_made_for_each() -> None:
    """How many of them there are is a matter of the batch: nothing is selected from it."""

    class Offsets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, _, height, width = x.shape
            groups = x.reshape(batch * 2, 4, height, width)
            rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n).double() for n in (height, width)), indexing="ij")
            places = torch.stack((columns, rows), -1)[None].expand(batch * 2, -1, -1, -1)
            places = places + self.offset(groups).permute(0, 2, 3, 1).tanh()
            return F.grid_sample(groups, places, align_corners=True).reshape(x.shape)

    assert checked(Offsets(), nn.Conv2d(8, 16, 1))[1] >= 16


@pytest.mark.parametrize("function", [False, True])
def test_tokens_mixed_by_convolutions_with_kernels_of_one_entry(function: bool) -> None:
    """Along the axis that such a kernel runs over, which is that of the channels, nothing is summed."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.enter, self.leave = nn.LayerNorm(8), nn.Conv1d(9, 12, 1), nn.Conv1d(12, 9, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = F.adaptive_avg_pool2d(x, 3).flatten(2).transpose(1, 2)
            if function:
                hidden = F.conv1d(self.norm(tokens), self.enter.weight, self.enter.bias)
            else:
                hidden = self.enter(self.norm(tokens))
            return (tokens + self.leave(F.gelu(hidden))).transpose(1, 2).unflatten(2, (3, 3))

    assert checked(Mixer(), nn.Conv2d(8, 16, 1)) == (1.0, 8 + 16)


@pytest.mark.parametrize(("kernel", "padding", "units"), [((3, 1), (1, 0), 8 + 16), ((1, 3), (0, 1), 16)])
def test_kernels_of_one_entry_along_one_axis(kernel: tuple[int, int], padding: tuple[int, int], units: int) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Conv2d(3, 3, kernel, padding=padding)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.adaptive_avg_pool2d(x, 3).permute(0, 2, 3, 1)  # rows as channels, channels as columns
            return self.rows(x).permute(0, 3, 1, 2)

    assert checked(Turned(), nn.Conv2d(8, 16, 1))[1] == units


def test_lists_of_values_again_and_again() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table: torch.Tensor = nn.Parameter(torch.randn(1, 8, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tables = torch.cat([self.table] * x.shape[0])
            return torch.stack([x] * 2, 1).sum(1) * tables

    assert checked(Copies(), nn.Conv2d(8, 16, 1)) == (1.0, 8 + 16)


def test_the_parts_of_a_value_again_and_again() -> None:
    class Parts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second, third, _ = x.chunk(2, 1) * 2
            return torch.cat([first, second + third], 1)

    share, units = checked(Parts(), nn.Conv2d(8, 16, 1))
    assert share == 1.0 and units >= 16


def test_pieces_put_together_again() -> None:
    class Turned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cat([x[:, :, :0], x], 2)  # as code for prefixes does where there is none
            return torch.cat(x.chunk(2, 1)[::-1], 1) + torch.cat(x.chunk(2, 1), 1)

    assert checked(Turned(), nn.Conv2d(8, 16, 1)) == (1.0, 4 + 16)


def test_positions_that_are_resized() -> None:
    """Every channel of a table of positions is one unit, also where it is interpolated."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(1, 8, 4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + F.interpolate(self.table, size=x.shape[2:], mode="bilinear")

    assert checked(Positions(), nn.Conv2d(8, 16, 1)) == (1.0, 8 + 16)


@pytest.mark.parametrize(
    ("how", "units"),
    [("shift", 16), ("two axes", 18), ("roll", 16), ("roll rows", 8 + 16)],
)
def test_channels_that_change_places(how: str, units: int) -> None:
    """What moves channels to the places of others keeps them, where it has no exact form."""

    class Moved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if how == "shift":
                return F.pad(x, (0, 0, 0, 0, 1, -1))
            if how == "two axes":
                return F.pad(x.reshape(x.shape[0], 2, 4, *x.shape[2:]), (0, 0, 0, 0, 1, 1)).flatten(1, 2)[:, :8]
            return torch.roll(x, 1) if how == "roll" else torch.roll(x, 1, 2)

    assert checked(Moved(), nn.Conv2d(8, 16, 1))[1] == units
