"""Steps that are written by Python: their options depend on each other."""

from __future__ import annotations

from collections.abc import Callable

from random_parts.writer import StepWriter, Value, Writer

ACTIVATIONS = (
    *("F.relu({0})", "F.gelu({0})", "F.silu({0})", "torch.sigmoid({0})", "F.leaky_relu({0}, 0.1)", "F.hardswish({0})"),
    *("{0} * torch.sigmoid({0})", "torch.tanh({0})", "{0}.clamp(-1, 1)", "{0}.relu()", "F.softplus({0})", "F.elu({0})"),
    *("{0} * {0}", "torch.exp(-{0} ** 2)", "{0}.abs() + 0.1 * {0}", "F.relu6({0} + 3) / 6 * {0}"),
)


def conv(w: Writer, x: Value, y: Value, n: int) -> None:
    kernel, leaving = 1 + 2 * (n % 2), 4 + n % 5
    more = (
        ", bias=False"
        if n % 3 == 0
        else ", padding_mode='reflect'"
        if n % 7 == 1 and kernel == 3 and w.dims < 3
        else ""
    )
    w.new(f"{w.conv(x[1], leaving, kernel, more)}({x[0]})", leaving)


def grouped(w: Writer, x: Value, y: Value, n: int) -> None:
    groups = [g for g in range(1, x[1] + 1) if x[1] % g == 0][n % 3 if x[1] % 2 == 0 else -1]
    leaving = x[1] * (1 + n % 2)
    w.new(f"{w.conv(x[1], leaving, 3, f', groups={groups}')}({x[0]})", leaving)


def norm(w: Writer, x: Value, y: Value, n: int) -> None:
    w.new(f"{w.norm(x[1], n)}({x[0]})", x[1])


def activation(w: Writer, x: Value, y: Value, n: int) -> None:
    w.new(ACTIVATIONS[n % len(ACTIVATIONS)].format(x[0]), x[1])


def residual(w: Writer, x: Value, y: Value, n: int) -> None:
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


def inplace(w: Writer, x: Value, y: Value, n: int) -> None:
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


def written(w: Writer, x: Value, y: Value, n: int) -> None:
    """Assignment of a value to a part of another."""
    half = x[1] // 2
    w.line(f"h = {x[0]}.clone()" if n % 3 else f"h = torch.zeros_like({x[0]})")
    part = (f"h[:, :{half}]", f"h[:, {x[1] - half}:]", f"h[:, ::2][:, :{half}]")[n % 3]
    w.line(f"{part} = {w.conv(y[1], half)}({y[0]})")
    w.new("h", x[1])


def split(w: Writer, x: Value, y: Value, n: int) -> None:
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


def gated(w: Writer, x: Value, y: Value, n: int) -> None:
    """A linear unit with a gate."""
    wide = f"{w.conv(x[1], 2 * 5)}({x[0]})"
    if n % 3 == 0:
        w.new(f"F.glu({wide}, 1)", 5)
        return
    w.line(f"a, b = {wide}.chunk(2, dim=1)")
    w.new("a * torch.sigmoid(b)" if n % 3 == 1 else "F.gelu(a) * b", 5)


def shared(w: Writer, x: Value, y: Value, n: int) -> None:
    """One layer, several times, in sections or in line."""
    layer = w.conv(x[1], x[1], 1 + 2 * (n % 2))
    name = w.new(f"{x[0]} + {layer}({x[0]})", x[1])
    name = w.new(f"{name} + {layer}(F.relu({name}))" if n % 3 else f"{layer}({name})", x[1])
    if n % 5 == 4:
        w.new(f"{name} + F.silu({layer}({w.like(y, x[1])}))", x[1])


def excite(w: Writer, x: Value, y: Value, n: int) -> None:
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


def tokens(w: Writer, x: Value, name: str = "t") -> None:
    w.line(f"{name} = {x[0]}.flatten(2).transpose(1, 2)")


def attention(w: Writer, x: Value, y: Value, n: int) -> None:
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


def channel_attention(w: Writer, x: Value, y: Value, n: int) -> None:
    """Scores between channels."""
    inner = 6
    w.line(f"q, k, v = {w.conv(x[1], 3 * inner)}({x[0]}).flatten(2).chunk(3, 1)")
    w.line("s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)")
    w.line(f"o = (s.softmax(-1) @ v).view({x[0]}.shape[0], {inner}, *{x[0]}.shape[2:])")
    w.new(f"{x[0]} + {w.conv(inner, x[1])}(o)", x[1])


def mlp(w: Writer, x: Value, y: Value, n: int) -> None:
    """Channels last."""
    last = (0, *range(2, 2 + w.dims), 1)
    first = (0, 1 + w.dims, *range(1, 1 + w.dims))
    w.line(f"p = {x[0]}.permute{last}")
    kind = ("nn.LayerNorm({0})", "nn.RMSNorm({0})", "nn.LayerNorm({0}, elementwise_affine=False)")[n % 3].format(x[1])
    w.line(f"h = {w.layer(f'nn.Linear({x[1]}, 7)')}({w.layer(kind)}(p))")
    w.line(f"p = p + {w.layer(f'nn.Linear(7, {x[1]})')}({ACTIVATIONS[n % 3].format('h')})")
    w.new(f"p.permute{first}", x[1])


def cat(w: Writer, x: Value, y: Value, n: int) -> None:
    w.new(f"torch.cat([{x[0]}, {y[0]}], dim=1)", x[1] + y[1])


def add(w: Writer, x: Value, y: Value, n: int) -> None:
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


def stacked(w: Writer, x: Value, y: Value, n: int) -> None:
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


def moved(w: Writer, x: Value, y: Value, n: int) -> None:
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


def constant(w: Writer, x: Value, y: Value, n: int) -> None:
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


def noisy(w: Writer, x: Value, y: Value, n: int) -> None:
    """What is only done in training."""
    name = x[0]
    ways = (f"F.dropout({name}, 0.5)", f"{name} + 0.1 * torch.randn_like({name})", f"{w.norm(x[1], 0)}({name})")
    w.line(f"h = {name}")
    w.line(f"if self.training: h = {ways[n % 3]}")
    w.new("h", x[1])


def transposed(w: Writer, x: Value, y: Value, n: int) -> None:
    layer = w.layer(f"nn.ConvTranspose{w.dims}d({x[1]}, {4 + n % 3}, 3, padding=1, bias={n % 2 == 0})")
    w.new(f"{layer}({x[0]})", 4 + n % 3)


def pooled(w: Writer, x: Value, y: Value, n: int) -> None:
    """Down and up again."""
    w.line(f"h = {w.conv(x[1], 5)}(F.avg_pool{w.dims}d({x[0]}, 2))")
    w.new(f"F.interpolate(h, size={x[0]}.shape[2:])" + ("" if n % 2 else f" + {w.conv(x[1], 5)}({x[0]})"), 5)


def weights(w: Writer, x: Value, y: Value, n: int) -> None:
    """Functions with parameters of one's own."""
    ones = ", 1" * w.dims
    weight = w.layer(f"nn.Parameter(torch.randn(5, {x[1]}{ones}))")
    use = (weight, f"{weight} * 0.5", f"F.normalize({weight}, dim=1)", f"{weight} - {weight}.mean(1, keepdim=True)")[
        n % 4
    ]
    w.new(f"F.conv{w.dims}d({x[0]}, {use})", 5)


WRITTEN: dict[str, StepWriter] = {
    f.__name__: f
    for f in (
        *(conv, grouped, norm, activation, residual, inplace, written, split, gated, shared, excite, attention),
        *(channel_attention, mlp, cat, add, stacked, moved, constant, noisy, transposed, pooled, weights),
    )
}
