"""torch-pruning as an oracle: an fxcat unit is torch-pruning's dependency group of the same channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import nn

from fxcat.passes.analysis import Analysis, Options, analyse
from fxcat.passes.capture import capture

MODELS = (
    "alexnet",
    "densenet121",
    "mobilenet_v2",
    "regnet_x_400mf",
    "resnet18",
    "resnet50",
    "squeezenet1_0",
    "vgg11_bn",
)

Members = set[tuple[str, int, int]]
"""(parameter, axis, index)"""


def fxcat_units(analysis: Analysis) -> dict[int, Members]:
    """For every unit the parameter entries that go with it."""
    units: dict[int, Members] = {}
    for name, axes in analysis.units.parameters.items():
        for axis, labels in axes.items():
            for index, unit in enumerate(analysis.units.of_label[labels].tolist()):
                if unit >= 0:
                    units.setdefault(unit, set()).add((name, axis, index))
    return units


def oracle_members(graph: Any, names: dict[nn.Module, str], layer: nn.Module, index: int) -> Members:
    """What torch-pruning removes with one output channel of a layer."""
    group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=[index])
    members: Members = set()
    for dependency, indices in group:
        module, name = dependency.target.module, names.get(dependency.target.module)
        if name is None or isinstance(module, nn.ReLU | nn.ReLU6):
            continue
        entering = dependency.handler.__name__.endswith("in_channels")
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1 and module.weight.shape[1] == 1
        if isinstance(module, nn.BatchNorm2d):
            members |= {
                (f"{name}.{p}", 0, i) for p in ("weight", "bias", "running_mean", "running_var") for i in indices
            }
        elif entering and not depthwise:
            members |= {(f"{name}.weight", 1, i) for i in indices}
        else:
            parts = ("weight",) if getattr(module, "bias", None) is None else ("weight", "bias")
            members |= {(f"{name}.{p}", 0, i) for p in parts for i in indices}
    return members


@pytest.mark.parametrize("name", MODELS)
def test_units_agree(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    example = torch.randn(1, 3, 64, 64)
    captured = capture(model, example)
    analysis = analyse(captured.graph, captured.twin, captured.guards, Options())
    units = fxcat_units(analysis)
    unit_of = {member: unit for unit, members in units.items() for member in members}
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    names = {m: n for n, m in model.named_modules()}
    compared = 0
    for layer, path in names.items():
        if not isinstance(layer, nn.Conv2d):
            continue
        for index in (0, layer.out_channels - 1):
            unit = unit_of.get((f"{path}.weight", 0, index))
            if unit is None:
                continue
            grouped = {n for m, n in names.items() if isinstance(m, nn.Conv2d) and 1 < m.groups < m.in_channels}
            if any(m.rpartition(".")[0] in grouped for m, _, _ in units[unit]):
                # a whole group of a grouped convolution is one unit here; torch-pruning prunes single channels of it
                # and leaves it to the caller to take as many from every group
                continue
            assert oracle_members(graph, names, layer, index) == units[unit], f"{path}, channel {index}"
            compared += 1
    assert compared > 4
