"""torch-pruning as an oracle: an fxcat unit is torch-pruning's dependency group of the same channel.

Every unit is compared, as the set of parameter entries that go with it. Three differences are meant:

- A grouped convolution must stay balanced. torch-pruning removes single channels of it and leaves it to its pruner to
  take as many from every group; here its groups, or the positions within them, are units. The oracle's groups are
  joined accordingly (`balanced`).
- torch-pruning sees one forward pass in inference mode: heads that exist only in training are not compared.
- It would prune the network's outputs, the classes; they are no units here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
import torchvision
from analysed import analysed
from networkx.utils import UnionFind
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck
from torchvision_nets import densenet, efficientnet, regnet_x, regnet_y, resnext
from zoo import build, classifiers

from fxcat.passes.work import Analysis

FAST = ("alexnet", "googlenet", "resnet18", "squeezenet1_0")
"""Compared as they are."""


SMALLER: dict[str, Callable[[], nn.Module]] = {
    "densenet": densenet,
    "efficientnet": efficientnet,
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.5, num_classes=10),
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(width_mult=0.5, num_classes=10),
    "regnet_x": regnet_x,
    "regnet_y": regnet_y,
    "resnet": lambda: ResNet(Bottleneck, [1, 2, 1, 1], num_classes=10, width_per_group=16),
    "resnext": resnext,
}
"""With fewer blocks: every kind of block, and of connection between them, is there."""

FAILS = ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0")
"""Models that torch-pruning cannot analyse."""

Entry = tuple[str, int, int]
"""(parameter, axis, index)"""


def fxcat_units(analysis: Analysis) -> set[frozenset[Entry]]:
    """For every unit the parameter entries that go with it."""
    units: dict[int, set[Entry]] = {}
    for name, axes in analysis.units.parameters.items():
        for axis, labels in axes.items():
            for index, unit in enumerate(analysis.units.of_label[labels].tolist()):
                if unit >= 0:
                    units.setdefault(unit, set()).add((name, axis, index))
    return {frozenset(entries) for entries in units.values()}


def entries(name: str, module: nn.Module, entering: bool, index: int) -> list[Entry]:
    """What torch-pruning removes from a module with one of its channels."""
    if isinstance(module, nn.BatchNorm2d):
        return [(f"{name}.{p}", 0, index) for p in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(module, nn.Conv2d) and module.groups > 1 and entering:
        width = module.in_channels // module.groups
        if width == 1 or by_groups(module):
            return [(f"{name}.weight", 0, index // width * (module.out_channels // module.groups))]
        return [(f"{name}.weight", 1, index % width)]
    if isinstance(module, nn.Conv2d | nn.Linear):
        if entering:
            return [(f"{name}.weight", 1, index)]
        return [(f"{name}.weight", 0, index)] + ([] if module.bias is None else [(f"{name}.bias", 0, index)])
    return []


def by_groups(conv: nn.Conv2d) -> bool:
    """Whether the groups of a grouped convolution are its units, and not the positions within them."""
    return conv.groups >= max(conv.in_channels, conv.out_channels) // conv.groups


def balanced(name: str, conv: nn.Conv2d) -> list[list[Entry]]:
    """Entries of a grouped convolution that must go together for its groups to stay equally wide."""
    width = conv.out_channels // conv.groups
    rows = range(conv.out_channels)
    if by_groups(conv):
        return [[(f"{name}.weight", 0, i) for i in rows if i // width == g] for g in range(conv.groups)]
    return [[(f"{name}.weight", 0, i) for i in rows if i % width == p] for p in range(width)]


def oracle_units(model: nn.Module, example: torch.Tensor) -> set[frozenset[Entry]]:
    """torch-pruning's dependency groups, channel by channel."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    names = {m: n for n, m in model.named_modules()}
    joined: UnionFind[Entry] = UnionFind()
    for layer, name in names.items():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer not in graph.module2node:
            continue
        linear = isinstance(layer, nn.Linear)
        prune = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
        group: Any = graph.get_pruning_group(layer, prune, idxs=range(layer.weight.shape[0]))
        for i in range(len(group)):
            dependency, indices = group[i]
            target = dependency.target.module
            entering = dependency.handler.__name__.endswith("in_channels")
            for index, root in zip(indices, group[i].root_idxs, strict=True):
                for entry in entries(names.get(target, ""), target, entering, index):
                    joined.union((f"{name}.weight", 0, root), entry)
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            for together in balanced(name, layer):
                joined.union(*together)
    return {frozenset(together) for together in joined.to_sets()}


def compare(model: nn.Module, size: int = 64) -> None:
    example = torch.randn(1, 3, size, size)
    found = fxcat_units(analysed(model, example))
    theirs = oracle_units(model, example)
    seen = {parameter for unit in theirs for parameter, _, _ in unit}
    ours = {frozenset(e for e in unit if e[0] in seen) for unit in found} - {frozenset()}
    assert ours - theirs == set()
    extra = {parameter for unit in theirs - ours for parameter, _, _ in unit}
    classes = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1].weight
    assert len(theirs - ours) == classes.shape[0], "only the classes are no units"
    assert all(dict(model.named_parameters())[p].shape[0] == classes.shape[0] for p in extra)
    unseen = {p for unit in found for p, _, _ in unit} - seen
    assert all("aux" in p.lower() for p in unseen)


@pytest.mark.parametrize("name", (*FAST, *SMALLER))
def test_units_agree(name: str) -> None:
    compare((SMALLER[name]() if name in SMALLER else build(name)).eval())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in classifiers() if n not in FAST + FAILS])
def test_units_agree_on_every_model(name: str) -> None:
    compare(build(name).eval(), 299 if name == "inception_v3" else 64)


@pytest.mark.parametrize("name", FAILS[:1])
def test_models_that_the_oracle_cannot_analyse(name: str) -> None:
    with pytest.raises(ZeroDivisionError):
        oracle_units(build(name).eval(), torch.randn(1, 3, 64, 64))
