"""Invariants I1–I4 on one small model of each torchvision family; all of them: `benchmarks/exactness.py --all`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision_nets as small
from exactness import Shapes, check, randomise
from torch import nn
from zoo import FLOW, build, shapes

import fxcat

AS_THEY_ARE = ("googlenet", "lraspp_mobilenet_v3_large", "mnasnet0_5", "mobilenet_v3_small", "squeezenet1_1")
SMALLER: dict[str, Callable[[], nn.Module]] = {
    "convnext_tiny": small.convnext,
    "densenet121": small.densenet,
    "efficientnet_b0": small.efficientnet,
    "mobilenet_v2": small.mobilenet,
    "raft_small": small.Raft,
    "regnet_x_400mf": small.regnet_x,
    "regnet_y_400mf": small.regnet_y,
    "resnet18": small.resnet,
    "resnext50_32x4d": small.resnext,
    "shufflenet_v2_x0_5": small.shufflenet,
    "swin_t": small.swin,
    "swin_v2_t": small.swin_v2,
}
"""With fewer blocks, channels or updates than their namesakes, which are among the slow ones."""

LARGE = ("alexnet", "fcn_resnet50", "inception_v3", "maxvit_t", "mvit_v2_s", "r3d_18", "s3d", "swin3d_t", "vgg11_bn")

IMAGES = ((1, 3, 64, 64),), ((2, 3, 80, 64),)
"""Sizes that no family minds: in double precision the time goes into convolutions."""


def holds(model: nn.Module, name: str, example: Shapes, other: Shapes) -> None:
    model = model if name in FLOW else model.double()  # RAFT makes single-precision grids itself
    randomise(model, 0)
    report = check(model, name, example, other, settings=1)
    assert not report.failures
    assert report.units
    assert report.coverage > 0.9


@pytest.mark.parametrize("name", (*AS_THEY_ARE, *SMALLER))
def test_invariants(name: str) -> None:
    model = SMALLER[name]() if name in SMALLER else build(name)
    holds(model, name, *(shapes(name) if name in FLOW or name.startswith("swin") else IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("name", (*LARGE, "vit_b_32", *SMALLER))
def test_large_invariants(name: str) -> None:
    holds(build(name), name, *shapes(name))


@pytest.mark.parametrize(
    ("name", "sections"), (("resnet18", 8), ("resnet50", 16), ("mobilenet_v2", 10), ("swin_t", 24))
)
def test_every_residual_branch_is_a_section(name: str, sections: int) -> None:
    net = fxcat.prepare(build(name), torch.zeros(1, 3, 64, 64), verbose=False)
    assert len(net.structure.sections) == sections
