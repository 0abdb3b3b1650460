"""Attention in many styles."""

from __future__ import annotations

from typing import Any

from random_parts.parts import Part

_QKV = """
        t = $x.flatten(2).transpose(1, 2)
        u = <<nn.LayerNorm($c)>>(t)
        q, k, v = <<lin $c, 18>>(u).[[reshape(t.shape[0], -1, 3, [[3, 2 || 2, 3]]).permute(2, 0, 3, 1, 4)
            || unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4).unbind(0)
                || view(*t.shape[:2], 3, 2, 3).transpose(1, 3).unbind(2)]]
"""
"""Queries, keys and values (N, heads, tokens, size)."""

_BACK = """
        o = <<lin 6, $c>>(o.transpose(1, 2).[[flatten(2) || reshape(t.shape[0], t.shape[1], -1)
            || reshape(*t.shape[:2], 6)]])
        t = t + [[o || o * <<par $c>> || F.dropout(o, 0.1, self.training) || <<nn.LayerNorm($c)>>(o)]]
        h = t.transpose(1, 2).[[reshape($x.shape) || view(*$x.shape) || unflatten(-1, $x.shape[2:])]]
"""


def _attention(text: str, **options: Any) -> Part:
    return Part(_QKV + text + _BACK, **options)


ATTENTION = {
    "attention_scores": _attention("""
        s = [[q @ k.transpose(-1, -2) || torch.matmul(q, k.mT) || torch.einsum('bhqd,bhkd->bhqk', q, k)]]
        s = s [[* q.shape[-1] ** -0.5 || / math.sqrt(q.size(-1)) || * <<par 1, 1, 1>> || / (q.shape[-1] ** 0.5)]]
        s = [[s.softmax(-1) || F.softmax(s, dim=-1) || torch.sigmoid(s) || F.relu(s) ** 2
            || F.softmax(s - s.amax(-1, keepdim=True), -1) || s.exp() / (s.exp().sum(-1, keepdim=True) + 1)]]
        s = [[s || F.dropout(s, 0.1, self.training) || s / s.sum(-1, keepdim=True).clamp(min=1) || s * (s > 0.1)]]
        o = [[s @ v || torch.matmul(s, v) || torch.einsum('bhqk,bhkd->bhqd', s, v)]]
        """),
    "attention_masked": _attention("""
        n = q.shape[2]
        m = [[torch.ones(n, n, dtype=torch.bool).tril() || torch.eye(n).bool() | (torch.arange(n) > 2)
            || (torch.arange(n)[:, None] >= torch.arange(n)[None])]]
        s = q @ k.transpose(-1, -2)
        s = [[s.masked_fill(~m, float('-inf')) || s.masked_fill(~m, -1e9)
            || torch.where(m, s, torch.full_like(s, -1e4))
            || s + torch.zeros(n, n).masked_fill(~m, float('-inf')).to(s)]]
        o = s.softmax(-1) @ v
        """),
    "attention_fused": _attention("""
        o = F.scaled_dot_product_attention(q, k, v[[ || , is_causal=True || , scale=0.3
            || , attn_mask=<<par 1, 1, 1, 1>> || , dropout_p=0.1 if self.training else 0.0]])
        """),
    "attention_rotary": _attention("""
        p = torch.arange(q.shape[2], dtype=q.dtype)[:, None] * <<buf torch.rand(1, 1)>>
        c, s = p.cos(), p.sin()
        q = q * c + torch.cat([-q[..., 1:], q[..., :1]], -1) * s
        k = k * c + torch.cat([-k[..., 1:], k[..., :1]], -1) * s
        o = F.scaled_dot_product_attention(q, k, v)
        """),
    "attention_positions": _attention("""
        i = torch.arange(q.shape[2])
        b = <<par 3, 128>>[:q.shape[1], (i[:, None] - i[None, :]) + 60]
        s = (q @ k.mT + [[b || b.unsqueeze(0)]]).softmax(-1)
        o = s @ v
        """),
    "attention_normed": _attention("""
        q, k = [[F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            || F.layer_norm(q, q.shape[-1:]), F.layer_norm(k, k.shape[-1:]) || F.rms_norm(q, (q.size(-1),)), k]]
        s = (q @ k.transpose(-2, -1)) * <<par 1, 1, 1>>.clamp(max=4.6).exp()
        o = s.softmax(dim=-1) @ v
        """),
    "attention_linear": _attention("""
        q, k = [[F.elu(q) + 1, F.elu(k) + 1 || F.relu(q), F.relu(k) || q.softmax(-1), k.softmax(-2)]]
        c = [[k.transpose(-1, -2) @ v || torch.einsum('bhnd,bhne->bhde', k, v)]]
        z = 1 / ((q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True) + 1)
        o = [[(q @ c) * z || torch.einsum('bhnd,bhde->bhne', q, c) || q @ (c / c.shape[-1])]]
        """),
    "attention_channels": _attention("""
        q, k, v = q.mT, k.mT, v.mT
        s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * <<par 1, 1, 1>>
        o = (s.softmax(-1) @ v).mT
        """),
    "attention_folded": _attention("""
        b = q.shape[0]
        q, k, v = [z.[[reshape(-1, *z.shape[2:]) || flatten(0, 1)]] for z in (q, k, v)]
        s = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        o = torch.bmm(s, v).view(b, -1, *v.shape[1:])
        """),
    "attention_best": _attention("""
        s = q @ k.transpose(-1, -2)
        s = s.masked_fill(s < s.topk(2, dim=-1).values[..., -1:], float('-inf')).softmax(-1)
        o = s @ v
        """),
    "attention_registers": _attention("""
        k = torch.cat([<<par 1, 3, 2, 1>>[:, :k.shape[1]].expand(k.shape[0], -1, -1, k.shape[-1]), k], 2)
        v = torch.cat([<<par 1, 1, 2, 1>>.expand(v.shape[0], v.shape[1], -1, v.shape[-1]), v], 2)
        o = F.scaled_dot_product_attention(q, k, v)
        """),
    "attention_local_value": _attention("""
        s = (q @ k.transpose(-1, -2)).softmax(-1)
        e = v.transpose(2, 3).flatten(1, 2)
        e = <<nn.Conv1d(6, 6, 3, padding=1, groups=6)>>(e).view(v.shape[0], v.shape[1], v.shape[3], -1).transpose(2, 3)
        o = s @ v + e
        """),
    "talking_heads": Part("""
        t = $x.flatten(2).transpose(1, 2)
        q, k, v = [l(t).unflatten(-1, (2, 3)).transpose(1, 2) for l in (<<lin $c, 6>>, <<lin $c, 6>>, <<lin $c, 6>>)]
        s = q @ k.mT
        s = [[<<nn.Conv2d(2, 2, 1)>>(s) || <<lin 2, 2>>(s.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            || torch.einsum('bhij,hg->bgij', s, <<par 2, 2>>)]].softmax(-1)
        s = [[s || <<nn.Conv2d(2, 2, 1)>>(s) || <<nn.BatchNorm2d(2)>>(s)]]
        h = $x + <<lin 6, $c>>((s @ v).transpose(1, 2).flatten(2)).mT.reshape($x.shape)
        """),
    "grouped_queries": Part("""
        t = $x.flatten(2).transpose(1, 2)
        q = <<lin $c, 8>>(t).view(t.size(0), t.size(1), 4, 2).transpose(1, 2)
        k, v = <<lin $c, 8>>(t).view(t.size(0), t.size(1), 2, 2, 2).permute(2, 0, 3, 1, 4)
        k, v = [z.[[repeat_interleave(2, dim=1)
            || unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(z.shape[0], 4, *z.shape[2:])
            || repeat(1, 2, 1, 1)]] for z in (k, v)]
        h = $x + <<lin 8, $c>>(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mT.view_as($x)
        """),
    "one_key": Part("""
        t = $x.flatten(2).transpose(1, 2)
        q = <<lin $c, 6>>(t).view(t.size(0), -1, 3, 2).transpose(1, 2)
        k, v = <<lin $c, 4>>(t).[[chunk(2, dim=-1) || split(2, -1) || split([2, 2], dim=-1)]]
        s = torch.einsum('bhid,bjd->bhij', q, k).softmax(-1)
        o = torch.einsum('bhij,bjd->bihd', s, v).reshape(t.size(0), -1, 6)
        h = $x + <<lin 6, $c>>(o).mT.reshape($x.shape)
        """),
    "reduced_keys": Part("""
        t = $x.flatten(2).transpose(1, 2)
        r = <<nn.Conv$dd($c, $c, 2, stride=2)>>($x).flatten(2).transpose(1, 2)
        r = <<nn.LayerNorm($c)>>(r)
        q = <<lin $c, 6>>(t).reshape(t.shape[0], -1, 2, 3).permute(0, 2, 1, 3)
        k, v = <<lin $c, 12>>(r).reshape(t.shape[0], -1, 2, 2, 3).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*t.shape[:2], 6)
        h = $x + <<lin 6, $c>>(o).transpose(1, 2).reshape($x.shape)
        """),
    "class_attention": Part("""
        t = $x.flatten(2).transpose(1, 2)
        g = <<[[par 1, 1, $c || buf torch.randn(1, 1, $c)]]>>.expand(t.shape[0], -1, -1)
        u = <<nn.LayerNorm($c)>>(torch.cat((g, t), dim=1))
        q = <<lin $c, 6>>(u[:, 0]).unsqueeze(1).reshape(t.shape[0], 1, 2, 3).permute(0, 2, 1, 3)
        k, v = [l(u).reshape(u.shape[0], u.shape[1], 2, 3).permute(0, 2, 1, 3) for l in (<<lin $c, 6>>, <<lin $c, 6>>)]
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(t.shape[0], 1, 6)
        g = g + <<lin 6, $c>>(o)
        h = [[(t + g).mT.reshape($x.shape) || $x * g.squeeze(1)[(..., *[None] * $d)].sigmoid()
            || torch.cat([g, t], 1)[:, 1:].mT.reshape($x.shape) + g.reshape(-1, $c, $ones)]]
        """),
    "queries": Part("""
        t = <<nn.LayerNorm($c)>>($x.flatten(2).transpose(1, 2))
        q = [[<<par 4, $c>>.unsqueeze(0).expand(t.shape[0], -1, -1)
            || <<nn.Embedding(4, $c)>>.weight.unsqueeze(0).repeat(t.shape[0], 1, 1)
            || <<nn.Embedding(4, $c)>>(torch.arange(4)).expand(len(t), 4, $c)]]
        q = q + <<nn.MultiheadAttention($c, 1, batch_first=True)>>(q, t, t[[ || , need_weights=False]])[0]
        q = q + <<lin 7, $c>>(F.gelu(<<lin $c, 7>>(q)))
        h = $x + [[q.mean(1).view(-1, $c, $ones)
            || torch.einsum('bqc,bnc->bnq', q, t).softmax(-1).matmul(q).mT.reshape($x.shape)]]
        """),
    "windows": Part(
        """
        p = torch.roll($x, (-1, -1), (2, 3)).permute(0, 2, 3, 1)
        b, height, width, c = p.shape
        p = p.view(b, height // 2, 2, width // 2, 2, c).permute(0, 1, 3, 2, 4, 5).[[reshape(-1, 4, c)
            || contiguous().view(-1, 4, c)]]
        q, k, v = <<lin $c, 12>>(<<nn.LayerNorm($c)>>(p)).reshape(-1, 4, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        s = q * 2 ** -0.5 @ k.transpose(-2, -1)
        r = <<par 9, 2>>[<<buf torch.randint(9, (4, 4))>>.view(-1)].view(4, 4, -1)
        s = s + r.permute(2, 0, 1).contiguous().unsqueeze(0)
        o = <<lin 4, $c>>((s.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 4))
        o = o.view(b, height // 2, width // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, height, width, -1)
        h = $x + torch.roll(o.permute(0, 3, 1, 2), (1, 1), dims=(2, 3))
        """,
        dims=(2,),
    ),
    "einops_windows": Part(
        """
        p = einops.rearrange($x, 'b c (h p) (w q) -> (b h w) (p q) c', p=2, q=2)
        q, k, v = einops.rearrange(<<lin $c, 12>>(p), 'b n (three h d) -> three b h n d', three=3, h=2)
        o = F.scaled_dot_product_attention(q, k, v)
        o = <<lin 4, $c>>(einops.rearrange(o, 'b h n d -> b n (h d)'))
        h = $x + einops.rearrange(o, '(b h w) (p q) c -> b c (h p) (w q)', p=2, h=$x.shape[2] // 2, w=$x.shape[3] // 2)
        """,
        dims=(2,),
    ),
    "axial": Part(
        """
        p = $x.permute(0, 2, 3, 1)
        q, k, v = <<lin $c, 12>>(p).view(*p.shape[:3], 3, 2, 2).unbind(3)
        s = torch.einsum('bxqhd,bxkhd->bxhqk', q, k).softmax(-1)
        o = torch.einsum('bxhqk,bxkhd->bxqhd', s, v)
        h = $x + <<lin 4, $c>>(o.flatten(3)).permute(0, 3, 1, 2)
        """,
        dims=(2,),
    ),
    "neighbours": Part(
        """
        q, k, v = <<conv $c, 12>>($x).chunk(3, 1)
        k, v = [F.unfold(z, 3, padding=1).view($x.size(0), 4, 9, -1) for z in (k, v)]
        s = (q.flatten(2).unsqueeze(2) * k).sum(1, keepdim=True).softmax(2)
        o = (s * v).sum(2).view($x.shape[0], 4, *$x.shape[2:])
        h = $x + <<conv 4, $c>>(o)
        """,
        dims=(2,),
    ),
    "outlook": Part(
        """
        a = <<lin $c, 2 * 9>>($x.permute(0, 2, 3, 1)).view($x.shape[0], -1, 2, 9).permute(0, 2, 1, 3).softmax(-1)
        v = F.unfold(<<conv $c, 4>>($x), 3, padding=1).view($x.shape[0], 2, 2, 9, -1).permute(0, 1, 4, 3, 2)
        o = (a.unsqueeze(-2) @ v).squeeze(-2).permute(0, 1, 3, 2).reshape($x.shape[0], 4, *$x.shape[2:])
        h = $x + <<conv 4, $c>>(o)
        """,
        dims=(2,),
    ),
    "deformable_heads": Part(
        """
        v = <<conv $c, 6>>($x).reshape($x.shape[0] * 2, 3, *$x.shape[2:])
        g = torch.tanh(<<conv $c, 4>>($x)).reshape($x.shape[0] * 2, 2, *$x.shape[2:]).permute(0, 2, 3, 1)
        o = F.grid_sample(v, g, align_corners=False).view($x.shape[0], 6, *$x.shape[2:])
        h = $x + <<conv 6, $c>>(o)
        """,
        dims=(2,),
    ),
    "non_local": Part("""
        a, b, g = [f($x).flatten(2) for f in (<<conv $c, 3>>, <<conv $c, 3>>, <<conv $c, 5>>)]
        s = [[torch.softmax(a.transpose(1, 2) @ b, -1) || (a.transpose(1, 2) @ b) / b.shape[-1]]]
        o = (s @ g.transpose(1, 2)).transpose(1, 2).reshape($x.size(0), 5, *$x.shape[2:])
        h = $x + <<nn.BatchNorm$dd($c)>>(<<conv 5, $c>>(o))
        """),
    "double_attention": Part("""
        a, b, v = <<conv $c, 4>>($x), <<conv $c, 3>>($x).flatten(2), <<conv $c, 3>>($x).flatten(2)
        b, v = b.softmax(-1), v.softmax(1)
        g = torch.bmm(a.flatten(2), b.transpose(1, 2))
        h = $x + <<conv 4, $c>>((g @ v).view($x.size(0), 4, *$x.shape[2:]))
        """),
    "external": Part("""
        t = $x.flatten(2).transpose(1, 2)
        s = <<lin $c, 5, bias=False>>(t).softmax(1)
        s = s / (1e-6 + s.sum(dim=2, keepdim=True))
        h = $x + [[<<lin 5, $c, bias=False>>(s) || (s @ <<par 5, $c>>)]].transpose(1, 2).view_as($x)
        """),
    "encoder_layer": Part("""
        t = $x.flatten(2).[[permute(2, 0, 1) || permute(2, 0, 1).contiguous()]]
        t = <<nn.TransformerEncoderLayer($c, 1, 7, norm_first=[[True || False]], activation='[[gelu
            || relu]]', dropout=[[0.1 || 0.0]])>>(t)
        h = t.permute(1, 2, 0).reshape($x.shape)
        """),
    "cross_modules": Part("""
        t, c = [z.flatten(2).transpose(1, 2) for z in ($x, <<conv $c, 6>>($y))]
        o, s = <<nn.MultiheadAttention($c, 1, kdim=6, vdim=6, batch_first=True[[ || , bias=False]])>>(t, c, c[[
            || , attn_mask=torch.zeros(t.shape[1], c.shape[1]).to(t)]])
        h = $x + o.mT.reshape($x.shape) [[* s.mean() || ]]
        """),
}
