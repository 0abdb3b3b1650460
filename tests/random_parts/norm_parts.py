"""Norms of all sorts, by module and by hand."""

from __future__ import annotations

from random_parts.parts import Part

_ALONG = "[[1 || $axes || (1, *$axes) || -1 || 2]]"

NORMS = {
    "norm_modules": Part(
        """
        h = <<[[nn.BatchNorm$dd($c, track_running_stats=False) || nn.BatchNorm$dd($c, momentum=None)
            || nn.InstanceNorm$dd($c, track_running_stats=True) || nn.GroupNorm(1, $c, affine=False)
            || nn.GroupNorm($c, $c) || nn.InstanceNorm$dd($c, affine=True, track_running_stats=True)
            || nn.BatchNorm$dd($c, affine=False, track_running_stats=False) || nn.LocalResponseNorm(3)]]>>($x)
        h = [[h || F.relu(h) || $x + <<conv $c, $c>>(h) || h * h.sigmoid()]]
        """
    ),
    "norm_of_map": Part(
        """
        h = [[<<nn.LayerNorm([$c, 4, 6])>>($x) || F.layer_norm($x, $x.shape[1:]) || F.layer_norm($x, (4, 6))
            || <<nn.LayerNorm((4, 6))>>($x) || <<nn.LayerNorm([$c, 4, 6], elementwise_affine=False)>>($x)
            || F.layer_norm($x, ($c, 4, 6), <<par $c, 4, 6>>)]]
        """,
        dims=(2,),
        fixed=True,
    ),
    "layer_norm_2d": Part(
        """
        h = <<LayerNorm2d($c)>>($x)
        h = [[h || $x + <<conv 7, $c>>(F.gelu(<<conv $c, 7>>(h)))]]
        """,
        classes="""
        class LayerNorm2d(nn.LayerNorm):
            def forward(self, x):
                x = x.movedim(1, -1)
                return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)
        """,
    ),
    "norm_by_hand": Part(
        f"""
        m = $x.mean({_ALONG}, keepdim=True)
        h = ($x - m) [[/ ($x.var({_ALONG}, unbiased=False, keepdim=True) + 1e-5).sqrt()
            || * torch.rsqrt(($x - m).pow(2).mean({_ALONG}, keepdim=True) + 1e-6)
            || / ($x.std({_ALONG}, keepdim=True) + 1e-5) || * 1]]
        h = [[h || h * <<g = par 1, $c, $ones>> + <<par 1, $c, $ones>> || (1 + <<par $c, $ones>>) * h]]
        """
    ),
    "var_mean": Part(
        """
        v, m = torch.var_mean($x, [[dim=1 || dim=(2,) || dim=1, unbiased=False || dim=$axes]], keepdim=True)
        h = ($x - m) / torch.sqrt(v + 1e-5)
        """
    ),
    "root_mean_square": Part(
        """
        h = $x * torch.rsqrt($x.pow(2).mean([[1 || $axes || (1, *$axes)]], keepdim=True) + 1e-6)
        h = [[h || h * <<par $c, $ones>> || <<conv $c, $c>>(h)]]
        """
    ),
    "global_response": Part(
        """
        g = [[torch.norm($x.flatten(2), p=2, dim=2).view(-1, $c, $ones)
            || $x.flatten(2).norm(dim=-1, keepdim=True).view(-1, $c, $ones)
             || torch.linalg.vector_norm($x, dim=$axes, keepdim=True) || ($x * $x).sum($axes, keepdim=True).sqrt()]]
        g = g / (g.mean(dim=1, keepdim=True) + 1e-6)
        h = <<par 1, $c, $ones>> * ($x * g) + <<par 1, $c, $ones>> + $x
        """
    ),
    "unit_length": Part(
        """
        h = [[F.normalize($x, dim=1) || F.normalize($x, p=1, dim=1)
            || $x / $x.norm(dim=1, keepdim=True).clamp(min=1e-6)
            || F.normalize($x.flatten(2), dim=-1).view_as($x) || $x / ($x.abs().sum(1, keepdim=True) + 1)
            || $x / $x.abs().amax(1, keepdim=True).add(1)]]
        h = h * [[<<par 1, $c, $ones>> || 3 || <<par 1>>]]
        """
    ),
    "filter_response": Part(
        """
        n = ($x ** 2).mean($axes, keepdim=True)
        h = $x * torch.rsqrt(n + [[1e-6 || <<par $c, $ones>>.abs()]])
        h = torch.max(<<par 1, $c, $ones>> * h + <<par 1, $c, $ones>>, <<par 1, $c, $ones>>)
        """
    ),
    "frozen_norm": Part(
        """
        s = <<buf torch.rand($c) + 0.5>> [[* <<buf torch.rand($c) + 0.5>>.rsqrt()
            || / <<buf torch.rand($c) + 0.5>>.sqrt() || ]]
        h = $x * s.reshape(1, -1, $ones) + <<buf torch.rand($c)>>.view(1, -1, $ones)
        """
    ),
    "batch_statistics": Part(
        """
        if self.training:
            m = $x.mean((0, *$axes))
            with torch.no_grad():
                [[<<m = buf torch.zeros($c)>>.mul_(0.9).add_(0.1 * m)
                    || <<m = buf torch.zeros($c)>>.copy_(0.9 * <<m>> + 0.1 * m.detach())
                    || <<m = buf torch.zeros($c)>>.lerp_(m, 0.1)]]
        else:
            m = <<m>>
        h = $x - m.view(1, -1, $ones)
        """
    ),
    "simple_attention": Part(
        """
        d = ($x - $x.mean($axes, keepdim=True)).pow(2)
        v = d.sum($axes, keepdim=True) / ($x.shape[2] * $x.shape[-1] - 1)
        h = $x * torch.sigmoid(d / (4 * (v + 1e-4)) + 0.5)
        """
    ),
    "norm_of_tokens": Part(
        """
        t = $x.flatten(2).transpose(1, 2)
        t = [[<<nn.LayerNorm($c, bias=False)>>(t) || <<nn.RMSNorm($c, eps=1e-6)>>(t)
            || <<nn.BatchNorm1d($c)>>(t.transpose(1, 2)).transpose(1, 2) || F.rms_norm(t, (t.size(-1),))
            || F.layer_norm(t, (t.shape[-1],)) || <<nn.LayerNorm($c, eps=1e-3)>>(t * <<par $c>>)]]
        h = t.mT.[[reshape($x.shape) || unflatten(2, $x.shape[2:])]]
        """
    ),
    "twice_normed": Part(
        """
        n = <<[[nn.BatchNorm$dd($c) || nn.GroupNorm(1, $c)]]>>
        h = n(F.relu(n($x)))
        h = $x + h
        """
    ),
}
