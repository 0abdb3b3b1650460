"""Invariants I1–I4 on one small model of each torchvision family; all of them: `benchmarks/exactness.py --all`."""

from __future__ import annotations

import pytest
import torch
from exactness import check, randomise
from zoo import FLOW, build, shapes

import fxcat

FAMILIES = (
    *("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "lraspp_mobilenet_v3_large", "mnasnet0_5"),
    *("mobilenet_v2", "mobilenet_v3_small", "raft_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t"),
)
LARGE = ("alexnet", "fcn_resnet50", "inception_v3", "maxvit_t", "mvit_v2_s", "r3d_18", "s3d", "swin3d_t", "vgg11_bn")


SMALLER = ((1, 3, 64, 64),), ((2, 3, 80, 64),)
"""Images whose sizes no family of the fast tests minds: time goes into their convolutions, in double precision."""


def holds(name: str) -> None:
    model = build(name)
    model = model if name in FLOW else model.double()  # RAFT makes single-precision grids itself
    randomise(model, 0)
    fixed = name in LARGE or name in FLOW or name.startswith(("vit", "swin"))
    report = check(model, name, *(shapes(name) if fixed else SMALLER), settings=1)
    assert not report.failures
    assert report.units
    assert report.coverage > 0.9


@pytest.mark.parametrize("name", FAMILIES)
def test_invariants(name: str) -> None:
    holds(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", (*LARGE, "vit_b_32"))
def test_large_invariants(name: str) -> None:
    holds(name)


@pytest.mark.parametrize(
    ("name", "sections"), (("resnet18", 8), ("resnet50", 16), ("mobilenet_v2", 10), ("swin_t", 24))
)
def test_every_residual_branch_is_a_section(name: str, sections: int) -> None:
    net = fxcat.prepare(build(name), torch.zeros(1, 3, 64, 64), verbose=False)
    assert len(net.structure.sections) == sections
