"""Random networks as source code, and the smallest one that still fails: the second generator of the tests.

    python tests/random_models.py 0 1000 --workers 2 --found runs/found

A network is a list of steps. A step writes lines of `__init__` and `forward`; it reads values that earlier steps have
left, by numbers modulo how many there are, so that any part of the list is a network too. What fails is cut down to few
steps and written as a script that shows the failure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

SPATIAL = {1: (6,), 2: (4, 4), 3: (2, 4, 4)}


@dataclass(frozen=True)
class Step:
    """`first`, `second`: the values that it reads; `number`: decides on its options."""

    kind: str
    first: int = 0
    second: int = 0
    number: int = 0


@dataclass(frozen=True)
class Program:
    """`dims`: of the images; `inputs`: how many there are; `result`: what `forward` returns."""

    steps: tuple[Step, ...]
    dims: int = 2
    inputs: int = 1
    result: str = "tensor"


@dataclass
class Writer:
    """The source of a network, as far as it is written. `values`: names and channels of maps (N, C, …)."""

    dims: int
    init: list[str] = field(default_factory=list[str])
    forward: list[str] = field(default_factory=list[str])
    values: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    count: int = 0

    def layer(self, text: str) -> str:
        """A module or parameter; its name."""
        self.count += 1
        name = f"self.l{self.count}"
        self.init.append(f"{name} = {text}")
        return name

    def buffer(self, text: str) -> str:
        self.count += 1
        self.init.append(f"self.register_buffer('l{self.count}', {text})")
        return f"self.l{self.count}"

    def conv(self, entering: int, leaving: int, kernel: int = 1, more: str = "") -> str:
        return self.layer(f"nn.Conv{self.dims}d({entering}, {leaving}, {kernel}, padding={kernel // 2}{more})")

    def norm(self, width: int, number: int) -> str:
        groups = next(g for g in (3, 2, 1) if width % g == 0)
        kinds = (f"nn.BatchNorm{self.dims}d({width})", f"nn.GroupNorm({groups}, {width})", f"nn.GroupNorm(1, {width})")
        more = (
            f"nn.InstanceNorm{self.dims}d({width}, affine=True)",
            f"nn.BatchNorm{self.dims}d({width}, affine=False)",
        )
        return self.layer((kinds + more)[number % 5])

    def line(self, text: str) -> None:
        self.forward.append(text)

    def new(self, text: str, channels: int) -> str:
        """A value that later steps may read."""
        name = f"v{len(self.values)}"
        self.line(f"{name} = {text}")
        self.values.append((name, channels))
        return name

    def like(self, value: tuple[str, int], channels: int) -> str:
        """A value mapped to other channels, if it has others."""
        name, own = value
        return name if own == channels else f"{self.conv(own, channels)}({name})"


ACTIVATIONS = (
    *("F.relu({0})", "F.gelu({0})", "F.silu({0})", "torch.sigmoid({0})", "F.leaky_relu({0}, 0.1)", "F.hardswish({0})"),
    *("{0} * torch.sigmoid({0})", "torch.tanh({0})", "{0}.clamp(-1, 1)", "{0}.relu()", "F.softplus({0})", "F.elu({0})"),
    *("{0} * {0}", "torch.exp(-{0} ** 2)", "{0}.abs() + 0.1 * {0}", "F.relu6({0} + 3) / 6 * {0}"),
)

StepWriter = Callable[[Writer, tuple[str, int], tuple[str, int], int], None]


def conv(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    kernel, leaving = 1 + 2 * (n % 2), 4 + n % 5
    more = (
        ", bias=False"
        if n % 3 == 0
        else ", padding_mode='reflect'"
        if n % 7 == 1 and kernel == 3 and w.dims < 3
        else ""
    )
    w.new(f"{w.conv(x[1], leaving, kernel, more)}({x[0]})", leaving)


def grouped(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    groups = [g for g in range(1, x[1] + 1) if x[1] % g == 0][n % 3 if x[1] % 2 == 0 else -1]
    leaving = x[1] * (1 + n % 2)
    w.new(f"{w.conv(x[1], leaving, 3, f', groups={groups}')}({x[0]})", leaving)


def norm(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    w.new(f"{w.norm(x[1], n)}({x[0]})", x[1])


def activation(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    w.new(ACTIVATIONS[n % len(ACTIVATIONS)].format(x[0]), x[1])


def residual(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    inner = 4 + n % 3
    w.line(f"h = {w.conv(x[1], inner, 1 + 2 * (n % 2))}({x[0]})")
    w.line(f"h = {ACTIVATIONS[n % len(ACTIVATIONS)].format('h')}")
    w.line(f"h = {w.conv(inner, x[1])}(h)")
    kind = n // 2 % 6
    if kind == 1:
        scale = w.layer(f"nn.Parameter(torch.ones({x[1]}, {', '.join(['1'] * w.dims)}))")
        w.line(f"h = h * {scale}")
    if kind == 2:
        w.line("h = F.dropout(h, 0.3, self.training)")
    if kind == 3:
        w.line(f"h = {w.norm(x[1], n // 12)}(h)")
    if kind == 4:
        w.line(f"h += {x[0]}")
        w.new("F.relu(h)", x[1])
        return
    w.new(f"{x[0]} + h" if kind != 5 else f"torch.add(h, {x[0]}, alpha=0.5)", x[1])


def inplace(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    w.line(f"h = {w.conv(x[1], x[1], 3)}({x[0]})")
    part = ("h[..., 0]", "h[:, :, 0]", "h[:, :2]", "h[:, 1:]", "h[:, 0]", "h[:1]", "h")[n % 7]
    change = (
        "{0} += 1",
        "{0}.add_(1)",
        "{0} *= 2",
        "{0}.mul_(0.5)",
        "{0}.clamp_(min=0)",
        "{0}.sigmoid_()",
        "{0}[:] = 0.5",
    )
    w.line(change[n // 7 % 7].format(part))
    w.new("h" if n % 2 else f"{x[0]} + h", x[1])


def written(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Assignment of a value to a part of another."""
    half = x[1] // 2
    w.line(f"h = {x[0]}.clone()" if n % 3 else f"h = torch.zeros_like({x[0]})")
    part = (f"h[:, :{half}]", f"h[:, {x[1] - half}:]", f"h[:, ::2][:, :{half}]")[n % 3]
    w.line(f"{part} = {w.conv(y[1], half)}({y[0]})")
    w.new("h", x[1])


def split(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Parts of the channels, by sizes that are numbers or computed, and branches of their own."""
    first = 1 + n % (x[1] - 1)
    last = x[1] - first
    ways = (
        f"a, b = {x[0]}.split([{first}, {x[0]}.size(1) - {first}], 1)",
        f"a, b = torch.split({x[0]}, [{x[0]}.shape[1] - {last}, {last}], dim=1)",
        f"a, b = {x[0]}[:, :{first}], {x[0]}[:, {first}:]",
        f"a, b = {x[0]}.narrow(1, 0, {first}), {x[0]}[:, -{last}:]",
        f"a, b = {x[0]}.tensor_split([{first}], dim=1)",
    )
    w.line(ways[n % 5])
    if x[1] % 2 == 0 and n % 4 == 3:
        w.line(f"a, b = {x[0]}.chunk(2, 1)")
        first = last = x[1] // 2
    if n // 5 % 3:
        w.line(f"a = {ACTIVATIONS[n % 5].format(f'{w.conv(first, first, 3)}(a)')}")
    if n // 5 % 3 == 2:
        w.line(f"b = b + {w.conv(last, last)}(F.relu(b))")
    if n // 15 % 3 == 2:
        w.new(f"{w.conv(first, 5)}(a) + {w.conv(last, 5)}(b)", 5)
    else:
        w.new("torch.cat([a, b], 1)" if n // 15 % 3 else "torch.cat((b, a), dim=1)", x[1])


def gated(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """A linear unit with a gate."""
    wide = f"{w.conv(x[1], 2 * 5)}({x[0]})"
    if n % 3 == 0:
        w.new(f"F.glu({wide}, 1)", 5)
        return
    w.line(f"a, b = {wide}.chunk(2, dim=1)")
    w.new("a * torch.sigmoid(b)" if n % 3 == 1 else "F.gelu(a) * b", 5)


def shared(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """One layer, several times, in sections or in line."""
    layer = w.conv(x[1], x[1], 1 + 2 * (n % 2))
    name = w.new(f"{x[0]} + {layer}({x[0]})", x[1])
    name = w.new(f"{name} + {layer}(F.relu({name}))" if n % 3 else f"{layer}({name})", x[1])
    if n % 5 == 4:
        w.new(f"{name} + F.silu({layer}({w.like(y, x[1])}))", x[1])


def excite(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    axes = tuple(range(2, 2 + w.dims))
    ones = ", ".join(["1"] * w.dims)
    if n % 3 == 0:
        w.line(f"s = {w.layer(f'nn.Linear({x[1]}, 4)')}({x[0]}.mean({axes}))")
        w.line(f"s = {w.layer(f'nn.Linear(4, {x[1]})')}(F.relu(s)).sigmoid().view(-1, {x[1]}, {ones})")
    elif n % 3 == 1:
        w.line(f"s = F.adaptive_avg_pool{w.dims}d({x[0]}, 1)")
        w.line(f"s = torch.sigmoid({w.conv(4, x[1])}(F.relu({w.conv(x[1], 4)}(s))))")
    else:
        w.line(f"s = torch.cat([{x[0]}.mean(1, keepdim=True), {x[0]}.amax(1, keepdim=True)], 1)")
        w.line(f"s = {w.conv(2, 1, 3)}(s).sigmoid()")
    w.new(f"{x[0]} * s" if n % 2 else f"{x[0]} * s.expand_as({x[0]})", x[1])


def tokens(w: Writer, x: tuple[str, int], name: str = "t") -> None:
    w.line(f"{name} = {x[0]}.flatten(2).transpose(1, 2)")


def attention(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Six styles, on tokens."""
    heads, size = 1 + n % 3, 2 + n % 2
    inner, style = heads * size, n // 2 % 6
    tokens(w, x)
    token = n % 5 == 4 and style != 5
    if token:
        w.line(
            f"t = torch.cat([{w.layer(f'nn.Parameter(torch.randn(1, 1, {x[1]}))')}.expand(t.shape[0], -1, -1), t], 1)"
        )
    w.line(f"u = {w.layer(f'nn.LayerNorm({x[1]})')}(t)")
    linear: Callable[[int, int], str] = lambda a, b: w.layer(f"nn.Linear({a}, {b})")  # noqa: E731
    if style == 0:
        w.line(f"u = {linear(x[1], inner)}(u)")
        packed = w.layer(f"nn.MultiheadAttention({inner}, {heads}, batch_first=True)")
        w.line(f"o = {packed}(u, u, u, need_weights=False)[0]")
    elif style == 1:
        w.line("b, l, _ = u.shape")
        w.line(
            f"q, k, v = {linear(x[1], 3 * inner)}(u).reshape(b, l, 3, {heads}, {size}).permute(2, 0, 3, 1, 4).unbind(0)"
        )
        w.line("o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, l, -1)")
    elif style == 2:
        for letter in "qkv":
            w.line(f"{letter} = {linear(x[1], inner)}(u).view(u.shape[0], -1, {heads}, {size}).transpose(1, 2)")
        w.line(f"s = (q @ k.transpose(-2, -1)) * {size} ** -0.5")
        if n % 4 == 3:
            w.line(f"s = s + {w.layer(f'nn.Parameter(torch.randn({heads}, 1, 1))')}")
        w.line("o = (s.softmax(-1) @ v).transpose(1, 2).flatten(2)")
    elif style == 3:
        w.line(f"q, k, v = [p.unflatten(-1, ({heads}, {size})) for p in {linear(x[1], 3 * inner)}(u).chunk(3, -1)]")
        w.line("s = torch.einsum('blhd,bmhd->bhlm', q, k).softmax(dim=-1)")
        w.line("o = torch.einsum('bhlm,bmhd->blhd', s, v).flatten(2)")
    elif style == 4:
        w.line(f"c = {w.like(y, x[1])}.flatten(2).transpose(1, 2)")
        w.line(f"q = {linear(x[1], inner)}(u).unflatten(2, ({heads}, -1)).transpose(1, 2)")
        w.line(f"c = {linear(x[1], 2 * inner)}(c).reshape(c.size(0), c.size(1), 2, {heads}, {size})")
        w.line("k, v = c.permute(2, 0, 3, 1, 4)")
        w.line("o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)")
    else:
        for letter in "qkv":
            w.line(f"{letter} = {linear(x[1], inner)}(u).view(u.size(0), u.size(1), {heads}, {size}).transpose(1, 2)")
        w.line("o = q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)")
        w.line("o = o.transpose(1, 2).reshape(u.shape[0], u.shape[1], -1)")
    w.line(f"t = t + {linear(inner, x[1])}(o)" if n % 7 else f"t = {linear(inner, x[1])}(o)")
    if token:
        w.line("t, g = t[:, 1:], t[:, 0]" if n % 2 else "g, t = t.split([1, t.size(1) - 1], 1)")
        if n % 3 == 0:
            w.line("t = t + g.reshape(t.shape[0], 1, -1)")
    w.new(f"t.transpose(1, 2).reshape({x[0]}.shape)", x[1])


def channel_attention(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Scores between channels."""
    inner = 6
    w.line(f"q, k, v = {w.conv(x[1], 3 * inner)}({x[0]}).flatten(2).chunk(3, 1)")
    w.line("s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)")
    w.line(f"o = (s.softmax(-1) @ v).view({x[0]}.shape[0], {inner}, *{x[0]}.shape[2:])")
    w.new(f"{x[0]} + {w.conv(inner, x[1])}(o)", x[1])


def mlp(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Channels last."""
    last = (0, *range(2, 2 + w.dims), 1)
    first = (0, 1 + w.dims, *range(1, 1 + w.dims))
    w.line(f"p = {x[0]}.permute{last}")
    kind = ("nn.LayerNorm({0})", "nn.RMSNorm({0})", "nn.LayerNorm({0}, elementwise_affine=False)")[n % 3].format(x[1])
    w.line(f"h = {w.layer(f'nn.Linear({x[1]}, 7)')}({w.layer(kind)}(p))")
    w.line(f"p = p + {w.layer(f'nn.Linear(7, {x[1]})')}({ACTIVATIONS[n % 3].format('h')})")
    w.new(f"p.permute{first}", x[1])


def cat(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    w.new(f"torch.cat([{x[0]}, {y[0]}], dim=1)", x[1] + y[1])


def add(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    other = w.like(y, x[1])
    ways = (
        "{0} + {1}",
        "{0} * {1}",
        "{0} - {1}",
        "torch.maximum({0}, {1})",
        "torch.lerp({0}, {1}, 0.3)",
        "{0} * {1}.sigmoid()",
    )
    w.new(ways[n % 6].format(x[0], other), x[1])


def stacked(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Branches that are stacked and reduced."""
    a, b = f"{w.conv(x[1], 5)}({x[0]})", f"{w.conv(y[1], 5, 3)}({y[0]})"
    w.line(f"s = torch.stack([{a}, {b}], {1 + n % 2})")
    axis = 1 + n % 2
    ways = (
        f"s.sum({axis})",
        f"s.mean({axis})",
        f"s.amax({axis})",
        f"(s * s.softmax({axis})).sum({axis})",
        "s.flatten(1, 2)",
    )
    way = n // 2 % 5
    w.new(ways[way], 10 if way == 4 else 5)


def moved(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Movements that leave the shape."""
    name, channels = x
    window = "3, 1, 1" if w.dims < 3 else "1"  # of three dimensions one is shorter than that
    ways = [
        f"torch.roll({name}, 1, 2)",
        f"{name}.flip(2)",
        f"F.pad({name}, (1, 1))[..., 1:-1]",
        f"F.max_pool{w.dims}d({name}, {window})",
        f"F.avg_pool{w.dims}d({name}, {window})",
        f"{name}.transpose(1, 2).contiguous().transpose(1, 2)",
        f"F.interpolate({name}, scale_factor=2).unflatten(2, (-1, 2))[:, :, :, 0]" + "[..., ::2]" * (w.dims - 1)
        if w.dims < 3
        else f"{name} * 1",
        f"{name}.repeat_interleave(2, 1)[:, ::2]",
        f"torch.cat([{name}, {name}], 0)[:{name}.shape[0]]",
        f"torch.roll({name}, 1, 1)",
        f"{name}.flip(1)",
    ]
    if channels % 2 == 0:
        sizes = f"{name}.shape[0], 2, {channels // 2}, *{name}.shape[2:]"
        ways.append(f"{name}.view({sizes}).transpose(1, 2).reshape({name}.shape)")
    w.new(ways[n % len(ways)], channels)


def constant(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Buffers, positions, numbers computed from sizes."""
    name, channels = x
    ones = ", ".join(["1"] * w.dims)
    kind = n % 6
    if kind == 0:
        text = f"{name} * {w.buffer(f'torch.linspace(0.5, 1.5, {channels}).view(1, -1, {ones})')}"
    elif kind == 1:
        text = f"{name} + {w.layer(f'nn.Parameter(torch.randn(1, {channels}, {ones}))')}"
    elif kind == 2:
        text = f"{name} / {name}.shape[1] ** 0.5"
    elif kind == 3:
        text = f"{name} * ({name}.size(2) / {name}.shape[-1]) + {name}.ndim"
    elif kind == 4:
        text = f"{name}.masked_fill({name} > 1, 0.5)"
    else:
        text = f"torch.where({name} > 0, {name}, {w.like(y, channels)})"
    w.new(text, channels)


def noisy(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """What is only done in training."""
    name = x[0]
    ways = (f"F.dropout({name}, 0.5)", f"{name} + 0.1 * torch.randn_like({name})", f"{w.norm(x[1], 0)}({name})")
    w.line(f"h = {name}")
    w.line(f"if self.training: h = {ways[n % 3]}")
    w.new("h", x[1])


def transposed(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    layer = w.layer(f"nn.ConvTranspose{w.dims}d({x[1]}, {4 + n % 3}, 3, padding=1, bias={n % 2 == 0})")
    w.new(f"{layer}({x[0]})", 4 + n % 3)


def pooled(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Down and up again."""
    w.line(f"h = {w.conv(x[1], 5)}(F.avg_pool{w.dims}d({x[0]}, 2))")
    w.new(f"F.interpolate(h, size={x[0]}.shape[2:])" + ("" if n % 2 else f" + {w.conv(x[1], 5)}({x[0]})"), 5)


def weights(w: Writer, x: tuple[str, int], y: tuple[str, int], n: int) -> None:
    """Functions with parameters of one's own."""
    ones = ", 1" * w.dims
    weight = w.layer(f"nn.Parameter(torch.randn(5, {x[1]}{ones}))")
    use = (weight, f"{weight} * 0.5", f"F.normalize({weight}, dim=1)", f"{weight} - {weight}.mean(1, keepdim=True)")[
        n % 4
    ]
    w.new(f"F.conv{w.dims}d({x[0]}, {use})", 5)


STEPS: dict[str, StepWriter] = {
    f.__name__: f
    for f in (
        *(conv, grouped, norm, activation, residual, inplace, written, split, gated, shared, excite, attention),
        *(channel_attention, mlp, cat, add, stacked, moved, constant, noisy, transposed, pooled, weights),
    )
}


def draw(seed: int) -> Program:
    """A random program."""
    r = random.Random(seed)
    steps = tuple(
        Step(r.choice(list(STEPS)), -r.choice((1, 1, 1, 2, 3)), r.randrange(20), r.randrange(420))
        for _ in range(r.randint(1, 8))
    )
    return Program(
        steps, r.choice((2, 2, 2, 1, 3)), r.choice((1, 1, 1, 2)), r.choice(("tensor", "tensor", "pair", "dict"))
    )


def source(program: Program) -> str:
    """The class `Net`."""
    w = Writer(program.dims)
    names = [f"x{i}" for i in range(program.inputs)]
    for name in names:
        w.new(f"{w.conv(3, 6, 3)}({name})", 6)
    for step in program.steps:
        STEPS[step.kind](w, w.values[step.first % len(w.values)], w.values[step.second % len(w.values)], step.number)
    last, width = w.values[-1]
    axes = tuple(range(2, 2 + program.dims))
    w.line(f"y = {w.layer(f'nn.Linear({width}, 3)')}({last}.mean({axes}))")
    other, more = w.values[-2] if len(w.values) > 1 else w.values[-1]
    if program.result != "tensor":
        w.line(f"z = {w.conv(more, 2)}({other})")
    results = {"tensor": "y", "pair": "(y, z)", "dict": "{'class': y, 'map': z}"}
    body = [*w.init, "", *w.forward, f"return {results[program.result]}"]
    lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in w.init]
    lines += ["", f"    def forward(self, {', '.join(names)}):"]
    lines += [f"        {line}" for line in body[len(w.init) + 1 :]]
    return "\n".join(lines) + "\n"


def build(text: str) -> nn.Module:
    """The network of a source."""
    import torch.nn.functional as F

    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "__name__": __name__}
    exec(compile(text, "<random network>", "exec"), space)
    return space["Net"]().double()


def images(program: Program, batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, *SPATIAL[program.dims])
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(program.inputs))


def failure(program: Program, seed: int = 0, *, onnx: bool = False) -> str:
    """What is wrong with a program, empty if nothing is; `nothing` if there is nothing to prune."""
    from exactness import check_on, randomise

    import fxcat

    torch.manual_seed(seed)
    text = source(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(text)
        randomise(model, seed)
        example, others = images(program, 1, 1), images(program, 3, 2)
        with torch.no_grad():
            if any(not bool(v.isfinite().all()) for v in torch.utils._pytree.tree_leaves(model.eval()(*others))):
                return "nothing"
        model.train()
        try:
            report = check_on(model, "random", example, others, others, settings=2)
            if not report.failures and seed % 4 == 0:
                _check_files(model, text, example, others, seed)
            if not report.failures and onnx:
                _check_onnx(model, example)
        except fxcat.NothingToPruneError:
            return "nothing"
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {str(error)[:300]} ({Path(frame.filename).name}:{frame.lineno})"
    return report.failures[0] if report.failures else ""


def _check_files(model: nn.Module, text: str, example: tuple[Any, ...], others: tuple[Any, ...], seed: int) -> None:
    """Shrunk twice, saved, and loaded into a network of the same source."""
    from exactness import difference, random_gates

    import fxcat

    net = fxcat.prepare(model, example, verbose=False).eval()
    random_gates(net, seed, 0.3)
    net.shrink()
    random_gates(net, seed + 1, 0.3)
    small = fxcat.finalize(net)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        fxcat.save(small, path)
        loaded = fxcat.load(path, build(text)).eval()
    with torch.no_grad():
        found = difference(loaded(*others), small(*others))
    assert found <= 1e-10, f"loaded: {found:.1e}"


def _check_onnx(model: nn.Module, example: tuple[Any, ...]) -> None:
    from exactness import random_gates

    import fxcat

    net = fxcat.prepare(model.float(), tuple(x.float() for x in example), verbose=False).eval()
    random_gates(net, 0, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        fxcat.export_onnx(fxcat.finalize(net), Path(folder) / "small.onnx", tuple(x.float() for x in example))


def kind_of(text: str) -> str:
    """A failure without its numbers."""
    return re.sub(r"[-+]?\d[\d.e+-]*", "#", text.split(" (")[0])[:60]


def shrunk(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A smaller program that fails too: without steps, with smaller numbers, with plain inputs and results."""
    changed = True
    while changed:
        changed = False
        for i in range(len(program.steps)):
            smaller = replace(program, steps=program.steps[:i] + program.steps[i + 1 :])
            if fails(smaller):
                program, changed = smaller, True
                break
    plain: tuple[dict[str, Any], ...] = ({"result": "tensor"}, {"inputs": 1}, {"dims": 2})
    for change in plain:
        smaller = replace(program, **change)
        if smaller != program and fails(smaller):
            program = smaller
    for i, step in enumerate(program.steps):
        for number in (*range(4), step.number % 7, step.number % 30):
            smaller = replace(step, number=number)
            steps = (*program.steps[:i], smaller, *program.steps[i + 1 :])
            if number < program.steps[i].number and fails(replace(program, steps=steps)):
                program = replace(program, steps=steps)
                break
    return program


SCRIPT = '''"""{failure}

seed {seed}
"""
import sys
sys.path.insert(0, "tests")
import torch
from exactness import check_on, randomise
from torch import nn
import torch.nn.functional as F

{source}

model = Net().double()
randomise(model, {seed})
shapes = {shapes}
example, others = (tuple(torch.randn(s, dtype=torch.float64) for s in several) for several in shapes)
print(check_on(model, "net", example, others, others, settings=2).failures)
'''


def script(program: Program, seed: int, found: str) -> str:
    shapes = tuple([(batch, 3, *SPATIAL[program.dims])] * program.inputs for batch in (1, 3))
    return SCRIPT.format(failure=found.replace('"""', ""), seed=seed, source=source(program), shapes=shapes)


def examined(seed: int) -> tuple[int, str, Program | None]:
    """What a seed gives: the failure, and the smallest program that shows it."""
    torch.set_num_threads(1)
    program = draw(seed)
    try:
        found = failure(program, seed, onnx=seed % 100 == 0)
    except Exception as error:  # the generator is at fault
        return seed, f"generator: {type(error).__name__}: {error}", program
    if found in ("", "nothing"):
        return seed, found, None
    kind = kind_of(found)

    def fails(smaller: Program) -> bool:
        try:
            return kind_of(failure(smaller, seed, onnx=seed % 100 == 0)) == kind
        except Exception:
            return False

    return seed, found, shrunk(program, fails)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--found", type=Path, default=Path("runs/found"), help="folder for what fails")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for seed, found, program in pool.imap_unordered(examined, range(options.first, options.last)):
            kind = kind_of(found) if program is not None else found or "exact"
            counts[kind] += 1
            if program is not None:
                options.found.mkdir(parents=True, exist_ok=True)
                if counts[kind] <= 3:
                    (options.found / f"seed_{seed}.py").write_text(script(program, seed, found))
                print(f"{seed}: {found}\n{source(program)}", flush=True)  # noqa: T201
    for kind, count in counts.most_common():
        print(f"{count:6} {kind}")  # noqa: T201


if __name__ == "__main__":
    main()
