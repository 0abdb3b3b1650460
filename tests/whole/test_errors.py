"""Errors are part of the interface: clear, early, and nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import fxcat


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if y.sum() > 0:
            return y
        return -y


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branch()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_not_a_module() -> None:
    with pytest.raises(fxcat.InputError, match="str"):
        fxcat.prepare("resnet18")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "inputs", (torch.zeros(1, 5, 8, 8), torch.zeros(1, 3), (torch.zeros(1, 3, 8, 8),) * 2, "image")
)
def test_wrong_inputs(inputs: Any) -> None:
    model = torchvision.models.resnet18()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(fxcat.FxcatError):
        fxcat.prepare(model, inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_capture_error_names_module_line_and_reason() -> None:
    with pytest.raises(fxcat.CaptureError) as caught:
        fxcat.prepare(Outer(), torch.zeros(1, 3, 8, 8))
    text = str(caught.value)
    assert "'inner'" in text
    assert "test_errors.py:" in text
    assert "values of a tensor" in text


def test_an_image_that_is_too_small() -> None:
    with pytest.raises(fxcat.CaptureError, match=r"(?s)Kernel size.*example inputs"):
        fxcat.prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), torch.zeros(1, 3, 4, 4))


def test_nothing_to_prune() -> None:
    with pytest.raises(fxcat.NothingToPruneError, match="nothing to prune"):
        fxcat.prepare(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("value", (0.0, -0.5, 1.5, float("nan")))
def test_target_outside_its_range(value: float) -> None:
    with pytest.raises(fxcat.TargetError, match="outside"):
        fxcat.Target(flops=value)


def test_other_bad_values() -> None:
    with pytest.raises(fxcat.TargetError):
        fxcat.Target()
    with pytest.raises(fxcat.TargetError):
        fxcat.Pressure(nu=-1.0)
    model = torchvision.models.resnet18()
    with pytest.raises(fxcat.InputError, match="gates="):
        fxcat.prepare(model, gates="channels")  # pyright: ignore[reportArgumentType]
    with pytest.raises(fxcat.InputError, match="layer9"):
        fxcat.prepare(model, ignore=["layer9"])


def test_emptied_group_changes_nothing() -> None:
    net = fxcat.prepare(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32), verbose=False)
    net.gates["conv1"].set(0.0)
    parameters = {n: p.shape for n, p in net.network.named_parameters()}
    with pytest.raises(fxcat.PlanError, match="at least one unit"):
        net.shrink()
    assert {n: p.shape for n, p in net.network.named_parameters()} == parameters
    with pytest.raises(fxcat.InputError):
        net.gates["conv1"].set(2.0)


def test_optimizer_of_the_original_model() -> None:
    model = torchvision.models.resnet18()
    net = fxcat.prepare(model, torch.zeros(1, 3, 32, 32), verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(fxcat.InputError, match="none of the gated network's weights"):
        fxcat.GateController(net, optimizer, target=fxcat.Target(flops=0.5), total_steps=10)


def test_ignored_modules_keep_their_shape() -> None:
    net = fxcat.prepare(torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32), ignore=["layer4"], verbose=False)
    for gate in net.gates.values():
        gate.set(0.0)
        if gate.kind == "units":
            gate.theta[0] = 1.0
    small = fxcat.finalize(net)
    shapes = {n: p.shape for n, p in torchvision.models.resnet18().layer4.named_parameters()}
    assert {n: p.shape for n, p in small.get_submodule("layer4").named_parameters()} == shapes
