"""Gated input features (`gate_inputs=True`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from differences import difference
from exactness import random_gates, randomise
from torch import nn

import fxcat

IMAGE = torch.zeros(1, 20, dtype=torch.float64)


def perceptron() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    randomise(model, 0)
    return model


def test_features_leave_at_the_entry(tmp_path: Path) -> None:
    net = fxcat.prepare(perceptron(), IMAGE, gate_inputs=True, verbose=False).eval()
    random_gates(net, 0)
    features = int((net.gates["input"].theta > 0.5).sum())
    assert 1 <= features < 20
    small = fxcat.finalize(net)
    x = torch.randn(3, 20, dtype=torch.float64)
    with torch.no_grad():
        assert difference(small(x), net(x)) <= 1e-10
    first = small.get_submodule("0")
    assert isinstance(first, nn.Linear)
    assert first.in_features == features
    assert net.hard_cost().macs == sum(m.weight.numel() for m in small.modules() if isinstance(m, nn.Linear))
    assert net.hard_cost().params == sum(p.numel() for p in small.parameters())
    report = fxcat.export_onnx(small.float(), tmp_path / "small.onnx", torch.zeros(1, 20))
    assert report.operators["Gather"] == 1


def test_nothing_is_left_of_an_entry_that_selects_everything() -> None:
    net = fxcat.prepare(perceptron(), IMAGE, gate_inputs=True, verbose=False)
    small = fxcat.finalize(net)
    assert small.state_dict().keys() == perceptron().state_dict().keys()


def test_features_leave_in_several_shrinks() -> None:
    net = fxcat.prepare(perceptron(), IMAGE, gate_inputs=True, verbose=False).eval()
    x = torch.randn(3, 20, dtype=torch.float64)
    widths = [20]
    with torch.no_grad():
        for seed in range(3):
            random_gates(net, seed, units=0.3)
            expected = net(x)
            net.shrink()
            assert difference(net(x), expected) <= 1e-10
            assert difference(fxcat.finalize(net)(x), expected) <= 1e-10
            widths.append(net.gates["input"].count)
    assert widths == sorted(set(widths), reverse=True)


def test_a_model_without_features_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(fxcat.InputError, match="gate_inputs=True"):
        fxcat.prepare(model, torch.zeros(1, 3, 8, 8), gate_inputs=True)
