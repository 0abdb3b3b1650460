"""Methods of modules that take apart what these hold, called on what a removal left: `reparameterize` of RepVGG."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from differences import difference
from exactness import randomise
from torch import nn

import fxcat


class Branches(nn.Module):
    """A convolution of 3×3 and one of 1×1 side by side, which become one."""

    def __init__(self, width: int, out: int, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = width, out, groups
        self.wide, self.thin = (
            nn.Conv2d(width, out, 3, padding=1, groups=groups),
            nn.Conv2d(width, out, 1, groups=groups),
        )
        self.none, self.act = nn.Identity(), nn.ReLU()
        self.fused: nn.Conv2d | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused is not None:
            return self.act(self.fused(x))
        return self.act(self.none(self.none(self.wide(x) + self.thin(x))))

    def reparameterize(self) -> None:
        fused = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, groups=self.groups).to(self.wide.weight)
        fused.weight.data.copy_(self.wide.weight.data + F.pad(self.thin.weight.data, [1, 1, 1, 1]))
        assert self.wide.bias is not None
        assert self.thin.bias is not None
        fused.bias.data.copy_(self.wide.bias.data + self.thin.bias.data)  # pyright: ignore[reportOptionalMemberAccess]
        self.fused = fused
        del self.wide
        self.__delattr__("thin")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Branches(3, 8)
        self.depthwise = Branches(8, 8, 8)
        self.branch, self.head = Branches(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.stem(x))
        return self.head(x + self.branch(x))


def prepared() -> tuple[nn.Module, fxcat.GatedModule, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(2, 3, 8, 8).double()
    randomise(model, 0)
    return model, fxcat.prepare(model.eval(), x, verbose=False).eval(), x


def reparameterize(net: nn.Module) -> nn.Module:
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        if isinstance(module, Branches):
            module.reparameterize()
    return net


def close_units(net: fxcat.GatedModule) -> None:
    for gate in net.gates.values():
        if gate.kind == "units":
            gate.theta[1::3] = 0


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("shrunk", [False, True])
def test_own_code_takes_over_where_only_widths_changed(closed: bool, shrunk: bool) -> None:
    _, net, x = prepared()
    if closed:
        close_units(net)
    if shrunk:
        net.shrink()
    small = fxcat.finalize(net)
    for left in (small, pickle.loads(pickle.dumps(small))):
        fused = reparameterize(left)
        assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == 4
        assert difference(fused(x), net(x)) <= 1e-10
    assert difference(small(x), net(x)) <= 1e-10


@pytest.mark.parametrize("shrunk", [False, True])
def test_refused_where_more_has_gone(shrunk: bool) -> None:
    _, net, x = prepared()
    section = next(g for n, g in net.gates.items() if g.kind == "section" and "stem" in n)
    section.theta[:] = 0
    if shrunk:
        net.shrink()
    small = fxcat.finalize(net)
    with pytest.raises(fxcat.InputError, match="takes its modules apart"):
        reparameterize(small)
    assert difference(small(x), net(x)) <= 1e-10


def test_widths_that_are_not_those_of_layers() -> None:
    class Doubled(Branches):
        """States a width in a way of its own."""

        def __init__(self) -> None:
            super().__init__(8, 8)
            self.size = 8

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Doubled(), nn.Conv2d(8, 4, 1)).double()
    x = torch.randn(2, 3, 8, 8).double()
    net = fxcat.prepare(model, x, verbose=False).eval()
    assert difference(reparameterize(fxcat.finalize(net))(x), net(x)) <= 1e-10
    close_units(net)
    with pytest.raises(fxcat.InputError, match="takes its modules apart"):
        reparameterize(fxcat.finalize(net))


def test_widths_are_told_to_the_modules_around_layers() -> None:
    _, net, _ = prepared()
    close_units(net)
    small = fxcat.finalize(net)
    assert (small.stem.out_channels, small.depthwise.groups) == (5, 5)  # pyright: ignore[reportAttributeAccessIssue]


class Attention(nn.Module):
    """Its head size is inferred: with fewer heads that gives other features, without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.ignored = -100
        self.heads, self.qkv, self.out = 4, nn.Linear(8, 24), nn.Linear(8, 8)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias)
        q, k, _ = qkv.reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return torch.softmax(q @ k.transpose(-1, -2), -1)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def counted(self, y: torch.Tensor) -> torch.Tensor:
        return (y != self.ignored).sum()

    def head_count(self) -> int:
        return self.heads

    def last(self) -> nn.Module:
        return self.out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.reshape(*x.shape[:2], 3, self.heads, 2).permute(2, 0, 3, 1, 4)
        x = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(x.transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.attention, self.norm = nn.Linear(4, 8), Attention(), nn.LayerNorm(8)
        self.blocks, self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.norm(self.enter(x)))
        return self.blocks(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x).mean(1))

    def classes(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).softmax(-1)


class Bypassed(Tokens):
    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.enter(x))
        return x + self.blocks(x + self.attention(x))


def small_tokens(model: nn.Module, kind: str = "units") -> tuple[fxcat.GatedModule, Any, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4).double()
    randomise(model, 0)
    net = fxcat.prepare(model.double(), x, verbose=False).eval()
    for gate in net.gates.values():
        if gate.kind == kind:
            gate.theta[: 2 if gate.kind == "units" else 1] = 0
    return net, fxcat.finalize(net).eval(), x


def test_methods_that_are_right_stay() -> None:
    net, small, x = small_tokens(Tokens())
    seen: list[torch.Tensor] = []
    handle = small.blocks.register_forward_hook(lambda _m, _a, result: seen.append(result))
    small(x)
    handle.remove()
    for left in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(left.forward_features(x), seen[0])
    assert difference(small.classes(x), net(x).softmax(-1)) <= 1e-10


def test_methods_that_would_compute_something_else_say_so() -> None:
    _, small, _ = small_tokens(Tokens())
    attention: Any = small.attention
    assert attention.qkv.weight.shape[0] < 24
    x = torch.randn(2, 5, attention.qkv.in_features).double()
    for left in (attention, pickle.loads(pickle.dumps(attention))):
        with pytest.raises(fxcat.InputError, match=r"scores\(\) is the model's own code"):
            left.scores(x)
        with pytest.raises(fxcat.InputError, match="it computes with heads"):
            left.split(torch.randn(2, 5, 8).double())
        assert left.last() is left.out
        assert isinstance(left.head_count(), int)
        assert left.counted(torch.tensor([1, -100])).item() == 1, "-100 states no size"


def test_methods_of_a_network_that_lost_a_section() -> None:
    net, small, x = small_tokens(Bypassed(), kind="section")
    with pytest.raises(fxcat.InputError, match=r"calls '.*' by itself|may have left the network"):
        small.forward_features(x)
    assert difference(small.classes(x), net(x).softmax(-1)) <= 1e-10
    net.shrink()
    smaller: Any = fxcat.finalize(net)
    with pytest.raises(fxcat.InputError, match=r"calls '.*' by itself|may have left the network"):
        smaller.forward_features(x)


def test_layers_whose_weights_other_code_reads_state_their_sizes() -> None:
    _, small, _ = small_tokens(Tokens())
    for layer in small.modules():
        if isinstance(layer, nn.Linear):
            assert (layer.out_features, layer.in_features) == tuple(layer.weight.shape)


class Biased(nn.Module):
    """Attention that looks its biases up in `train()`, as LeViT does, or, for a buffer, TinyViT."""

    places: torch.Tensor
    biases: torch.Tensor

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.registered = nn.Linear(8, 3 * 16), nn.Linear(16, 8), registered
        self.table = nn.Parameter(torch.randn(4, 9))
        self.register_buffer("places", torch.randint(9, (16, 16)))

    @torch.no_grad()
    def train(self, mode: bool = True) -> Biased:
        super().train(mode)
        if mode and hasattr(self, "biases"):
            del self.biases
        elif self.registered:
            self.register_buffer("biases", self.table[:, self.places], persistent=False)
        else:
            self.biases = self.table[:, self.places]
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(len(x), 16, 4, 12).permute(0, 2, 1, 3).chunk(3, -1)
        bias = self.table[:, self.places] if self.training else self.biases
        tokens = F.softmax(q @ k.transpose(-2, -1) + bias, -1) @ v
        return self.out(tokens.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("shrunk", [False, True])
def test_what_train_makes_and_takes_away_is_no_part(registered: bool, shrunk: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Biased(registered), nn.Conv2d(8, 2, 1)).double().eval()
    x = torch.randn(2, 3, 4, 4).double()
    net = fxcat.prepare(model, x, verbose=False).eval()
    close_units(net)
    expected = net(x)
    if shrunk:
        net.shrink()
        assert difference(net.train().eval()(x), expected) <= 1e-10
    small = fxcat.finalize(net)
    assert difference(small.train().eval()(x), expected) <= 1e-10
    assert difference(fxcat.finalize(net.train()).eval()(x), expected) <= 1e-10
    net.shrink()
    assert difference(net.eval()(x), expected) <= 1e-10
    with torch.no_grad():
        small.get_parameter("2.table").add_(1)
        small.get_parameter("2.table")[:, ::2].sub_(3)
    assert difference(small.train()(x), small.eval()(x)) <= 1e-10
