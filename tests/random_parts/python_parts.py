"""What people write round their layers: messages, loops, conditions, state."""

from __future__ import annotations

from random_parts.parts import Part

PYTHON = {
    "named_message": Part(
        """
        m = <<Encoder($c, 5)>>($x)
        h = [[m.high + m.low || <<conv 10, 5>>(torch.cat(m, 1)) || m[0] * m[1].sigmoid()
            || m._replace(low=m.high * 2).low]]
        """,
        "5",
        """
        Message = collections.namedtuple("Message", ["high", "low"])


        class Encoder(nn.Module):
            def __init__(self, a, b):
                super().__init__()
                self.high, self.low = nn.Conv$dd(a, b, 1), nn.Conv$dd(a, b, 3, padding=1)

            def forward(self, x):
                return Message(self.high(x), low=self.low(F.relu(x)))
        """,
    ),
    "dict_message": Part(
        """
        f = <<Branches($c)>>([[$x || {"x": $x}.get("x")]])
        h = [[f["box"] + f["class"] || sum(f.values()) || <<conv 10, 5>>(torch.cat(list(f.values()), 1))
            || <<conv 5, 5>>(f.pop("box")) + f["class"] || torch.stack([f[k] for k in sorted(f)]).sum(0)]]
        """,
        "5",
        """
        class Branches(nn.Module):
            def __init__(self, c):
                super().__init__()
                self.heads = nn.ModuleDict({"class": nn.Conv$dd(c, 5, 1), "box": nn.Conv$dd(c, 5, 1)})

            def forward(self, x):
                return {name: F.silu(head(x)) for name, head in self.heads.items()}
        """,
    ),
    "data_message": Part(
        """
        s = <<Update($c)>>(State(first=$x, second=<<conv $c, $c>>($x), steps=1))
        h = s.first + s.second if s.steps == 2 else s.first
        """,
        classes="""
        @dataclasses.dataclass
        class State:
            first: torch.Tensor
            second: torch.Tensor
            steps: int = 0


        class Update(nn.Module):
            def __init__(self, c):
                super().__init__()
                self.layer = nn.Conv$dd(c, c, 1)

            def forward(self, state):
                state.second = self.layer(F.relu(state.second))
                return dataclasses.replace(state, steps=state.steps + 1)
        """,
    ),
    "module_list": Part("""
        z = $x
        m = <<nn.ModuleList([nn.Conv$dd($c, $c, 1), nn.Conv$dd($c, $c, 1)])>>
        [[for l in m: z = z + l(F.relu(z)) || for i, l in enumerate(m): z = l(z) if i % 2 else z + l(z)
            || for l, k in zip(m, (0.5, 2)): z = z + k * l(z) || for l in list(m)[::-1]: z = l(z).relu() + z
            || for i in range(len(m)): z = z - m[i](z.tanh()) || for l in m[1:]: z = z + l(m[0](z).sigmoid())]]
        h = [[z || $x + z]]
        """),
    "module_dict": Part(
        """
        m = <<nn.ModuleDict({"a": nn.Conv$dd($c, 5, 1), "b c": nn.Conv$dd($c, 5, 1), "class": nn.Conv$dd(5, 5, 1)})>>
        h = m["class"](F.relu(m["a"]($x) + m["b c"]($x)))
        """,
        "5",
    ),
    "shape_condition": Part(
        """
        h = <<conv $c, 6>>($x)
        if [[h.shape[1] % 2 == 0 || h.shape[-1] > 3 || h.ndim == 2 + $d || h.size(0) >= 1 or h.size(1) == 2
            || h.shape != $x.shape or h.dim() > 1 || 6 in h.shape || len(h.shape) > 2 and h.shape[1:2] == (6,)]]:
            h = h + <<conv 6, 6>>(F.relu(h))
        else:
            h = h * 2
        """,
        "6",
    ),
    "training_condition": Part("""
        h = [[F.dropout$dd($x, 0.2, self.training) || <<nn.Dropout$dd(0.3)>>($x) || <<nn.AlphaDropout(0.2)>>($x)
            || $x * (0.5 if self.training else 1.0) || $x + <<conv $c, $c>>($x) if self.training else $x
            || F.rrelu($x, training=self.training)]]
        if self.training:
            h = h + [[torch.randn_like(h) * 0.1 || 0.1 * torch.rand(h.shape[0], 1, $ones).to(h)
                || <<nn.BatchNorm$dd($c)>>(h) || <<conv $c, $c>>(h) || 0.1 * torch.randn(h.shape, dtype=h.dtype)]]
        """),
    "counted": Part(
        """
        if self.training:
            [[<<n = buf torch.zeros(())>>.add_(1) || <<n = buf torch.zeros(())>>.copy_(<<n>> + 1)
                || <<n = buf torch.zeros(())>> += 1]]
        h = <<conv $c, 5>>($x) [[ || * (1 + 0.1 * <<n>>) || + 0 * <<n>>]]
        """,
        "5",
    ),
    "running_mean": Part("""
        if self.training:
            with torch.no_grad():
                [[<<m = buf torch.zeros($c)>>.mul_(0.9).add_($x.mean((0, *$axes)), alpha=0.1)
                    || <<m = buf torch.zeros($c)>>.lerp_($x.detach().mean((0, *$axes)), 0.1)
                    || <<m = buf torch.zeros($c)>>.copy_(0.9 * <<m>> + 0.1 * $x.amax((0, *$axes)))
                    || <<m = buf torch.zeros($c)>>[:2] += $x.mean((0, *$axes))[:2]]]
        h = [[$x - <<m>>.view(1, -1, $ones) || $x || $x * torch.sigmoid(<<m>>.reshape($c, $ones))]]
        """),
    "class_token": Part("""
        t = torch.cat([<<par 1, 1, $c>>.[[expand(len($x), -1, -1) || repeat($x.shape[0], 1, 1)
            || expand($x.flatten(2).transpose(1, 2)[:, :1].shape)]], $x.flatten(2).transpose(1, 2)], dim=1)
        t = t + <<lin 7, $c>>(F.gelu(<<lin $c, 7>>(<<nn.LayerNorm($c)>>(t))))
        h = [[t[:, 1:].mT.reshape($x.shape) + t[:, 0].view(-1, $c, $ones) || t[:, 1:].mT.reshape($x.shape)
            || $x * t[:, :1].mT.unflatten(-1, ($ones,)) || $x + t.mean(1)[(..., *[None] * $d)]]]
        """),
    "sizes": Part("""
        b, c, *s = $x.shape
        h = [[$x.reshape(b, c, -1).view(b, c, *s) || $x * (c / sum(s)) || $x / math.sqrt(c)
            || $x.new_ones(b, c, *s) * $x || $x + torch.zeros(b, c, *s, dtype=$x.dtype)
            || $x * torch.full((1, c, $ones), 0.5) || $x / float(np.sqrt(c)) || $x * (math.prod(s) ** -0.5)
            || $x.view(b * c, *s).view(b, c, *s)
            || torch.cat([$x, $x.new_zeros(b, 2, *s)], 1)[:, :c] || F.pad($x, [0, 0] * $d + [0, 2])[:, :-2]
                || $x[:, : int(c * 0.5) * 2] if c % 2 == 0 else $x
                || $x.reshape(b, 1, c, *s).expand(b, 2, c, *s).sum(1)
                || $x.unsqueeze(2).repeat(1, 1, 2, *[1] * $d).flatten(1, 2)[:, ::2]
            || $x.unsqueeze(1).repeat(1, 2, 1, *[1] * $d).flatten(1, 2)[:, :c] || $x.repeat(1, 2, *[1] * $d)[:, c:]
                || torch.ones_like($x) - $x || torch.empty_like($x).copy_($x)
                || $x.to(torch.float32).double() * 0 + $x || $x.type_as($x)
                || $x.contiguous(memory_format=torch.preserve_format)]]
        h = [[h || F.relu(<<conv $c, $c>>(h)) || h + <<conv $c, $c>>($x)]]
        """),
    "channel_groups": Part(
        """
        u = <<conv $c, 12>>($x)
        b, c = u.shape[:2]
        u = u.[[view(b, 3, c // 3, *u.shape[2:]) || reshape(b, 3, -1, *u.shape[2:]) || unflatten(1, (3, -1))]]
        h = [[u.transpose(1, 2).reshape(b, c, *u.shape[3:]) || (u * <<par 1, 3, 1, $ones>>).flatten(1, 2)
            || (u - u.mean(2, keepdim=True)).reshape(b, c, *u.shape[3:]) || (u * u.softmax(1)).flatten(1, 2)
            || u.swapaxes(1, 2).flatten(1, 2) || torch.cat([u[:, 0], u[:, 2] * 2, u[:, 1] ], 1)
            || u.permute(0, 2, 1, *range(3, u.ndim)).flatten(1, 2) || (u + <<par 4, $ones>>).flatten(1, 2)
            || torch.stack(u.unbind(1), 2).flatten(1, 2) || u.flip(1).reshape(b, c, *u.shape[3:])]]
        h = <<conv 12, 6, 3, groups=[[1 || 3]]>>(h)
        """,
        "6",
    ),
    "chain_of_splits": Part(
        """
        u = <<conv $c, 9>>($x)
        n = u.shape[1] // 3
        [[a, b, c = u.split(n, 1) || a, b, c = u.split([n, n, u.size(1) - 2 * n], dim=1)
            || a, b, c = u[:, :n], u[:, n:2 * n], u[:, -n:] || a, b, c = torch.chunk(u, 3, 1)
            || a, b, c = (u[:, i::3] for i in range(3)) || a, (b, c) = u[:, :3], u[:, 3:].chunk(2, 1)
            || a, b, c = torch.tensor_split(u, (3, 6), 1)]]
        h = torch.cat([[ [c, b + <<conv 3, 3>>(b), F.relu(a)] || [<<conv 3, 3>>(a), b, c] || [a, a, b, c][1:]
            || (a * 2, c.sigmoid(), b)]], 1)
        h = <<conv 9, 5>>(h)
        """,
        "5",
    ),
    "written_more": Part("""
        h = [[<<conv $c, $c>>($x) || $x.clone() || $x * 1]]
        [[h[:, 1] = 0 || h[:, :2] = h[:, 2:4] * 2 || h[..., 0] = $x[..., 0] || h[:, 0] += $x[:, 1] || h[:, -1].zero_()
            || h[:, 1:3].copy_($x[:, :2]) || h[:, 2].fill_(0.5) || h.mul_($x.sigmoid()) || h.add_($x).relu_()
            || h[0] = 0 || i = [0, 2]; h[:, i] = 0.0 || h[h > 1] = 1.0 || h.masked_fill_(h < 0, 0.1)
            || h[:, 0].sub_(h[:, 1]) || h.narrow(1, 0, 2).mul_(2) || h.select(1, 1).add_(1)
            || h.flatten(2)[..., 0] += 1 || h.transpose(0, 1)[0] *= 2 || h.addcmul_($x, $x) || h.clamp_(-1, 1).neg_()
            || h.div_(2).sigmoid_() || h.unsqueeze(0)[0, :, 0] += 1
            || for i in range(2): h[:, i] = h[:, i] * (i + 1)]]
        h = [[h || $x + h || F.relu(<<conv $c, $c>>(h)) || $x + F.relu_(<<conv $c, $c>>(h))]]
        """),
    "built": Part(
        """
        h = torch.[[zeros || empty || ones]]($x.shape[0], 8, *$x.shape[2:], dtype=$x.dtype)
        h[:, :4] = <<conv $c, 4>>($x)
        h[:, 4:] = [[<<conv $c, 4, 3>>($x) || 0.5 || <<conv $c, 4>>($y).relu()]]
        """,
        "8",
    ),
    "recursive": Part(
        """
        h = <<Tree($c, 1)>>($x)
        """,
        classes="""
        class Tree(nn.Module):
            def __init__(self, c, depth):
                super().__init__()
                self.left = Tree(c, depth - 1) if depth else nn.Conv$dd(c, c, 1)
                self.right = Tree(c, depth - 1) if depth else nn.Identity()
                self.root = nn.Conv$dd(2 * c, c, 1)

            def forward(self, x, *, residual=None):
                a = self.left(x)
                b = self.right(F.relu(a))
                y = self.root(torch.cat([a, b], 1))
                return y + x if residual is None else y + residual
        """,
    ),
    "block_options": Part(
        """
        h = <<Block($c, [[None || nn.Identity() || nn.Conv$dd($c, $c, 1)]], [[nn.BatchNorm$dd
            || functools.partial(nn.GroupNorm, 1)]])>>($x)
        h = [[h || <<Block($c)>>(h, scale=0.5)]]
        """,
        classes="""
        class Block(nn.Module):
            def __init__(self, c, shortcut=None, norm=nn.InstanceNorm$dd):
                super().__init__()
                first, last = nn.Conv$dd(c, 6, 3, padding=1, bias=False), nn.Conv$dd(6, c, 1)
                self.body = nn.Sequential(first, norm(6), nn.ReLU(inplace=True), last)
                self.shortcut = shortcut

            def forward(self, x, scale=1.0):
                identity = x if self.shortcut is None else self.shortcut(x)
                out = self.body(x)
                out += identity * scale
                return F.relu(out, inplace=True)
        """,
    ),
    "several_results": Part(
        """
        a, (b, n) = <<Several($c)>>($x, [[None || $y]])
        h = a + b if n == $c else b
        """,
        classes="""
        class Several(nn.Module):
            def __init__(self, c):
                super().__init__()
                self.a, self.b = nn.Conv$dd(c, c, 1), nn.Conv$dd(c, c, 1)

            def forward(self, x, memory=None):
                a = self.a(x)
                b = self.b(x if memory is None else x + memory)
                return a, (b, b.shape[1])
        """,
    ),
    "checkpointed": Part("""
        f = <<nn.Sequential(nn.Conv$dd($c, 6, 1), nn.ReLU(), nn.Conv$dd(6, $c, 1))>>
        h = $x + checkpoint.checkpoint(f, $x, use_reentrant=False)
        """),
    "gradients": Part("""
        h = [[$x.detach() * 0.5 + $x || <<conv $c, $c>>($x.detach()) + $x
            || $x + (<<conv $c, $c>>($x).round() - $x).detach() || torch.where($x > 0, $x, $x.detach())]]
        with torch.set_grad_enabled([[self.training || True || torch.is_grad_enabled()]]):
            h = h + <<conv $c, $c>>(F.relu(h))
        """),
    "called_again": Part("""
        h = $x
        for _ in range([[2 || $x.shape[1] // 2 || 3]]):
            h = [[h + <<l = nn.Conv$dd($c, $c, 1)>>(F.relu(h)) || <<l = nn.Conv$dd($c, $c, 1)>>(h).tanh()
                || <<l = nn.Conv$dd($c, $c, 1)>>(F.relu(h)) + $x]]
        """),
    "recurrent_state": Part(
        """
        s = $x.new_zeros($x.shape[0], 5, *$x.shape[2:])
        for z in ($x, $y):
            g, c = <<l = nn.Conv$dd($c + 5, 10, 1)>>(torch.cat([z, s], 1)).chunk(2, 1)
            s = torch.sigmoid(g) * s + (1 - torch.sigmoid(g)) * torch.tanh(c)
        h = s
        """,
        "5",
    ),
    "functions": Part(
        """
        f = [[lambda z: z * 2 + 1 || functools.partial(F.leaky_relu, negative_slope=0.2)
            || torch.nn.functional.softplus || (lambda z, k=3: z.clamp(-k, k)) || halved]]
        h = f(<<conv $c, 5>>($x))
        """,
        "5",
        """
        def halved(z, *more, by=2, **options):
            assert z.shape[1] > 0, f"no channels in {z.shape}"
            return z / by
        """,
    ),
    "einops_parts": Part(
        """
        h = [[einops.rearrange($x, 'b c ... -> b ... c') || einops.reduce($x, 'b c ... -> b c', 'mean')
            || einops.rearrange(<<conv $c, 8>>($x), 'b (g c) ... -> b (c g) ...', g=2)]]
        n = $x.shape[2:].numel()
        h = [[<<conv $c, 5>>(einops.rearrange($x, 'b c ... -> b c ...'))
            || einops.repeat(<<lin $c, 5>>($x.mean($axes)), 'b c -> b c n', n=n).reshape(-1, 5, *$x.shape[2:])
            || einops.rearrange([<<conv $c, 5>>($x), <<conv $c, 5>>($y)], 'n b c ... -> b n c ...').sum(1)
            || einops.einsum($x, <<par 5, $c>>, 'b c ..., d c -> b d ...')]]
        """,
        "5",
    ),
    "complex_numbers": Part("""
        h = [[torch.fft.rfft($x, dim=-1) || torch.fft.rfft(<<conv $c, $c>>($x), dim=-1)]]
        h = torch.fft.irfft(h * 2.0, n=$x.shape[-1], dim=-1)
        """),
}
