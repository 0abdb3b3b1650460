"""Gates in training: targets, decisions, physical shrinking, and the user's own loop."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches, loader

import fxcat
from fxcat.choosing.select import smallest_cost


@pytest.mark.parametrize(
    "target", (fxcat.Target(flops=0.5), fxcat.Target(params=0.4), fxcat.Target(flops=0.9, params=0.6))
)
def test_fit_meets_the_target_from_below(target: fxcat.Target) -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    history = fxcat.fit(net, loader(), loader(64), epochs=4, target=target, progress=False)
    small = fxcat.finalize(net)
    cost, start = net.hard_cost(), net.start_cost
    shares = [(cost.macs / start.macs, target.flops), (cost.params / start.params, target.params)]
    for share, wanted in shares:
        assert wanted is None or share <= wanted
    assert any(wanted is not None and share >= 0.93 * wanted for share, wanted in shares)
    assert sum(p.numel() for p in small.parameters()) == cost.params
    assert history.epochs[-1].val_accuracy is not None
    assert history.epochs[-1].val_accuracy > 0.8


def test_own_loop_and_optimizer_state() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=24)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(net.gate_vector.theta) not in held
    shrunk = 0
    for _ in range(3):
        for x, y in loader():
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shrunk += controller.step()
    assert shrunk == 1
    for parameter in net.weight_parameters():
        assert id(parameter) in held
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_expected_cost_is_the_mean_over_samples() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    theta = net.gate_vector.theta.detach()
    theta.copy_(torch.rand(theta.shape, generator=torch.Generator().manual_seed(0)))
    count, expected = net.gate_vector.unit_count, net.expected_cost()
    generator = torch.Generator().manual_seed(1)
    samples = (torch.rand(4000, len(theta), generator=generator) < theta).double()
    mean = torch.stack([net.cost_model(s[:count], s[count:]) for s in samples]).mean(0)
    assert mean[0].item() == pytest.approx(expected.macs.item(), rel=0.02)
    assert mean[1].item() == pytest.approx(expected.params.item(), rel=0.02)


def test_gates_leave_the_global_random_state_alone() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    net.gate_vector.theta.data.fill_(0.5)
    state = torch.get_rng_state()
    net(torch.zeros(2, 3, 8, 8))
    assert torch.equal(state, torch.get_rng_state())


def test_a_copy_is_independent() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    net(torch.zeros(2, 3, 8, 8)).sum().backward()
    twin = copy.deepcopy(net)
    gate = next(iter(twin.gates.values()))
    gate.set(0.0)
    gate.theta[0] = 1.0
    assert float(next(iter(net.gates.values())).theta.min()) == 1.0
    assert sum(p.numel() for p in fxcat.finalize(twin).parameters()) < net.start_cost.params


def test_pressure_alone_prunes_and_zero_pressure_does_not() -> None:
    for nu, smaller in ((0.0, False), (5.0, True)):
        net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
        fxcat.fit(net, loader(), epochs=3, pressure=fxcat.Pressure(nu=nu), progress=False)
        assert (net.hard_cost().macs < net.start_cost.macs) is smaller


def test_unreachable_target_says_what_is_reachable() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    least = smallest_cost(net).macs / net.start_cost.macs
    with pytest.raises(fxcat.TargetError, match="cannot be reached") as caught:
        fxcat.fit(net, loader(), epochs=1, target=fxcat.Target(flops=least / 2), progress=False)
    advised = re.search(r"choose flops ≥ ([\d.]+),", str(caught.value))
    assert advised and least <= float(advised[1]) <= 1.01 * least


def test_checkpoints_and_nan_loss(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    target = fxcat.Target(flops=0.5)
    history = fxcat.fit(net, loader(), loader(64), epochs=3, target=target, checkpoint_dir=folder, progress=False)
    assert {p.name for p in folder.iterdir()} == {f"{n}.safetensors" for n in ("last", "previous", "best")}
    history.plot(folder / "plot.png")
    assert (folder / "plot.png").stat().st_size > 1000
    kept = (folder / "last.safetensors").read_bytes()
    calls = 0

    def broken(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(output, labels) * (float("nan") if calls == 3 else 1.0)

    again = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    with pytest.raises(fxcat.TrainingError, match="epoch 0, step 2"):
        fxcat.fit(again, loader(), epochs=1, target=target, loss=broken, checkpoint_dir=folder, progress=False)
    assert (folder / "last.safetensors").read_bytes() == kept


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_fit_trains_in_mixed_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    target = fxcat.Target(flops=0.5)
    history = fxcat.fit(net, loader(), loader(), epochs=6, target=target, autocast=dtype, progress=False)
    assert history.epochs[-1].val_accuracy is not None
    assert history.epochs[-1].val_accuracy > 0.9
    assert net.hard_cost().macs <= 0.5 * net.start_cost.macs
    assert all(p.dtype is torch.float32 for p in net.weight_parameters())


def test_scaling_the_loss_changes_nothing() -> None:
    """The scaler's scale grows every few steps; what gates are worth is measured in units of the loss itself."""
    nets: list[fxcat.GatedModule] = []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = fxcat.prepare(Net().double(), torch.zeros(1, 3, 8, 8), verbose=False).train()
        optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7, enabled=enabled)
        controller = fxcat.GateController(
            net,
            optimizer,
            target=fxcat.Target(flops=0.5),
            total_steps=80,
            scaler=scaler if enabled else None,
        )
        images, labels = batches(640).tensors
        for x, y in zip(images.double().split(8), labels.split(8), strict=True):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(net(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            controller.step()
        nets.append(net)
    assert nets[0].live_units() == nets[1].live_units()
    for a, b in zip(nets[0].weight_parameters(), nets[1].weight_parameters(), strict=True):
        torch.testing.assert_close(a, b)
