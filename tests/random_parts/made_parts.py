"""What `forward` makes and changes in Python: entries that masks pick, listed places, constants, containers."""

from __future__ import annotations

from random_parts.parts import Part

MADE = {
    "picked_by_masks": Part("""
        h = [[<<conv $c, $c>>($x) || $x * 1]]
        [[h[h > 0.3] *= 2 || h[h < 0] += 0.5 || m = h > 1; h[m] = torch.log(h[m]) + 1 || h[h < 0] = h[h < 0].exp() - 1
            || h[($x[:, :1] > 0).expand_as(h)] *= 0.5 || h[h > 0] = ($x.sigmoid()[h > 0] - h[h > 0]) * 2
            || h[..., torch.arange(h.shape[-1]) % 2 == 0] = 0.2 || h[:, torch.arange($c) < 2] -= 1]]
        h = [[h || $x + h || F.relu(<<conv $c, $c>>(h)) || $x + <<conv $c, $c>>(h)]]
        """),
    "listed_places": Part("""
        h = [[<<conv $c, $c>>($x) || $x.clone()]]
        i, j, k = [1, 0], torch.tensor([0, 2]), [2]
        [[h[:] = h.sigmoid() || h[...] += 1 || h[:, i] += 1 || h[:, i] = 0.5 || h[:, i] = $x[:, 1:3] || h[..., j] = 0.3
            || h[:, :, i] = $x[:, :, :2] || h[..., k] *= 2 || h[0] += 1 || h[:, k] = h[:, k].sigmoid()]]
        h = [[h || $x + h || F.silu(<<conv $c, $c>>(h))]]
        """),
    "tokens_replaced": Part("""
        t = $x.flatten(2).transpose(1, 2) * 1
        m = [[t.mean(-1) > 0.2 || (t.sum(-1) > 0) || torch.arange(t.shape[1]).expand(t.shape[:2]) % 3 == 0]]
        t[m] = [[<<par $c>> || 0.5 || <<par 1, $c>>]]
        h = t.transpose(1, 2).reshape($x.shape)
        """),
    "merged_axes": Part("""
        f = [[$x.flatten(1) || $x.reshape($x.shape[0], -1) || $x.movedim(1, -1).flatten(1) || $x.flatten(1, 2)]]
        g = [[f.softmax(1) || f - f.mean(1, keepdim=True) || f - f.logsumexp(1, keepdim=True) || f.log_softmax(1) * 0.1
            || f / (1 + f.amax(1, keepdim=True).abs()) || F.layer_norm(f, f.shape[1:]) || f.cos()
            || F.normalize(f, dim=1) || f * torch.exp(-f.pow(2).mean()) || f / (1 + f.norm(dim=1, keepdim=True))
            || f.sigmoid()]]
        h = $x * g.mean([[1, keepdim=True || 1, keepdim=True]]).flatten(1).mean(1).view(-1, 1, $ones) + $x
        """),
    "merged_and_back": Part("""
        f = $x.flatten(1)
        f = [[f.softmax(1) || f.exp().cos() || (f - f.mean(1, keepdim=True)).sigmoid() || F.softplus(f)
            || f - f.max(1, keepdim=True)[0] || F.layer_norm(f, f.shape[1:]) || f.view(-1).cos().view(f.shape)]]
        h = f.[[view($x.shape) || view(-1, $c, *$x.shape[2:]) || reshape_as($x) || unflatten(1, $x.shape[1:])]]
        """),
    "constants_made": Part("""
        c = torch.[[zeros || ones]]($x.shape[-1])
        [[c[1:] = 0.5 || c.add_(1).div_(3) || c[::2].fill_(0.2) || c[torch.tensor([0, 2])] = 2.0 || c[:2] += 1
            || c.scatter_(0, torch.tensor([1, 2]), 0.7)]]
        h = $x [[* c || + c || * c.view(*[1] * (1 + $d), -1).to($x.dtype)]]
        """),
    "containers_made": Part("""
        s = <<s = nn.Sequential(nn.Conv$dd($c, 6, 3, padding=1), nn.ReLU(), nn.Conv$dd(6, $c, 1))>>
        h = [[nn.Sequential(<<conv $c, 6>>, nn.SiLU(), <<conv 6, $c>>)($x) || s[1:](s[0]($x)) || s[-1](s[:2]($x))
            || nn.ModuleList([<<conv $c, $c>>, <<conv $c, $c>>])[-1]($x) || nn.Sequential(*list(s)[:2], s[2])($x)
            || $x + nn.Sequential(s, nn.Tanh())($x)]]
        """),
    "numbers_of_parameters": Part("""
        p = <<par 3>>
        h = [[$x * max(p[0].item(), 0.1) || $x / max(1.0, float(p[0]), abs(p[1].item())) || $x + math.tanh(p[1].item())
            || $x * round(float(p[2]), 1) || $x * min([p[0].item(), 0.5]) || $x * math.sqrt(p[2].item() ** 2 + 1)
            || $x / max(p.detach().abs().max().item(), $x.shape[-1])]]
        h = <<conv $c, $c>>(h)
        """),
    "masked_channels": Part(
        """
        m = [i % 2 == 0 for i in range($c)]
        m = [[m || torch.tensor(m) || (torch.arange($c) % 2 == 0)]]
        h = $x[:, m]
        """,
        "($c + 1) // 2",
    ),
    "complex_parts": Part("""
        z = torch.complex($x, [[$y || $x.relu() || torch.zeros_like($x)]])
        h = [[(z * z).real || (z * 1j).real - z.imag || torch.view_as_real(z).sum(-1)
            || torch.fft.ifft(torch.fft.fft(z, dim=-1), dim=-1).imag]]
        """),
    "own_axis": Part(
        """
        k = torch.tensor([1.0, -0.5])
        u = [[$x.unsqueeze(2) * k.view(1, 1, 2, $ones) || $x.unsqueeze(1) * k.view(1, 2, 1, $ones)
            || $x.unsqueeze(2) + k.view(2, $ones)]]
        h = <<conv 2 * $c, 5>>(u.flatten(1, 2))
        """,
        "5",
    ),
    "kept_values": Part("""
        h = F.relu(<<l = nn.Conv$dd($c, $c, 1)>>($x))
        self.seen = [[h || h.detach() || {"h": h} || [h, None]]]
        h = [[self.seen || h]] if torch.is_tensor(self.seen) else h + $x
        """),
}
