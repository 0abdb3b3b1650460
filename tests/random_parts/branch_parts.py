"""Branches, gates, experts and what picks from values."""

from __future__ import annotations

from random_parts.parts import Part

BRANCHES = {
    "block_attention": Part("""
        a = <<a = nn.Sequential(nn.Linear($c, 3), nn.ReLU(), nn.Linear(3, $c))>>
        s = torch.sigmoid(a($x.mean($axes)) + a($x.amax($axes)))
        h = $x * s.[[unflatten(1, (-1, $ones)) || view(*s.shape, $ones) || reshape($x.size(0), $x.size(1), $ones)]]
        h = h * torch.sigmoid(<<conv 2, 1, 3>>(torch.stack([h.mean(1), h.amax(1)], 1)))
        """),
    "channel_conv": Part("""
        s = $x.mean($axes)
        s = <<nn.Conv1d(1, 1, 3, padding=1, bias=False)>>(s.unsqueeze(1)).[[squeeze(1) || view(s.shape)]].sigmoid()
        h = $x * s.view(-1, $c, $ones)
        """),
    "context": Part("""
        w = <<conv $c, 1>>($x).flatten(2).softmax(-1)
        g = ($x.flatten(2) @ w.transpose(1, 2)).view(-1, $c, $ones)
        h = $x + <<conv 4, $c>>(F.relu(<<nn.GroupNorm(1, 4)>>(<<conv $c, 4>>(g))))
        """),
    "selective": Part(
        """
        b = [<<conv $c, 6, 3>>($x), <<conv $c, 6, 1>>($x)]
        z = <<lin 6, 4>>(sum(b).mean($axes)).relu()
        s = torch.stack([<<lin 4, 6>>(z), <<lin 4, 6>>(z)], 1).softmax(1)
        h = (torch.stack(b, 1) * s.view(-1, 2, 6, $ones)).sum([[dim=1 || 1]])
        """,
        "6",
    ),
    "split_attention": Part(
        """
        u = F.relu(<<nn.Conv$dd($c, 12, 3, padding=1, groups=1)>>($x))
        a, b = u.chunk(2, dim=1)
        z = <<conv 4, 12>>(F.relu(<<conv 6, 4>>((a + b).mean($axes, keepdim=True))))
        s = z.view(z.shape[0], 2, 6, $ones).softmax(1)
        h = a * s[:, 0] + b * s[:, 1]
        """,
        "6",
    ),
    "experts": Part(
        """
        r = <<lin $c, 3>>($x.mean($axes))
        w = [[r.softmax(-1) || F.softmax(r, -1) * (r >= r.amax(-1, keepdim=True))
            || torch.zeros_like(r).scatter(-1, r.topk(2, -1).indices, 0.5) || r.sigmoid()]]
        o = torch.stack([f($x) for f in (<<conv $c, 5>>, <<conv $c, 5, 3>>, <<conv $c, 5>>)], dim=1)
        h = [[torch.einsum('be,bec...->bc...', w, o) || (o * w.view(-1, 3, 1, $ones)).sum(1)
            || w[:, 0].view(-1, 1, $ones) * o[:, 0] + w[:, 1].view(-1, 1, $ones) * o[:, 2]]]
        """,
        "5",
    ),
    "experts_of_tokens": Part("""
        t = $x.flatten(2).transpose(1, 2)
        w = <<lin $c, 2, bias=False>>(t).softmax(-1)
        e = [[torch.einsum('bnc,ecd->bned', t, <<par 2, $c, 5>>)
            || torch.stack([<<lin $c, 5>>(t), <<lin $c, 5>>(t)], 2)]]
        o = [[torch.einsum('bned,edc->bnec', F.gelu(e), <<par 2, 5, $c>>)
            || torch.stack([<<lin 5, $c>>(e[:, :, 0]), <<lin 5, $c>>(e[..., 1, :])], 2)]]
        h = $x + (o * w.unsqueeze(-1)).sum(2).mT.reshape($x.shape)
        """),
    "maxout": Part(
        """
        u = <<conv $c, 10>>($x)
        h = [[u.view(u.shape[0], 5, 2, *u.shape[2:]).amax(2) || u.view(u.shape[0], 2, 5, *u.shape[2:]).max(1)[0]
            || torch.max(*u.chunk(2, 1)) || u.unflatten(1, (2, 5)).max(dim=1).values]]
        """,
        "5",
    ),
    "swiglu": Part("""
        t = <<nn.LayerNorm($c)>>($x.movedim(1, -1))
        [[a, b = <<lin $c, 10>>(t).chunk(2, -1) || a, b = <<lin $c, 10>>(t).split(5, dim=-1)
            || a, b = <<lin $c, 5>>(t), <<lin $c, 5>>(t) || a, b = <<lin $c, 10>>(t).unflatten(-1, (2, 5)).unbind(-2)
            || u = <<lin $c, 10>>(t); a, b = u[..., ::2], u[..., 1::2]]]
        h = $x + <<lin 5, $c>>([[F.silu(a) * b || F.gelu(a) * b || a * b || F.relu(a) * b]]).movedim(-1, 1)
        """),
    "spatial_gate": Part(
        """
        u, v = F.gelu(<<conv $c, 8>>($x)).flatten(2).chunk(2, 1)
        v = <<lin 24, 24>>(<<nn.LayerNorm(24)>>(v))
        h = $x + <<conv 4, $c>>((u * v).view(-1, 4, *$x.shape[2:]))
        """,
        dims=(2,),
        fixed=True,
    ),
    "token_mixer": Part(
        """
        t = $x.flatten(2)
        h = $x + <<lin 7, 24>>(F.gelu(<<lin 24, 7>>(t))).view_as($x)
        """,
        dims=(2,),
        fixed=True,
    ),
    "layer_scale": Part("""
        h = F.gelu(<<conv $c, 6>>($x))
        h = $x + <<conv 6, $c>>(h) * [[<<par $c, $ones>> || <<par 1, $c, $ones>> || <<g = par $c>>.view(1, -1, $ones)
            || <<g = par $c>>[(..., *[None] * $d)] || <<par 1>>]]
        """),
    "stochastic_depth": Part("""
        r = <<conv 6, $c>>(F.relu(<<conv $c, 6, 3>>($x)))
        if self.training:
            k = torch.rand(r.shape[0], 1, $ones, dtype=r.dtype) < 0.7
            r = [[r.div(0.7) * k || r * k.to(r.dtype) / 0.7 || torch.where(k, r / 0.7, torch.zeros_like(r))
                || r / 0.7 * torch.empty(r.shape[0], 1, $ones, dtype=r.dtype).bernoulli_(0.7)
                || r / 0.7 * r.new_empty((r.shape[0],) + (1,) * (r.ndim - 1)).bernoulli_(0.7)]]
        h = $x + r
        """),
    "dense": Part(
        """
        f = [$x]
        for l in (<<conv $c, 4, 3>>, <<conv $c + 4, 4, 3>>, <<conv $c + 8, 4>>):
            f.append(F.relu(l(torch.cat(f, 1))))
        h = [[torch.cat(f[1:], 1) || torch.cat(f, dim=1)[:, -12:] || torch.concat([f[-1], *f[1:3] ], 1)]]
        """,
        "12",
    ),
    "cross_stage": Part(
        """
        a, b = <<conv $c, 4>>($x), <<conv $c, 4>>($x)
        y = [b]
        for l in (<<conv 4, 4, 3>>, <<conv 4, 4, 3>>):
            y.append([[y[-1] + l(y[-1]) || l(y[-1]) || F.silu(l(y[-1]))]])
        h = <<conv 16, 5>>(torch.cat([a, *y], 1))
        """,
        "5",
    ),
    "csp_chunk": Part(
        """
        y = list(F.silu(<<conv $c, 8>>($x)).[[chunk(2, 1) || split((4, 4), 1) || split(4, dim=1)]])
        y.extend(y[-1] + m(y[-1]) for m in [<<conv 4, 4, 3>>, <<conv 4, 4>>])
        h = <<conv 16, 6>>(torch.cat(y, 1))
        """,
        "6",
    ),
    "u_net": Part(
        """
        s = []
        z = $x
        for l in (<<conv $c, 6, 3>>,):
            z = F.relu(l(z))
            s.append(z)
            z = [[F.max_pool$dd(z, 2) || F.avg_pool$dd(z, 2)]]
        z = F.silu(<<conv 6, 7, 3>>(z))
        z = <<nn.ConvTranspose$dd(7, 6, 2, stride=2)>>(z)
        h = <<conv 12, 6, 3>>(torch.cat([s.pop(), z], 1))
        """,
        "6",
    ),
    "pyramid": Part(
        """
        a = <<conv $c, 5>>($x)
        b = <<nn.Conv$dd($c, 5, 2, stride=2)>>($x)
        o = [a, b]
        for i in range(len(o) - 1, 0, -1):
            o[i - 1] = o[i - 1] + F.interpolate(o[i], size=o[i - 1].shape[2:], mode='nearest')
        o = [<<conv 5, 5, 3>>(z) for z in o]
        h = o[0] + F.interpolate(o[1], size=o[0].shape[-$d:])
        """,
        "5",
    ),
    "pyramid_pooling": Part(
        """
        o = [$x]
        for s, l in ((1, <<conv $c, 3>>), (2, <<conv $c, 3>>)):
            o.append(F.interpolate(l(F.adaptive_avg_pool$dd($x, s)), size=$x.size()[2:]))
        h = <<conv $c + 6, 5>>(torch.cat(o, dim=1))
        """,
        "5",
    ),
    "fast_pooling": Part(
        """
        a = <<conv $c, 4>>($x)
        b = F.max_pool$dd(a, 3, 1, 1)
        h = <<conv 12, 5>>(torch.cat((a, b, F.max_pool$dd(b, 3, 1, 1)), 1))
        """,
        "5",
        dims=(1, 2),
    ),
    "weighted_sum": Part("""
        w = [[F.relu(<<par 2>>) || <<par 2>>.softmax(0) || <<par 2>>.abs()]]
        w = w / (w.sum() + 1)
        h = F.silu(w[0] * $x + w[1] * <<conv $c, $c>>($y))
        """),
    "group_mean": Part(
        """
        b = [<<conv $c, 5>>($x), <<conv $c, 5>>($y), <<conv $c, 5>>($x)]
        h = [[torch.stack(b).mean(0) || torch.stack(b, -1).sum(-1) || sum(b) / len(b) || torch.stack(b, 2).amax(2)
            || functools.reduce(torch.add, b) || torch.stack(b).median(0).values || torch.stack(b, 1).max(1)[0]
            || torch.stack(b).logsumexp(0) || torch.stack(b, 0).prod(0) || torch.stack(b, 1).softmax(1)[:, 1]]]
        """,
        "5",
    ),
    "picked": Part("""
        h = [[$x.index_select(1, <<buf torch.arange($c - 1, -1, -1)>>) || $x[:, <<buf torch.randperm($c)>>]
            || torch.take_along_dim($x, <<buf torch.arange($c).flip(0)>>.view(1, -1, $ones), 1)
            || $x[:, list(reversed(range($c)))]
                || $x.gather(1, <<buf torch.arange($c).roll(1)>>.view(1, -1, $ones).expand_as($x))
                || $x[:, list(range($c))]
                || torch.index_select($x, dim=-1, index=torch.arange($x.shape[-1] - 1, -1, -1))
            || $x.sort(-1)[0] || $x.sort(dim=2, descending=True).values || torch.cummax($x, 2).values || $x.cumsum(-1)
                || $x.cumsum(1) || torch.flip($x, [1]) || $x.flip((1, 2)) || $x.roll(2, 1)
                || $x.diff(dim=-1, prepend=$x[..., :1]) || $x.gather(-1, $x.argsort(-1))
            || $x.movedim(1, 0)[torch.arange($c)].movedim(0, 1)
                || torch.cat($x.unbind(1), 0).view($c, -1, *$x.shape[2:]).transpose(0, 1)
                || torch.stack([$x[:, i] for i in range($c)], 1) || $x.cumprod(-1)]]
        h = [[h || h + $x || <<conv $c, $c>>(h) || $x + <<conv $c, $c>>(h)]]
        """),
    "scattered": Part("""
        h = [[torch.zeros_like($x).index_add(1, <<buf torch.arange($c)>>, $x)
            || torch.zeros_like($x).index_copy(1, torch.arange($c), $x) || $x.index_fill(1, torch.tensor([0]), 0.0)
            || $x.scatter(1, torch.zeros_like($x[:, :1], dtype=torch.long), 0.5)
            || torch.zeros_like($x).scatter_add(-1, torch.arange($x.shape[-1]).expand_as($x), $x)
                || $x.select_scatter($x[:, 0] * 2, 1, 1) || $x.slice_scatter($x[:, 1:], 1, 0, $c - 1)
                || torch.zeros_like($x).index_put((torch.tensor([0]),), $x[:1])]]
        h = [[h || h + $x || <<conv $c, $c>>(h)]]
        """),
    "top": Part("""
        [[s = $x.mean($axes); h = $x * (s >= s.topk(2, 1)[0][:, -1:]).to($x.dtype).view(-1, $c, $ones)
            || m = $x.topk(1, dim=1).values; h = $x - m
            || i = $x.argmax(1); h = F.one_hot(i, $c).to($x.dtype).movedim(-1, 1) * $x
            || p = $x.flatten(2).topk(2, -1)[0]; h = $x + <<lin 2 * $c, $c>>(p.flatten(1)).view(-1, $c, $ones)
            || m, i = $x.max(1, keepdim=True); h = $x * (m > 0) || h = $x * ($x > $x.median(1, keepdim=True)[0])
                || h = $x * ($x > $x.flatten(2).quantile(0.5, -1).view(-1, $c, $ones))
                || h = $x * $x.flatten(2).kthvalue(2, -1).values.view(-1, $c, $ones)]]
        """),
    "softmaxed": Part("""
        h = [[$x.softmax(1) || F.log_softmax($x, dim=1) || $x.flatten(2).softmax(-1).view_as($x) || F.softmin($x, 1)
            || F.gumbel_softmax($x, dim=1) if self.training else $x.softmax(1) || $x - $x.logsumexp(1, keepdim=True)
            || torch.softmax($x.flatten(1), 1).view($x.shape) || F.cosine_similarity($x, $y, dim=1).unsqueeze(1) * $x
            || ($x * $y).sum(1, keepdim=True) * $x]]
        h = [[h || <<conv $c, $c>>(h) || h * $x]]
        """),
    "pooled_features": Part("""
        p = [[$x.clamp(min=1e-6).pow(3).mean($axes).pow(1 / 3) || $x.flatten(2).std(-1)
            || torch.cat([$x.mean($axes), $x.amax($axes)], 1)[:, :$c] || $x.flatten(2).logsumexp(-1)
            || ($x.flatten(2) * <<conv $c, 1>>($x).flatten(2).softmax(-1)).sum(-1) || $x.flatten(2).max(-1)[0]
            || $x.flatten(2).var(dim=2, unbiased=False) || $x.flatten(2).norm(dim=-1)
            || torch.trapezoid($x.flatten(2)) || $x.flatten(2)[..., -1] || torch.linalg.vector_norm($x, 2, $axes)]]
        h = $x * <<lin $c, $c>>(p).sigmoid().view(*p.shape, $ones)
        """),
    "second_order": Part("""
        t = <<conv $c, 3>>($x).flatten(2)
        s = [[t @ t.transpose(1, 2) / t.shape[-1] || torch.einsum('bil,bjl->bij', t, t) || torch.cdist(t, t)]]
        h = $x * <<lin 9, $c>>(s.flatten(1)).view(-1, $c, $ones)
        """),
    "prototypes": Part("""
        t = $x.flatten(2).transpose(1, 2)
        s = -torch.cdist(t, <<par 1, 4, $c>>.expand(t.shape[0], -1, -1)) [[** 2 || ]]
        h = $x + (s.softmax(-1) @ <<par 4, $c>>).mT.reshape($x.shape)
        """),
    "quantised": Part("""
        t = $x.movedim(1, -1)
        w = <<e = nn.Embedding(4, $c)>>.weight
        i = (t.pow(2).sum(-1, keepdim=True) - 2 * t @ w.t() + w.pow(2).sum(1)).argmin(-1)
        q = <<e>>(i)
        h = [[(t + (q - t).detach()).movedim(-1, 1) || q.movedim(-1, 1) || $x + F.embedding(i, w).movedim(-1, 1)]]
        """),
    "modulated": Part("""
        e = F.silu(<<lin $c, 5>>($y.mean($axes)))
        a, b, g = <<lin 5, 3 * $c>>(e).[[chunk(3, dim=1) || view(-1, 3, $c).unbind(1) || split($c, 1)]]
        a, b, g = [z.view(-1, $c, $ones) for z in (a, b, g)]
        h = <<nn.[[GroupNorm(1, $c, affine=False) || BatchNorm$dd($c, affine=False)]]>>($x) * (1 + a) + b
        h = $x + g * <<conv $c, $c>>(h)
        """),
    "ensemble": Part(
        """
        z = torch.cat([$x, $x.flip(-1)], 0)
        z = <<conv $c, 5, 3>>(z)
        a, b = z.[[chunk(2, 0) || split($x.shape[0]) || tensor_split(2)]]
        h = (a + b.flip(-1)) / 2
        """,
        "5",
    ),
    "siamese": Part(
        """
        f = <<f = nn.Sequential(nn.Conv$dd($c, 6, 1), nn.ReLU(), nn.Conv$dd(6, 5, 1))>>
        a, b = f($x), f($y)
        h = [[(a - b).abs() || torch.cat([a, b, a * b], 1)[:, 5:10] || a * b.mean($axes, keepdim=True)
            || torch.stack((a, b), 2).flatten(1, 2)[:, ::2]]]
        """,
        "5",
    ),
}
