"""Random networks of parts: computed splits, in-place writes, stacks, rotations, shuffles, stretched values."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class PartStep(nn.Module):
    """One form, in one of several variants, on an image with so many channels."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        self.form = draw.choice(list(FORMS))
        self.variant = draw.randrange(6)
        self.width = draw.randrange(1, channels)
        self.shift = draw.randrange(-channels, channels)
        c, w = channels, self.width
        self.branch = nn.Sequential(nn.Conv2d(c, c + 2, 3, padding=1), nn.ReLU(), nn.Conv2d(c + 2, c, 1))
        self.part, self.mix, self.join = nn.Conv2d(w, w, 3, padding=1), nn.Conv2d(c, c, 1), nn.Conv2d(2 * c, c, 1)
        self.lower = nn.Conv2d(c // 2, c // 2, 3, padding=1)
        self.twice, self.qkv, self.linear = nn.Linear(c, 2 * c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.table, self.token = nn.Parameter(torch.randn(2, c)), nn.Parameter(torch.randn(1, 1, w))
        self.norm, self.narrow = nn.LayerNorm(w), nn.Linear(w, w)
        self.batch, self.instance = nn.BatchNorm2d(c), nn.InstanceNorm2d(c, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return FORMS[self.form](self, x)


def split(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    p, q = x.split([s.width, x.size(1) - s.width], 1)
    if s.variant == 0:
        p = p + s.part(p).relu()
    elif s.variant == 1:
        p = s.part(p)
    elif s.variant == 2:
        p = p * s.part(p).sigmoid()
    elif s.variant == 3:
        p = F.max_pool2d(p, 3, 1, 1)
    elif s.variant == 4:
        p = p + s.part(p.relu())
    return torch.cat([q, p] if s.width % 2 else [p, q], 1)


def slices(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    p = x[:, : s.width]
    return torch.cat([x[:, s.width - x.shape[1] :], s.part(p) + p], 1)


def halves(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    y = list(x.chunk(2, 1))
    y.append(s.lower(y[-1]).relu() if s.variant < 3 else y[-1] + s.lower(y[-1]).relu())
    if s.variant == 5:
        y[2] = torch.maximum(y[2], y[0].sigmoid())
    return torch.cat(y[1:] if s.variant % 2 else [y[0], y[2]], 1)


def write(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    z = s.branch(x) if s.variant < 3 else s.branch(x) * 1.0
    kind = s.width % 7
    if kind == 0:
        z[..., 0] += 1
    elif kind == 1:
        z[:, :, 0].add_(1.5)
    elif kind == 2:
        z[:, 0] = 0.3
    elif kind == 3:
        z[:, s.width :] *= 2
    elif kind == 4:
        z[:, ::2] = 0.5
    elif kind == 5:
        z[:, :, 1:3] = x[:, :, 1:3]
    else:
        z.transpose(2, 3)[:, :, 0].mul_(3).add_(1)
    return x + z if s.variant % 2 else z


def write_channels(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    z = s.mix(x) + 1
    if s.variant < 2:
        z[:, : s.width] = s.part(x[:, : s.width])
    elif s.variant < 4:
        z[:, s.width :] = x[:, s.width :]
    else:
        z[:, 0] = x[:, -1]
    return z.relu() + x if s.variant % 2 else z


def stack(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    y = s.mix(x)
    if s.variant == 0:
        return s.join(torch.stack([x, y], 1).flatten(1, 2))
    if s.variant == 1:
        return s.join(torch.stack([x, x], 2).flatten(1, 2))
    if s.variant == 2:
        return torch.stack([x, y], 0).sum(0)
    if s.variant == 3:
        return torch.stack([x, y], 1).max(1)[0]
    if s.variant == 4:
        return torch.stack([x, y], -1).mean(-1)
    return s.join(torch.stack([x, y], 2).reshape(len(x), -1, *x.shape[2:]))


def roll(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    if s.variant == 0:
        return s.mix(torch.roll(x, s.shift, 1))
    if s.variant == 1:
        return s.mix(x.roll((s.shift, 1), (1, 2)))
    if s.variant == 2:
        return s.mix(x.flatten(1).roll(s.shift * 3, 1).view(x.shape))
    if s.variant == 3:
        return torch.cat([x.roll(x.size(1) // 2, 1)[:, : s.width], x[:, s.width :]], 1)
    if s.variant == 4:
        return s.mix(x.flip(1)).roll(2, -1)
    return x.roll(1, 1) * s.mix(x).sigmoid()


def shuffle(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    y = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    if s.variant == 0:
        return y
    if s.variant == 1:
        return s.join(torch.cat([x, y], 1))
    if s.variant == 2:
        return x + s.mix(y)
    if s.variant == 3:
        return y.view(n, c // 2, 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    if s.variant == 4:
        return s.mix(y.chunk(2, 1)[0].repeat(1, 2, 1, 1))
    return s.mix(y.chunk(2, 1)[0].repeat_interleave(2, 1))


def stretch(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    mean = x.mean((2, 3))
    if s.variant < 2:
        scale, shift = s.twice(mean).chunk(2, 1)
        return x * (1 + scale[..., None, None]) + shift[..., None, None]
    if s.variant < 4:
        shift, scale = (s.table[None] + s.linear(mean)[:, None]).chunk(2, 1)
        return (x.flatten(2).transpose(1, 2) * (1 + scale) + shift).transpose(1, 2).reshape(x.shape)
    if s.variant == 4:
        return s.join(torch.cat([x, s.mix(x)], 1) * s.twice(mean).sigmoid()[..., None, None])
    return x + x.mean(3, keepdim=True) * x.mean(1, keepdim=True)


def attention(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    t = x.flatten(2).transpose(1, 2)
    n, length, c = t.shape
    q, k, v = s.qkv(t).chunk(3, -1)
    if s.variant % 2:
        q, k, v = (z.view(n, length, 2, c // 2).transpose(1, 2) for z in (q, k, v))
    by_hand = s.variant < 3
    a = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v if by_hand else F.scaled_dot_product_attention(q, k, v)
    a = s.linear(a.transpose(1, 2).reshape(n, length, c) if s.variant % 2 else a)
    return (t + a if s.variant < 4 else a).transpose(1, 2).reshape(x.shape)


def token(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    p, q = x.split([s.width, x.shape[1] - s.width], 1)
    t = torch.cat([s.token.expand(len(x), -1, -1), p.flatten(2).transpose(1, 2)], 1)
    t = t + s.narrow(s.norm(t)) if s.variant < 3 else s.norm(t)
    return torch.cat([q, t[:, 1:].transpose(1, 2).reshape(p.shape)], 1)


def norm(s: PartStep, x: torch.Tensor) -> torch.Tensor:
    if s.variant < 4:
        return s.batch(x) if s.variant % 2 else s.instance(x)
    y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)
    return y if s.variant == 4 else s.batch(x + s.branch(y))


FORMS: dict[str, Callable[[PartStep, torch.Tensor], torch.Tensor]] = {
    f.__name__: f
    for f in (split, slices, halves, write, write_channels, stack, roll, shuffle, stretch, attention, token, norm)
}


class PartNet(nn.Module):
    """A convolution, one to three random forms, a convolution."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        channels = draw.choice([4, 6, 8])
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.steps = nn.Sequential(*(PartStep(draw, channels) for _ in range(draw.randint(1, 3))))
        self.last = nn.Conv2d(channels, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.steps(self.first(x)))
