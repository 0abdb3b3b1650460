"""`round_to`: widths that are multiples of a number of channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from small_task import loader
from torch import nn

import fxcat
from fxcat.choosing import widths as widths_file
from fxcat.choosing.select import wanted_of
from fxcat.choosing.widths import channels_per_unit

HALF = fxcat.Target(flops=0.5)
EXAMPLE = torch.zeros(1, 3, 8, 8)


class Wide(nn.Module):
    """Groups of 48, 40 and 6 units (the last of 2 channels each)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(48, 40, 3, padding=1), nn.BatchNorm2d(40), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(40, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 40, 1))
        self.narrow = nn.Sequential(nn.Conv2d(40, 6, 1), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x))
        return self.head(self.narrow(x + self.block(x)).mean((2, 3)))


def widths(network: nn.Module) -> list[int]:
    return [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    "options", ({"target": HALF}, {"pressure": fxcat.Pressure(0.3)}, {"target": fxcat.Target(flops=0.3)})
)
@pytest.mark.parametrize("policy", ("bernoulli", "ratio"))
def test_training_leaves_multiples(policy: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = fxcat.prepare(Wide(), EXAMPLE, policy=policy, round_to=8, verbose=False)  # pyright: ignore[reportArgumentType]
    fxcat.fit(net, loader(), epochs=8, progress=False, **options)  # pyright: ignore[reportArgumentType]
    left = widths(fxcat.finalize(net))
    assert left[-1] <= 6, "too few for a multiple: it may have any width"
    assert all(width % 8 == 0 for width in left[:-1]), left
    target = options.get("target")
    if isinstance(target, fxcat.Target):
        assert target.flops is not None
        assert net.hard_cost().macs <= target.flops * net.start_cost.macs


def test_one_shot_fills_what_the_target_leaves() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    net = fxcat.prepare(model, torch.zeros(1, 3, 64, 64), round_to=16, verbose=False)
    scores = torch.rand(net.gate_vector.theta.shape, generator=torch.Generator().manual_seed(0))
    fxcat.one_shot(net, scores, target=HALF)
    assert 0.49 < net.hard_cost().macs / net.start_cost.macs <= 0.5
    assert all(width % 16 == 0 for width in widths(fxcat.finalize(net)))


def test_units_of_several_channels_count_as_that_many() -> None:
    model = torchvision.models.resnext50_32x4d()
    net = fxcat.prepare(model, torch.zeros(1, 3, 64, 64), gates="units", round_to=16, verbose=False)
    assert 4 in channels_per_unit(net).tolist(), "groups of 4 channels"
    fxcat.one_shot(net, torch.rand(net.gate_vector.theta.shape), target=HALF)
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    small = fxcat.finalize(net)
    assert all(width % 16 == 0 for width in widths(small))
    assert any(m.groups % 4 == 0 and 1 < m.groups < 32 for m in small.modules() if isinstance(m, nn.Conv2d))


def test_what_cannot_be_reached_in_multiples_is_refused() -> None:
    net = fxcat.prepare(Wide(), EXAMPLE, round_to=24, verbose=False)
    small = fxcat.prepare(Wide(), EXAMPLE, verbose=False)
    target = fxcat.Target(flops=0.1)
    optimizers = [torch.optim.SGD(n.weight_parameters(), lr=0.1) for n in (net, small)]
    with pytest.raises(fxcat.TargetError, match="cannot be reached"):
        fxcat.GateController(net, optimizers[0], target=target, total_steps=10)
    fxcat.GateController(small, optimizers[1], target=target, total_steps=10)
    with pytest.raises(fxcat.InputError, match="round_to=0 is no width"):
        fxcat.prepare(Wide(), EXAMPLE, round_to=0)


class Depthwise(nn.Module):
    """Groups of 16, 40 and 12 units; the second passes a depthwise convolution."""

    def __init__(self, groups: int = 40) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 40, 1), nn.ReLU(), nn.Conv2d(40, 40, 3, padding=1, groups=groups))
        self.narrow = nn.Sequential(nn.Conv2d(40, 12, 1), nn.ReLU())
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.narrow(self.wide(self.stem(x))).mean((2, 3)))


class DepthwiseCalled(Depthwise):
    """The same, with the depthwise convolution called as a function."""

    def __init__(self) -> None:
        super().__init__(groups=1)
        self.wide[2] = nn.Identity()
        self.kernel = nn.Parameter(torch.randn(40, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(self.wide(self.stem(x)), self.kernel, padding=1, groups=40)
        return self.head(self.narrow(x).mean((2, 3)))


def pruned(net: fxcat.GatedModule) -> list[int]:
    fxcat.one_shot(
        net, torch.rand(net.gate_vector.theta.shape, generator=torch.Generator().manual_seed(0)), target=HALF
    )
    return [*net.live_units().values()]


@pytest.mark.parametrize("kind", (Depthwise, DepthwiseCalled))
def test_where_convolutions_are_grouped_widths_are_aligned_unasked(
    kind: type[nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    net = fxcat.prepare(kind(), EXAMPLE)
    assert "multiples of 8 channels in 2 groups" in capsys.readouterr().out
    stem, wide, narrow = pruned(net)
    assert (stem % 8, wide % 8) == (0, 0)
    assert 1 <= narrow <= 12, "less than two blocks: any width"
    net = fxcat.prepare(Depthwise(), EXAMPLE, limits={"wide.0": fxcat.Limits(multiple_of=5)}, verbose=False)
    assert pruned(net)[1] % 5 == 0, "what is asked for holds"


def test_other_networks_have_any_width_and_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for net in (
        fxcat.prepare(Depthwise(groups=1), EXAMPLE),
        fxcat.prepare(Depthwise(), EXAMPLE, round_to=1),
    ):
        assert "multiples" not in capsys.readouterr().out
        assert not net.limits
        net.summary()
        assert "round_to" not in capsys.readouterr().out
        assert pruned(net)[1] % 8
        net.summary()
        assert "round_to=8" in capsys.readouterr().out


def test_single_units_may_be_open_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst of the six narrow ones are open: it ended never."""
    net = fxcat.prepare(Wide(), EXAMPLE, round_to=8, verbose=False)
    counted, shares = 0, widths_file.cost_fractions

    def limited(*arguments: Any) -> torch.Tensor:
        nonlocal counted
        counted += 1
        assert counted < 1000
        return shares(*arguments)

    monkeypatch.setattr(widths_file, "cost_fractions", limited)
    score = torch.arange(len(net.gate_vector.theta), dtype=torch.float64).flip(0) + 1
    narrow = net.gates["narrow.0"]
    setting = torch.ones_like(score)
    setting[narrow.start : narrow.start + 3] = 0.0
    wanted = wanted_of(net, HALF)
    kept = torch.tensor([narrow.start + 5])
    left = widths_file.aligned(net, setting, score, wanted, kept)
    assert 0.4 < shares(net, left)[0] <= 0.5 and left[narrow.start + 5] == 1
    # with room for all, what is closed opens again
    left = widths_file.aligned(net, setting, score, torch.full_like(wanted, 0.999), kept)
    assert left[narrow.start : narrow.start + 6].sum() > 3
