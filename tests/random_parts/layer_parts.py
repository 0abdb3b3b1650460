"""Convolutions, linear layers and blocks of them."""

from __future__ import annotations

from random_parts.parts import Part

LAYERS = {
    "dilated": Part(
        "h = <<nn.Conv$dd($c, 6, 3, padding=2, dilation=2[[ || , bias=False || , padding_mode='circular']])>>($x)", "6"
    ),
    "same_padding": Part("h = <<nn.Conv$dd($c, 5, [[3 || 1]], padding='same'[[ || , dilation=2]])>>($x)", "5"),
    "separable": Part(
        """
        h = <<nn.Conv$dd($c, 2 * $c, 3, padding=1, groups=$c, bias=[[False || True]])>>($x)
        h = <<nn.Conv$dd(2 * $c, 5, 1)>>(h)
        """,
        "5",
    ),
    "inverted": Part(
        """
        h = F.relu6(<<norm = nn.BatchNorm$dd(8)>>(<<conv $c, 8, 1, bias=False>>($x)))
        h = F.relu6(<<nn.BatchNorm$dd(8)>>(<<nn.Conv$dd(8, 8, 3, padding=1, groups=8, bias=False)>>(h)))
        s = h.mean($axes, keepdim=True)
        h = h * <<conv 2, 8>>(F.relu(<<conv 8, 2>>(s))).[[sigmoid() || tanh() || clamp(0, 1)]]
        h = $x + <<nn.BatchNorm$dd($c)>>(<<conv 8, $c, 1, bias=False>>(h))
        """
    ),
    "ghost": Part(
        """
        a = F.relu(<<conv $c, 4>>($x))
        h = torch.cat([a, <<nn.Conv$dd(4, 4, 3, padding=1, groups=4)>>(a)], 1)[[[:, :7] || [:, :-1]
            || .narrow(1, 0, 7)]]
        """,
        "7",
    ),
    "reparametrised": Part(
        """
        a, b = <<conv $c, $c, 3, bias=False>>($x), <<conv $c, $c, 1>>($x)
        h = <<nn.BatchNorm$dd($c)>>(a) + <<nn.BatchNorm$dd($c)>>(b)
        h = F.relu(h [[+ <<nn.BatchNorm$dd($c)>>($x) || + $x || ]])
        """
    ),
    "partial": Part(
        """
        a, b = torch.split($x, [$x.shape[1] // 2, $x.shape[1] - $x.shape[1] // 2], dim=1)
        a = <<conv $c // 2, $c // 2, 3>>(a)
        h = torch.cat((a, b), 1)
        h = [[h || $x + <<conv 7, $c>>(F.gelu(<<conv $c, 7>>(h)))]]
        """
    ),
    "partial_written": Part(
        """
        h = $x.clone()
        h[:, :2[[, ... || ]] ] = <<conv 2, 2, 3>>($x[:, :2[[, ... || ]] ])
        """
    ),
    "standardised": Part(
        "h = <<StandardConv($c, 6, 3, padding=1, bias=[[True || False]])>>($x)",
        "6",
        classes="""
        class StandardConv(nn.Conv$dd):
            def forward(self, x):
                w = self.weight
                w = w - w.mean(dim=tuple(range(1, w.ndim)), keepdim=True)
                w = w / (w.flatten(1).std(dim=1).view(-1, *[1] * (w.dim() - 1)) + 1e-5)
                return F.conv$dd(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)
        """,
    ),
    "equalised": Part(
        """
        h = F.conv$dd($x, <<w = par 5, $c, *[3] * $d>> * (1 / math.sqrt($c * 9)), [[None || <<par 5>>
            || bias=<<par 5>>]], padding=1)
        """,
        "5",
    ),
    "weight_norm": Part(
        """
        h = <<nn.utils.parametrizations.weight_norm(nn.Conv$dd($c, 5, 1)[[ || , dim=1]])>>($x)
        """,
        "5",
    ),
    "mixed_kernels": Part(
        """
        a = F.adaptive_avg_pool$dd($x, 1).flatten(1)
        a = <<lin $c, 2>>(a).softmax(-1)
        o = torch.stack([<<conv $c, 5, 3>>($x), <<conv $c, 5, 1>>($x)], 1)
        h = [[torch.einsum('bk,bk...->b...', a, o) || (a.view(-1, 2, 1, $ones) * o).sum(1)]]
        """,
        "5",
    ),
    "dynamic_kernel": Part(
        """
        a = <<lin $c, 3>>($x.mean($axes)).softmax(1)
        w = (a @ <<par 3, 5 * $c>>).view(-1, $c, *[1] * $d)
        h = F.conv$dd($x.reshape(1, -1, *$x.shape[2:]), w, groups=$x.shape[0]).view($x.shape[0], 5, *$x.shape[2:])
        """,
        "5",
    ),
    "linear_last": Part(
        """
        t = $x.[[permute$last || movedim(1, -1) || transpose(1, -1)]]
        h = [[F.linear(t, <<par 5, $c>>, <<par 5>>) || <<lin $c, 5>>(t) || t @ <<par $c, 5>>
            || torch.matmul(t, <<par $c, 5>>) + <<par 5>>
            || torch.tensordot(t, <<par $c, 5>>, 1) || torch.tensordot(t, <<par 5, $c>>, dims=([-1], [1]))
                || torch.einsum('...c,cd->...d', t, <<par $c, 5>>)]]
        h = h.movedim(-1, 1).reshape(-1, 5, *$x.shape[2:])
        """,
        "5",
    ),
    "tokens_linear": Part(
        """
        t = $x.flatten(2)
        h = [[torch.einsum('bcl,dc->bdl', t, <<par 5, $c>>) || <<par 5, $c>> @ t
            || (t.transpose(1, 2) @ <<par $c, 5>>).transpose(1, 2)
            || torch.bmm(<<par 1, 5, $c>>.expand(t.shape[0], -1, -1), t) || torch.matmul(<<par 5, $c>>, t)
                || torch.baddbmm(<<par 1, 5, 1>>, <<par 1, 5, $c>>.repeat(t.size(0), 1, 1), t)
            || <<nn.Conv1d($c, 5, 1)>>(t)
                || torch.addmm(<<par 5>>, t.mT.reshape(-1, $c), <<par $c, 5>>).view(t.shape[0], -1, 5).transpose(1, 2)]]
        h = h.reshape(h.shape[0], 5, *$x.shape[2:])
        """,
        "5",
    ),
    "low_rank": Part("""
        t = $x.movedim(1, -1)
        l = <<l = nn.Linear($c, $c)>>
        h = l(t) + [[0.5 || <<par 1>>]] * (t @ <<par $c, 2>>) @ <<par 2, $c>>
        h = h.movedim(-1, 1)
        """),
    "tied": Part("""
        t = $x.movedim(1, -1)
        h = F.linear(F.relu(<<l = nn.Linear($c, 6)>>(t)), [[<<l>>.weight.t() || <<l>>.weight.T
            || <<l>>.weight.transpose(0, 1)]])
        h = h.movedim(-1, 1) [[ || + $x]]
        """),
    "tied_conv": Part("""
        h = <<a = nn.Conv$dd($c, 6, 3, padding=1)>>($x)
        h = F.conv_transpose$dd(F.relu(h), <<a>>.weight, padding=1)
        """),
    "large_kernel": Part("""
        h = <<nn.Conv$dd($c, $c, 5, padding=2, groups=$c)>>($x)
        h = <<nn.Conv$dd($c, $c, 3, padding=3, dilation=3, groups=$c)>>(h)
        h = $x * <<conv $c, $c>>(h)
        """),
    "coordinates": Part(
        """
        g = torch.linspace(-1, 1, $x.shape[-1][[, dtype=$x.dtype, device=$x.device || ]]).to($x)
        g = g.expand($x.shape[0], 1, *$x.shape[2:])
        h = <<conv $c + 1, 5>>(torch.cat([$x, g], 1))
        """,
        "5",
    ),
    "strided": Part(
        """
        h = <<nn.Conv$dd($c, 6, [[2 || 3, padding=1]], stride=2)>>($x)
        h = [[F.interpolate(h, size=$x.shape[2:], mode='nearest') || F.interpolate(h, scale_factor=2.0)
            || <<nn.ConvTranspose$dd(6, 6, 2, stride=2)>>(h) || <<nn.ConvTranspose$dd(6, 6, 2, 2, groups=[[2 || 6
            || 3]])>>(h)]]
        """,
        "6",
    ),
    "pixel_shuffle": Part(
        """
        h = [[F.pixel_unshuffle($x, 2) || <<nn.PixelUnshuffle(2)>>($x)]]
        h = <<conv 4 * $c, [[8 || 12 || 8, 3]]>>(h)
        h = <<conv 2, 5>>(F.pixel_shuffle(h[:, :8], 2))
        """,
        "5",
        dims=(2,),
    ),
    "space_to_depth": Part(
        """
        h = torch.cat([$x[..., ::2, ::2], $x[..., 1::2, ::2], $x[..., ::2, 1::2], $x[..., 1::2, 1::2]], 1)
        h = F.interpolate(<<conv 4 * $c, 5>>(h), scale_factor=2[[ || , mode='bilinear'
            || , mode='bicubic', align_corners=False]])
        """,
        "5",
        dims=(2,),
    ),
    "unfolded": Part(
        """
        p = F.unfold($x, 3, padding=1)
        h = [[(<<par 5, 9 * $c>> @ p).view(-1, 5, *$x.shape[2:])
            || <<lin 9 * $c, 5>>(p.transpose(1, 2)).transpose(1, 2).reshape($x.size(0), 5, *$x.shape[-2:])
            || F.fold(<<nn.Conv1d(9 * $c, 5 * 9, 1)>>(p), $x.shape[2:], 3, padding=1)]]
        """,
        "5",
        dims=(2,),
    ),
    "deformed": Part(
        """
        o = 0.3 * <<conv $c, 18, 3>>($x)
        h = torchvision.ops.deform_conv2d($x, o, <<par 5, $c, 3, 3>>, padding=1)
        """,
        "5",
        dims=(2,),
    ),
    "sampled": Part(
        """
        o = torch.tanh(<<conv $c, 2, 3>>($x)).permute(0, 2, 3, 1)
        h = F.grid_sample([[$x || <<conv $c, $c>>($x)]], o, align_corners=False)
        """,
        dims=(2,),
    ),
    "rectangular": Part(
        "h = <<nn.Conv2d($c, 5, (1, 3), padding=(0, 1))>>($x) + <<nn.Conv2d($c, 5, (3, 1), padding=(1, 0))>>($x)",
        "5",
        dims=(2,),
    ),
    "pooled_more": Part("""
        h = [[F.max_pool$dd($x, 2) || F.adaptive_max_pool$dd($x, 1) || F.adaptive_avg_pool$dd($x, (2,) * $d)]]
        h = F.interpolate(<<conv $c, $c>>(h), size=$x.shape[2:])
        h = $x [[+ || *]] h
        """),
    "unpooled": Part(
        """
        p, i = F.max_pool2d($x, 2, return_indices=True)
        h = F.max_unpool2d([[p || F.relu(p)]], i, 2)
        """,
        dims=(2,),
    ),
    "blurred": Part(
        """
        k = <<buf torch.ones(1, 1, 3, 3) / 9>>
        h = F.conv2d(F.pad($x, (1, 1, 1, 1), mode='[[reflect || replicate
            || constant]]'), k.[[expand($x.shape[1], -1, -1, -1)
            || repeat($x.shape[1], 1, 1, 1)]], groups=$x.shape[1])
        """,
        dims=(2,),
    ),
    "recurrent": Part(
        """
        t = $x.flatten(2).[[transpose(1, 2) || permute(0, 2, 1)]]
        t, _ = <<nn.[[LSTM || GRU || RNN]]($c, 5, batch_first=True[[ || , bidirectional=False, num_layers=2]])>>(t)
        h = t.transpose(1, 2).reshape($x.shape[0], 5, *$x.shape[2:])
        """,
        "5",
    ),
}
