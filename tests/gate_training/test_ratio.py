"""`policy="ratio"`: learned remaining ratios, with weights and ratios on different batches."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches, loader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxcat
from fxcat.gate_training.ratio import RatioPolicy

EXAMPLE = torch.zeros(1, 3, 8, 8)
HALF = fxcat.Target(flops=0.5)


class Wide(nn.Module):
    """Two groups of 64 units; in one of them half of the units do next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, 4)
        nn.init.constant_(self.second[1].weight[:32], 1e-4)  # pyright: ignore[reportIndexIssue]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def policy_of(controller: fxcat.GateController) -> RatioPolicy:
    assert isinstance(controller.policy, RatioPolicy)
    return controller.policy


def test_fit_meets_the_target_and_keeps_what_matters() -> None:
    """Labels are noisy: where the loss goes to zero, nothing is worth anything."""
    torch.manual_seed(0)
    model = Wide()
    for parameter in model.second[1].parameters():
        parameter.requires_grad_(False)
    net = fxcat.prepare(model, EXAMPLE, policy="ratio", verbose=False)
    assert not net.structure.sections
    images, labels = batches(512).tensors
    wrong = torch.rand(512) < 0.3
    data = DataLoader(TensorDataset(images, torch.where(wrong, torch.randint(4, (512,)), labels)), 32, shuffle=True)
    fxcat.fit(net, data, loader(128), epochs=12, target=HALF, lr=0.02, progress=False)
    assert 0.5 - 1 / 64 < net.hard_cost().macs / net.start_cost.macs <= 0.5, "within one unit"
    small = fxcat.finalize(net)
    assert isinstance(small, Wide)
    left = small.second[1].weight
    assert isinstance(left, torch.Tensor)
    assert int((left < 0.5).sum()) <= 6, "what does nothing goes first"
    assert int((left > 0.5).sum()) >= 28, "what matters stays"
    torch.testing.assert_close(small.eval()(images), net.eval()(images))


def test_a_soft_mask_trains_and_its_removal_is_exact() -> None:
    """θ between 0 and 1 scales a unit in training; `finalize` rounds it."""
    torch.manual_seed(0)
    net = fxcat.prepare(Net().double(), EXAMPLE, policy="ratio", verbose=False).train()
    theta = net.gate_vector.theta
    theta.data[3] = 0.25
    net.gate_vector.values = "theta"
    images, labels = batches(16).tensors
    (draw,) = net.gate_vector.differentiated(F.cross_entropy(net(images.double()), labels))
    slope = draw.gradient
    assert slope is not None
    values: list[float] = []
    for step in (-1e-5, 1e-5):
        theta.data[3] = 0.25 + step
        values.append(F.cross_entropy(net(images.double()), labels).item())
    assert slope[3].item() == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-4)
    theta.data[3] = 0.25
    small = fxcat.finalize(net.eval())
    assert sum(p.numel() for p in small.parameters()) == net.hard_cost().params < net.start_cost.params
    torch.testing.assert_close(small(images.double()), net(images.double()), rtol=1e-10, atol=1e-10)


def own_loop(stop: int | None, state: bytes | None, **options: Any) -> tuple[fxcat.GatedModule, bytes]:
    """120 steps; returns the state too, at `stop` if given."""
    torch.manual_seed(0 if state is None else 7)
    net = fxcat.prepare(Net(), EXAMPLE, policy="ratio", verbose=False)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.02, momentum=0.9)
    options = {"target": HALF, "total_steps": 120, "held_out": [tuple(batches(64, 5).tensors)]} | options
    controller = fxcat.GateController(net, optimizer, **options)
    parts: dict[str, Any] = {"controller": controller, "net": net, "optimizer": optimizer}
    if state is not None:
        loaded = torch.load(io.BytesIO(state), weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(loaded[name])
    images, labels = batches(960).tensors
    for step in range(controller.steps, 120):
        if step == stop:
            break
        chosen = slice(8 * step, 8 * step + 8)
        loss = F.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = [p.detach().clone() for p in net.weight_parameters()]
        was_wanted = controller.wants_held_out
        shrunk = controller.step()
        if was_wanted and not shrunk:
            assert all(torch.equal(a, b) for a, b in zip(before, net.weight_parameters(), strict=True))
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    return net, file.getvalue()


@pytest.mark.parametrize("stop", (30, 55))
def test_a_run_goes_on_from_its_state(stop: int) -> None:
    whole, _ = own_loop(None, None)
    resumed, _ = own_loop(None, own_loop(stop, None)[1])
    assert resumed.live_units() == whole.live_units()
    for a, b in zip(resumed.weight_parameters(), whole.weight_parameters(), strict=True):
        assert torch.equal(a, b)


def test_more_pressure_makes_smaller_networks() -> None:
    sizes = [own_loop(None, None, target=None, pressure=fxcat.Pressure(nu))[0].hard_cost().macs for nu in (0, 1, 100)]
    full = fxcat.prepare(Net(), EXAMPLE, verbose=False).start_cost.macs
    assert sizes[0] == full
    assert sizes[0] >= sizes[1] > sizes[2]


def test_ratios_start_from_given_gates() -> None:
    net = fxcat.prepare(Net(), EXAMPLE, policy="ratio", verbose=False)
    fxcat.warm_start(net, fxcat.importance.norm_scale(net), target=HALF)
    controller = fxcat.GateController(
        net, torch.optim.SGD(net.weight_parameters(), lr=0.1), target=HALF, total_steps=100
    )
    ratios = policy_of(controller).ratio
    assert bool((ratios < 1).any())
    shares = [gate.theta.double().mean() for gate in net.gates.values()]
    torch.testing.assert_close(ratios, torch.stack(shares))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(fxcat.InputError, match="cannot prune gates='layers'"):
        fxcat.prepare(Net(), EXAMPLE, policy="ratio", gates="layers")
    with pytest.raises(fxcat.InputError, match="policy='ratios' is unknown"):
        fxcat.prepare(Net(), EXAMPLE, policy="ratios")  # pyright: ignore[reportArgumentType]
    with pytest.raises(fxcat.InputError, match="weights do not see, and there are none"):
        own_loop(None, None, held_out=None)
    with pytest.raises(fxcat.InputError, match="held_out= has no batch"):
        own_loop(None, None, held_out=DataLoader(TensorDataset(torch.empty(0, 3))))
    with pytest.raises(fxcat.InputError, match="the network does not take a held-out batch: Given groups=1"):
        own_loop(None, None, held_out=[(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))])
    nan = torch.full((4, 3, 8, 8), torch.nan), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(fxcat.TrainingError, match="held-out batch is nan"):
        own_loop(None, None, held_out=[nan])


class Failing(DataLoader[Any]):
    """Raises when the epoch `fails` begins."""

    fails: int | None = None
    begun = 0

    def __iter__(self) -> Any:
        if self.begun == self.fails:
            raise RuntimeError("the machine is gone")
        self.begun += 1
        return super().__iter__()


def provided_loop(folder: Path, fails: int | None, *, resume: bool, separate: bool) -> fxcat.GatedModule:
    torch.manual_seed(1 if resume else 0)
    net = fxcat.prepare(Net(), EXAMPLE, policy="ratio", verbose=False)
    data = Failing(batches(256), 32, shuffle=True, generator=torch.Generator().manual_seed(0))
    data.fails = fails
    held_out = DataLoader(batches(64, 5), 16, shuffle=True, generator=torch.Generator().manual_seed(1))
    fxcat.fit(
        net,
        data,
        epochs=6,
        target=HALF,
        held_out=held_out if separate else None,
        checkpoint_dir=folder,
        resume=resume,
        progress=False,
    )
    return net


@pytest.mark.parametrize("separate", (True, False))
def test_fit_goes_on_where_it_was(tmp_path: Path, separate: bool) -> None:
    """With held-out batches of their own, and with some of the training batches."""
    whole = provided_loop(tmp_path / "whole", None, resume=False, separate=separate)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        provided_loop(tmp_path / "parts", 3, resume=False, separate=separate)
    parts = provided_loop(tmp_path / "parts", None, resume=True, separate=separate)
    assert parts.live_units() == whole.live_units()
    for a, b in zip(parts.weight_parameters(), whole.weight_parameters(), strict=True):
        assert torch.equal(a, b)
