"""What a section is worth, by two forward passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_task import EXAMPLE, Deep, batches, loader
from torch import nn

import fxcat
from fxcat.gate_training.bernoulli import BernoulliPolicy
from fxcat.gate_training.section_difference import loss_difference


class Dropped(Deep):
    """With dropout at its entry."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x, 0.2, self.training))


def test_the_difference_is_that_of_the_loss_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    net = fxcat.prepare(Dropped().double(), EXAMPLE, verbose=False).train()
    gate = net.gate_vector.unit_count  # the first section
    images, labels = batches(16).tensors
    buffers = [b.clone() for b in net.network.buffers()]

    def loss() -> torch.Tensor:
        return F.cross_entropy(net(images.double()), labels)

    net.gate_vector.values = "hard"
    loss()
    for buffer, before in zip(net.network.buffers(), buffers, strict=True):
        buffer.copy_(before)
    state = torch.get_rng_state()
    found = loss_difference(net, net.gate_vector.hard(), gate, loss)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(net.network.buffers(), buffers, strict=True))
    values: list[float] = []
    for theta in (0.0, 1.0):
        net.gate_vector.theta.data[gate] = theta
        torch.set_rng_state(state)
        values.append(loss().item())
    assert found == pytest.approx(values[0] - values[1], rel=1e-9)
    assert found != 0.0


def test_a_closure_of_an_optimizer_is_refused() -> None:
    """It runs the backward pass too, and there is none."""
    net = fxcat.prepare(Deep(), EXAMPLE, verbose=False).train()
    images, labels = batches(16).tensors

    def closure() -> torch.Tensor:
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        return loss

    with pytest.raises(fxcat.InputError, match=r"without gradients(?s:.*)return the loss and no more"):
        loss_difference(net, net.gate_vector.hard(), net.gate_vector.unit_count, closure)


def test_sections_that_are_worth_nothing_go_first() -> None:
    """One of two sections adds nothing: with differences its worth is nothing, and it leaves."""
    torch.manual_seed(0)
    model = Deep()
    last = [m for m in model.second.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    nn.init.zeros_(last.weight)
    last.weight.requires_grad_(False)
    nn.init.zeros_(last.bias)
    last.bias.requires_grad_(False)
    net = fxcat.prepare(model, EXAMPLE, gates="layers", verbose=False)
    optimizer = torch.optim.SGD([p for p in net.weight_parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    data = loader(256)
    target = fxcat.Target(flops=0.75)
    controller = fxcat.GateController(net, optimizer, target=target, total_steps=10 * len(data))
    policy = controller.policy
    assert isinstance(policy, BernoulliPolicy)
    net.train()
    for _ in range(10):
        for x, y in data:
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            controller.step(closure=lambda x=x, y=y: F.cross_entropy(net(x), y))
        if controller.phase == "warm-up":
            assert policy.worth.estimate[1].item() == 0.0
            assert policy.worth.estimate[0].item() > 0.0
    left = net.live_units()
    names = [s.name for s in net.start_structure.sections]
    assert [left[name] for name in names] == [1, 0]


def test_fit_measures_differences() -> None:
    torch.manual_seed(0)
    net = fxcat.prepare(Deep(), EXAMPLE, verbose=False)
    fxcat.fit(net, loader(), epochs=4, target=fxcat.Target(flops=0.5), section_differences=True, progress=False)
    assert 0.45 < net.hard_cost().macs / net.start_cost.macs <= 0.5
