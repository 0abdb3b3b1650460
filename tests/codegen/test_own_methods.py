"""Methods of modules that take apart what these hold, called on what a removal left: `reparameterize` of RepVGG."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from exactness import difference, randomise
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
        fused.bias.data.copy_(self.wide.bias.data + self.thin.bias.data)  # type: ignore
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
    assert (small.stem.out_channels, small.depthwise.groups) == (5, 5)  # type: ignore
