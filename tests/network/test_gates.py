"""Gate values in the network: how they are computed, and their gradients."""

from __future__ import annotations

import pytest
import torch
from small_task import Net as SmallNet
from torch import nn

import fxcat
from fxcat.network.gates import GateSamples
from fxcat.network.slot_values import GateLayout, GateSlot


class Net(nn.Module):
    """Parameters of which gates scale two at once, one alone, and a plain slot; entries with up to two gates."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.alone = nn.BatchNorm1d(3, dtype=torch.float64), nn.BatchNorm1d(2, dtype=torch.float64)
        self.layout = GateLayout(
            index=torch.tensor([[1, 2, 0, 3, 3, 1, 2], [0, 4, 4, 0, 4, 0, 4]], dtype=torch.int32),
            slots=(
                GateSlot("bias", (3,), ("norm", "bias")),
                GateSlot("weight", (3,), ("norm", "weight")),
                GateSlot("other", (2,), ("alone", "weight")),
                GateSlot("plain", (2, 1)),
            ),
            repeated=3,
        )


def test_values_and_gradients_are_those_of_plain_products() -> None:
    net, theta = Net(), torch.tensor([0.3, 0.7, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
    samples = GateSamples(net.layout)
    samples.fill(theta, net)
    found = {slot.name: getattr(samples, slot.name) for slot in net.layout.slots}
    padded = torch.cat([torch.ones(1, dtype=torch.float64), theta])
    gates = padded[net.layout.index.long()].prod(0)
    expected = {
        "bias": net.norm.bias * gates[:3],
        "weight": net.norm.weight * gates[:3],
        "other": net.alone.weight * gates[3:5],
        "plain": gates[5:].reshape(2, 1),
    }
    inputs = (theta, net.norm.weight, net.norm.bias, net.alone.weight)
    slopes = {name: torch.randn_like(value) for name, value in expected.items()}
    gradients = [
        torch.autograd.grad(sum(((slopes[n] * v).sum() for n, v in values.items()), torch.zeros(())), inputs)
        for values in (found, expected)
    ]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_the_gates_of_a_norm_are_gathered_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    layout = fxcat.prepare(model, torch.zeros(1, 3, 8, 8), verbose=False).program.gatings.layout  # pyright: ignore[reportAttributeAccessIssue]
    assert layout.index.shape == (1, 8)
    assert layout.repeated == 8
    assert [slot.scales for slot in layout.slots] == [("1", "bias"), ("1", "weight")]


def test_units_are_sampled_alike_with_and_without_gates_on_sections() -> None:
    draws: list[torch.Tensor] = []
    for gates in ("units", "units+layers"):
        net = fxcat.prepare(SmallNet(), torch.zeros(1, 3, 8, 8), gates=gates, verbose=False).train()
        vector = net.gate_vector
        vector.seed(3)
        vector.theta.data.fill_(0.5)
        draws.append(torch.stack([vector()[: vector.unit_count].detach() for _ in range(8)]))
    torch.testing.assert_close(*draws, rtol=0, atol=0)
    assert 0.3 < draws[0].mean() < 0.7


@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(2)])
def test_the_derivative_at_zero_passes_an_activation(pool: nn.Module) -> None:
    """Where the gate scales a norm before a ReLU, it is the one-sided derivative of the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2, bias=False)
    ).double()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    model(x)
    net = fxcat.prepare(model, x, verbose=False).train()
    for closed in range(4):
        zero = torch.ones(4, dtype=torch.float64).index_fill(0, torch.tensor([closed]), 0.0)
        little = zero.index_fill(0, torch.tensor([closed]), 1e-6)
        with net.gate_vector.fixed(zero):
            at_zero = net(x).square().sum()
        with net.gate_vector.fixed(little):
            above = net(x).square().sum()
        (draw,) = net.gate_vector.differentiated(at_zero)
        gradient = draw.gradient
        assert gradient is not None
        assert gradient[closed].abs() > 0.1
        torch.testing.assert_close(gradient[closed], (above - at_zero) / 1e-6, rtol=1e-4, atol=0)
        with net.gate_vector.fixed(zero), torch.no_grad():
            torch.testing.assert_close(net(x).square().sum(), at_zero, rtol=1e-15, atol=0)
