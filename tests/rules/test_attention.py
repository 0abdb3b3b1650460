"""Attention of torch.nn between layers: of one, two or three values, as a module and as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import check, check_on, randomise
from forms import failures
from torch import nn

import fxcat


class Reading(nn.Module):
    """Tokens from two layers, one of which reads the other by attention."""

    def __init__(self, form: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor], **options: Any) -> None:
        super().__init__()
        self.tokens, self.memory = nn.Linear(3, 12), nn.Linear(3, options.get("kdim", 12))
        self.attention = nn.MultiheadAttention(12, 3, **options)
        self.pos = nn.Parameter(torch.randn(1, 1, 12))
        self.values = nn.Linear(3, options.get("vdim", 12))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 2)
        self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).triu(1))
        self.register_buffer("each", torch.randn(1, 5, 5))
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.tokens(x)
        return self.head(self.norm(t + self.form(self, t, x)))


def function(m: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    a = m.attention
    given = a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0, a.out_proj.weight, a.out_proj.bias
    return F.multi_head_attention_forward(q, k, v, 12, 3, *given, training=m.training, need_weights=False)[0]


def padding(x: torch.Tensor) -> torch.Tensor:
    return x[..., 0] - x[:, :1, 0] > 0.8  # never the first


FORMS: dict[str, tuple[Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor], dict[str, Any]]] = {
    "of another": (lambda m, t, x: m.attention(t, m.memory(x), m.memory(x))[0], {"batch_first": True}),
    "with positions": (lambda m, t, x: m.attention(t + m.pos, t + m.pos, t)[0], {"batch_first": True}),
    "without weights": (lambda m, t, x: m.attention(t + m.pos, t, t, need_weights=False)[0], {"batch_first": True}),
    "sequence first": (
        lambda m, t, x: m.attention(t.mT.permute(2, 0, 1), *[m.memory(x).transpose(0, 1)] * 2)[0].transpose(0, 1),
        {},
    ),
    "three widths": (
        lambda m, t, x: m.attention(t, m.memory(x), m.values(x))[0],
        {"batch_first": True, "kdim": 7, "vdim": 6},
    ),
    "masked": (
        lambda m, t, x: m.attention(t + m.pos, t, t, padding(x), attn_mask=m.mask)[0],
        {"batch_first": True, "bias": False},
    ),
    "more keys": (
        lambda m, t, x: m.attention(t, t, t, padding(x), attn_mask=m.mask, need_weights=False)[0],
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
    ),
    "function": (
        lambda m, t, x: function(m, *(s.transpose(0, 1) for s in (t + m.pos, t, t))).transpose(0, 1),
        {"batch_first": True},
    ),
    "of one example": (
        lambda m, t, x: torch.stack([m.attention(r + m.pos[0], r, r, need_weights=False)[0] for r in t.unbind(1)], 1),
        {},
    ),
    "of one example, with weights": (
        lambda m, t, x: torch.stack([(lambda y, w: w @ y)(*m.attention(r, r, r)) for r in t.unbind(1)], 1),
        {},
    ),
    "weights averaged": (
        lambda m, t, x: (lambda y, w: y + 0.1 * w.mean((1, 2))[:, None, None])(*m.attention(t, m.memory(x), t)),
        {"batch_first": True},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_attention_of_several_values(name: str) -> None:
    form, options = FORMS[name]
    model = Reading(form, **options).double()
    randomise(model, 0)
    report = check(model, name, (1, 5, 3), (3, 5, 3))
    assert report.failures == []
    assert report.coverage == 1.0
    assert report.units >= 3 + 12


def test_keys_that_several_heads_share() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(a, b) for a, b in ((3, 16), (3, 8), (3, 8), (16, 2)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return self.out(y.transpose(1, 2).flatten(2))

    model = Shared().double()
    randomise(model, 0)
    report = check(model, "shared", (1, 5, 3), (3, 6, 3))
    assert (report.failures, report.coverage) == ([], 1.0)


def test_parts_of_a_table_that_are_not_used() -> None:
    """Shifts and scales from a table and a layer (arXiv 2310.00426), of which some are left out."""

    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.all, self.head = nn.Linear(3, 8), nn.Linear(8, 48), nn.Linear(8, 2)
            self.table = nn.Parameter(torch.randn(6, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x)
            parts = self.all(x.mean(1).relu()).reshape(x.shape[0], 6, -1)
            shift, scale, *_ = (self.table[None] + parts).chunk(6, dim=1)
            return self.head(x * (1 + scale) + shift)

    model = Modulated().double()
    randomise(model, 0)
    report = check(model, "modulated", (1, 5, 3), (3, 5, 3))
    assert (report.failures, report.coverage, report.units) == ([], 1.0, 8)


def test_a_mask_of_each_head_keeps_the_heads() -> None:
    def form(m: Any, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        mask = m.each.expand(len(x) * 3, -1, -1)
        return m.attention(t + m.pos, t, t, attn_mask=mask)[0]

    model = Reading(form, batch_first=True).double()
    randomise(model, 0)
    report = check(model, "own mask", (1, 5, 3), (3, 5, 3))
    assert (report.failures, report.units) == ([], 12)


REPEATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "repeat": lambda m: m.unsqueeze(1).repeat(1, 3, 1, 1).flatten(0, 1),
    "expand": lambda m: m[:, None].expand(-1, 3, -1, -1).reshape(len(m) * 3, 5, 5),
    "repeat_interleave": lambda m: m.repeat_interleave(3, dim=0),
    "function": lambda m: torch.repeat_interleave(m, 3, 0),
    "set where none is let through": lambda m: let_through(m.unsqueeze(1).repeat(1, 3, 1, 1).flatten(0, 1) < 0.5),
}


def let_through(mask: torch.Tensor) -> torch.Tensor:
    """As Mask2Former has it."""
    mask = mask.bool().detach()
    mask[torch.where(mask.sum(-1) == mask.shape[-1])] = False
    return mask


@pytest.mark.parametrize("kind", REPEATED)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_that_is_repeated_for_every_head_goes_with_the_heads(kind: str, batch: int) -> None:
    def form(m: Any, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        each = (x.sum(-1, keepdim=True) - x.sum(-1)[:, None]).sigmoid()
        return m.attention(t + m.pos, t, t, attn_mask=REPEATED[kind](each))[0]

    model = Reading(form, batch_first=True).double()
    randomise(model, 0)
    net = fxcat.prepare(model, torch.randn(batch, 5, 3, dtype=torch.float64), verbose=False)
    example, others = torch.randn(1, 5, 3, dtype=torch.float64), torch.randn(3, 5, 3, dtype=torch.float64)
    report = check_on(model, kind, (example,), (others,), (others,), net=net, settings=2)
    assert (report.failures, report.units, report.coverage) == ([], 12 + 3, 1.0)


def test_fewer_channels_than_there_were_heads() -> None:
    """The scale is that of the width of a head, which is computed from a width that has become smaller."""
    model = Reading(lambda m, t, x: m.narrow(t, t, t)[0])
    model.narrow = nn.MultiheadAttention(12, 6, batch_first=True)
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    net = fxcat.prepare(model.double(), x, verbose=False).eval()
    (heads,) = (g for g in net.gates.values() if g.kind == "units" and g.count == 6)
    heads.theta[1:] = 0.0
    fxcat.finalize(net, verify=x)


class Placed(nn.Module):
    """Attention with a bias for each head, which layers compute from a table of places."""

    def __init__(self, places: torch.Tensor) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Linear(5, 6), nn.Linear(6, 3 * 12)
        self.out, self.head = nn.Linear(12, 6), nn.Linear(6, 2)
        self.bias = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 3))
        self.register_buffer("places", places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).view(x.shape[0], 4, 3, 3, 4).permute(2, 0, 3, 1, 4)
        bias = self.bias(self.places).view(-1, 4, 3).permute(2, 0, 1)
        scores = (q @ k.mT + bias).softmax(-1)
        return self.head(x + self.out((scores @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("shape", [(4, 4, 2), (16, 2), (1, 4, 4, 2)])
def test_layers_of_a_table(shape: tuple[int, ...]) -> None:
    model = Placed(torch.randn(shape)).double()
    randomise(model, 0)
    report = check(model, "places", (1, 4, 5), (3, 4, 5))
    assert (report.failures, report.coverage) == ([], 1.0)
    assert report.units == 6 + 3 + 7


class Decoding(nn.Module):
    """DETR in small: an encoder layer, a decoder layer, and queries that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.queries = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(4, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 12, 0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.encoder(self.stem(x).flatten(2).mT)
        return self.head(self.decoder(self.queries.expand(x.shape[0], -1, -1), memory))


def test_a_decoder_layer() -> None:
    model = Decoding().double()
    randomise(model, 0)
    report = check(model, "decoder", (1, 3, 6, 6), (3, 3, 6, 6))
    assert (report.failures, report.coverage) == ([], 1.0)
    assert report.units == 8 + 3 * 2 + 2 * 12  # one weight reads both widths, which so are one


class Linear(nn.Module):
    """Linear attention, in which a row of ones beside the values sums up what these are divided by."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Linear(3, 8)
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.out, self.head = nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.tokens(x)
        q, k, v = (layer(t).mT.unflatten(1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        v = F.pad(v, (0, 0, 0, 1), value=1.0)
        y = v @ k.relu().mT @ q.relu()
        y = y[:, :, :-1] / (y[:, :, -1:] + 1e-6)
        return self.head(t + self.out(y.flatten(1, 2).mT))


@pytest.mark.parametrize(("heads", "units"), [(3, 3), (1, 12)])
def test_linear_attention_with_a_row_of_ones(heads: int, units: int) -> None:
    model = Linear(heads).double()
    randomise(model, 0)
    report = check(model, "linear attention", (1, 5, 3), (3, 5, 3))
    assert (report.failures, report.coverage) == ([], 1.0)
    assert report.units == 8 + units


OVER_HEADS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda k: k.mean(1),
    "sum": lambda k: k.sum(1, keepdim=True).squeeze(1),
    "max": lambda k: k.max(1)[0],
    "logsumexp": lambda k: k.logsumexp(1),
    "var": lambda k: k.var(1, unbiased=False),
    "norm": lambda k: k.norm(dim=1),
}


@pytest.mark.parametrize("form", OVER_HEADS)
def test_heads_that_are_reduced_go(form: str) -> None:
    """As token merging takes the mean of the keys of all heads for a measure of likeness."""

    class Measured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.qkv, self.last = nn.Linear(3, 12), nn.Linear(12, 36), nn.Linear(12, 12)
            self.side, self.head = nn.Linear(4, 12), nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            t = self.tokens(x)
            q, k, v = self.qkv(t).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            y = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
            return self.head(t + self.last(y) + self.side(OVER_HEADS[form](k)))

    assert failures(Measured(), (1, 5, 3), (3, 6, 3)) == ([], 12 + 3, 1)
