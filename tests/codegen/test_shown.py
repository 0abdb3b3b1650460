"""What somebody sees who looks at things in an interactive session."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_task import Net, batches

import fxcat

pytestmark = pytest.mark.usefixtures("one_thread")


def test_networks_gates_and_controllers_show_what_they_are() -> None:
    net = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False).train()
    lines = repr(net).splitlines()
    assert lines[0] == "GatedModule("
    assert lines[1] == "  40 units in 2 groups, 1 sections; 470,080 MACs (100.0%), 7,540 parameters (100.0%)"
    assert "(gate_vector): GateVector(40 units, 1 sections, 'sampled')" in repr(net)
    gate, section = net.gates["block.0"], net.gates["block.section"]
    assert repr(gate) == "Gate('block.0', 24 units, 24 with θ > ½)"
    assert repr(section) == "Gate('block.section', section, θ = 1.00)"
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.05)
    controller = fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=20)
    assert repr(controller) == (
        "GateController(Target(flops=0.5, params=None, latency=None, layers=0.5), step 0 of 20: warm-up; "
        "gates are trained in steps 2 to 11, 0 undecided)"
    )
    x, y = batches(16).tensors
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        controller.step()
    assert "step 12 of 20: plain" in repr(controller)
    assert "'hard', decided" in repr(net) and "470,080" not in repr(net)
    assert repr(gate) == "Gate('block.0', 24 units; the network has become smaller since)"
    repr(net.to("meta"))
    pressed = fxcat.prepare(Net(), torch.zeros(1, 3, 8, 8), verbose=False)
    optimizer = torch.optim.SGD(pressed.weight_parameters(), lr=0.05)
    shown = repr(fxcat.GateController(pressed, optimizer, pressure=fxcat.Pressure(nu=0.5), total_steps=20))
    assert "Pressure(nu=0.5" in shown
